"""How well networks bear disturbed images: one classifier of clean features each, asked about every disturbance."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from rich.console import Console
from torch import Tensor, nn

from poa import distributed
from poa.data.augment import normalise
from poa.data.index import ImageIndex, matched_labels, open_index
from poa.data.loader import images_for_scoring
from poa.errors import UserError
from poa.evaluation.knn import allowed_ks
from poa.evaluation.protocol import Outcome, Rows, percent
from poa.evaluation.results import ResultFiles, Scores
from poa.features.extract import Progress, extract_features
from poa.models.source import ModelSource
from poa.plots.robustness import Panel
from poa.robustness.backgrounds import MaskedImages
from poa.robustness.classifiers import Judge, judge_of
from poa.robustness.conditions import Disturbance, Robustness
from poa.robustness.corruptions import CORRUPTIONS
from poa.robustness.images import DisturbedImages, disturbed_images
from poa.training.progress import Bars

NAME = "robustness"
HEADLINE = "corruptions"
AT_ONCE = 8
"""Networks that share each decoded and disturbed image."""
ROWS = 128
"""Images in one pass through a network."""


def evaluate(
    source: ModelSource,
    settings: Robustness,
    *,
    train: str,
    test: str,
    masks: Path | None = None,
    sizes: str | Sequence[str] = "all",
    name: str | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> Scores:
    """Accuracy of networks on disturbed test images, in percent; also ``NAME/robustness.json`` and ``.csv``.

    The judge of a network is fitted to the features of clean training images and never changed. Each test image is
    decoded and disturbed once for all networks of a group. A score has the name of its condition, such as
    ``occlusion 0.5`` or ``jpeg 3``; see ``summary`` for the means. Called again, it leaves out networks that are
    written. Under several processes each judges its share of them.

    Args:
        source: Whose networks.
        settings: How images are disturbed, and who judges.
        train: Labelled images to fit the judges to.
        test: Labelled images to disturb; their classes are among those of ``train``, by name.
        masks: Folder with a mask of each test image, to swap backgrounds as well.
        sizes: ``all``, or names of sizes.
        name: Folder of the results in the source's ``out``; ``robustness``, with the branch unless it is ``teacher``.
        limit: Take only a class-balanced part of the training images.
        test_limit: Take only a class-balanced part of the test images.
        workers: Processes that decode and disturb images.
        overwrite: Forget results of that name.
        console: Where to show progress.

    Raises:
        NotScored: Some networks could not be judged; the others are written.
        UserError: Sizes, images, masks or settings are not as they must be, or the name holds results of others.
    """
    chosen = source.choose(sizes)
    path = results_file(source, name)
    settled = settings.settled(source.preprocessing.image_size)
    indexes = open_index(train, limit=limit), open_index(test, limit=test_limit)
    task = _Task(source, settled, *indexes, matched_labels(*indexes), masks, workers)
    task.check()
    files = ResultFiles(path.parent, NAME, task.known)
    files.start(overwrite=overwrite)
    share = chosen[distributed.rank() :: distributed.world_size()]
    _judge(task, [size for size in share if size not in files.known.scores], files, console)
    return files.finished(chosen, what="judged")


def results_file(source: ModelSource, name: str | None = None) -> Path:
    """Where results are written.

    Args:
        source: Whose networks.
        name: Of the folder, as in ``evaluate``.

    Raises:
        UserError: The name has slashes.
    """
    return source.results(NAME, name) / f"{NAME}.json"


def summary(hits: Mapping[str, Float[Tensor, " _"]]) -> dict[str, Float[Tensor, " _"]]:
    """Means over conditions, for each image.

    ``occlusion`` is over all shares, ``shuffle`` over all grids, ``corruptions`` over all corruptions and severities,
    and so are ``noise``, ``blur``, ``weather`` and ``digital`` over their own.

    Args:
        hits: 100 or 0 for each image, by name of the condition.
    """
    kinds: dict[str, list[Tensor]] = {}
    for name, values in hits.items():
        kind = name.rpartition(" ")[0]
        if kind in ("occlusion", "shuffle"):
            kinds.setdefault(kind, []).append(values)
        if kind in CORRUPTIONS:
            kinds.setdefault("corruptions", []).append(values)
            kinds.setdefault(CORRUPTIONS[kind].group, []).append(values)
    return {kind: torch.stack(values).mean(dim=0) for kind, values in kinds.items()}


def outcome_of(hits: Mapping[str, Bool[Tensor, " _"]]) -> Outcome:
    """Scores of one network: on clean images, means, and under each condition.

    ``corruptions relative`` is the mean over corruptions and severities as a share of the accuracy on clean images.
    (The published mean corruption error divides by the errors of AlexNet instead, which no other data set has.)

    Args:
        hits: Whether each image is classified rightly, by name of the condition; ``clean`` among them.
    """
    values = {name: percent(each) for name, each in hits.items()}
    found = {"clean": values["clean"], **summary(values), **values}
    scores = {name: float(each.mean()) for name, each in found.items() if len(each)}
    if "corruptions" in scores and scores["clean"] > 0:
        scores["corruptions relative"] = 100 * scores["corruptions"] / scores["clean"]
    details = {name: float(len(each)) for name, each in hits.items() if name.startswith("background")}
    first = [name for name in ("clean", "corruptions", "corruptions relative") if name in scores]
    ordered = {name: scores[name] for name in dict.fromkeys((*first, *scores))}
    return Outcome(ordered, {name: each for name, each in found.items() if len(each)}, details)


def panels(scores: Mapping[str, Mapping[str, float]]) -> list[Panel]:
    """Curves to draw: accuracy by share of hidden cells, by grid, by severity of each group, and by background.

    Args:
        scores: By name of the network, then of the score, as in the files of results.
    """
    names = list(next(iter(scores.values()), ()))
    groups: dict[str, list[str]] = {}
    for corruption in CORRUPTIONS.values():
        groups.setdefault(corruption.group, []).append(corruption.name)
    found = [
        _panel("hidden cells", "share", "0", _strengths(names, ["occlusion"]), scores),
        _panel("shuffled cells", "grid", "1x1", _strengths(names, ["shuffle"]), scores),
        *(_panel(group, "severity", "0", _strengths(names, kinds), scores) for group, kinds in groups.items()),
    ]
    backgrounds = {"own": ["background own"], "another": ["background swapped"]}
    if all(name in names for each in backgrounds.values() for name in each):
        found.append(_panel("background", "of the image's own or another class", None, backgrounds, scores))
    return [panel for panel in found if len(panel.ticks) > 1]


def _strengths(names: Sequence[str], kinds: Sequence[str]) -> dict[str, list[str]]:
    """Names of scores by strength, ascending as they come."""
    found: dict[str, list[str]] = {}
    for name in names:
        kind, _, strength = name.rpartition(" ")
        if kind in kinds:
            found.setdefault(strength, []).append(name)
    return found


def _panel(
    title: str,
    axis: str,
    clean: str | None,
    strengths: Mapping[str, Sequence[str]],
    scores: Mapping[str, Mapping[str, float]],
) -> Panel:
    """Accuracy of each network by strength, the mean where several scores have the same."""
    ticks = {**({} if clean is None else {clean: ["clean"]}), **strengths}
    values = {
        network: tuple(fmean(row.get(name, float("nan")) for name in names) for names in ticks.values())
        for network, row in scores.items()
    }
    return Panel(title, axis, tuple(ticks), values)


@dataclass(frozen=True)
class _Task:
    """What all groups of networks share."""

    source: ModelSource
    settings: Robustness
    train: ImageIndex
    test: ImageIndex
    labels: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    masks: Path | None
    workers: int

    def check(self) -> None:
        """See, before features are extracted, that the settings suit the images."""
        if self.settings.judge == "knn":
            allowed_ks((self.settings.k,), num_train=len(self.train))
        if self.masked is not None:
            self.masked.check()

    @cached_property
    def masked(self) -> MaskedImages | None:
        """The test images with their masks."""
        if self.masks is None:
            return None
        seen, seed = self.source.preprocessing, self.settings.seed
        return MaskedImages(self.test, self.labels[1], self.masks, seen.image_size, seen.resize, seed)

    @cached_property
    def conditions(self) -> tuple[Disturbance, ...]:
        """Under which networks are judged."""
        return self.settings.conditions(self.masked)

    @cached_property
    def known(self) -> dict[str, Any]:
        """All that the scores depend on, as JSON gives it back."""
        source = self.source
        images = {"train": self.train, "test": self.test}
        content = {
            "weights": source.weights,
            **{name: f"{len(index)} images {index.fingerprint}" for name, index in images.items()},
            "image_size": source.preprocessing.image_size,
            "resize": source.preprocessing.resize,
            "mean": source.preprocessing.mean,
            "std": source.preprocessing.std,
            "masks": None if self.masked is None else self.masked.fingerprint,
            **asdict(self.settings),
        }
        found: dict[str, Any] = json.loads(json.dumps(content))
        return found

    @cached_property
    def device(self) -> torch.device:
        """Where to compute."""
        return distributed.this_device()  # that of a run is perhaps on another machine


def _judge(task: _Task, pending: Sequence[str], files: ResultFiles, console: Console | None) -> None:
    """Judge networks group by group."""
    with Bars(console or Console(stderr=True)) as bars:
        for start in range(0, len(pending), AT_ONCE):
            bars("networks", start, len(pending))
            _judge_group(task, pending[start : start + AT_ONCE], files, bars)
        if pending:
            bars("networks", len(pending), len(pending))


def _judge_group(task: _Task, names: Sequence[str], files: ResultFiles, progress: Progress) -> None:
    """Judge some networks in one pass over the test images, and write down what came out."""
    networks = {name: task.source.network(name).to(task.device).eval() for name in names}
    folder = files.work / names[0]
    judges, num_bad = _fit(task, networks, folder, files, progress)
    hits: dict[str, list[Tensor]] = {name: [] for name in judges}
    is_judged: list[Tensor] = []
    done = 0
    for item in disturbed_images(
        task.test,
        task.conditions,
        size=task.source.preprocessing.image_size,
        resize=task.source.preprocessing.resize,
        workers=task.workers,
    ):
        done += item.num_tried
        if item.numbers:
            is_judged.append(item.is_judged)
            features = _features(task, {name: networks[name] for name in judges}, item)
            labels = torch.from_numpy(task.labels[1])[list(item.numbers)].repeat(len(task.conditions))
            for name, rows in features.items():
                try:
                    hits[name].append(judges[name](rows, labels).view(len(task.conditions), -1))
                except UserError as error:
                    files.fail(name, str(error))
                    del judges[name]
        progress("disturbed images", done, len(task.test))
    if not is_judged:
        raise UserError(f"None of the test images in {task.test.source} could be read. Check that they are images.")
    kept = torch.cat(is_judged, dim=1)
    bad = {"train": num_bad, "test": len(task.test) - kept.shape[1]}
    for name in judges:
        of_network = zip(task.conditions, torch.cat(hits[name], dim=1), kept, strict=True)
        by_name = {condition.name: row[counts] for condition, row, counts in of_network}
        files.add(name, outcome_of(by_name), bad_images=bad)
    shutil.rmtree(folder, ignore_errors=True)


def _fit(
    task: _Task, networks: Mapping[str, nn.Module], folder: Path, files: ResultFiles, progress: Progress
) -> tuple[dict[str, Judge], int]:
    """A judge for each network that can be judged, and the number of training images that could not be read."""
    source = task.source
    batches = partial(
        images_for_scoring,
        task.train,
        size=source.preprocessing.image_size,
        resize=source.preprocessing.resize,
        batch_size=ROWS,
        workers=task.workers,
    )
    found = extract_features(
        networks,
        lambda start: batches(start=start),
        num_images=len(task.train),
        folder=folder,
        settings=task.known,
        device=task.device,
        mean=source.preprocessing.mean,
        std=source.preprocessing.std,
        progress=progress,
        what="training images",
    )
    labels = torch.from_numpy(task.labels[0])[found.indices]
    judges = {}
    for name in networks:
        rows = Rows(found.features[name].clone(), labels)
        try:
            judges[name] = judge_of(
                task.settings.judge,
                rows,
                k=task.settings.k,
                num_classes=len(task.train.classes),
                device=task.device,
            )
        except UserError as error:
            files.fail(name, str(error))
    return judges, found.num_bad


@torch.inference_mode()
def _features(
    task: _Task, networks: Mapping[str, nn.Module], item: DisturbedImages
) -> dict[str, Float[Tensor, "rows width"]]:
    """Features of all images of an item, condition by condition, from each network."""
    own = task.source.preprocessing
    found: dict[str, list[Tensor]] = {name: [] for name in networks}
    together = max(1, ROWS // len(item.numbers))
    for start in range(0, len(task.conditions), together):
        rows = []
        for place in range(start, min(start + together, len(task.conditions))):
            images = normalise(item.images[place].to(task.device), mean=own.mean, std=own.std)
            rows.append(task.conditions[place].finish(images, item.numbers))
        batch = torch.cat(rows)
        for name, network in networks.items():
            found[name].append(network(batch).cls.float())
    return {name: torch.cat(rows) for name, rows in found.items()}
