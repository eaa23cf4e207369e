"""COCO's format: annotations, read and checked before anything is trained."""

import contextlib
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from pydantic import (
    BaseModel,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from poa.data.content import short_digest
from poa.errors import UserError, counted, lacking
from poa.text import normal_form

_FORMAT = (
    'In COCO\'s format it holds {"images": [{"id", "file_name", "height", "width"}], "categories": [{"id", "name"}], '
    '"annotations": [{"id", "image_id", "category_id", "bbox"}]}'
)
_THINNEST = 0.01
"""Least width and height of a box in pixels; of thinner ones nothing is left in single precision."""

Mask = Any
"""Polygons, or a run-length code, as in the file; None without one."""
Entry = dict[str, Any]
"""A detection in COCO's format for results."""
NO_IMAGE = "of images that are not listed"
NO_BOX = "without a box of four numbers"
NO_AREA = "boxes without area or outside of the image"
NO_MASK = "without a usable mask"
CROWD = "crowd"
"""Why objects are skipped."""
_FARTHEST = 100_000
"""Pixels from the origin at which a polygon may have a corner; pycocotools reserves memory for the way there."""


class _Image(BaseModel):
    id: int
    file_name: str
    height: PositiveInt
    width: PositiveInt


class _Category(BaseModel):
    id: int
    name: str


class _Annotation(BaseModel):
    """An object; what other programs leave empty, or write in other forms, is checked where it is used."""

    image_id: int
    category_id: int
    bbox: Any = None
    iscrowd: Any = None
    segmentation: Any = None
    area: Any = None

    @property
    def is_crowd(self) -> bool:
        """Whether it is a group of objects with one mask."""
        return self.iscrowd in (1, "1")


class _File(BaseModel):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]

    @model_validator(mode="after")
    def _check_ids(self) -> "_File":
        known = dict[str, Counter[int]]()
        for name, listed in (("images", self.images), ("categories", self.categories)):
            known[name] = counts = Counter(each.id for each in listed)
            if not counts:
                raise ValueError(f"it lists no {name}. {_FORMAT}.")
            if len(counts) < len(listed):
                raise ValueError(f"two {name} have the id {counts.most_common(1)[0][0]}. Give each its own id.")
        for place, each in enumerate(self.annotations):
            if each.category_id not in known["categories"]:
                raise ValueError(
                    f"entry {place} of 'annotations' names the category {each.category_id}, which is not among the "
                    "categories of the file. Add it there, or remove the entry."
                )
        return self


class _RunLengths(BaseModel):
    size: list[int]
    counts: str | list[NonNegativeInt]


_Numbers = Annotated[list[Annotated[FiniteFloat, Field(ge=-_FARTHEST, le=_FARTHEST)]], Field(min_length=1)]
_MASK = TypeAdapter[Any](_RunLengths | list[Any])
_CORNERS = TypeAdapter[list[float]](_Numbers)
_BOX = TypeAdapter[list[float]](Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)])
_WANTED = {
    **dict.fromkeys(("height", "width"), "a whole number of pixels above 0"),
    **dict.fromkeys(("file_name", "name"), "a text"),
}


class ObjectAnnotation(NamedTuple):
    """An object in an image; its box has left, top, right and bottom edge in pixels, inside the image."""

    category: int
    box: tuple[float, float, float, float]
    mask: Mask


class ImageAnnotation(NamedTuple):
    """What a file says about one image; ``sides`` are its height and width in pixels, ``objects`` may be empty."""

    id: int
    file_name: str
    sides: tuple[int, int]
    objects: tuple[ObjectAnnotation, ...]


