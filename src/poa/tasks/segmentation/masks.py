"""Images with a class for each pixel: pairs of image and mask, read and checked before training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int, UInt8
from rich.console import Console
from torch import Tensor

from poa.data.content import MOST_NAMED, Identity, LeftOut
from poa.data.images import LOSSY, BadImage, decode, image_tensor, load
from poa.data.index import ImageIndex
from poa.data.spelling import Spellings
from poa.data.workers import Plan, prepare
from poa.errors import UserError, counted
from poa.features.images import open_images

IGNORED = 255
"""Usual id of pixels without a class."""
_OF_IDS = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of one number a pixel; of palettes it is the place in the palette."""


class Pair(NamedTuple):
    """An image, RGB in 0..255, and its mask: the class of each pixel, or the id that is ignored."""

    image: UInt8[Tensor, "1 3 height width"]
    mask: Int[Tensor, "height width"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Images and masks that belong together, by their numbers in both indices; ``ignore`` is the id of no class."""

    images: ImageIndex
    masks: ImageIndex
    image_rows: npt.NDArray[np.int64]
    mask_rows: npt.NDArray[np.int64]
    ignore: int = IGNORED

    def __len__(self) -> int:
        return len(self.image_rows)

    @property
    def identity(self) -> Identity:
        """What results know images and masks by."""
        images, masks = self.images.digest_of(self.image_rows), self.masks.digest_of(self.mask_rows)
        source = f"{self.images.identity.source} with masks {self.masks.source}"
        return Identity(source, f"{len(self)} images {images}, masks {masks}", self.images.digests[self.image_rows])

    def name(self, i: int) -> str:
        """Path of the image of pair ``i`` relative to its source."""
        return self.images.name(int(self.image_rows[i]))

    def take(self, chosen: Sequence[int]) -> "Pairs":
        """Some of the pairs."""
        rows = np.array(chosen, np.int64)
        return replace(self, image_rows=self.image_rows[rows], mask_rows=self.mask_rows[rows])

    def read(self, i: int) -> Pair:
        """Read pair ``i``; BadImage if image or mask is damaged, UserError if they do not belong together."""
        image, mask, row = decode(self.images.read(int(self.image_rows[i]))), self.read_mask(i), int(self.mask_rows[i])
        if (image.height, image.width) != mask.shape:
            raise UserError(
                f"The mask {self.masks.name(row)!r} in {self.masks.source} has {mask.shape[1]}x{mask.shape[0]} "
                f"pixels, but its image {self.name(i)!r} has {image.width}x{image.height} (after its EXIF "
                "rotation). Resize masks to the size of their images by nearest-neighbour interpolation."
            )
        return Pair(image_tensor(image), torch.from_numpy(mask))

    def read_mask(self, i: int) -> npt.NDArray[np.int64]:
        """Read the mask of pair ``i``; BadImage if it is damaged."""
        row = int(self.mask_rows[i])
        return _ids(self.masks.read(row), name=self.masks.name(row), source=self.masks.source)


@dataclass(frozen=True, slots=True)
class MaskedImages:
    """Images with masks as the user names them: each a folder, an archive or a list; masks are named like images."""

    images: str
    masks: str

    def open(self, *, limit: int | None = None, ignore: int = IGNORED, console: Console | None = None) -> Pairs:
        """Their pairs, of ``limit`` images at most."""
        images = open_images(self.images, limit=limit, console=console)
        return pair_up(images, open_images(self.masks, console=console), ignore=ignore)


def pair_up(images: ImageIndex, masks: ImageIndex, *, ignore: int = IGNORED) -> Pairs:
    """Find the mask of each image: that of the same path and name, whatever their endings; masks may be left over."""
    spellings = Spellings(_by_stem(masks))
    rows = [spellings.find(stem) for stem in _by_stem(images)]
    missing = [i for i, row in enumerate(rows) if row is None]
    if missing:
        raise UserError(
            f"{len(missing):,} of {counted(len(images), 'image')} in {images.source} have no mask in "
            f"{masks.source}, such as {images.name(missing[0])!r}; a mask there is called {masks.name(0)!r}. "
            "Name each mask like its image, except for the ending, in folders of the same names."
        )
    return Pairs(images, masks, np.arange(len(images), dtype=np.int64), np.array(rows, np.int64), ignore)


def _by_stem(index: ImageIndex) -> dict[str, int]:
    found: dict[str, int] = {}
    for i in range(len(index)):
        stem = str(PurePosixPath(index.name(i)).with_suffix(""))
        if stem in found:
            raise UserError(
                f"{index.name(found[stem])!r} and {index.name(i)!r} in {index.source} differ only in their "
                "endings, so the pairs of images and masks are ambiguous. Remove one of them."
            )
        found[stem] = i
    return found


def _ids(encoded: bytes, *, name: str, source: str) -> npt.NDArray[np.int64]:
    image = load(encoded)
    if image.format in LOSSY:
        raise UserError(
            f"The mask {name!r} in {source} is a {image.format} file, whose compression changes class ids. "
            "Give masks as PNG files of class ids."
        )
    if image.mode not in _OF_IDS:
        raise UserError(
            f"The mask {name!r} in {source} is a colour image ({image.mode}), but masks need one class id "
            "per pixel: a grey PNG with values 0, 1, 2 ..., or one with a palette. Replace each colour by "
            "the number of its class."
        )
    return np.array(image).astype(np.int64)


class _Contents(NamedTuple):
    """Of one pair: height and width (None if image or mask is damaged), class ids, and how many pixels have each.

    Of a damaged image the mask may still be read.
    """

    sides: tuple[int, int] | None
    ids: tuple[int, ...] = ()
    pixels: tuple[int, ...] = ()


@dataclass(frozen=True)
class PairStatistics:
    """What masks hold.

    Attributes:
        pairs: Those that can be read.
        left_out: The others; their classes are ids that no other mask has.
        pixels: Number of pixels by class id.
        examples: Name of a mask by class id.
        smallest: Name of the smallest image, and its shorter side in pixels.
        identity: Of all pairs, those that cannot be read too.
    """

    pairs: Pairs
    left_out: LeftOut
    identity: Identity
    pixels: dict[int, int] = field(default_factory=dict)
    examples: dict[int, str] = field(default_factory=dict)
    smallest: tuple[str, int] = ("", 0)


@dataclass(frozen=True)
class _ContentsPlan(Plan[_Contents]):
    pairs: Pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def make(self, number: int) -> _Contents:
        sides = None
        try:
            mask = self.pairs.read(number).mask.numpy()
            sides = mask.shape[0], mask.shape[1]
        except BadImage:
            try:
                mask = self.pairs.read_mask(number)
            except BadImage:
                return _Contents(None)
        ids, pixels = np.unique(mask, return_counts=True)
        return _Contents(sides, tuple(ids.tolist()), tuple(pixels.tolist()))


def statistics(pairs: Pairs, *, workers: int = 0, advance: Callable[[int], None] | None = None) -> PairStatistics:
    """Read all pairs once; UserError if a mask does not fit its image, or no pair can be read."""
    good: list[int] = []
    pixels: dict[int, int] = {}
    examples: dict[int, str] = {}
    smallest: tuple[str, int] | None = None
    lost = set[int]()
    for i, contents in enumerate(prepare(_ContentsPlan(pairs), workers=workers)):
        if advance is not None:
            advance(1)
        if contents.sides is None:
            lost.update(contents.ids)
            continue
        good.append(i)
        if smallest is None or min(contents.sides) < smallest[1]:
            smallest = pairs.name(i), min(contents.sides)
        for number, count in zip(contents.ids, contents.pixels, strict=True):
            pixels[number] = pixels.get(number, 0) + count
            examples.setdefault(number, pairs.masks.name(int(pairs.mask_rows[i])))
    if smallest is None:
        raise UserError(
            f"Of {counted(len(pairs), 'image')} in {pairs.images.source}, none could be read together with its "
            f"mask in {pairs.masks.source}. Check that the files still exist and are images."
        )
    bad = sorted(set(range(len(pairs))) - set(good))
    classes = tuple(map(str, sorted(lost - set(pixels) - {pairs.ignore})))
    left_out = LeftOut(len(bad), len(pairs), tuple(pairs.name(i) for i in bad[:MOST_NAMED]), classes)
    return PairStatistics(pairs.take(good), left_out, pairs.identity, pixels, examples, smallest)


def class_names(train: PairStatistics, test: PairStatistics | None, *, names: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes, after checking that the masks have no others.

    ``names`` are in the order of the ids; without them, classes are called by their ids, up to the highest one in the
    training masks, most of which have to occur.
    """
    ignore = train.pairs.ignore
    seen = sorted(set(train.pixels) - {ignore})
    if set(train.pixels) == {0, IGNORED} and (names is None or len(names) <= IGNORED):
        raise UserError(
            f"The training masks in {train.pairs.masks.source} are black and white: they hold the ids 0 and {IGNORED} "
            f"alone. If white is a class, write 1 in place of {IGNORED}: in Python, (mask > 0).astype('uint8')."
        )
    if len(seen) < 2:
        found = f"the one class id {seen[0]}" if seen else "no class id at all"
        raise UserError(
            f"The training masks in {train.pairs.masks.source} hold {found} besides {ignore}, which is ignored, "
            "but at least two classes are needed. Number classes from 0, and give the id of pixels without a "
            "class with --ignore."
        )
    if names is None and 2 * len(seen) < seen[-1] + 1:
        raise UserError(
            f"The training masks in {train.pairs.masks.source} hold only {len(seen)} of the ids from 0 to {seen[-1]}. "
            f"If {seen[-1]} (in {train.examples[seen[-1]]!r}) marks pixels without a class, add --ignore {seen[-1]}; "
            "if there are so many classes, name them with --classes; otherwise number the classes from 0."
        )
    known = tuple(map(str, range(seen[-1] + 1))) if names is None else tuple(names)
    why = f"the highest of the training masks is {seen[-1]}" if names is None else f"there are {len(known)} class names"
    for each in (train,) if test is None else (train, test):
        strange = [number for number in each.pixels if number != ignore and not 0 <= number < len(known)]
        if strange:
            raise UserError(
                f"The mask {each.examples[strange[0]]!r} in {each.pairs.masks.source} has pixels of class id "
                f"{strange[0]}, but {why}, so ids must be from 0 to {len(known) - 1}. Correct the masks or the "
                f"names, or leave these pixels out with --ignore {strange[0]}."
            )
    if test is not None and not set(test.pixels) - {ignore}:
        raise UserError(
            f"The test masks in {test.pairs.masks.source} hold only id {ignore}, which is ignored. "
            "Give masks with classes, or another --ignore."
        )
    return known


def read_names(file: Path) -> tuple[str, ...]:
    """Names of classes from a text file, one a line, in the order of their ids."""
    try:
        text = file.read_text(encoding="utf-8-sig").rstrip()
        names = [line.strip() for line in text.split("\n")] if text else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The class names in {file} cannot be read ({error}). Give a text file with one name per line."
        ) from None
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if "" in names or twice is not None or not names:
        what = f"the name {twice!r} twice" if twice else "an empty line" if "" in names else "no names"
        raise UserError(
            f"{file} holds {what}. Give one name per line, in the order of the class ids from 0, each name once."
        )
    return tuple(names)
