"""Scores of many sizes of one run: groups of sizes share each decoded image, and an interrupted sweep goes on."""

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from poa import distributed
from poa.data.index import ImageIndex
from poa.data.loader import images_for_scoring
from poa.elastic.space import Size
from poa.errors import UserError, nearest
from poa.evaluation.features import Extracted, Progress, extract_features
from poa.evaluation.knn import allowed_ks, knn_scores

Scores = dict[str, dict[str, float]]
"""Scores by name of the size, then by name of the score."""
_HARMLESS = ("batch_size", "workers", "sizes_at_once")
"""Settings on which neither features nor scores depend."""
_ONLY_SCORES = ("ks", "temperature")
"""Settings on which scores depend, but not features."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How images are prepared and sizes are scored.

    Attributes:
        image_size: Side of the central crop in pixels.
        resize: Shorter side before the crop is cut, in pixels.
        mean: Of the channels, of values in 0..1.
        std: Of the channels.
        precision: Of the networks.
        ks: Numbers of neighbours; None for the published ones as far as there are images.
        temperature: Of the votes of neighbours.
        batch_size: Images at a time.
        workers: Processes that prepare images.
        sizes_at_once: Networks that are held in memory together and share each decoded image.
    """

    image_size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: torch.dtype = torch.float32
    ks: tuple[int, ...] | None = None
    temperature: float = 0.07
    batch_size: int = 256
    workers: int = 0
    sizes_at_once: int = 8

    def __post_init__(self) -> None:
        if min(self.batch_size, self.sizes_at_once) < 1:
            raise UserError(
                "Scoring needs at least one image and one size at a time, "
                f"got a batch size of {self.batch_size} and {self.sizes_at_once} sizes at once."
            )


def score_sizes(
    networks: Callable[[Size], nn.Module],
    sizes: Sequence[Size],
    *,
    train_index: ImageIndex,
    test_index: ImageIndex,
    out: Path,
    weights: str,
    scoring: Scoring,
    device: torch.device,
    protocol: str = "knn",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Score sizes, and write ``<protocol>.json`` and ``<protocol>.csv`` in the folder ``out``.

    Sizes that the file already holds are not scored again, so that an interrupted sweep goes on when it is called
    again, and more sizes can be added later. Under several processes each scores its share of the sizes.

    Args:
        networks: Gives the network of a size, which is moved to ``device`` and put into evaluation mode.
        sizes: Which sizes to score.
        train_index: Labelled images that vote.
        test_index: Labelled images that are classified; their classes are among those of ``train_index``, by name.
        out: Folder of the results; features lie there too until they are scored.
        weights: What the networks' parameters are, such as run, branch and step: other weights, other results.
        scoring: How images are prepared and sizes are scored.
        device: Where to compute.
        protocol: Kind of score; ``knn``.
        overwrite: Forget results that are there.
        progress: Told of the images run through a group of networks, and of the sizes scored.

    Returns:
        The scores of ``sizes``.

    Raises:
        UserError: The request or the labels make no sense, or ``out`` holds results of other settings.
    """
    names = list(dict.fromkeys(map(str, sizes)))
    if not names:
        raise UserError("There are no sizes to score: name some, such as 384x12, or ask for all.")
    if protocol not in PROTOCOLS:
        raise UserError(f"There is no way of scoring called {protocol!r}. {nearest(protocol, PROTOCOLS)}")
    scoring = replace(scoring, ks=allowed_ks(scoring.ks, num_train=len(train_index)))
    train, test = _label(train_index, test_index)
    settings = _settings(weights, train_index, test_index, scoring)
    files = _Files(out, protocol, settings)
    files.start(overwrite=overwrite)
    task = _Task(networks, train, test, scoring, settings, files.work, device, PROTOCOLS[protocol])
    _score(task, names[distributed.rank() :: distributed.world_size()], files, progress or (lambda *_: None))
    scores = files.finish().scores
    return {name: scores[name] for name in names}


@dataclass(frozen=True, slots=True)
class _Part:
    """Training or test images, and the class of each as the training images number them."""

    index: ImageIndex
    labels: npt.NDArray[np.int64]


class _Rows(NamedTuple):
    """Features of one network with their labels."""

    features: Float[Tensor, "images width"]
    labels: Int[Tensor, " images"]


@dataclass(frozen=True, slots=True)
class _Task:
    """What all groups of a sweep share."""

    networks: Callable[[Size], nn.Module]
    train: _Part
    test: _Part
    scoring: Scoring
    settings: Mapping[str, Any]
    work: Path
    device: torch.device
    protocol: Callable[["_Task", _Rows, _Rows], dict[str, float]]


def _knn(task: _Task, train: _Rows, test: _Rows) -> dict[str, float]:
    return knn_scores(
        train.features,
        train.labels,
        test.features,
        test.labels,
        ks=task.scoring.ks,
        temperature=task.scoring.temperature,
        num_classes=len(task.train.index.classes),
        device=task.device,
    ).scores()


PROTOCOLS = {"knn": _knn}


def _label(train: ImageIndex, test: ImageIndex) -> tuple[_Part, _Part]:
    """Labels of both sets, those of the test images translated to the training images' numbers by name."""
    train_labels, test_labels = train.require_labels(), test.require_labels()
    if train.fingerprint == test.fingerprint:
        raise UserError(
            f"The training and the test images are the same ({train.source}), so that each would find itself. "
            "Give other images to test on."
        )
    number = {name: label for label, name in enumerate(train.classes)}
    missing = [test.classes[label] for label in np.unique(test_labels) if test.classes[label] not in number]
    if missing:
        rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"The test images have classes that the training images lack: {', '.join(map(repr, missing[:5]))}{rest}. "
            f"The training images in {train.source} have {len(number)} classes: {nearest(missing[0], number)} "
            "Classes are compared by name; rename the folders or leave those images out."
        )
    translated = np.array([number.get(name, -1) for name in test.classes], np.int64)[test_labels]
    return _Part(train, train_labels), _Part(test, translated)


