"""The kinds of pictures: each draws the outputs of some networks side by side, and explains how to read them."""

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

from poa.errors import UserError, counted
from poa.pictures import prototypes
from poa.pictures.attention import Outputs, activation, grid_of, heat
from poa.pictures.page import Picture, Section
from poa.pictures.patches import (
    NEIGHBOURS,
    SHOWN,
    Match,
    Pair,
    Region,
    colours,
    matches,
    neighbours,
    pairs,
    right_matches,
    same_point,
)
from poa.plots.figure import RIGHT, WRONG, Cell, Row, sheet
from poa.text import shortened

PAIRS = 4
"""Pairs of images with lines between them."""
_LONGEST = 100  # letters of a label in the name of a file


class Views(NamedTuple):
    """Two augmented views of each shown image, and where they lie in it."""

    first: UInt8[Tensor, "shown 3 side side"]
    second: UInt8[Tensor, "shown 3 side side"]
    regions: tuple[tuple[Region, Region], ...]
    outputs: tuple[Outputs, Outputs]
    """Of the network for the first and the second views."""


class Head(NamedTuple):
    """Prototypes of a projection head, and all images as it projects them onto the unit sphere."""

    projected: Float[Tensor, "images dim"]
    prototypes: Float[Tensor, "prototypes dim"]


@dataclass(frozen=True)
class NetworkOutputs:
    """All that is drawn of one network."""

    label: str
    """On the pictures."""
    crops: UInt8[Tensor, "images 3 side side"]
    """All images as the network gets them."""
    shown: Outputs
    """For the shown images."""
    partners: Outputs
    """For their partners."""
    cls: Float[Tensor, "images width"] | None = None
    """For all images, if neighbours or prototypes are wanted."""
    views: Views | None = None
    head: Head | None = None
    """Of a run with prototypes."""


@dataclass(frozen=True)
class ImageSet:
    """All images, and the folder for their pictures."""

    folder: Path
    names: tuple[str, ...]
    classes: tuple[str, ...]
    """The class of each image in words; empty where images have none."""
    shown: tuple[int, ...]
    """Numbers of the images that are shown one by one."""
    partners: tuple[int, ...]
    """Numbers of the images that the first shown ones are matched with."""

    def label(self, image: int) -> str:
        """An image in few words."""
        name = shortened(Path(self.names[image]).name)
        return f"{shortened(self.classes[image])}\n{name}" if self.classes else name


def _pixels(image: UInt8[Tensor, "3 side side"]) -> npt.NDArray[np.uint8]:
    return image.permute(1, 2, 0).numpy()


def files_of(kind: str, labels: Sequence[str]) -> list[str]:
    """Names of PNG files, one a label, that every file system tells apart."""
    parts = [re.sub(r"[^\w.-]+", "-", label)[:_LONGEST] for label in labels]
    if len({part.casefold() for part in parts}) < len(parts):
        parts = [f"{number:02}-{part}" for number, part in enumerate(parts)]
    return [f"{kind}-{part}.png" for part in parts]


def attention(networks: Sequence[NetworkOutputs], images: ImageSet) -> Section:
    """Attention of the class token in the last block."""
    without = [network.label for network in networks if network.shown.attention is None]
    found = []
    for place, image in enumerate(images.shown):
        rows = [Row(shortened(network.label, 24), _attention_cells(network, image, place)) for network in networks]
        file = f"attention-{place:02}.png"
        sheet(rows, out=images.folder / file)
        found.append(Picture(file, images.names[image]))
    missing = (
        f"{', '.join(without)}: these networks have no attention of a class token to draw. The pictures show how far "
        "the features of each cell of the last map are from their mean over the image."
    )
    text = (
        "Attention of the class token in the last block: the share of each patch, averaged over heads and for each "
        "head. Colours of each map are scaled from its lowest value (black) to its highest (yellow)."
    )
    return Section("attention", "Attention", text, [missing] if without else [], found)


