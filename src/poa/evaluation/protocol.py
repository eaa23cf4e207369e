"""What a protocol that scores frozen features is: settings, and a function from the rows of a network to scores."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from poa.config.values import Settings
from poa.data.content import LeftOut
from poa.errors import UserError
from poa.features.whitening import Whitening

LEVEL = 0.95
"""Of the intervals beside scores."""
RESAMPLES = 1000
_DRAWN_AT_ONCE = 2**22  # images drawn at a time, which bounds the memory to about 100 MB
_CHECKED_AT_ONCE = 8192  # rows; features may be mapped from disk
_LEAST_DEVIATION = 1e-6  # of a column, as a share of its mean; below it the column is constant but for rounding

Columns = Mapping[str, tuple[int, int]]
"""First column and the one after the last, by name."""
_UNNAMED: Columns = MappingProxyType({})


class Rows(NamedTuple):
    """Features of images from one network, with the images' classes.

    Attributes:
        features: One row an image.
        labels: Classes from 0.
        columns: Pieces of a row by name, where a protocol has prepared the network to give several.
    """

    features: Float[Tensor, "images width"]
    labels: Int[Tensor, " images"]
    columns: Columns = _UNNAMED


class Prepared(NamedTuple):
    """A network as a protocol looks at it: its ``cls`` are the rows, with the names of their pieces."""

    network: nn.Module
    columns: Columns = _UNNAMED


@dataclass(frozen=True)
class Outcome:
    """What was found out about one network.

    Attributes:
        scores: In percent, by name.
        values: The same for each test image, of those scores that are a mean over images.
        details: What else is written down, such as what was chosen on the way; no scores.
        left_out: Images of each kind, such as ``test``, that could not be read.
        ends: Of the 95 % intervals of scores that are no mean over images.
    """

    scores: Mapping[str, float]
    values: Mapping[str, Float[Tensor, " _"]] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)
    ends: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of_ranks(cls, ranks: Int[Tensor, " images"], details: Mapping[str, float] | None = None) -> "Outcome":
        """Top-1 and top-5 of images whose true classes have these ranks."""
        # 100 times the share, and not the mean of percents: another order of operations changes the last digit
        scores = {name: 100.0 * float(hits.double().mean()) for name, hits in top_k(ranks).items()}
        return cls(scores, {name: percent(hits) for name, hits in top_k(ranks).items()}, details or {})

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Those that are given, and bootstrap intervals over test images of scores with values of several images."""
        found = {name: bootstrap_interval(values) for name, values in self.values.items() if len(values) > 1}
        return found | dict(self.ends)


class Protocol(Settings):
    """A way of scoring frozen features: settings of ``poa.config.protocols``, and what is computed with them.

    Attributes:
        name: Of the command and of the files of results.
        headline: The score to show where there is room for one.
        needs_train: Whether it looks at training images; without, it gets no rows of them.
        joint: Whether the scores of a network depend on which others are scored with it.
    """

    name: ClassVar[str]
    headline: ClassVar[str]
    needs_train: ClassVar[bool] = True
    joint: ClassVar[bool] = False

    def resolved(
        self,
        train_labels: Int[Tensor, " train"],  # noqa: ARG002  # for subclasses
        test_labels: Int[Tensor, " test"],  # noqa: ARG002
    ) -> "Protocol":
        """The same with every setting as it will be used, so that results say it.

        Raises:
            UserError: These images cannot be scored with these settings. Raised before features are extracted.
        """
        return self

    def prepare(self, network: nn.Module, *, image_size: int, channels: int = 3) -> Prepared:  # noqa: ARG002
        """The network as it is to be seen, in evaluation mode; by default as it is."""
        return Prepared(network)

    @abstractmethod
    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:
        """Score one network, on ``device``; UserError if the features or the labels cannot be used."""

    def outcomes(
        self, rows: Mapping[str, tuple[Rows, Rows]], *, num_classes: int, device: torch.device
    ) -> Iterator[tuple[str, Outcome | UserError]]:
        """Scores of networks by name from their training and test rows, or why one cannot be scored."""
        for name, (train, test) in rows.items():
            try:
                yield name, self(train, test, num_classes=num_classes, device=device)
            except UserError as error:
                yield name, error


