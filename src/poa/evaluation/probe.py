"""The linear probe of the literature on frozen features: many classifiers trained by SGD at once, of which one is kept.

DINOv2's protocol as POA's official code runs it: 13 learning rates times up to four views of the features
(``taps.py``), each classifier with its own softmax cross-entropy, momentum 0.9, no weight decay, half a cosine to 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from poa.data.sampler import draws
from poa.errors import UserError
from poa.evaluation.protocol import (
    Outcome,
    Prepared,
    Protocol,
    Rows,
    check_features,
    check_labels,
    check_widths,
    full_precision,
    percent,
)
from poa.features.taps import Taps, Variant, variants_of, whole_rows

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""Of 256 images a step (POA official code)."""
REFERENCE_BATCH = 256
HELD_OUT = 5
"""One in so many training images of each class is held out to choose by."""
_SPREAD = 0.01
_ROWS_AT_ONCE = 8192
_TINY = 1e-6


@dataclass(frozen=True)
class Probe(Protocol):
    """How classifiers are trained, and how one is chosen.

    The published probe trains 12,500 steps on a new random crop of each image and takes the classifier that is best on
    the test images. This one trains on rows that were taken once, without augmentation, as long as they need, and
    chooses on training images it holds out; ``choose_on="test"`` chooses as published, which flatters the scores.

    Attributes:
        learning_rates: To choose from, for 256 images a step; they are scaled in proportion to the batch size.
        batch_size: Images a step; all of them if there are fewer.
        epochs: Passes over the training images.
        most_steps: Where ``epochs`` would take more steps than this, so many are taken.
        momentum: Of SGD.
        standardise: Give all columns mean 0 and deviation 1 over the training images first; the published probe does
            not, and with its learning rates and few images it stops long before it has converged.
        choose_on: ``held-out`` training images, or the ``test`` images themselves.
        seed: Of weights, of the order of images and of the held-out ones.
    """

    learning_rates: tuple[float, ...] = LEARNING_RATES
    batch_size: int = 256
    epochs: int = 100
    most_steps: int = 12_500
    momentum: float = 0.9
    standardise: bool = True
    choose_on: str = "held-out"
    seed: int = 0

    name: ClassVar[str] = "probe"
    headline: ClassVar[str] = "top1"

    def __post_init__(self) -> None:
        if not self.learning_rates or not all(0 < lr < math.inf for lr in self.learning_rates):
            given = ", ".join(map(str, self.learning_rates)) or "none"
            raise UserError(f"Learning rates of a probe are numbers above 0, got {given}. Usual are 1e-5 to 0.1.")
        if min(self.batch_size, self.epochs, self.most_steps) < 1:
            raise UserError(
                "A probe takes at least one image a step, one epoch and one step, got a batch size of "
                f"{self.batch_size}, {self.epochs} epochs and at most {self.most_steps} steps."
            )
        if not 0 <= self.momentum < 1:
            raise UserError(f"Momentum of a probe lies between 0 and 1, got {self.momentum}. Usual is 0.9.")
        if self.choose_on not in ("held-out", "test"):
            raise UserError(f"A classifier is chosen on 'held-out' or on 'test' images, got {self.choose_on!r}.")

    def settled(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "Probe":  # noqa: ARG002
        """The same; there must be classes to tell apart and images to choose by."""
        _check_classes(train_labels)
        if self.choose_on == "held-out" and len(self.learning_rates) > 1:
            _check_held_out(held_out(train_labels, seed=self.seed))
        return self

    def prepare(self, network: nn.Module, *, image_size: int) -> Prepared:
        """The network with taps."""
        taps = Taps(network, image_size=image_size)
        return Prepared(taps, taps.columns)

    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:
        """Accuracy of the classifier that was chosen, and which one it is."""
        result = probe_scores(
            train.features,
            train.labels,
            test.features,
            test.labels,
            num_classes=num_classes,
            variants=variants_of(train.columns) if train.columns else None,
            probe=self,
            device=device,
        )
        values = {f"top{places}": percent(result.ranks < places) for places in (1, 5)}
        return Outcome({"top1": result.top1, "top5": result.top5}, values, result.chosen())


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Accuracy in percent of the classifier that was chosen.

    Attributes:
        top1: Share of test images whose class comes first.
        top5: Share of test images whose class is among the first five.
        learning_rate: Of the classifier, for 256 images a step.
        variant: What it looks at.
        ranks: Place of each test image's class from 0, on the CPU.
    """

    top1: float
    top5: float
    learning_rate: float
    variant: Variant
    ranks: Int[Tensor, " test"]

    @property
    def correct(self) -> Bool[Tensor, " test"]:
        """Whether each test image's class comes first."""
        return self.ranks < 1

    def chosen(self) -> dict[str, float]:
        """What was chosen, in numbers: ``learning_rate``, ``layers``, and ``patches`` (1 if they are looked at)."""
        layers, patches = float(self.variant.num_layers), float(self.variant.with_patches)
        return {"learning_rate": self.learning_rate, "layers": layers, "patches": patches}


class Classifiers(NamedTuple):
    """Linear classifiers of one variant, one for each learning rate.

    Attributes:
        weights: Of standardised columns.
        bias: Of the classes.
    """

    weights: Float[Tensor, "rates classes columns"]
    bias: Float[Tensor, "rates classes"]

    def logits(self, rows: Float[Tensor, "images columns"]) -> Float[Tensor, "images rates classes"]:
        """Logits of images, for each classifier: one matrix product for all of them."""
        logits = torch.addmm(self.bias.flatten(), rows, self.weights.flatten(0, 1).T)
        return logits.view(len(rows), *self.bias.shape)


def probe_scores(
    train_features: Float[Tensor, "train width"],
    train_labels: Int[Tensor, " labels"],
    test_features: Float[Tensor, "test test_width"],
    test_labels: Int[Tensor, " test_labels"],
    *,
    num_classes: int,
    variants: Sequence[Variant] | None = None,
    probe: Probe | None = None,
    device: torch.device | None = None,
) -> ProbeResult:
    """Train a classifier for each learning rate and variant, and test the one that is best on held-out images.

    A fifth of each class's training images is held out (none of a class with fewer than two), the classifier with the
    most hits on them is chosen, of equally good ones that with the lower cross-entropy, and it is trained again on all
    training images. Equal logits are decided by class number.

    Args:
        train_features: One row an image, as ``Taps`` gives it or any other.
        train_labels: Classes from 0 to ``num_classes - 1``.
        test_features: One row a test image.
        test_labels: As ``train_labels``; images of a class without training images count as wrong.
        num_classes: Number of classes.
        variants: Which columns classifiers may look at, such as ``Taps.variants``; whole rows by default.
        probe: How to train; with its defaults if None.
        device: Where to compute; that of the training features if None. Rows are moved there a batch at a time.

    Raises:
        UserError: The features or the labels cannot be used.
    """
    probe = probe or Probe()
    variants = tuple(variants or whole_rows(train_features.shape[1]))
    _check(train_features, train_labels, test_features, test_labels, num_classes=num_classes)
    device = device or train_features.device
    classes, labels = torch.unique(train_labels.cpu().long(), return_inverse=True)
    renumbered = torch.full((num_classes,), -1).index_copy_(0, classes, torch.arange(len(classes)))
    train = _Rows(train_features, labels, len(classes), device)
    test = _Rows(test_features, renumbered[test_labels.cpu().long()], len(classes), device)
    with torch.inference_mode(), full_precision(device):
        number, variant, fit = _chosen(train, test, variants, probe)
        ranks, _ = _ranks(fit, (variant,), test)
    top1, top5 = (100.0 * float((ranks[0, 0] < places).double().mean()) for places in (1, 5))
    return ProbeResult(top1, top5, probe.learning_rates[number], variant, ranks[0, 0])


class _Rows(NamedTuple):
    """Features of images with their classes.

    Attributes:
        labels: On the CPU; classes without training images have no number, and test images of them the label -1.
        device: Where rows are computed with.
    """

    features: Float[Tensor, "images width"]
    labels: Int[Tensor, " images"]
    num_classes: int
    device: torch.device

    def take(self, chosen: Int[Tensor, " chosen"]) -> "_Rows":
        return self._replace(features=self.features[chosen.to(self.features.device)], labels=self.labels[chosen])

    def batch(self, chosen: Sequence[int] | slice) -> tuple[Tensor, Tensor]:
        rows = self.features[chosen].to(self.device, torch.float32)
        return rows, self.labels[chosen].to(self.device)


class _Fit(NamedTuple):
    """Classifiers of each variant, and what rows are standardised with."""

    mean: Float[Tensor, " width"]
    scale: Float[Tensor, " width"]
    classifiers: tuple[Classifiers, ...]

    def standardised(self, rows: Float[Tensor, "images width"]) -> Float[Tensor, "images width"]:
        return (rows - self.mean) * self.scale


def _check(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, *, num_classes: int
) -> None:
    check_features(train_features, name="training", least=2)
    check_features(test_features, name="test")
    check_labels(train_features, train_labels, name="training", num_classes=num_classes)
    check_labels(test_features, test_labels, name="test", num_classes=num_classes)
    check_widths(train_features, test_features, names=("training", "test"))
    _check_classes(train_labels)


def _check_classes(labels: Int[Tensor, " train"]) -> None:
    if len(labels) and bool((labels == labels[0]).all()):
        raise UserError(
            f"All training images are of one class ({int(labels[0])}), so that there is nothing to tell apart. "
            "Give images of two classes or more."
        )


def _check_held_out(held: Bool[Tensor, " train"]) -> None:
    if not bool(held.any()):
        raise UserError(
            "Every class has a single training image, so that none can be held out to choose a classifier by. "
            "Give more images a class."
        )


def _chosen(train: _Rows, test: _Rows, variants: tuple[Variant, ...], probe: Probe) -> tuple[int, Variant, _Fit]:
    """Number of the learning rate, the variant, and the one classifier trained on all training images."""
    rates = probe.learning_rates
    if probe.choose_on == "test":
        fit = _train(train, variants, rates, probe)
        number, place = _best(fit, variants, test)
        found = fit.classifiers[place]
        only = Classifiers(found.weights[number : number + 1], found.bias[number : number + 1])
        return number, variants[place], fit._replace(classifiers=(only,))
    number, place = 0, 0
    if len(rates) * len(variants) > 1:
        held = held_out(train.labels, seed=probe.seed)
        _check_held_out(held)
        fit = _train(train.take((~held).nonzero()[:, 0]), variants, rates, probe)
        number, place = _best(fit, variants, train.take(held.nonzero()[:, 0]))
    variant = variants[place]
    return number, variant, _train(train, (variant,), (rates[number],), probe)


def held_out(labels: Int[Tensor, " images"], *, seed: int) -> Bool[Tensor, " images"]:
    """Choose one in five images of each class, rounded up; none of a class with a single image.

    Args:
        labels: Class of each image.
        seed: Of the choice.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = order[labels[order] == label]
        held[members[: -(-len(members) // HELD_OUT)]] = len(members) > 1
    return held


def _train(train: _Rows, variants: Sequence[Variant], rates: Sequence[float], probe: Probe) -> _Fit:
    """Classifiers of all variants and learning rates, trained on the same batches; rates decay with half a cosine."""
    batch_size = min(probe.batch_size, len(train.labels))
    num_steps = min(probe.epochs * (len(train.labels) // batch_size), probe.most_steps)
    base = torch.tensor(rates, device=train.device) * (batch_size / REFERENCE_BATCH)
    fit = _Fit(*_statistics(train, probe), tuple(_initial(variant, train, len(rates), probe) for variant in variants))
    velocities = [Classifiers(*map(torch.zeros_like, classifiers)) for classifiers in fit.classifiers]
    for step in range(num_steps):
        drawn = draws(step, num_images=len(train.labels), batch_size=batch_size, seed=probe.seed)
        rows, labels = train.batch([draw.index for draw in drawn])
        rows = fit.standardised(rows)
        lr = base * (0.5 * (1 + math.cos(math.pi * step / num_steps)))
        for variant, classifiers, velocity in zip(variants, fit.classifiers, velocities, strict=True):
            _sgd_step(classifiers, velocity, _columns(rows, variant), labels, lr=lr, momentum=probe.momentum)
    return fit


def _statistics(train: _Rows, probe: Probe) -> tuple[Tensor, Tensor]:
    """Mean of each column and one over its deviation; 0 and 1 where rows are taken as they are."""
    width = train.features.shape[1]
    if not probe.standardise:
        return torch.zeros(width, device=train.device), torch.ones(width, device=train.device)
    total, squares = torch.zeros(2, width, dtype=torch.float64, device=train.device)
    parts = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(train.labels), _ROWS_AT_ONCE)]
    for part in parts:
        total += train.batch(part)[0].double().sum(dim=0)
    mean = total / len(train.labels)
    for part in parts:
        squares += (train.batch(part)[0].double() - mean).square().sum(dim=0)
    deviation = (squares / len(train.labels)).sqrt()
    scale = torch.where(deviation > _TINY * mean.abs(), 1 / deviation, 0.0)  # constant columns say nothing
    return mean.float(), scale.float()


def _initial(variant: Variant, train: _Rows, num_rates: int, probe: Probe) -> Classifiers:
    """Weights from a normal distribution, the same for all learning rates; biases of 0."""
    width = sum(end - start for start, end in variant.ranges)
    generator = torch.Generator().manual_seed(probe.seed)
    weights = torch.randn(train.num_classes, width, generator=generator).mul_(_SPREAD).to(train.device)
    return Classifiers(weights.repeat(num_rates, 1, 1), torch.zeros(num_rates, train.num_classes, device=train.device))


def _columns(rows: Float[Tensor, "images width"], variant: Variant) -> Float[Tensor, "images columns"]:
    pieces = [rows[:, start:end] for start, end in variant.ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _sgd_step(
    classifiers: Classifiers,
    velocity: Classifiers,
    rows: Float[Tensor, "images columns"],
    labels: Int[Tensor, " images"],
    *,
    lr: Float[Tensor, " rates"],
    momentum: float,
) -> None:
    """One step of each classifier on its own mean cross-entropy, as ``torch.optim.SGD`` takes it; in place."""
    gradient = classifiers.logits(rows).softmax(dim=2)
    gradient[torch.arange(len(rows), device=rows.device), :, labels] -= 1
    gradient /= len(rows)
    velocity.weights.flatten(0, 1).addmm_(gradient.flatten(1).T, rows, beta=momentum)
    velocity.bias.mul_(momentum).add_(gradient.sum(dim=0))
    classifiers.weights.addcmul_(velocity.weights, lr[:, None, None], value=-1)
    classifiers.bias.addcmul_(velocity.bias, lr[:, None], value=-1)


def _best(fit: _Fit, variants: Sequence[Variant], rows: _Rows) -> tuple[int, int]:
    """Numbers of the learning rate and of the variant with the most hits, then with the lower cross-entropy."""
    ranks, losses = _ranks(fit, variants, rows)
    hits = (ranks < 1).sum(dim=2)
    places = [(variant, rate) for variant in range(len(hits)) for rate in range(hits.shape[1])]
    variant, rate = max(places, key=lambda place: (int(hits[place]), -float(losses[place])))
    return rate, variant


def _ranks(
    fit: _Fit, variants: Sequence[Variant], rows: _Rows
) -> tuple[Int[Tensor, "variants rates images"], Float[Tensor, "variants rates"]]:
    """Place of the true class of each image from 0, ties by class number; and the mean cross-entropy.

    The place of an unknown class is beyond all others, as that of every class is where a classifier has diverged.
    """
    ranks: list[Tensor] = []
    losses: list[Tensor] = []
    numbers, beyond = torch.arange(rows.num_classes, device=rows.device), rows.num_classes + 5
    for start in range(0, len(rows.labels), REFERENCE_BATCH):
        features, labels = rows.batch(slice(start, start + REFERENCE_BATCH))
        features, wanted = fit.standardised(features), labels[:, None]
        of_batch = [c.logits(_columns(features, v)) for v, c in zip(variants, fit.classifiers, strict=True)]
        logits = torch.stack(of_batch).transpose(1, 2)
        own = logits.gather(3, wanted.clamp_min(0).expand(*logits.shape[:2], -1, 1))
        before = ((logits > own) | ((logits == own) & (numbers < wanted))).sum(dim=3)
        is_lost = (labels < 0) | ~logits.isfinite().all(dim=3)
        ranks.append(torch.where(is_lost, beyond, before).cpu())
        losses.append((logits.logsumexp(dim=3) - own[..., 0]).double().sum(dim=2).cpu())
    return torch.cat(ranks, dim=2), torch.stack(losses).sum(dim=0) / len(rows.labels)