def _settings(weights: str, train: ImageIndex, test: ImageIndex, scoring: Scoring) -> dict[str, Any]:
    """All that the results depend on, as JSON gives it back."""
    chosen = {name: value for name, value in asdict(scoring).items() if name not in _HARMLESS}
    images = {name: f"{len(index)} images {index.fingerprint}" for name, index in (("train", train), ("test", test))}
    settings: dict[str, Any] = json.loads(json.dumps({"weights": weights, **images, **chosen}, default=str))
    return settings


def _score(task: _Task, names: list[str], files: "_Files", progress: Progress) -> None:
    """Score this process's share, group by group; groups do not depend on what is scored already."""
    at_once = task.scoring.sizes_at_once
    for group in (names[start : start + at_once] for start in range(0, len(names), at_once)):
        pending = [name for name in group if name not in files.known.scores]
        progress("sizes", sum(name in files.known.scores for name in names), len(names))
        for name, scores, bad_images in _score_group(task, pending, task.work / group[0], progress):
            files.add(name, scores, bad_images=bad_images)
            progress("sizes", sum(name in files.known.scores for name in names), len(names))


def _score_group(
    task: _Task, names: list[str], folder: Path, progress: Progress
) -> Iterator[tuple[str, dict[str, float], dict[str, int]]]:
    if not names:
        return
    networks = {name: task.networks(Size.parse(name)).to(task.device) for name in names}
    train = _extract(task, networks, task.train, folder / "train", progress)
    test = _extract(task, networks, task.test, folder / "test", progress)
    bad_images = {"train": train.num_bad, "test": test.num_bad}
    for name in names:
        try:
            scores = task.protocol(task, _rows(train, name, task.train), _rows(test, name, task.test))
        except UserError as error:
            raise UserError(f"Size {name}: {error}") from error
        yield name, scores, bad_images
    shutil.rmtree(folder, ignore_errors=True)


def _rows(extracted: Extracted, name: str, part: _Part) -> _Rows:
    return _Rows(extracted.features[name], torch.from_numpy(part.labels)[extracted.indices])


