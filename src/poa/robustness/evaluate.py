"""Accuracy under corruptions and other conditions, by one classifier of clean features for each network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from poa import distributed
from poa.data.augment import normalise
from poa.data.channels import require_rgb
from poa.data.content import Identity, LeftOut
from poa.data.index import ImageIndex, matched_labels
from poa.data.sources import Data, check_out
from poa.errors import UserError
from poa.evaluation.knn import Knn, allowed_ks
from poa.evaluation.linear import Linear
from poa.evaluation.logistic import fit_logistic
from poa.evaluation.protocol import Outcome, Rows, check_features, classes_of, percent
from poa.evaluation.results import Results
from poa.evaluation.sweep import AT_ONCE, DEFAULTS, Scorer, SweepOptions, sweep
from poa.features.extract import Progress, extract_features, read_batches
from poa.features.images import note_darkness, open_images
from poa.models.source import ModelSource
from poa.robustness.conditions import Condition, ConditionBatch, Robustness, condition_batches
from poa.robustness.corruptions import CORRUPTIONS
from poa.robustness.occlusion import MaskedImages
from poa.robustness.plots import Panel

ROWS = 128
"""Images in one pass through a network."""
Classifier = Callable[[Float[Tensor, "images width"], Int[Tensor, " images"]], Bool[Tensor, " images"]]
"""Features and true classes of images to whether each is classified rightly."""


def evaluate(
    source: ModelSource,
    robustness: Robustness,
    *,
    train: Data,
    test: Data,
    masks: Path | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    options: SweepOptions = DEFAULTS,
) -> Results:
    """Accuracy of networks under all conditions, in percent; also ``NAME/robustness.json`` and ``.csv``.

    The classifier of a network is fitted to the features of clean training images and never changed. Each test image
    is decoded and corrupted once for all networks of a group. A score has the name of its condition, such as
    ``occlusion 0.5`` or ``jpeg 3``; see ``means`` for those over several.

    Args:
        source: Whose networks.
        robustness: Conditions and classifier.
        train: Labelled images to fit the classifiers to.
        test: Labelled images to test on; their classes are among those of ``train``, by name.
        masks: Folder with a mask of each test image, to swap backgrounds as well.
        limit: Take only a class-balanced part of the training images.
        test_limit: Take only a class-balanced part of the test images.
        options: Which networks, and where to write.

    Raises:
        NotScored: Some networks could not be scored; the others are written.
        UserError: A size, the images, the masks or a setting are invalid, or the name holds results of other settings.
    """
    require_rgb(source.preprocessing.values, what="`poa evaluate robustness`", name=source.name)
    names, preprocessing = source.choose(options.sizes), source.preprocessing
    robustness = robustness.resolved(preprocessing.image_size)
    check_out(source.out, train, test)
    train_index = open_images(train, limit=limit, console=options.console)
    test_index = open_images(test, limit=test_limit, console=options.console)
    note_darkness(train_index, test_index, console=options.console)
    labels = matched_labels(train_index, test_index)
    if robustness.judge == "knn":
        allowed_ks((robustness.k,), num_train=len(train_index))
    masked = None if masks is None else MaskedImages(test_index, labels[1], masks, preprocessing, robustness.seed)
    if masked is not None:
        masked.check()
    scorer = RobustnessScorer(source, robustness, train_index, test_index, labels, masked, options.workers)
    return sweep(source, scorer, names, options)


@dataclass(frozen=True)
class RobustnessScorer(Scorer):
    """See ``evaluate``."""

    source: ModelSource
    robustness: Robustness
    train: ImageIndex
    test: ImageIndex
    labels: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    masked: MaskedImages | None
    workers: int

    name = "robustness"
    at_once = AT_ONCE

    @cached_property
    def identities(self) -> Mapping[str, Identity]:
        """Images, and masks if there are some."""
        masks = {} if self.masked is None else {"masks": self.masked.identity}
        return {"train": self.train.identity, "test": self.test.identity, **masks}

    @property
    def choices(self) -> Mapping[str, Any]:
        """Preprocessing, conditions and classifier."""
        no_masks = {"masks": None} if self.masked is None else {}
        return {**self.source.preprocessing.stated(), **no_masks, **dict(self.robustness)}

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """Under which networks are tested."""
        return self.robustness.conditions(self.masked)

    def score(self, names: Sequence[str], work: Path, progress: Progress) -> Iterator[tuple[str, Outcome | UserError]]:
        """Fit a classifier of each network, and test all of them in one pass over the test images."""
        device = distributed.this_device()
        networks = {name: self.source.network(name).to(device).eval() for name in names}
        rows, trained = self._training_rows(networks, work, progress)
        classifiers: dict[str, Classifier] = {}
        for name in names:
            try:
                classifiers[name] = self._fit(rows[name], device)
            except UserError as error:
                yield name, error
        hits: dict[str, list[Tensor]] = {name: [] for name in classifiers}
        counted, tested = list[Tensor](), list[int]()
        for batch in self._test_batches(progress):
            counted.append(batch.counts)
            tested += batch.numbers
            features = self._features({name: networks[name] for name in classifiers}, batch, device)
            labels = torch.from_numpy(self.labels[1])[list(batch.numbers)].repeat(len(self.conditions))
            for name, found in features.items():
                try:
                    hits[name].append(classifiers[name](found, labels).view(len(self.conditions), -1))
                except UserError as error:
                    yield name, error
                    del classifiers[name]
        counts = torch.cat(counted, dim=1)
        left_out = {"train": self.train.left_out(trained), "test": self.test.left_out(tested)}
        for name in classifiers:
            by_condition = zip(self.conditions, torch.cat(hits[name], dim=1), counts, strict=True)
            yield name, outcome_of({each.name: row[count] for each, row, count in by_condition}, left_out)

    def _training_rows(
        self, networks: Mapping[str, nn.Module], work: Path, progress: Progress
    ) -> tuple[dict[str, Rows], Int[Tensor, " images"]]:
        """Features and classes of the training images, and which of them could be read."""
        found = extract_features(
            networks,
            read_batches(self.train, self.source.preprocessing, batch_size=ROWS, workers=self.workers),
            num_images=len(self.train),
            folder=work / "train",
            settings=self.settings,
            preprocessing=self.source.preprocessing,
            device=distributed.this_device(),
            progress=progress,
            what="training images",
        )
        labels = torch.from_numpy(self.labels[0])[found.indices]
        return {name: Rows(found.features[name].clone(), labels) for name in networks}, found.indices

    def _fit(self, train: Rows, device: torch.device) -> Classifier:
        num_classes, k = len(self.train.classes), self.robustness.k
        is_knn = self.robustness.judge == "knn"
        return _knn(train, k, num_classes, device) if is_knn else _linear(train, num_classes, device)

    def _test_batches(self, progress: Progress) -> Iterator[ConditionBatch]:
        """Those that hold images, of which there must be one."""
        done, is_empty = 0, True
        for batch in condition_batches(
            self.test, self.conditions, self.source.preprocessing, masked=self.masked, workers=self.workers
        ):
            done += batch.num_tried
            if batch.numbers:
                is_empty = False
                yield batch
            progress("test images", done, len(self.test))
        if is_empty:
            raise UserError(f"None of the test images in {self.test.source} could be read. Check that they are images.")

    @torch.inference_mode()
    def _features(
        self, networks: Mapping[str, nn.Module], batch: ConditionBatch, device: torch.device
    ) -> dict[str, Float[Tensor, "rows width"]]:
        """Features of all images of a batch, condition by condition, from each network."""
        found: dict[str, list[Tensor]] = {name: [] for name in networks}
        mean, std = self.source.preprocessing.mean, self.source.preprocessing.std
        together = max(1, ROWS // len(batch.numbers))
        for start in range(0, len(self.conditions), together):
            part = slice(start, start + together)
            rows = [
                condition.normalised(normalise(pixels.to(device), mean=mean, std=std), numbers=batch.numbers)
                for condition, pixels in zip(self.conditions[part], batch.images[part], strict=True)
            ]
            images = torch.cat(rows)
            for name, network in networks.items():
                found[name].append(network(images).cls.float())
        return {name: torch.cat(rows) for name, rows in found.items()}


def _knn(train: Rows, k: int, num_classes: int, device: torch.device) -> Classifier:
    """Weighted votes of the nearest training images."""
    check_features(train.features, name="training")

    def classify(features: Float[Tensor, "images width"], labels: Int[Tensor, " images"]) -> Bool[Tensor, " images"]:
        found = Knn(ks=(k,))(train, Rows(features, labels), num_classes=num_classes, device=device)
        return found.values[f"top1@{k}"] > 0

    return classify


def _linear(train: Rows, num_classes: int, device: torch.device) -> Classifier:
    """Logistic regression whose penalty is chosen on a fifth of the training images."""
    one = Rows(train.features[:1], train.labels[:1])  # nothing is tested yet
    chosen = Linear()(train, one, num_classes=num_classes, device=device).details["strength"]
    classes, numbers = classes_of(train.labels)
    fit = fit_logistic(train.features, numbers, strengths=(chosen,), num_classes=len(classes), device=device)

    def classify(features: Float[Tensor, "images width"], labels: Int[Tensor, " images"]) -> Bool[Tensor, " images"]:
        check_features(features, name="test")
        return classes[fit.logits(features)[0].argmax(dim=1).cpu()] == labels.cpu()

    return classify


def means(hits: Mapping[str, Float[Tensor, " _"]]) -> dict[str, Float[Tensor, " _"]]:
    """Means over conditions, for each image.

    ``occlusion`` is over all shares, ``shuffle`` over all grids, ``corruptions`` over all corruptions and severities,
    and so are ``noise``, ``blur``, ``weather`` and ``digital`` over their own.

    The hits, 100 or 0 for each image, are given by name of the condition.
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


