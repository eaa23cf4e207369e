"""The linear probe of the literature on frozen features: many classifiers trained by SGD at once, of which one is kept.

DINOv2's protocol as POA's official code runs it: 13 learning rates times up to four views of the features
(``features/taps.py``), each classifier with its own softmax cross-entropy, momentum 0.9, no weight decay, half a cosine
to 0.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from poa.config.protocols import ProbeSettings
from poa.data.sampler import draws, held_out
from poa.evaluation.protocol import (
    Outcome,
    Prepared,
    Protocol,
    Rows,
    check_held_out,
    check_rows,
    class_ranks,
    classes_of,
    column_statistics,
    full_precision,
    numbers_among,
)
from poa.features.taps import Taps, Variant, variants_of, whole_rows

REFERENCE_BATCH = 256
"""Images a step for which learning rates are given; also the images classified at once."""
HELD_OUT = 5
"""One in so many training images of each class is held out to choose by."""
_SPREAD = 0.01
_ROWS_AT_ONCE = 8192


class Probe(ProbeSettings, Protocol):
    """Train a classifier for each learning rate and variant, and test the one that is best on held-out images.

    A fifth of each class's training images is held out (none of a class with fewer than two), the classifier with the
    most hits on them is chosen, of equally good ones that with the lower cross-entropy, and it is trained again on all
    training images. Equal logits are decided by class number.

    The published probe trains 12,500 steps on a new random crop of each image and takes the classifier that is best on
    the test images. This one trains on rows that were taken once, without augmentation, as long as they need, and
    chooses on training images it holds out; ``choose_on="test"`` chooses as published, which flatters the scores.
    """

    name: ClassVar[str] = "probe"
    headline: ClassVar[str] = "top1"

    def resolved(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "Probe":  # noqa: ARG002
        """The same; there must be classes to tell apart and images to choose by."""
        _, labels = classes_of(train_labels)
        if self.choose_on == "held-out" and len(self.learning_rates) > 1:
            check_held_out(labels, what="learning rate")
        return self

    def prepare(self, network: nn.Module, *, image_size: int, channels: int = 3) -> Prepared:
        """The network with taps."""
        taps = Taps(network, image_size=image_size, channels=channels)
        return Prepared(taps, taps.columns)

    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:
        """Accuracy of the classifier that was chosen, and which one it is."""
        check_rows(train, test, num_classes=num_classes, least=2)
        variants = tuple(variants_of(train.columns) if train.columns else whole_rows(train.features.shape[1]))
        classes, labels = classes_of(train.labels)
        known = _Rows(train.features, labels, len(classes), device)
        asked = _Rows(test.features, numbers_among(classes, test.labels), len(classes), device)
        with torch.inference_mode(), full_precision(device):
            number, variant, fit = _chosen(known, asked, variants, self)
            ranks, _ = _ranks(fit, (variant,), asked)
        layers, patches = float(variant.num_layers), float(variant.with_patches)
        details = {"learning_rate": self.learning_rates[number], "layers": layers, "patches": patches}
        return Outcome.of_ranks(ranks[0, 0], details)


class Classifiers(NamedTuple):
    """Linear classifiers of the standardised columns of one variant, one for each learning rate."""

    weights: Float[Tensor, "rates classes columns"]
    bias: Float[Tensor, "rates classes"]

    def logits(self, rows: Float[Tensor, "images columns"]) -> Float[Tensor, "images rates classes"]:
        """Logits of images, for each classifier: one matrix product for all of them."""
        logits = torch.addmm(self.bias.flatten(), rows, self.weights.flatten(0, 1).T)
        return logits.view(len(rows), *self.bias.shape)


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


def _chosen(
    train: _Rows, test: _Rows, variants: tuple[Variant, ...], probe: ProbeSettings
) -> tuple[int, Variant, _Fit]:
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
        check_held_out(train.labels, what="classifier")
        held = held_out(train.labels, seed=probe.seed, one_in=HELD_OUT)
        fit = _train(train.take((~held).nonzero()[:, 0]), variants, rates, probe)
        number, place = _best(fit, variants, train.take(held.nonzero()[:, 0]))
    variant = variants[place]
    return number, variant, _train(train, (variant,), (rates[number],), probe)


def _train(train: _Rows, variants: Sequence[Variant], rates: Sequence[float], probe: ProbeSettings) -> _Fit:
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


def _statistics(train: _Rows, probe: ProbeSettings) -> tuple[Tensor, Tensor]:
    if probe.standardise:
        return column_statistics(train.features, rows_at_once=_ROWS_AT_ONCE, device=train.device)
    width = train.features.shape[1]
    return torch.zeros(width, device=train.device), torch.ones(width, device=train.device)


def _initial(variant: Variant, train: _Rows, num_rates: int, probe: ProbeSettings) -> Classifiers:
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
    """Ranks of the true classes, and the mean cross-entropy; a classifier that has diverged has no hit."""
    ranks: list[Tensor] = []
    losses: list[Tensor] = []
    for start in range(0, len(rows.labels), REFERENCE_BATCH):
        features, labels = rows.batch(slice(start, start + REFERENCE_BATCH))
        features = fit.standardised(features)
        of_batch = [c.logits(_columns(features, v)) for v, c in zip(variants, fit.classifiers, strict=True)]
        logits = torch.stack(of_batch).transpose(1, 2)
        ranks.append(class_ranks(logits, labels).cpu())
        own = logits.gather(3, labels.clamp_min(0)[:, None].expand(*logits.shape[:2], -1, 1))
        losses.append((logits.logsumexp(dim=3) - own[..., 0]).double().sum(dim=2).cpu())
    return torch.cat(ranks, dim=2), torch.stack(losses).sum(dim=0) / len(rows.labels)
