"""Scores of many networks by one protocol: groups share each decoded image, and an interrupted sweep goes on."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from poa import distributed
from poa.data.index import ImageIndex, matched_labels
from poa.data.loader import images_for_scoring
from poa.errors import UserError
from poa.evaluation.protocol import Outcome, Prepared, Protocol, Rows
from poa.evaluation.results import ResultFiles, Results
from poa.features.extract import Extracted, Progress, extract_features

_HARMLESS = ("batch_size", "workers", "networks_at_once")
"""Settings on which neither features nor scores depend."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How images are prepared and run through networks.

    Attributes:
        image_size: Side of the central crop in pixels.
        resize: Shorter side before the crop is cut, in pixels.
        mean: Of the channels, of values in 0..1.
        std: Of the channels.
        precision: Of the networks.
        batch_size: Images at a time.
        workers: Processes that prepare images.
        networks_at_once: Networks that are held in memory together and share each decoded image.
    """

    image_size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: torch.dtype = torch.float32
    batch_size: int = 256
    workers: int = 0
    networks_at_once: int = 8

    def __post_init__(self) -> None:
        if min(self.batch_size, self.networks_at_once) < 1:
            raise UserError(
                "Scoring needs at least one image and one network at a time, "
                f"got a batch size of {self.batch_size} and {self.networks_at_once} networks at once."
            )


def score_networks(
    networks: Callable[[str], nn.Module],
    names: Sequence[str],
    *,
    protocol: Protocol,
    train_index: ImageIndex | None,
    test_index: ImageIndex,
    out: Path,
    weights: str,
    scoring: Scoring,
    device: torch.device,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Score networks, and write ``<protocol>.json`` and ``<protocol>.csv`` in the folder ``out``.

    Networks that the file already holds are not scored again, so that an interrupted sweep goes on when it is called
    again, and more can be added later. Under several processes each scores its share of them. A network that the
    protocol refuses, such as one that has diverged, does not keep the others from being scored.

    Args:
        networks: Gives the network of a name, which is moved to ``device`` and put into evaluation mode.
        names: Which networks to score, such as ``384x12``.
        protocol: How to score.
        train_index: Labelled images to learn from; None for a protocol that needs none.
        test_index: Labelled images to test on; their classes are among those of ``train_index``, by name.
        out: Folder of the results; features lie there too until they are scored.
        weights: What the networks' parameters are, such as branch and step: other weights, other results.
        scoring: How images are prepared and run through networks.
        device: Where to compute.
        overwrite: Forget results of the protocol that are there.
        progress: Told of the images run through a group of networks, and of the networks scored.

    Returns:
        All results in the file, those of ``names`` among them.

    Raises:
        NotScored: Some networks could not be scored; told at the end.
        UserError: The request or the labels make no sense, or ``out`` holds results of other settings.
    """
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError("There are no networks to score: name some sizes, such as 384x12, or ask for all.")
    train, test = _label(protocol, train_index, test_index)
    protocol = protocol.resolved(*(torch.from_numpy(part.labels) for part in (train, test)))
    settings = _settings(weights, train, test, scoring, protocol)
    if protocol.joint:
        settings["networks"] = names
    files = ResultFiles(out, protocol.name, settings)
    files.start(overwrite=overwrite)
    task = _Task(networks, train, test, scoring, settings, device, protocol)
    _score(task, names, files, progress or (lambda *_: None))
    files.finished(names, what="scored")
    return files.known


@dataclass(frozen=True, slots=True)
class _Part:
    """Training or test images, and the class of each as the training images number them."""

    index: ImageIndex | None
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Task:
    """What all groups of a sweep share."""

    networks: Callable[[str], nn.Module]
    train: _Part
    test: _Part
    scoring: Scoring
    settings: Mapping[str, Any]
    device: torch.device
    protocol: Protocol

    @property
    def num_classes(self) -> int:
        known = self.train.index or self.test.index
        assert known is not None
        return len(known.classes)