def outcome_of(hits: Mapping[str, Bool[Tensor, " _"]], left_out: Mapping[str, LeftOut]) -> Outcome:
    """Scores of one network: on clean images, means, and under each condition.

    ``corruptions relative`` is the mean over corruptions and severities as a share of the accuracy on clean images.
    (The published mean corruption error divides by the errors of AlexNet instead, which no other data set has.) The
    hits, whether each image is classified rightly, are given by name of the condition, ``clean`` among them.
    """
    values = {name: percent(each) for name, each in hits.items()}
    found = {"clean": values["clean"], **means(values), **values}
    scores = {name: float(each.mean()) for name, each in found.items() if len(each)}
    if "corruptions" in scores and scores["clean"] > 0:
        scores["corruptions relative"] = 100 * scores["corruptions"] / scores["clean"]
    details = {name: float(len(each)) for name, each in hits.items() if name.startswith("background")}
    first = [name for name in ("clean", "corruptions", "corruptions relative") if name in scores]
    ordered = {name: scores[name] for name in dict.fromkeys((*first, *scores))}
    return Outcome(ordered, {name: each for name, each in found.items() if len(each)}, details, left_out)


def panels(scores: Mapping[str, Mapping[str, float]]) -> list[Panel]:
    """Curves to draw: accuracy by share of hidden cells, by grid, by severity of each group, and by background."""
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