@dataclass(frozen=True)
class Annotations:
    """The content of a file.

    Attributes:
        file: Where it was read.
        images: In the order of the file.
        categories: Names by id, ascending.
        has_masks: Whether objects without a usable mask are skipped; else masks are not looked at.
        skipped: How many objects are left out, by reason.
        fingerprint: Digest of the file.
    """

    file: Path
    images: tuple[ImageAnnotation, ...]
    categories: Mapping[int, str]
    has_masks: bool
    skipped: Mapping[str, int]
    fingerprint: str

    @property
    def num_objects(self) -> int:
        """How many objects there are to learn from."""
        return sum(len(image.objects) for image in self.images)

    def take(self, chosen: Sequence[int]) -> "Annotations":
        """The images of these numbers alone."""
        return replace(self, images=tuple(self.images[number] for number in chosen))

    def describe(self) -> str:
        """A summary in a few words."""
        of_what = counted(len(self.categories), "category")
        parts = [f"{counted(len(self.images), 'image')}, {counted(self.num_objects, 'object')} of {of_what}"]
        if empty := sum(not image.objects for image in self.images):
            parts.append(f"{counted(empty, 'image')} without objects (used as negatives)")
        for why, number in self.skipped.items():
            is_crowd = why == CROWD
            parts.append(
                f"{counted(number, 'crowd' if is_crowd else 'object')} skipped{'' if is_crowd else f' ({why})'}"
            )
        return ", ".join(parts)


def read_annotations(file: Path, *, has_masks: bool = True) -> Annotations:
    """Read a file in COCO's format (one of its "instances" files); a ``UserError`` says what is wrong with it.

    Objects that cannot be used are skipped and counted.
    """
    encoded, found = _read(file)
    sides = {each.id: (each.height, each.width) for each in found.images}
    objects, skipped = defaultdict[int, list[ObjectAnnotation]](list), Counter[str]()
    for each in found.annotations:
        seen = _look(each, sides, has_masks=has_masks)
        if seen.skipped:
            skipped[seen.skipped] += 1
        else:
            objects[each.image_id].append(ObjectAnnotation(each.category_id, seen.box, seen.mask))
    return Annotations(
        file,
        tuple(
            ImageAnnotation(each.id, each.file_name, sides[each.id], tuple(objects[each.id])) for each in found.images
        ),
        {each.id: each.name for each in sorted(found.categories, key=lambda each: each.id)},
        has_masks,
        skipped,
        short_digest(encoded),
    )


def _read(file: Path) -> tuple[bytes, _File]:
    try:
        encoded = file.read_bytes()
        content = json.loads(encoded)
        return encoded, _File.model_validate(content, strict=True)
    except OSError as error:
        raise UserError(f"The annotations {file} cannot be read: {error.strerror}. Check the path.") from None
    except ValidationError as error:
        raise UserError(_explain(error, content, file)) from None
    except ValueError as error:
        raise UserError(f"The annotations {file} are not valid JSON ({error}). {_FORMAT}.") from None


def _explain(error: ValidationError, content: Any, file: Path) -> str:
    """A sentence about the first problem."""
    problem = error.errors(include_url=False)[0]
    match problem["loc"]:
        case (name, place):
            return f"Entry {place} of {name!r} in {file} is {content[name][place]!r:.60}, not an object. {_FORMAT}."
        case (name, place, key, *_):
            entry = content[name][place]
            got = f"is {entry[key]!r:.60}" if key in entry else "is missing"
            wanted = _WANTED.get(str(key), "a whole number")
            return f"The {key!r} of entry {place} of {name!r} in {file} {got}, but it must be {wanted}. {_FORMAT}."
        case (name,):
            return f"The annotations {file} have no list {name!r}. {_FORMAT}."
    if problem["type"] == "value_error":
        return f"The annotations {file} cannot be used: {problem['ctx']['error']}"
    return f"The annotations {file} are not an object with lists by name. {_FORMAT}."