def _label(protocol: Protocol, train: ImageIndex | None, test: ImageIndex) -> tuple[_Part, _Part]:
    """Labels of both sets, those of the test images translated to the training images' numbers by name."""
    if not protocol.needs_train:
        if train is not None:
            raise UserError(f"The protocol {protocol.name} looks at the test images alone. Give no training images.")
        return _Part(None, np.empty(0, np.int64)), _Part(test, test.require_labels())
    if train is None:
        raise UserError(f"The protocol {protocol.name} needs labelled training images. Give --train.")
    train_labels, test_labels = matched_labels(train, test)
    return _Part(train, train_labels), _Part(test, test_labels)


def _settings(weights: str, train: _Part, test: _Part, scoring: Scoring, protocol: Protocol) -> dict[str, Any]:
    """All that the results depend on, as JSON gives it back."""
    chosen = {name: value for name, value in asdict(scoring).items() if name not in _HARMLESS}
    images = {
        name: f"{len(part.index)} images {part.index.fingerprint}"
        for name, part in (("train", train), ("test", test))
        if part.index is not None
    }
    content = {"weights": weights, **images, **chosen, **dict(protocol)}
    settings: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return settings


def _score(task: _Task, names: Sequence[str], files: ResultFiles, progress: Progress) -> None:
    """Score this process's share, group by group; groups do not depend on what is scored already."""
    groups = _groups(task, names)
    share = [name for group in groups for name in group]

    def tell() -> None:
        done = files.known.scores.keys() | files.known.failed.keys()
        progress("networks", sum(name in done for name in share), len(share))

    for group in groups:
        tell()
        pending = [name for name in group if name not in files.known.scores]
        if pending:
            _score_group(
                task,
                group if task.protocol.joint else pending,
                files,
                files.work / group[0],
                progress=progress,
                tell=tell,
            )


def _groups(task: _Task, names: Sequence[str]) -> list[Sequence[str]]:
    """What this process scores, in groups that share each decoded image."""
    if task.protocol.joint:
        return [names] if distributed.is_main() else []
    share, at_once = names[distributed.rank() :: distributed.world_size()], task.scoring.networks_at_once
    return [share[start : start + at_once] for start in range(0, len(share), at_once)]


def _score_group(
    task: _Task, names: Sequence[str], files: ResultFiles, folder: Path, *, progress: Progress, tell: Callable[[], None]
) -> None:
    networks = {name: _prepared(task, name) for name in names}
    train = _extract(task, networks, task.train, folder / "train", progress)
    test = _extract(task, networks, task.test, folder / "test", progress)
    bad_images = {part: found.num_bad for part, found in (("train", train), ("test", test)) if found is not None}
    rows = {
        name: (_rows(train, name, network, task.train), _rows(test, name, network, task.test))
        for name, network in networks.items()
    }
    for name, outcome in task.protocol.outcomes(rows, num_classes=task.num_classes, device=task.device):
        if isinstance(outcome, Outcome):
            files.add(name, outcome, bad_images=bad_images)
        else:
            files.fail(name, str(outcome))
        tell()
    shutil.rmtree(folder, ignore_errors=True)


def _prepared(task: _Task, name: str) -> Prepared:
    network = task.networks(name).to(task.device).eval()
    return task.protocol.prepare(network, image_size=task.scoring.image_size)


def _rows(extracted: Extracted | None, name: str, network: Prepared, part: _Part) -> Rows:
    if extracted is None:
        return Rows(torch.empty(0, 0), torch.empty(0, dtype=torch.int64), network.columns)
    labels = torch.from_numpy(part.labels)[extracted.indices]
    return Rows(extracted.features[name], labels, network.columns)


def _extract(
    task: _Task, networks: Mapping[str, Prepared], part: _Part, folder: Path, progress: Progress
) -> Extracted | None:
    if part.index is None:
        return None
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
        {name: prepared.network for name, prepared in networks.items()},
        lambda start: batches(start=start),
        num_images=len(part.index),
        folder=folder,
        settings=task.settings,
        device=task.device,
        mean=scoring.mean,
        std=scoring.std,
        precision=scoring.precision,
        progress=progress,
        what=f"{folder.name} images",
    )