def _extract(
    task: _Task, networks: Mapping[str, nn.Module], part: _Part, folder: Path, progress: Progress
) -> Extracted:
    scoring = task.scoring
    batches = partial(
        images_for_scoring,
        part.index,
        size=scoring.image_size,
        resize=scoring.resize,
        batch_size=scoring.batch_size,
        workers=scoring.workers,
    )
    return extract_features(
        networks,
        lambda start: batches(start=start),
        num_images=len(part.index),
        folder=folder,
        settings={name: value for name, value in task.settings.items() if name not in _ONLY_SCORES},
        device=task.device,
        mean=scoring.mean,
        std=scoring.std,
        precision=scoring.precision,
        progress=progress,
        what=f"{folder.name} images",
    )


@dataclass(frozen=True, slots=True)
class _Results:
    """The content of a file of results."""

    protocol: str
    settings: Mapping[str, Any]
    bad_images: Mapping[str, int] = field(default_factory=dict)
    scores: Scores = field(default_factory=dict)


class _Files:
    """The files of results: one, and during a sweep of several processes one more for each of them.

    Attributes:
        known: What is scored, as far as this process knows.
    """

    def __init__(self, out: Path, protocol: str, settings: Mapping[str, Any]) -> None:
        self._out, self._protocol = out, protocol
        self.known = _Results(protocol, settings)

    def start(self, *, overwrite: bool) -> None:
        """Read what is there, or remove it."""
        if overwrite and distributed.is_main():
            self._remove(self._paths())
        distributed.barrier()
        try:
            self._out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Scores cannot be written to {self._out}: {error.strerror}. Make the folder of the run writable."
            ) from None
        self._read()

    def add(self, name: str, scores: dict[str, float], *, bad_images: Mapping[str, int]) -> None:
        """Write down the scores of a size."""
        self.known = replace(self.known, bad_images=bad_images, scores=self.known.scores | {name: scores})
        alone = distributed.world_size() == 1
        self._write(self._main if alone else self._out / f"{self._protocol}.part{distributed.rank()}.json")

    def finish(self) -> _Results:
        """Put the results of all processes into one file, once all are there."""
        distributed.barrier()
        self._read()
        distributed.barrier()
        if distributed.is_main():
            self._write(self._main)
            _replace(self._main.with_suffix(".csv"), lambda file: _write_csv(self.known.scores, file))
            self._remove(set(self._paths()) - {self._main})
        distributed.barrier()
        return self.known

    @property
    def work(self) -> Path:
        """Where features lie until they are scored."""
        return self._out / "work"

    @property
    def _main(self) -> Path:
        return self._out / f"{self._protocol}.json"

    def _paths(self) -> list[Path]:
        parts = sorted(self._out.glob(f"{self._protocol}.part*.json"))
        return [self._main, *parts] if self._main.exists() else parts

    def _remove(self, paths: Iterable[Path]) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        for path in paths:
            path.unlink()

    def _read(self) -> None:
        for path in self._paths():
            found = _parse(path)
            _check_same(path, found.settings, self.known.settings)
            scores = self.known.scores | found.scores
            self.known = replace(self.known, bad_images=found.bad_images, scores=scores)

    def _write(self, path: Path) -> None:
        ordered = replace(self.known, scores=dict(sorted(self.known.scores.items(), key=_by_size)))
        _replace(path, lambda file: json.dump(asdict(ordered), file, indent=1))


def _by_size(item: tuple[str, Any]) -> Size:
    return Size.parse(item[0])


def _parse(path: Path) -> _Results:
    try:
        return _Results(**json.loads(path.read_text()))
    except (TypeError, ValueError):
        raise UserError(
            f"{path} is not a file of scores, or damaged. Choose another --name, or replace it with --overwrite."
        ) from None


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if differing:
        listed = ", ".join(f"{name} ({found.get(name)} there, {wanted.get(name)} now)" for name in differing)
        raise UserError(
            f"{path} holds scores made with other settings: {listed}. "
            "Choose another --name to keep both, or replace them with --overwrite."
        )


def _replace(path: Path, write: Callable[[TextIO], object]) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        write(file)
    temporary.replace(path)


def _write_csv(scores: Scores, file: TextIO) -> None:
    names = list(dict.fromkeys(name for of_size in scores.values() for name in of_size))
    writer = csv.DictWriter(file, ["size", "width", "depth", *names], lineterminator="\n")
    writer.writeheader()
    for name, of_size in sorted(scores.items(), key=_by_size):
        width, depth = name.split("x")
        writer.writerow({"size": name, "width": width, "depth": depth, **of_size})