def _attention_cells(network: NetworkOutputs, image: int, place: int) -> list[Cell]:
    cells = [Cell(_pixels(network.crops[image]), "image")]
    if network.shown.attention is None:
        return [*cells, Cell(heat(activation(network.shown.patches[place])), "activation")]
    heads = network.shown.attention[place]
    maps = [("mean", heads.mean(dim=0)), *((f"head {number}", head) for number, head in enumerate(heads, start=1))]
    return [*cells, *(Cell(heat(values), caption) for caption, values in maps)]


def features_as_colours(networks: Sequence[NetworkOutputs], images: ImageSet) -> Section:
    """Principal components of patch features as red, green and blue."""
    drawn, notes = {}, []
    for network in networks:
        try:
            drawn[network.label] = colours(network.shown.patches)
        except UserError as error:
            notes.append(f"{network.label}: {error}")
    rows = []
    for place, image in enumerate(images.shown):
        maps = [Cell(of_network[place], shortened(label, 18)) for label, of_network in drawn.items()]
        rows.append(Row(images.label(image), [Cell(_pixels(networks[0].crops[image]), "image"), *maps]))
    text = (
        "Patches with similar features have similar colours: the first three principal components of the patch "
        "features over all images of this sheet are red, green and blue. Colours can be compared within a column, not "
        "between columns: each network has its own components."
    )
    if not drawn:
        return Section("colours", "Features as colours", text, notes, [])
    sheet(rows, out=images.folder / "colours.png")
    return Section("colours", "Features as colours", text, notes, [Picture("colours.png", ", ".join(drawn))])


def nearest(networks: Sequence[NetworkOutputs], images: ImageSet) -> Section:
    """The nearest images of each shown one."""

    def draw(network: NetworkOutputs, file: str) -> Picture:
        assert network.cls is not None
        cosines, found = neighbours(network.cls, images.shown)
        rows, right = [], 0
        for query, near, values in zip(images.shown, found.tolist(), cosines.tolist(), strict=True):
            cells = [Cell(_pixels(network.crops[query]), "query")]
            for image, cosine in zip(near, values, strict=True):
                is_right = bool(images.classes) and images.classes[image] == images.classes[query]
                right += is_right
                words = f"{shortened(images.classes[image], 11)} {cosine:.2f}" if images.classes else f"{cosine:.2f}"
                frame = (RIGHT if is_right else WRONG) if images.classes else None
                cells.append(Cell(_pixels(network.crops[image]), words, frame))
            rows.append(Row(images.label(query), cells))
        sheet(rows, out=images.folder / file)
        note = f": {right} of {NEIGHBOURS * len(rows)} of the same class" if images.classes else ""
        return Picture(file, f"{network.label}{note}")

    text = f"The {NEIGHBOURS} most similar images by cosine of the class features, among {len(images.names):,}."
    if images.classes:
        text += " Green frames: the same class as the image on the left; red frames: another."
    return _one_each("neighbours", "Nearest images", text, networks, draw)


def _one_each(
    name: str, title: str, text: str, networks: Sequence[NetworkOutputs], draw: Callable[[NetworkOutputs, str], Picture]
) -> Section:
    """A picture for each network; a network that cannot be drawn gets a note."""
    found, notes = [], []
    for network, file in zip(networks, files_of(name, [network.label for network in networks]), strict=True):
        try:
            found.append(draw(network, file))
        except UserError as error:
            notes.append(f"{network.label}: {error}")
    return Section(name, title, text, notes, found)


def correspondences(networks: Sequence[NetworkOutputs], images: ImageSet) -> Section:
    """Matching patches of two images, and of two views of one image."""
    found = []
    for place, partner in enumerate(images.partners):
        file = f"matches-images-{place}.png"
        pairs([_pair(network, images, place) for network in networks], out=images.folder / file)
        found.append(Picture(file, f"{images.names[images.shown[place]]} and {images.names[partner]}"))
    with_views = [network for network in networks if network.views is not None]
    for place, image in enumerate(images.shown[:PAIRS]):
        file = f"matches-views-{place}.png"
        pairs([_pair_of_views(network, place) for network in with_views], out=images.folder / file)
        found.append(Picture(file, f"two views of {images.names[image]}"))
    text = (
        f"Patches of two images that are each other's nearest by cosine, the {SHOWN} most similar. A line and its two "
        "dots have one colour. Below, the same for two views of one image, cropped and augmented as in training, where "
        "the right match of each patch is known. The share of right matches, among the patches that both views show, "
        "is above each pair; lines of wrong matches are dashed."
    )
    note = "; ".join(f"{network.label} {_accuracy(network)}" for network in with_views)
    return Section("matches", "Matching patches", text, [f"Right in all images that are shown: {note}."], found)


