"""COCO's format: annotations, read and checked before anything is trained, and average precision by pycocotools."""

import contextlib
import io
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import BaseModel, Field, FiniteFloat, PositiveInt, TypeAdapter, ValidationError, model_validator
from torch import Tensor

from poa.errors import UserError, counted

BOXES, MASKS = "bbox", "segm"
"""Kinds of average precision, as pycocotools calls them."""
_FORMAT = (
    'In COCO\'s format it holds {"images": [{"id", "file_name", "height", "width"}], "categories": [{"id", "name"}], '
    '"annotations": [{"id", "image_id", "category_id", "bbox"}]}'
)
_THINNEST = 0.01
"""Least width and height of a box in pixels; of thinner ones nothing is left in single precision."""
_STATISTICS = {0: "ap", 1: "ap50", 2: "ap75", 3: "ap_small", 4: "ap_medium", 5: "ap_large", 8: "ar100"}
"""Places in the summary of pycocotools. AR: the recall with up to 100 detections an image, mean over IoUs."""
_IN_MASK = 0.5
_DECIMALS, _SCORE_DECIMALS = 2, 6

Mask = Any
"""Polygons, or a run-length code, as in the file; None without one."""
Entry = dict[str, Any]
"""A detection in COCO's format for results."""


class _Image(BaseModel):
    id: int
    file_name: str
    height: PositiveInt
    width: PositiveInt


class _Category(BaseModel):
    id: int
    name: str


class _Annotation(BaseModel):
    id: int
    image_id: int
    category_id: int
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
    iscrowd: Any = None
    segmentation: Any = None  # checked where it is used: files hold many bad masks of objects without an area


class _File(BaseModel):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]

    @model_validator(mode="after")
    def _check_ids(self) -> "_File":
        known = dict[str, Counter[int]]()
        for name, listed in self:
            known[name] = counts = Counter(each.id for each in listed)
            if not counts and name != "annotations":
                raise ValueError(f"it lists no {name}. {_FORMAT}.")
            if len(counts) < len(listed):
                raise ValueError(f"two {name} have the id {counts.most_common(1)[0][0]}. Give each its own id.")
        if 0 in known["annotations"]:
            raise ValueError(
                "an annotation has the id 0, which pycocotools takes for no object. Number annotations from 1."
            )
        for place, each in enumerate(self.annotations):
            for what, number, listed in (
                ("image", each.image_id, "images"),
                ("category", each.category_id, "categories"),
            ):
                if number not in known[listed]:
                    raise ValueError(
                        f"entry {place} of 'annotations' names the {what} {number}, which is not among the {listed} of "
                        "the file. Add it there, or remove the entry."
                    )
        return self


class _RunLengths(BaseModel):
    size: list[int]
    counts: str | list[int]


