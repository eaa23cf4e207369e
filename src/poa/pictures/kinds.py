"""The kinds of pictures: each draws what some networks saw, side by side, and says how to read it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from poa.errors import UserError
from poa.pictures import prototypes
from poa.pictures.attention import Look, activation, grid_of, heat
from poa.pictures.page import Picture, Section
from poa.pictures.pairs import Pair, pairs
from poa.pictures.patches import (
    NEIGHBOURS,
    SHOWN,
    Match,
    Region,
    colours,
    matches,
    neighbours,
    right_matches,
    same_point,
)
from poa.plots.figure import RIGHT, WRONG, Cell, Row, sheet, shortened

PAIRS = 4
"""Pairs of images with lines between them."""


class Views(NamedTuple):
    """Two augmented views of each shown image.

    Attributes:
        first: As pixels.
        second: As pixels.
        regions: Where both lie in each image.
        looks: What the network makes of the first and of the second.
    """

    first: UInt8[Tensor, "shown 3 side side"]
    second: UInt8[Tensor, "shown 3 side side"]
    regions: tuple[tuple[Region, Region], ...]
    looks: tuple[Look, Look]


class Head(NamedTuple):
    """What a projection head makes of all images.

    Attributes:
        projected: On the unit sphere.
        prototypes: Of the head.
    """

    projected: Float[Tensor, "images dim"]
    prototypes: Float[Tensor, "prototypes dim"]


@dataclass(frozen=True)
class Sight:
    """What one network saw.

    Attributes:
        label: Of the network, on the pictures.
        crops: All images as it saw them.
        look: What it makes of the shown ones.
        partners: And of their partners.
        cls: One vector for each of all images, if neighbours or prototypes are wanted.
        views: Of the shown images, if wanted.
        head: Of a run with prototypes.
    """

    label: str
    crops: UInt8[Tensor, "images 3 side side"]
    look: Look
    partners: Look
    cls: Float[Tensor, "images width"] | None = None
    views: Views | None = None
    head: Head | None = None


@dataclass(frozen=True)
class Album:
    """What all pictures share.

    Attributes:
        folder: Where they are written.
        names: Of all images.
        classes: The class of each image in words; empty where images have none.
        shown: Numbers of the images that are shown one by one.
        partners: Of the first of them another image to match each with.
    """

    folder: Path
    names: tuple[str, ...]
    classes: tuple[str, ...]
    shown: tuple[int, ...]
    partners: tuple[int, ...]

    def label(self, image: int) -> str:
        """An image in few words.

        Args:
            image: Its number.
        """
        name = shortened(Path(self.names[image]).name)
        return f"{shortened(self.classes[image])}\n{name}" if self.classes else name


def _pixels(image: UInt8[Tensor, "3 side side"]) -> npt.NDArray[np.uint8]:
    return image.permute(1, 2, 0).numpy()


def slug(label: str) -> str:
    """A label as part of a file's name.

    Args:
        label: Of a network.
    """
    return re.sub(r"[^\w.-]+", "-", label)


def attention(sights: Sequence[Sight], album: Album) -> Section:
    """Attention of the class token in the last block."""
    without = [sight.label for sight in sights if sight.look.attention is None]
    found = []
    for place, image in enumerate(album.shown):
        rows = [Row(shortened(sight.label, 24), _attention_cells(sight, image, place)) for sight in sights]
        file = f"attention-{place:02}.png"
        sheet(rows, out=album.folder / file)
        found.append(Picture(file, album.names[image]))
    missing = (
        f"{', '.join(without)}: no attention of a class token can be drawn. Shown instead is how far the features of "
        "each cell of the last map are from their mean over the image."
    )
    text = (
        "Where the class token looks in the last block: the share of its attention that each patch gets, averaged over "
        "heads and from each head. Every map goes from its own least (black) to its own greatest value (yellow)."
    )
    return Section("attention", "Attention", text, [missing] if without else [], found)


def _attention_cells(sight: Sight, image: int, place: int) -> list[Cell]:
    cells = [Cell(_pixels(sight.crops[image]), "image")]
    if sight.look.attention is None:
        return [*cells, Cell(heat(activation(sight.look.patches[place])), "activation")]
    heads = sight.look.attention[place]
    maps = [("mean", heads.mean(dim=0)), *((f"head {number}", head) for number, head in enumerate(heads, start=1))]
    return [*cells, *(Cell(heat(values), caption) for caption, values in maps)]


def features_as_colours(sights: Sequence[Sight], album: Album) -> Section:
    """Principal components of patch features as red, green and blue."""
    drawn, notes = {}, []
    for sight in sights:
        try:
            drawn[sight.label] = colours(sight.look.patches)
        except UserError as error:
            notes.append(f"{sight.label}: {error}")
    rows = []
    for place, image in enumerate(album.shown):
        maps = [Cell(of_network[place], shortened(label, 18)) for label, of_network in drawn.items()]
        rows.append(Row(album.label(image), [Cell(_pixels(sights[0].crops[image]), "image"), *maps]))
    text = (
        "Patches with like features have like colours: the first three principal components of the patch features over "
        "all images of this sheet are red, green and blue. Colours can be compared down a column, not across: each "
        "network has components of its own."
    )
    if not drawn:
        return Section("colours", "Features as colours", text, notes, [])
    sheet(rows, out=album.folder / "colours.png")
    return Section("colours", "Features as colours", text, notes, [Picture("colours.png", ", ".join(drawn))])


def nearest(sights: Sequence[Sight], album: Album) -> Section:
    """The nearest images to each shown one."""

    def draw(sight: Sight) -> Picture:
        assert sight.cls is not None
        cosines, images = neighbours(sight.cls, album.shown)
        rows, right = [], 0
        for query, near, values in zip(album.shown, images.tolist(), cosines.tolist(), strict=True):
            cells = [Cell(_pixels(sight.crops[query]), "query")]
            for image, cosine in zip(near, values, strict=True):
                is_right = bool(album.classes) and album.classes[image] == album.classes[query]
                right += is_right
                words = f"{shortened(album.classes[image], 11)} {cosine:.2f}" if album.classes else f"{cosine:.2f}"
                frame = (RIGHT if is_right else WRONG) if album.classes else None
                cells.append(Cell(_pixels(sight.crops[image]), words, frame))
            rows.append(Row(album.label(query), cells))
        file = f"neighbours-{slug(sight.label)}.png"
        sheet(rows, out=album.folder / file)
        told = f": {right} of {NEIGHBOURS * len(rows)} of the same class" if album.classes else ""
        return Picture(file, f"{sight.label}{told}")

    text = f"The {NEIGHBOURS} images most alike by cosine of the class features, among {len(album.names):,}."
    if album.classes:
        text += " Green frames: the same class as the image on the left; red frames: another."
    return _one_each("neighbours", "Nearest images", text, sights, draw)


def _one_each(name: str, title: str, text: str, sights: Sequence[Sight], draw: Callable[[Sight], Picture]) -> Section:
    """A picture a network; one that cannot be drawn does not keep others from it."""
    found, notes = [], []
    for sight in sights:
        try:
            found.append(draw(sight))
        except UserError as error:
            notes.append(f"{sight.label}: {error}")
    return Section(name, title, text, notes, found)


def correspondences(sights: Sequence[Sight], album: Album) -> Section:
    """Matching patches of two images, and of two views of one."""
    found = []
    for place, partner in enumerate(album.partners):
        file = f"matches-images-{place}.png"
        pairs([_pair(sight, album, place) for sight in sights], out=album.folder / file)
        found.append(Picture(file, f"{album.names[album.shown[place]]} and {album.names[partner]}"))
    with_views = [sight for sight in sights if sight.views is not None]
    for place, image in enumerate(album.shown[:PAIRS]):
        file = f"matches-views-{place}.png"
        pairs([_pair_of_views(sight, place) for sight in with_views], out=album.folder / file)
        found.append(Picture(file, f"two views of {album.names[image]}"))
    text = (
        f"Patches of two images that are each other's nearest by cosine, the {SHOWN} most alike. A line and its two "
        "dots have one colour. Below, the same for two views of one image, cut and coloured as in training: there it "
        "is known which patch of the other view covers the same point. How often the nearest patch is that one, among "
        "the patches that both views show, stands above each pair; matches that are wrong are dashed."
    )
    told = "; ".join(f"{sight.label} {_accuracy(sight)}" for sight in with_views)
    return Section("matches", "Matching patches", text, [f"Right in all images that are shown: {told}."], found)


def partners_of(shown: Sequence[int], labels: Sequence[int]) -> tuple[int, ...]:
    """For the first shown images the next image of the same class, else the next image, from the start after the last.

    Args:
        shown: Numbers of images.
        labels: The class of each of all images; -1 for none.
    """
    found = []
    for image in shown[:PAIRS] if len(labels) > 1 else ():
        others = [(image + step) % len(labels) for step in range(1, len(labels))]
        same = (other for other in others if labels[other] == labels[image] >= 0)
        found.append(next(same, others[0]))
    return tuple(found)


def _pair(sight: Sight, album: Album, place: int) -> Pair:
    first, second = sight.look.patches[place], sight.partners.patches[place]
    found = matches(first, second)
    images = _pixels(sight.crops[album.shown[place]]), _pixels(sight.crops[album.partners[place]])
    return Pair(f"{sight.label}: {_cosines(found)}", images[0], images[1], found, grid_of(len(first)))


def _cosines(found: Sequence[Match]) -> str:
    values = [match.cosine for match in found]
    return f"cosine {max(values):.2f} to {min(values):.2f}" if values else "no matches"


def _pair_of_views(sight: Sight, place: int) -> Pair:
    views = sight.views
    assert views is not None
    patches = [each.patches[place] for each in views.looks]
    regions, grid = views.regions[place], grid_of(len(patches[0]))
    right = right_matches(patches[0], patches[1], regions)
    told = f"{int(right.sum())} of {len(right)} right" if len(right) else "no patch in both views"
    found = matches(patches[0], patches[1])
    wanted, is_seen = same_point(*regions, grid=grid)
    is_wrong = [not bool(is_seen[match.first]) or int(wanted[match.first]) != match.second for match in found]
    pixels = _pixels(views.first[place]), _pixels(views.second[place])
    return Pair(f"{sight.label}: {told}", pixels[0], pixels[1], found, grid, is_wrong)


def _accuracy(sight: Sight) -> str:
    views = sight.views
    assert views is not None
    right = torch.cat(
        [
            right_matches(first, second, regions)
            for first, second, regions in zip(
                views.looks[0].patches, views.looks[1].patches, views.regions, strict=True
            )
        ]
    )
    if not len(right):
        return "no patch in both views"
    by_chance = 100 / views.looks[0].patches.shape[1]
    return f"{100 * float(right.double().mean()):.0f} % of {len(right):,} patches (by chance {by_chance:.1f} %)"


def typical(sights: Sequence[Sight], album: Album) -> Section:
    """The best images of the fullest prototypes."""

    def draw(sight: Sight) -> Picture:
        if sight.head is None:
            raise UserError("no prototypes. Only runs of the methods poa and single have some.")
        found = prototypes.members(sight.head.projected, sight.head.prototypes)
        rows = []
        for each in found:
            words = [shortened(album.classes[image]) if album.classes else "" for image in each.images]
            cells = [Cell(_pixels(sight.crops[image]), word) for image, word in zip(each.images, words, strict=True)]
            rows.append(Row(f"prototype {each.prototype}\n{each.num_images} images", cells))
        file = f"prototypes-{slug(sight.label)}.png"
        sheet(rows, out=album.folder / file, cell=0.9)
        return Picture(file, f"{sight.label}, of {len(sight.head.prototypes):,} prototypes")

    text = (
        f"The prototypes that most of the {len(album.names):,} images go to, a row each, with the "
        "images that score highest on it. A prototype that holds one kind of thing has a row of that kind."
    )
    return _one_each("prototypes", "Prototypes", text, sights, draw)


KINDS: dict[str, Callable[[Sequence[Sight], Album], Section]] = {
    "attention": attention,
    "colours": features_as_colours,
    "neighbours": nearest,
    "matches": correspondences,
    "prototypes": typical,
}
"""All kinds, in the order of the page."""