def _edges(box: Sequence[float], sides: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Edges inside the image; None if nothing of the box is there."""
    (left, top, wide, high), (height, width) = box, sides
    edges = (max(0.0, left), max(0.0, top), min(float(width), left + wide), min(float(height), top + high))
    return edges if min(edges[2] - edges[0], edges[3] - edges[1]) >= _THINNEST else None


class _Seen(NamedTuple):
    """An object, and why it is skipped, if it is: then box and mask may have no meaning."""

    skipped: str = ""
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    mask: Mask = None


def _look(each: _Annotation, sides: Mapping[int, tuple[int, int]], *, has_masks: bool) -> _Seen:
    if each.image_id not in sides:
        return _Seen(NO_IMAGE)
    numbers = _valid(_BOX, each.bbox)
    if numbers is None:
        return _Seen(NO_BOX)
    of_image = sides[each.image_id]
    box, mask = _edges(numbers, of_image), _usable(each.segmentation, of_image) if has_masks else None
    if box is None:
        return _Seen(NO_AREA, mask=mask)
    return _Seen(CROWD if each.is_crowd else NO_MASK if has_masks and mask is None else "", box, mask)


def _usable(mask: Mask, sides: tuple[int, int]) -> Mask:
    """The mask without parts that enclose nothing; None if nothing is left, or it has not the form of one."""
    if not mask or _valid(_MASK, mask) is None:
        return None
    if isinstance(mask, list):
        parts = mask if isinstance(mask[0], list) else [mask]
        return [part for part in parts if _valid(_CORNERS, part) and len(part) >= 6 and len(part) % 2 == 0] or None
    if mask["size"] != list(sides):
        return None
    if isinstance(mask["counts"], list):
        return mask if sum(mask["counts"]) == sides[0] * sides[1] else None
    with contextlib.suppress(Exception):  # pycocotools meets damaged codes with exceptions of many kinds
        decoded_mask(mask, sides)
        return mask
    return None


def _valid(form: Any, value: Any) -> Any:  # of a TypeAdapter, which beartype cannot check
    """The value in its form; None if it has another."""
    try:
        return form.validate_python(value, strict=True)
    except ValidationError:
        return None


def check_categories(train: Annotations, test: Annotations) -> None:
    """Raise a ``UserError`` if the test file has other categories, or other names for them."""
    for number, name in test.categories.items():
        if normal_form(train.categories.get(number, "")) != normal_form(name):
            known = repr(train.categories[number]) if number in train.categories else "unknown"
            raise UserError(
                f"The category {number} of {test.file} is {name!r}, but in {train.file} it is {known}. "
                "Give both files the same categories with the same ids."
            )


def check_objects(annotations: Annotations, *, part: str) -> None:
    """Raise a ``UserError`` if there are no objects in a part of the data, such as ``training``."""
    if annotations.num_objects:
        return
    if annotations.skipped.get(NO_MASK):
        raise UserError(
            f"No object in {annotations.file} has a usable mask. A 'segmentation' must be polygons ([[x, y, x, y, x, "
            "y, ...], ...]), or a run-length code with 'counts' and the 'size' of the image. Give masks, or choose a "
            "head without masks: --head faster-rcnn or cascade-rcnn."
        )
    raise UserError(
        f"{annotations.file} has no {part} images with objects ({annotations.describe()}). Give images with objects."
    )


def coco_tools() -> Any:
    """The functions of pycocotools for masks; a ``UserError`` if it is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        raise lacking("Detection", "pycocotools", extra="detect") from None
    return mask


def decoded_mask(mask: Mask, sides: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """The pixels of a mask, 1 inside, for an image of that height and width."""
    tools, (height, width) = coco_tools(), sides
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of NumPy, about pycocotools
        if isinstance(mask, list):
            code = tools.merge(tools.frPyObjects(mask, height, width))
        else:
            code = tools.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask
        pixels: UInt8[np.ndarray, "height width"] = tools.decode(code)
    return pixels


def truth_of(annotations: Annotations) -> dict[str, Any]:
    """The file as pycocotools takes it: without what it cannot read, and with what other programs leave out."""
    _, file = _read(annotations.file)
    sides = {each.id: (each.height, each.width) for each in file.images}
    entries = list[Entry]()
    for each in file.annotations:
        seen = _look(each, sides, has_masks=annotations.has_masks)
        if seen.skipped in (NO_IMAGE, NO_BOX) or (annotations.has_masks and seen.mask is None):
            continue
        area = each.area if isinstance(each.area, int | float) else each.bbox[2] * each.bbox[3]
        given = {"id": len(entries) + 1, "image_id": each.image_id, "category_id": each.category_id, "bbox": each.bbox}
        entries.append(given | {"area": area, "iscrowd": int(each.is_crowd), "segmentation": seen.mask})
    return {
        "info": {},
        "images": [each.model_dump() for each in file.images],
        "categories": [each.model_dump() for each in file.categories],
        "annotations": entries,
    }
