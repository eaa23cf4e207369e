"""Trained models of tasks, used on images: labels, masks or boxes in files, written part by part and resumed."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from poa import distributed
from poa.data.index import ImageIndex
from poa.data.sources import Data, check_out
from poa.errors import UserError, counted
from poa.features.images import note_darkness, open_images
from poa.files import make_folder, one_writer, whole_file, whole_folder
from poa.models.folder import model_in
from poa.models.registry import folder_of
from poa.models.run import is_run
from poa.tasks.classification.folder import is_classifier
from poa.tasks.classification.predict import LabelPredictor, label_predictor
from poa.tasks.detection.boxes import box_predictor
from poa.tasks.detection.folder import is_detector
from poa.tasks.exported import read_exported
from poa.tasks.predictor import Part, Predictor
from poa.tasks.segmentation.folder import is_segmenter
from poa.tasks.segmentation.png import mask_predictor
from poa.text import plain_console
from poa.training.progress import bar

_STATE, _LINES, _WHOLE = "progress.json", "lines.txt", "whole"
"""Files of a prediction that is not finished, in a folder beside its output."""


class Predicted(NamedTuple):
    """What was written.

    Attributes:
        path: Where.
        kind: What the model is, in words.
        num_images: How many images have predictions.
        bad: Names of the images that could not be read.
    """

    path: Path
    kind: str
    num_images: int
    bad: tuple[str, ...]


def predict(
    model: str,
    images: Data,
    *,
    out: Path,
    all_classes: bool = False,
    min_score: float | None = None,
    limit: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> Predicted:
    """Write what a trained model says of images.

    Called again after a stop, it resumes. The output is there whole or not at all; until then parts lie in a folder
    beside it. Images that cannot be read are left out.

    Args:
        model: A folder that ``poa finetune``, ``segment`` or ``detect`` wrote, or a file of ``poa export``.
        images: The images; labels are not needed.
        out: A CSV file for labels, a folder for masks, a JSON file for boxes.
        all_classes: For a classifier: write the probability of each class.
        min_score: For a detector: leave out objects with a lower score.
        limit: Take only a class-balanced part of the images.
        workers: Processes that decode images.
        overwrite: Replace what is there.
        console: Where to show progress.

    Raises:
        UserError: An argument is invalid, or the output cannot be written.
    """
    predictor = open_model(model, all_classes=all_classes, min_score=min_score)
    predictor.check_out(out)
    if not overwrite and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise UserError(f"{out} already exists. Choose another --out, or replace it with --overwrite.")
    if not predictor.is_file:
        check_out(out, images)
    index = open_images(images, limit=limit, console=console)
    note_darkness(index, console=console)
    predictor.check_images(index)
    make_folder(out.parent, content="Predictions")
    work = out.absolute().with_name(f".{out.absolute().name}.unfinished")
    with one_writer(work):
        bad = _predict(predictor, index, work, workers=workers, console=console or plain_console(stderr=True))
        if len(bad) == len(index):
            shutil.rmtree(work, ignore_errors=True)
            raise UserError(f"Of {counted(len(index), 'image')} in {index.source}, none could be read. Check the data.")
        predictor.finish(_lines(work), work / _WHOLE)
        _put(work / _WHOLE, out)
        shutil.rmtree(work, ignore_errors=True)
    return Predicted(out, predictor.kind, len(index) - len(bad), bad)


def open_model(name: str, *, all_classes: bool = False, min_score: float | None = None) -> Predictor:
    """The trained model in a folder, on the device of this process, or in a file; a ``UserError`` if there is none."""
    path, device = folder_of(name), distributed.this_device()
    if path.is_file():
        predictor = read_exported(path, all_classes=all_classes)
        _check_option("--all-classes", all_classes, is_right=predictor.kind == LabelPredictor.kind, only="a classifier")
        _check_option("--min-score", min_score is not None, is_right=False, only="a detector")
        return predictor
    if is_run(path):
        raise UserError(
            f"{name} is the folder of a run, whose sizes give features. Train one for a task with `poa finetune`, `poa "
            "segment` or `poa detect`, and give the folder that these write."
        )
    if not (path / "config.json").is_file():
        what = "is not the folder of one model: it has no config.json" if path.exists() else "does not exist"
        raise UserError(
            f"{name} {what}. Give a folder that `poa finetune`, `poa segment` or `poa detect` wrote, such as "
            "RUN/trained/finetune/models/96x4, or a file of `poa export`."
        )
    has_labels = not (is_detector(path) or is_segmenter(path))
    _check_option("--all-classes", all_classes, is_right=has_labels, only="a classifier")
    _check_option("--min-score", min_score is not None, is_right=is_detector(path), only="a detector")
    if is_detector(path):
        return box_predictor(path, device=device, min_score=min_score or 0.0)
    if is_segmenter(path):
        return mask_predictor(path, device=device)
    if not is_classifier(path):
        model_in(path, flag="The model of")  # says what is wrong with a folder that timm does not load
        raise UserError(
            f"{name} is a network without classes: it gives features, no labels. Fine-tune it with `poa finetune`, or "
            "write its features with `poa embed`."
        )
    return label_predictor(path, device=device, all_classes=all_classes)


def _check_option(flag: str, is_given: bool, *, is_right: bool, only: str) -> None:
    if is_given and not is_right:
        raise UserError(f"{flag} has an effect on {only} alone. Leave it out.")


@dataclass
class _Progress:
    """How far a prediction has come: images done, bytes of the lines written, images that could not be read."""

    settings: Mapping[str, Any]
    done: int = 0
    num_bytes: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, part: Part, work: Path) -> None:
        """Write a part, and then how far it goes."""
        for name, content in part.files.items():
            file = work / _WHOLE / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        encoded = "".join(f"{line}\n" for line in part.lines).encode()
        with (work / _LINES).open("ab") as file_of_lines:
            file_of_lines.write(encoded)
        self.done += part.num_images
        self.num_bytes += len(encoded)
        self.bad.extend(part.bad)
        with whole_file(work / _STATE) as temporary:
            temporary.write_text(json.dumps(vars(self)), encoding="utf-8")


def _begun(work: Path, settings: Mapping[str, Any]) -> _Progress:
    """What was done of the same prediction; else the folder is emptied."""
    try:
        found = _Progress(**json.loads((work / _STATE).read_text(encoding="utf-8")))
        if found.settings == settings:
            with (work / _LINES).open("r+b") as file:
                file.truncate(found.num_bytes)  # what came after the state was written
            return found
    except (OSError, TypeError, ValueError):  # not there, or of something else
        pass
    for name in (_STATE, _LINES):
        (work / name).unlink(missing_ok=True)
    shutil.rmtree(work / _WHOLE, ignore_errors=True)
    return _Progress(settings)


def _predict(predictor: Predictor, index: ImageIndex, work: Path, *, workers: int, console: Console) -> tuple[str, ...]:
    """Predict what is left; the names of the images that could not be read."""
    settings = {"model": predictor.weights, "images": index.identity.text, "settings": predictor.settings}
    progress = _begun(work, json.loads(json.dumps(settings)))
    with bar("images", total=len(index), console=console) as advance:
        advance(progress.done)
        if progress.done < len(index):
            for part in predictor.parts(index, start=progress.done, workers=workers):
                progress.add(part, work)
                advance(part.num_images)
    return tuple(progress.bad)


def _lines(work: Path) -> Iterator[str]:
    with (work / _LINES).open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def _put(whole: Path, out: Path) -> None:
    """Put a file or a folder in its place, in place of what is there."""
    if whole.is_file():
        whole.replace(out)
        return
    with whole_folder(out) as unfinished:
        for each in whole.iterdir():
            each.rename(unfinished / each.name)
