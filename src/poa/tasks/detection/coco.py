"""Images with objects in COCO's format: a file of annotations, read and checked before anything is trained."""

import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from poa.errors import UserError

Mask = Any
"""Polygons, or a run-length code, as the file has them; None without one."""
_FORM = (
    'In COCO\'s format it holds {"images": [{"id", "file_name", "height", "width"}], "categories": [{"id", "name"}], '
    '"annotations": [{"id", "image_id", "category_id", "bbox"}]}'
)
_IMAGE = {"id": int, "file_name": str, "height": int, "width": int}
_CATEGORY = {"id": int, "name": str}
_ANNOTATION: dict[str, Any] = {"id": int, "image_id": int, "category_id": int, "bbox": list}
_THINNEST = 0.01
"""Least width and height of a box in pixels; of thinner ones nothing is left in single precision."""
_CORNERS = 3
"""The fewest of a polygon."""


class Thing(NamedTuple):
    """An object in an image.

    Attributes:
        category: Its number in the file.
        box: Left, top, right and bottom edge in pixels, inside the image.
        mask: Which pixels it has.
    """

    category: int
    box: tuple[float, float, float, float]
    mask: Mask


class Annotated(NamedTuple):
    """What is said of an image.

    Attributes:
        number: Its id.
        name: Of its file.
        sides: Height and width in pixels.
        things: To learn from; may be empty.
    """

    number: int
    name: str
    sides: tuple[int, int]
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Annotations:
    """What a file says.

    Attributes:
        file: Where it is.
        images: In its order.
        categories: Names by number, ascending.
        num_skipped: Objects that are left out because their boxes have no area or lie outside of the image.
        num_crowds: Groups of objects with one mask, which are left out too.
        has_masks: Whether all objects that are left have masks.
        fingerprint: Of the file: other content, other results.
    """

    file: Path
    images: tuple[Annotated, ...]
    categories: Mapping[int, str]
    num_skipped: int
    num_crowds: int
    has_masks: bool
    fingerprint: str

    @property
    def num_things(self) -> int:
        """How many objects there are to learn from."""
        return sum(len(image.things) for image in self.images)

    @property
    def num_empty(self) -> int:
        """How many images have no object."""
        return sum(not image.things for image in self.images)

    def take(self, chosen: Sequence[int]) -> "Annotations":
        """Some of the images.

        Args:
            chosen: Which ones.
        """
        return replace(self, images=tuple(self.images[number] for number in chosen))

    def describe(self) -> str:
        """What there is, in a few words."""
        parts = [f"{len(self.images):,} images", f"{self.num_things:,} objects of {len(self.categories)} categories"]
        if self.num_empty:
            parts.append(f"{self.num_empty:,} images without objects, which are kept as negatives")
        if self.num_skipped:
            parts.append(f"{self.num_skipped:,} objects skipped, whose boxes have no area or lie outside of the image")
        if self.num_crowds:
            parts.append(f"{self.num_crowds:,} crowds skipped")
        return ", ".join(parts)


def read_annotations(file: Path) -> Annotations:
    """Read a file in COCO's format (its "instances" files).

    Args:
        file: Of JSON.

    Raises:
        UserError: It cannot be read, lacks what is needed, or contradicts itself.
    """
    try:
        encoded = file.read_bytes()
        content = json.loads(encoded)
    except OSError as error:
        raise UserError(f"The annotations {file} cannot be read: {error.strerror}. Check the path.") from None
    except ValueError as error:
        raise UserError(f"The annotations {file} are no JSON, or damaged ({error}). {_FORM}.") from None
    images = _listed(content, "images", _IMAGE, file)
    categories = _listed(content, "categories", _CATEGORY, file)
    annotations = _listed(content, "annotations", _ANNOTATION, file)
    for name, listed in (("images", images), ("categories", categories), ("annotations", annotations)):
        _check_ids(listed, name, file)
    if not images or not categories:
        raise UserError(f"The annotations {file} list no {'categories' if images else 'images'}. {_FORM}.")
    names = {each["id"]: each["name"] for each in sorted(categories, key=lambda each: int(each["id"]))}
    things, num_skipped, num_crowds = _things(annotations, images, names, file)
    found = tuple(
        Annotated(each["id"], each["file_name"], (each["height"], each["width"]), tuple(things[each["id"]]))
        for each in images
    )
    has_masks = all(thing.mask is not None for image in found for thing in image.things)
    return Annotations(file, found, names, num_skipped, num_crowds, has_masks, sha256(encoded).hexdigest()[:16])


def check_categories(train: Annotations, test: Annotations) -> None:
    """Check that the test file has no other categories.

    Args:
        train: To learn from.
        test: To test on.

    Raises:
        UserError: It has other ones, or other names for them.
    """
    for number, name in test.categories.items():
        if train.categories.get(number) != name:
            known = repr(train.categories[number]) if number in train.categories else "unknown"
            raise UserError(
                f"The category {number} of {test.file} is {name!r}, but in {train.file} it is {known}. "
                "Give both files the same categories with the same ids."
            )


def check_masks(annotations: Annotations) -> None:
    """Check that all objects have masks.

    Args:
        annotations: To learn from, or to test on.

    Raises:
        UserError: Some have none.
    """
    if not annotations.has_masks:
        bare = [(image, thing) for image in annotations.images for thing in image.things if thing.mask is None]
        raise UserError(
            f"{len(bare):,} of {annotations.num_things:,} objects in {annotations.file} have no mask (segmentation), "
            f"such as one in {bare[0][0].name!r}. Give masks, or take a head without: --head faster-rcnn or "
            "cascade-rcnn."
        )