_Polygon = Annotated[list[FiniteFloat], Field(min_length=6)]
_MASK = TypeAdapter[Any](_RunLengths | list[_Polygon])
_WANTED = {
    "bbox": "a list of four numbers: left, top, width and height in pixels",
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
    """The content of a file: images in its order, names of categories by id, ascending.

    ``num_skipped`` objects are left out as their boxes have no area or lie outside of the image, and ``num_crowds``
    groups of objects with one mask. ``fingerprint`` is a digest of the file.
    """

    file: Path
    images: tuple[ImageAnnotation, ...]
    categories: Mapping[int, str]
    num_skipped: int
    num_crowds: int
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
        counts = (
            (sum(not image.objects for image in self.images), "image", " without objects (used as negatives)"),
            (self.num_skipped, "object", " skipped (boxes without area or outside of the image)"),
            (self.num_crowds, "crowd", " skipped"),
        )
        of_what = counted(len(self.categories), "category")
        objects = f"{counted(len(self.images), 'image')}, {counted(self.num_objects, 'object')} of {of_what}"
        return ", ".join([objects, *(counted(number, noun) + text for number, noun, text in counts if number)])


def read_annotations(file: Path) -> Annotations:
    """Read a file in COCO's format (one of its "instances" files); a ``UserError`` says what is wrong with it."""
    try:
        encoded = file.read_bytes()
        content = json.loads(encoded)
        found = _File.model_validate(content, strict=True)
    except OSError as error:
        raise UserError(f"The annotations {file} cannot be read: {error.strerror}. Check the path.") from None
    except ValidationError as error:
        raise UserError(_explain(error, content, file)) from None
    except ValueError as error:
        raise UserError(f"The annotations {file} are not valid JSON ({error}). {_FORMAT}.") from None
    sides = {each.id: (each.height, each.width) for each in found.images}
    objects, num_skipped, num_crowds = defaultdict[int, list[ObjectAnnotation]](list), 0, 0
    for place, each in enumerate(found.annotations):
        box = _edges(each.bbox, sides[each.image_id])
        if box is None:
            num_skipped += 1
        elif each.iscrowd:
            num_crowds += 1
        else:
            mask = _checked_mask(each.segmentation, sides[each.image_id], place, file)
            objects[each.image_id].append(ObjectAnnotation(each.category_id, box, mask))
    return Annotations(
        file,
        tuple(
            ImageAnnotation(each.id, each.file_name, sides[each.id], tuple(objects[each.id])) for each in found.images
        ),
        {each.id: each.name for each in sorted(found.categories, key=lambda each: each.id)},
        num_skipped,
        num_crowds,
        sha256(encoded).hexdigest()[:16],
    )


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


def _checked_mask(mask: Mask, sides: tuple[int, int], place: int, file: Path) -> Mask:
    """The mask if it has the form of one; None for none."""
    if not mask:
        return None
    problem = f"{mask!r:.60}"
    with contextlib.suppress(ValidationError):
        _MASK.validate_python(mask, strict=True)
        if isinstance(mask, list) and all(len(polygon) % 2 == 0 for polygon in mask):
            return mask
        if isinstance(mask, dict):
            if mask["size"] == list(sides):
                return mask
            problem = f"a run-length code of {mask['size']!r:.40} pixels for an image of {list(sides)} (height, width)"
    raise UserError(
        f"The 'segmentation' of entry {place} of 'annotations' in {file} is {problem}. It must be polygons ([[x, "
        "y, x, y, x, y, ...], ...]), or a run-length code with 'counts' and the 'size' of the image."
    )


def check_categories(train: Annotations, test: Annotations) -> None:
    """Raise a ``UserError`` if the test file has other categories, or other names for them."""
    for number, name in test.categories.items():
        if train.categories.get(number) != name:
            known = repr(train.categories[number]) if number in train.categories else "unknown"
            raise UserError(
                f"The category {number} of {test.file} is {name!r}, but in {train.file} it is {known}. "
                "Give both files the same categories with the same ids."
            )


def check_masks(annotations: Annotations) -> None:
    """Raise a ``UserError`` if some objects have no mask."""
    bare = [image.file_name for image in annotations.images for each in image.objects if each.mask is None]
    if bare:
        raise UserError(
            f"{len(bare):,} of {counted(annotations.num_objects, 'object')} in {annotations.file} have no mask "
            f"(segmentation), such as one in {bare[0]!r}. Give masks, or choose a head without masks: --head "
            "faster-rcnn or cascade-rcnn."
        )


def coco_tools() -> Any:
    """The functions of pycocotools for masks; a ``UserError`` if it is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError(
            "Detection needs pycocotools, which is not installed. Install it with: pip install 'poa[detect]'"
        ) from None
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


def box_entries(
    image: int,
    boxes: Float[Tensor, "found 4"],
    labels: Int[Tensor, " found"],
    scores: Float[Tensor, " found"],
    *,
    categories: Sequence[int],
) -> list[Entry]:
    """Boxes (left, top, right, bottom in pixels) found in the image of an id; ``categories``: ids by label from 1."""
    found = zip(boxes.double().tolist(), labels.tolist(), scores.double().tolist(), strict=True)
    return [
        {
            "image_id": image,
            "category_id": categories[label - 1],
            "bbox": [round(value, _DECIMALS) for value in (left, top, right - left, bottom - top)],
            "score": round(score, _SCORE_DECIMALS),
        }
        for (left, top, right, bottom), label, score in found
    ]


def mask_entries(boxes: Iterable[Entry], masks: Float[Tensor, "found 1 height width"]) -> list[Entry]:
    """The same detections with masks in place of boxes: pycocotools takes areas from the masks then."""
    tools, entries = coco_tools(), []
    for entry, mask in zip(boxes, (masks[:, 0] >= _IN_MASK).byte().cpu().numpy(), strict=True):
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of NumPy, about pycocotools
            code = tools.encode(np.asfortranarray(mask))
        segmentation = {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}
        kept = {name: value for name, value in entry.items() if name != "bbox"}
        entries.append({**kept, "segmentation": segmentation})
    return entries


def average_precision(annotations: Path, results: Path, *, kind: str, images: Sequence[int]) -> Mapping[str, float]:
    """COCO's scores in percent, such as ``box_ap``: mean over IoUs from 0.5 to 0.95 and over categories that occur.

    ``results`` are scored in the images of these ids; scores of object sizes that do not occur are left out.
    """
    with (
        contextlib.redirect_stdout(io.StringIO()),  # pycocotools prints what it does
        warnings.catch_warnings(action="ignore", category=DeprecationWarning),
    ):
        statistics = _statistics(annotations, results, kind, images)
    scores = {name: float(statistics[place]) for place, name in _STATISTICS.items()}
    prefix = {BOXES: "box", MASKS: "mask"}[kind]
    return {f"{prefix}_{name}": 100.0 * score for name, score in scores.items() if score >= 0}


def _statistics(annotations: Path, results: Path, kind: str, images: Sequence[int]) -> Shaped[np.ndarray, "twelve"]:
    coco_tools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: Any = COCO(str(annotations))
    truth.dataset.setdefault("info", {})  # which some versions want
    for entry in truth.dataset["annotations"]:  # what other tools leave out
        entry.setdefault("iscrowd", 0)
        entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
    found: Any = COCO()
    found.dataset = {key: truth.dataset[key] for key in ("images", "categories")} | {"annotations": []}
    found.createIndex()
    if json.loads(results.read_text(encoding="utf-8")):
        found = truth.loadRes(str(results))  # cannot read an empty list
    evaluation: Any = COCOeval(truth, found, kind)
    evaluation.params.imgIds = sorted(images)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    statistics: Shaped[np.ndarray, "twelve"] = np.asarray(evaluation.stats)
    return statistics