def class_ranks(
    scores: Shaped[Tensor, "*groups images classes"], labels: Int[Tensor, " images"]
) -> Int[Tensor, "*groups images"]:
    """Place of the true class of each image from 0, by score, ties by class number.

    It is beyond all places where an image's class is not among the classes (label -1), or scores are not finite.
    """
    own = scores.gather(-1, labels.clamp_min(0)[:, None].expand(*scores.shape[:-1], 1))
    numbers, wanted = torch.arange(scores.shape[-1], device=scores.device), labels[:, None]
    before = ((scores > own) | ((scores == own) & (numbers < wanted))).sum(dim=-1)
    return torch.where((labels < 0) | ~scores.isfinite().all(dim=-1), beyond(scores.shape[-1]), before)


def beyond(num_classes: int) -> int:
    """A rank that is no hit, however few classes there are."""
    return num_classes + 5


def top_k(ranks: Int[Tensor, " images"]) -> dict[str, Bool[Tensor, " images"]]:
    """Whether the true class comes first (``top1``), and whether it is among the first five (``top5``)."""
    return {f"top{k}": ranks < k for k in (1, 5)}


def percent(hits: Bool[Tensor, " images"]) -> Float[Tensor, " images"]:
    """100 for a hit, 0 for a miss."""
    return 100.0 * hits.double()


def means(values: Mapping[str, Float[Tensor, " _"]]) -> dict[str, float]:
    """Mean over images of each score."""
    return {name: float(each.mean()) for name, each in values.items()}


def check_features(features: Float[Tensor, "images width"], *, name: str, least: int = 1) -> None:
    """Refuse too few rows, and rows that are not finite; ``name`` says what the images are, such as ``training``."""
    if len(features) < max(least, 1):
        raise UserError(
            f"There are too few {name} images: got {len(features)}, at least {max(least, 1)} are needed. Give "
            "more images, or check why images were left out."
        )
    if not all(bool(rows.isfinite().all()) for rows in torch.split(features, _CHECKED_AT_ONCE)):
        raise UserError(
            f"The features of the {name} images contain NaN or infinity, so they cannot be scored. The network "
            "may have diverged; for a run, check the loss in metrics.jsonl."
        )


def check_labels(
    features: Float[Tensor, "images width"],
    labels: Int[Tensor, " labels"],
    *,
    name: str,
    num_classes: int | None = None,
) -> None:
    """Refuse labels that are not one an image, from 0 to ``num_classes - 1`` (None: without upper end)."""
    if len(features) != len(labels):
        raise UserError(
            f"There are {len(features)} rows of {name} features but {len(labels)} labels; each image needs one "
            "of each. Use only the labels of the images that could be read."
        )
    lowest, highest = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        until = "on" if num_classes is None else f"to {num_classes - 1}"
        raise UserError(
            f"The {name} labels go from {lowest} to {highest}; "
            f"{'' if num_classes is None else f'with {num_classes} classes '}they go from 0 {until}. "
            "Number the classes from 0."
        )


def check_widths(first: Float[Tensor, "n width"], second: Float[Tensor, "m other"], *, names: tuple[str, str]) -> None:
    """Refuse features of two different networks where those of one are needed."""
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"The features of the {names[0]} images have width {first.shape[1]}, those of the {names[1]} images "
            f"{second.shape[1]}. Take both from the same network."
        )


def check_rows(
    train: Rows,
    test: Rows,
    *,
    num_classes: int | None,
    least: int = 1,
    names: tuple[str, str] = ("training", "test"),
) -> None:
    """Refuse features and labels that no classifier can be fitted to or tested on; ``least`` training images."""
    for rows, name, fewest in zip((train, test), names, (least, 1), strict=True):
        check_features(rows.features, name=name, least=fewest)
    for rows, name in zip((train, test), names, strict=True):
        check_labels(rows.features, rows.labels, name=name, num_classes=num_classes)
    check_widths(train.features, test.features, names=names)