def coco_tools() -> Any:
    """The functions of pycocotools for masks.

    Raises:
        UserError: It is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError(
            "Detection needs pycocotools, which is not installed. Install it with: pip install 'poa[detect]'"
        ) from None
    return mask


def decoded_mask(mask: Mask, sides: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """The pixels of a mask, 1 inside.

    Args:
        mask: Polygons or a run-length code.
        sides: Height and width of the image in pixels.
    """
    tools, (height, width) = coco_tools(), sides
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of NumPy, about pycocotools
        if isinstance(mask, list):
            code = tools.merge(tools.frPyObjects(mask, height, width))
        else:
            code = tools.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask
        pixels: UInt8[np.ndarray, "height width"] = tools.decode(code)
    return pixels


def _listed(content: Any, name: str, wanted: Mapping[str, type], file: Path) -> list[Any]:
    """A list of the file, each entry with what it needs."""
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        raise UserError(f"The annotations {file} have no list {name!r}. {_FORM}.")
    listed: list[Any] = content[name]
    for place, each in enumerate(listed):
        if not isinstance(each, dict):
            raise UserError(f"Entry {place} of {name!r} in {file} is no object but {each!r:.60}. {_FORM}.")
        for key, kind in wanted.items():
            if not isinstance(each.get(key), kind) or isinstance(each.get(key), bool):
                got = f"is {each[key]!r:.60}" if key in each else "is missing"
                raise UserError(
                    f"The {key!r} of entry {place} of {name!r} in {file} {got}, but it has to be a {_KINDS[kind]}. "
                    f"{_FORM}."
                )
    return listed


_KINDS = {int: "whole number", str: "text", list: "list of four numbers"}


def _check_ids(listed: Iterable[Mapping[str, Any]], name: str, file: Path) -> None:
    seen = set()
    for each in listed:
        if each["id"] in seen:
            raise UserError(f"Two of the {name} in {file} have the id {each['id']}. Give each an id of its own.")
        seen.add(each["id"])
        if name == "annotations" and each["id"] == 0:
            raise UserError(
                f"One of the annotations in {file} has the id 0, which pycocotools takes for none, so that this object "
                "could never be found. Count from 1."
            )
        if name == "images" and min(each["height"], each["width"]) < 1:
            raise UserError(
                f"The image {each['file_name']!r} in {file} is said to have {each['width']}x{each['height']} pixels. "
                "Write its true width and height."
            )


def _things(
    annotations: Iterable[Mapping[str, Any]],
    images: Iterable[Mapping[str, Any]],
    categories: Mapping[int, str],
    file: Path,
) -> tuple[dict[int, list[Thing]], int, int]:
    """Objects by image, and how many are left out: bad ones and crowds."""
    sides = {each["id"]: (each["height"], each["width"]) for each in images}
    found: dict[int, list[Thing]] = defaultdict(list)
    num_skipped = num_crowds = 0
    for place, each in enumerate(annotations):
        for key, known, what in (("image_id", sides, "image"), ("category_id", categories, "category")):
            if each[key] not in known:
                raise UserError(
                    f"Entry {place} of 'annotations' in {file} names the {what} {each[key]}, which is not among "
                    f"those that the file lists. Add it there, or take the entry out."
                )
        box = _box(each["bbox"], sides[each["image_id"]], whose=f"entry {place} of 'annotations' in {file}")
        if box is None:
            num_skipped += 1
        elif each.get("iscrowd"):
            num_crowds += 1
        else:
            mask = _checked(each.get("segmentation"), sides[each["image_id"]], place, file)
            found[each["image_id"]].append(Thing(each["category_id"], box, mask))
    return found, num_skipped, num_crowds


def _box(box: Sequence[Any], sides: tuple[int, int], *, whose: str) -> tuple[float, float, float, float] | None:
    """Edges inside the image; None if nothing of the box is there."""
    is_fit = len(box) == 4 and all(isinstance(each, int | float) and isfinite(each) for each in box)
    if not is_fit:
        raise UserError(
            f"The 'bbox' of {whose} is {box!r:.60}, but it has to be four numbers: left, top, width and height in "
            "pixels."
        )
    (left, top, wide, high), (height, width) = box, sides
    edges = (max(0.0, left), max(0.0, top), min(float(width), left + wide), min(float(height), top + high))
    has_area = min(edges[2] - edges[0], edges[3] - edges[1]) >= _THINNEST
    return (float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3])) if has_area else None


def _checked(mask: Mask, sides: tuple[int, int], place: int, file: Path) -> Mask:
    """The mask if it has the form of one; None for none."""
    if not mask:
        return None
    if isinstance(mask, dict):
        size, counts = mask.get("size"), mask.get("counts")
        if size == list(sides) and isinstance(counts, str | list):
            return mask
        problem = f"a run-length code of {size!r:.40} pixels for an image of {list(sides)} (height, width)"
    elif isinstance(mask, list) and all(_is_polygon(each) for each in mask):
        return mask
    else:
        problem = f"{mask!r:.60}"
    raise UserError(
        f"The 'segmentation' of entry {place} of 'annotations' in {file} is {problem}. Wanted are polygons "
        "([[x, y, x, y, x, y, ...], ...]), or a run-length code with 'counts' and the 'size' of the image."
    )


def _is_polygon(each: Any) -> bool:
    return (
        isinstance(each, list)
        and len(each) >= 2 * _CORNERS
        and len(each) % 2 == 0
        and all(isinstance(value, int | float) and isfinite(value) for value in each)
    )