def partners_of(shown: Sequence[int], labels: Sequence[int]) -> tuple[int, ...]:
    """For the first shown images the next image of the same class, else the next image, from the start after the last.

    A label of -1 is none.
    """
    found = []
    for image in shown[:PAIRS] if len(labels) > 1 else ():
        others = [(image + step) % len(labels) for step in range(1, len(labels))]
        same = (other for other in others if labels[other] == labels[image] >= 0)
        found.append(next(same, others[0]))
    return tuple(found)


def _pair(network: NetworkOutputs, images: ImageSet, place: int) -> Pair:
    first, second = network.shown.patches[place], network.partners.patches[place]
    found = matches(first, second)
    both = _pixels(network.crops[images.shown[place]]), _pixels(network.crops[images.partners[place]])
    return Pair(f"{network.label}: {_cosines(found)}", *both, found, grid_of(len(first)))


def _cosines(found: Sequence[Match]) -> str:
    values = [match.cosine for match in found]
    return f"cosine {max(values):.2f} to {min(values):.2f}" if values else "no matches"


def _pair_of_views(network: NetworkOutputs, place: int) -> Pair:
    views = network.views
    assert views is not None
    patches = [each.patches[place] for each in views.outputs]
    regions, grid = views.regions[place], grid_of(len(patches[0]))
    right = right_matches(patches[0], patches[1], regions)
    note = f"{int(right.sum())} of {len(right)} right" if len(right) else "no patch in both views"
    found = matches(patches[0], patches[1])
    wanted, is_seen = same_point(*regions, grid=grid)
    is_wrong = [not bool(is_seen[match.first]) or int(wanted[match.first]) != match.second for match in found]
    pixels = _pixels(views.first[place]), _pixels(views.second[place])
    return Pair(f"{network.label}: {note}", pixels[0], pixels[1], found, grid, is_wrong)


def _accuracy(network: NetworkOutputs) -> str:
    views = network.views
    assert views is not None
    right = torch.cat(
        [
            right_matches(first, second, regions)
            for first, second, regions in zip(
                views.outputs[0].patches, views.outputs[1].patches, views.regions, strict=True
            )
        ]
    )
    if not len(right):
        return "no patch in both views"
    by_chance = 100 / views.outputs[0].patches.shape[1]
    return f"{100 * float(right.double().mean()):.0f} % of {len(right):,} patches (by chance {by_chance:.1f} %)"


def typical(networks: Sequence[NetworkOutputs], images: ImageSet) -> Section:
    """The best images of the fullest prototypes."""

    def draw(network: NetworkOutputs, file: str) -> Picture:
        if network.head is None:
            raise UserError("no prototypes; only runs of the methods poa and single have prototypes.")
        found = prototypes.members(network.head.projected, network.head.prototypes)
        rows = []
        for each in found:
            words = [shortened(images.classes[image]) if images.classes else "" for image in each.images]
            cells = [Cell(_pixels(network.crops[image]), word) for image, word in zip(each.images, words, strict=True)]
            rows.append(Row(f"prototype {each.prototype}\n{counted(each.num_images, 'image')}", cells))
        sheet(rows, out=images.folder / file, cell=0.9)
        return Picture(file, f"{network.label}, of {len(network.head.prototypes):,} prototypes")

    text = (
        f"The prototypes with the most of the {len(images.names):,} images, one row each, with the images that score "
        "highest. If a prototype stands for one kind of object, its row shows objects of that kind."
    )
    return _one_each("prototypes", "Prototypes", text, networks, draw)


KINDS: dict[str, Callable[[Sequence[NetworkOutputs], ImageSet], Section]] = {
    "attention": attention,
    "colours": features_as_colours,
    "neighbours": nearest,
    "matches": correspondences,
    "prototypes": typical,
}
"""All kinds, in the order of the page."""
