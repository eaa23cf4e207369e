"""Test images whose objects are marked by masks, and backgrounds for them from images of other classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from poa.data.images import Preprocessing, centre_crop
from poa.data.index import ImageIndex
from poa.data.loader import read_or_none
from poa.errors import UserError
from poa.robustness.corruptions import generator_of
from poa.robustness.occlusion import swap_background

_DRAWING, _TRIES = 103, 100


@dataclass(frozen=True, eq=False)
class MaskedImages:
    """Images and their masks, cropped alike. The mask of ``cat/1.jpg`` is ``cat/1.png`` in the folder of masks.

    Masks are PNG files of the height and width of their images, not 0 where the object is; backgrounds follow the seed.
    """

    index: ImageIndex
    labels: npt.NDArray[np.int64]
    folder: Path
    preprocessing: Preprocessing
    seed: int = 0

    def check(self) -> None:
        """See that every image has a mask, and that there are classes to take other backgrounds from."""
        if not self.folder.is_dir():
            raise UserError(f"There is no folder {self.folder} of masks. Give --masks FOLDER, or leave it out.")
        missing = [number for number in range(len(self.index)) if not self.path(number).is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.index)} test images have no mask in {self.folder}, such as "
                f"{self.index.name(missing[0])!r}, whose mask would be {self.path(missing[0])}. "
                "Name each mask after its image, with the ending .png."
            )
        if len(np.unique(self.labels)) < 2:
            raise UserError("Backgrounds are taken from images of another class, but all test images are of one class.")

    @property
    def fingerprint(self) -> str:
        """Short hash of all masks: equal fingerprints mean the same masks."""
        digest = sha256()
        for number in range(len(self.index)):
            digest.update(sha256(self.path(number).read_bytes()).digest())
        return digest.hexdigest()[:16]

    def path(self, number: int) -> Path:
        """Where the mask of an image lies."""
        name = Path(self.index.name(number)).with_suffix(".png")
        return self.folder / (name.name if name.is_absolute() else name)

    def mask(self, number: int) -> Bool[Tensor, "size size"]:
        """Where the crop of an image, which can be read, shows its object."""
        image = read_or_none(self.index, number)
        assert image is not None
        return self._cropped_mask(number, image)

    def show_object(self, numbers: Sequence[int]) -> Bool[Tensor, " batch"]:
        """Which images show their object at all."""
        return torch.stack([self.mask(number).any() for number in numbers])

    def swapped(
        self, images: UInt8[Tensor, "batch 3 size size"], *, numbers: Sequence[int]
    ) -> UInt8[Tensor, "batch 3 size size"]:
        """The objects of images before the backgrounds of images of other classes."""
        return torch.stack(
            [
                swap_background(image, self.mask(number), *self.background(number))
                for image, number in zip(images, numbers, strict=True)
            ]
        )

    def background(self, number: int) -> tuple[UInt8[Tensor, "3 size size"], Bool[Tensor, "size size"]]:
        """The crop of an image of another class that shows some background, and its mask; for an image always the same.

        Raises:
            UserError: No such image was found, or a mask is damaged.
        """
        drawn = generator_of(self.seed, number, stream=_DRAWING).integers(len(self.index), size=_TRIES)
        for other in map(int, drawn):
            image = read_or_none(self.index, other) if self.labels[other] != self.labels[number] else None
            if image is None:
                continue
            mask = self._cropped_mask(other, image)
            if not bool(mask.all()):
                return self._crop(image)[0], mask
        raise UserError(
            f"No background was found for {self.index.name(number)!r}: of {_TRIES} images drawn none was of another "
            "class and showed something beside its object. Look at the masks: they are 0 where the background is."
        )

    def _cropped_mask(self, number: int, image: Image.Image) -> Bool[Tensor, "size size"]:
        mask = _read(self.path(number))
        if mask.shape != (image.height, image.width):
            raise UserError(
                f"The mask {self.path(number)} has {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                f"{image.width} x {image.height}. Masks have the size of their images."
            )
        marked = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
        return self._crop(marked)[0, 0] > 127

    def _crop(self, image: Image.Image) -> UInt8[Tensor, "1 3 size size"]:
        return centre_crop(image, size=self.preprocessing.image_size, resize_to=self.preprocessing.resize)


def _read(path: Path) -> npt.NDArray[np.bool_]:
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
            has_alpha = image.mode in ("LA", "PA", "RGBA")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"The mask {path} cannot be read ({error}). Write it again as PNG.") from None
    channels = values.reshape(*values.shape[:2], -1)
    return np.asarray(np.any(channels[..., :-1] if has_alpha else channels, axis=-1))
