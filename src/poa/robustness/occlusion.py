"""Images of which part is missing or out of place: hidden cells, shuffled patches, and another image's background.

The first two after Naseer et al. 2021 ("Intriguing Properties of Vision Transformers", Sec. 3.1 and 3.3) as POA's
official code runs them, the last after Xiao et al. 2021 ("Noise or Signal", Mixed-Rand).
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage
from torch import Tensor

from poa.data.content import Identity, content_of_file, short_digest
from poa.data.images import BadImage, Preprocessing, image_tensor, load
from poa.data.index import ImageIndex
from poa.data.loader import read_or_none
from poa.data.resize import centre_crop
from poa.data.sources import read_file
from poa.errors import UserError, counted
from poa.robustness.corruptions import generator_of

GRID = 14
"""Rows and columns of the published grid: patches of 16 pixels at 224."""
_HIDING, _SHUFFLING = 101, 102


def usual_grid(side: int) -> int:
    """Rows (and columns) of cells: the most that divide images of ``side`` pixels evenly, up to the published 14."""
    return max(grid for grid in range(1, GRID + 1) if side % grid == 0)


def check_grid(grid: int, side: int, *, setting: str) -> None:
    """See that images of ``side`` pixels can be cut into cells.

    Raises:
        UserError: They cannot be divided; ``setting`` is the flag to change.
    """
    if grid < 1 or side % grid:
        fitting = ", ".join(str(each) for each in range(2, min(side, 32) + 1) if side % each == 0)
        raise UserError(
            f"Images of {side} pixels cannot be divided into {grid} x {grid} equal cells. Set {setting} to one "
            f"of {fitting}."
        )


def hide(
    images: Float[Tensor, "batch 3 side side"], *, share: float, grid: int, numbers: Sequence[int], seed: int = 0
) -> Float[Tensor, "batch 3 side side"]:
    """Set a share of the cells of each image to 0, which after normalisation is the mean colour.

    Cells are drawn for each image; those hidden at a share are hidden at all greater ones. As published, the number of
    cells is rounded down. (There one draw serves a batch of images.)

    Args:
        images: Normalised.
        share: Of the cells, from 0 to 1.
        grid: Rows and columns of cells; divides the side.
        numbers: Of the images in their set.
        seed: Of the choice.
    """
    count = int(share * grid * grid + 1e-9)  # 0.3 of 10 is 3, whatever floats make of it
    order = np.stack([generator_of(seed, number, stream=_HIDING).permutation(grid * grid) for number in numbers])
    places = torch.from_numpy(order).argsort(dim=1)
    kept = (places >= count).view(-1, 1, grid, grid).to(images.device)
    cell = images.shape[-1] // grid
    return images * kept.repeat_interleave(cell, 2).repeat_interleave(cell, 3)


def shuffle(
    images: UInt8[Tensor, "batch 3 side side"], *, grid: int, numbers: Sequence[int], seed: int = 0
) -> UInt8[Tensor, "batch 3 side side"]:
    """Cut each image into ``grid`` x ``grid`` cells and put them together in random order, each image in its own."""
    batch, channels, side, _ = images.shape
    cell = side // grid
    cells = images.view(batch, channels, grid, cell, grid, cell).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = np.stack([generator_of(seed, number, stream=_SHUFFLING).permutation(grid * grid) for number in numbers])
    rows = torch.arange(batch, device=images.device)[:, None]
    mixed = cells[rows, torch.from_numpy(order).to(images.device)].view(batch, grid, grid, channels, cell, cell)
    return mixed.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def swap_background(
    image: UInt8[Tensor, "3 side side"],
    mask: Bool[Tensor, "side side"],
    other: UInt8[Tensor, "3 side side"],
    other_mask: Bool[Tensor, "side side"],
) -> UInt8[Tensor, "3 side side"]:
    """The object of an image before the background of another one.

    Where the other image shows its own object, its nearest background pixel takes the place, so that nothing of that
    object is left but its outline. (The published set tiles the largest rectangle of background.) Masks are true where
    the objects are.
    """
    nearest = ndimage.distance_transform_edt(other_mask.numpy(), return_distances=False, return_indices=True)
    filled = other[:, torch.from_numpy(nearest[0]).long(), torch.from_numpy(nearest[1]).long()]
    return torch.where(mask, image, filled)


_DRAWING, _TRIES = 103, 100
_FORMS: tuple[Literal["NFC"], Literal["NFD"]] = "NFC", "NFD"


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
                f"{len(missing)} of {counted(len(self.index), 'test image')} have no mask in {self.folder}, such as "
                f"{self.index.name(missing[0])!r}, whose mask would be {self.path(missing[0])}. "
                "Name each mask after its image, with the ending .png."
            )
        if len(np.unique(self.labels)) < 2:
            raise UserError(
                "Backgrounds are taken from images of another class, but all test images have the same class. Give "
                "test images of two classes or more, or leave out --masks."
            )

    @property
    def identity(self) -> Identity:
        """What results know all masks by."""
        digests = [content_of_file(str(self.path(number)), None).digest for number in range(len(self.index))]
        found = np.array(digests, np.uint64)
        return Identity(str(self.folder), f"{len(found)} masks {short_digest(found.tobytes())}", found)

    def path(self, number: int) -> Path:
        """Where the mask of an image lies; accents of its name may be in another form (macOS)."""
        name = Path(self.index.name(number)).with_suffix(".png")
        wanted = self.folder / (name.name if name.is_absolute() else name)
        spelt = (self.folder / unicodedata.normalize(form, str(wanted.relative_to(self.folder))) for form in _FORMS)
        return next((path for path in (wanted, *spelt) if path.is_file()), wanted)

    def mask(self, number: int) -> Bool[Tensor, "size size"]:
        """Where the crop of an image, which can be read, shows its object."""
        pixels = read_or_none(self.index, number)
        assert pixels is not None
        return self._cropped_mask(number, pixels)

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
            pixels = read_or_none(self.index, other) if self.labels[other] != self.labels[number] else None
            if pixels is None:
                continue
            mask = self._cropped_mask(other, pixels)
            if not bool(mask.all()):
                return self._crop(pixels)[0], mask
        raise UserError(
            f"No background was found for {self.index.name(number)!r}: none of {_TRIES} randomly drawn images "
            "has another class and a visible background. Check the masks: they are 0 where the background is."
        )

    def _cropped_mask(self, number: int, pixels: UInt8[Tensor, "1 3 height width"]) -> Bool[Tensor, "size size"]:
        mask, (height, width) = _read(self.path(number)), pixels.shape[2:]
        if mask.shape != (height, width):
            raise UserError(
                f"The mask {self.path(number)} has {mask.shape[1]}x{mask.shape[0]} pixels, but its image has "
                f"{width}x{height}. Masks must have the size of their images."
            )
        marked = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
        return self._crop(image_tensor(marked))[0, 0] > 127

    def _crop(self, pixels: UInt8[Tensor, "1 3 height width"]) -> UInt8[Tensor, "1 3 size size"]:
        return centre_crop(pixels, size=self.preprocessing.image_size, resize_to=self.preprocessing.resize)


def _read(path: Path) -> npt.NDArray[np.bool_]:
    try:
        image = load(read_file(path))
    except (OSError, BadImage) as error:
        raise UserError(f"The mask {path} cannot be read ({error}). Save it again as PNG.") from None
    values, has_alpha = np.asarray(image), image.mode in ("LA", "PA", "RGBA")
    channels = values.reshape(*values.shape[:2], -1)
    return np.asarray(np.any(channels[..., :-1] if has_alpha else channels, axis=-1))