def classes_of(labels: Int[Tensor, " images"]) -> tuple[Int[Tensor, " classes"], Int[Tensor, " images"]]:
    """The classes that have images, and the number of each image's class among them; UserError if it is one class."""
    classes, numbers = torch.unique(labels.cpu().long(), return_inverse=True)
    if len(classes) < 2:
        raise UserError(
            f"All training images have the same class ({', '.join(map(str, classes.tolist()))}), but at least "
            "two classes are needed. Give images of two classes or more."
        )
    return classes, numbers


def numbers_among(classes: Int[Tensor, " classes"], labels: Int[Tensor, " images"]) -> Int[Tensor, " images"]:
    """Number of each image's class among ascending classes; -1 for a class that is not there."""
    wanted = labels.cpu().long().contiguous()
    places = torch.searchsorted(classes, wanted).clamp_max(len(classes) - 1)
    return torch.where(classes[places] == wanted, places, -1)


def check_held_out(labels: Int[Tensor, " images"], *, what: str) -> None:
    """Refuse to choose ``what`` on held-out images where no class has two; labels are numbered by ``classes_of``."""
    if int(labels.bincount().max()) < 2:
        raise UserError(
            f"Every class has a single training image, so none can be held out to choose a {what}. Give more "
            "images of each class, or a single value."
        )


def column_statistics(
    features: Float[Tensor, "images width"], *, rows_at_once: int, device: torch.device
) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
    """Mean of each column, and one over its deviation (0 for constant columns): what rows are standardised with."""
    parts = torch.split(features, rows_at_once)
    total = torch.stack([part.to(device).double().sum(dim=0) for part in parts]).sum(dim=0)
    mean = (total / len(features)).float()
    squares = [(part.to(device).double() - mean).square().sum(dim=0) for part in parts]
    deviation = (torch.stack(squares).sum(dim=0) / len(features)).sqrt()
    return mean, torch.where(deviation > _LEAST_DEVIATION * mean.abs(), 1 / deviation, 0.0).float()


def unit_rows(
    features: Float[Tensor, "images width"], device: torch.device, whitening: Whitening | None = None
) -> Float[Tensor, "images width"]:
    """Rows of length 1 in float32 on ``device``, whitened before; rows of zeros stay."""
    rows = features.to(device, torch.float32)
    if whitening is not None:
        with full_precision(device):
            rows = whitening(rows)
    return F.normalize(rows, dim=1)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products as they are, whatever a training run has set (TF32, autocast): scores depend on them."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def bootstrap_interval(
    values: Float[Tensor, " images"] | Bool[Tensor, " images"] | Int[Tensor, " images"],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value an image (Efron, 1979).

    Images are drawn with replacement, as many as there are; the interval goes between the percentiles of the means.
    It says how much the score depends on which images were there to test on, not how much it would change if the
    network were trained again.

    Args:
        values: Such as whether each image is classified correctly; times 100 for percent. All in float64 inside.
        level: Probability, between 0 and 1.
        resamples: How often to draw.
        seed: Of the draws.

    Returns:
        Lower and upper end.

    Raises:
        UserError: There are fewer than two values, a value is not finite, or ``level`` or ``resamples`` is invalid.
    """
    rows = values.detach().cpu().double()
    if not bool(rows.isfinite().all()):
        raise UserError("The values contain NaN or infinity, so their mean has no interval. Score the network again.")
    if not 0 < level < 1 or resamples < 1:
        raise UserError(
            f"An interval needs a level between 0 and 1 and at least one resample, got {level} and {resamples}. "
            f"Usual are {LEVEL} and {RESAMPLES}."
        )
    if len(rows) < 2:
        raise UserError(
            f"An interval needs at least two images, got {len(rows)}. Give more images, or report no interval."
        )
    generator = torch.Generator().manual_seed(seed)
    torch.randint(1, (resamples, 1), generator=generator)  # once the training seeds; kept, so that intervals stay equal
    resampled = torch.empty(resamples, dtype=torch.float64)
    for part in torch.split(resampled, max(1, _DRAWN_AT_ONCE // len(rows))):
        part[:] = rows[torch.randint(len(rows), (len(part), len(rows)), generator=generator)].mean(dim=1)
    tail = (1 - level) / 2
    low, high = torch.quantile(resampled, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
