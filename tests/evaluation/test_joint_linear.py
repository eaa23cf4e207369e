import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.data.sampler import folds_of
from poa.errors import UserError
from poa.evaluation.evaluate import FrozenFeatures
from poa.evaluation.joint_linear import Classifiers, JointLinear, Slimmable, Switchable
from poa.evaluation.linear import FOLDS
from poa.evaluation.protocol import Outcome, Rows
from poa.evaluation.results import NotScored, Results
from poa.evaluation.sweep import SweepOptions, sweep
from poa.families.base import Features
from poa.models.source import ModelSource

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {"epochs": 4, "batch_size": 32}
CLASSES, IMAGES = 5, 120


def rows(images: int, seed: int) -> dict[str, tuple[int, Rows]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    centres = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(0))
    features = 3 * centres[labels] + 5 * torch.randn(images, 12, generator=generator) + 7
    return {f"{width}x1": (width, Rows(features[:, :width].contiguous(), labels)) for width in (3, 12, 6)}


TRAIN, TEST = rows(IMAGES, 1), rows(60, 2)
BOTH = {name: (TRAIN[name][1], TEST[name][1]) for name in TRAIN}


def outcomes(protocol: JointLinear) -> dict[str, Outcome]:
    found = dict(protocol.outcomes(BOTH, num_classes=CLASSES, device=CPU))
    assert all(isinstance(outcome, Outcome) for outcome in found.values())
    return found  # type: ignore[return-value]  # just seen


@pytest.mark.parametrize("kind", [Switchable, Slimmable])
def test_scores_are_those_of_the_classifiers_of_standardised_features(kind: type[JointLinear]) -> None:
    protocol = kind(learning_rates=(0.5,), distilled=False, seed=3, **SHORT)
    found = outcomes(protocol)
    names = ["12x1", "6x1", "3x1"]
    assert list(found) == names
    means = [TRAIN[name][1].features.mean(0) for name in names]
    spreads = [TRAIN[name][1].features.std(0, correction=0) for name in names]

    def scaled(part: dict[str, tuple[int, Rows]]) -> list[torch.Tensor]:
        return [(part[n][1].features - mean) / spread for n, mean, spread in zip(names, means, spreads, strict=True)]

    labels = TRAIN["3x1"][1].labels
    expected = protocol.fit(scaled(TRAIN), labels, lr=0.5, num_classes=CLASSES)
    top1 = expected.top1(scaled(TEST), TEST["3x1"][1].labels)
    assert [found[name].scores["top1"] for name in names] == pytest.approx(top1)
    assert [found[n].details["training_loss"] for n in names] == pytest.approx(expected.losses(scaled(TRAIN), labels))
    assert len({found[name].scores["top1"] for name in names}) > 1
    assert all(found[name].scores["top5"] == 100.0 for name in names)
    assert all(len(found[name].values["top1"]) == 60 for name in names)


def test_learning_rate_suits_the_largest_on_held_out_images() -> None:
    rates = (1e-4, 0.3, 100.0)
    protocol = Switchable(learning_rates=rates, **SHORT)
    found = outcomes(protocol)
    chosen = {outcome.details["lr"] for outcome in found.values()}
    held = folds_of(TRAIN["12x1"][1].labels, seed=0, num_folds=FOLDS) == 0
    features = TRAIN["12x1"][1].features
    features = (features - features.mean(0)) / features.std(0, correction=0)
    labels = TRAIN["12x1"][1].labels
    hits = {}
    for lr in rates:
        own = protocol.fit([features[~held]], labels[~held], lr=lr, num_classes=CLASSES)
        hits[lr] = own.top1([features[held]], labels[held])[0]
    assert len(set(hits.values())) > 1
    assert chosen == {max(hits, key=lambda lr: hits[lr])}


@pytest.mark.parametrize(
    ("sizes", "largest"),
    [
        ({"6x2": 6, "12x2": 12, "12x3": 12, "6x3": 6}, "12x3"),  # a ViT: features are as wide as the size
        ({"32x1-2": 12, "64x1-1": 12, "64x2-1": 12, "64x1-2": 12, "64x2-2": 12, "32x2-2": 12}, "64x2-2"),  # a ResNet
        ({"64x4-8": 12, "64x5-6": 12, "64x4-6": 12}, "64x4-8"),  # without the intact network: the most blocks
    ],
    ids=["vit", "resnet", "resnet, some sizes"],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_largest_of_all_teaches(sizes: dict[str, int], largest: str, reverse: bool) -> None:
    """Not the first or the shallowest of those with the widest features, in whatever order they are named."""
    taught: list[torch.Tensor] = []

    class Seen(Switchable):
        def fit(self, features: Sequence[torch.Tensor], *args: Any, **options: Any) -> Classifiers:
            taught.append(features[0])
            return super().fit(features, *args, **options)

    marked = {
        name: (Rows(torch.full((4, width), float(number)), torch.arange(4) % 2),) * 2
        for number, (name, width) in enumerate(sorted(sizes.items(), reverse=reverse))
    }
    Seen(learning_rates=(0.5,), epochs=1, standardise=False)._together(marked, num_classes=2, device=CPU)
    assert torch.equal(taught[0], marked[largest][0].features)


def test_what_is_told_changes_what_is_found() -> None:
    plain = outcomes(Switchable(learning_rates=(0.5,), **SHORT))
    for protocol in (
        Switchable(learning_rates=(0.5,), distilled=False, **SHORT),
        Switchable(learning_rates=(0.5,), standardise=False, **SHORT),
        Switchable(learning_rates=(0.5,), schedule="steps", **SHORT),
        Slimmable(learning_rates=(0.5,), **SHORT),
    ):
        other = outcomes(protocol)
        assert other["3x1"].details["training_loss"] != plain["3x1"].details["training_loss"], protocol


def test_one_network_by_itself() -> None:
    protocol = Switchable(learning_rates=(0.5,), **SHORT)
    alone = protocol(*BOTH["12x1"], num_classes=CLASSES, device=CPU)
    # what is taught to the others flows nowhere back
    assert alone.details["training_loss"] == pytest.approx(outcomes(protocol)["12x1"].details["training_loss"])


@pytest.mark.parametrize(
    ("settings", "labels", "told"),
    [
        ({"learning_rates": ()}, [0, 0, 1, 1], r"--learning-rates cannot be \(\)"),
        ({"learning_rates": (0.1, -1.0)}, [0, 0, 1, 1], "--learning-rates cannot be -1.0: it should be greater than 0"),
        ({"learning_rates": (0.1, 1.0)}, [0, 1, 2], "single training image"),
        ({"epochs": 0}, [0, 0, 1, 1], "--epochs cannot be 0"),
        ({}, [1, 1, 1], "the same class"),
    ],
)
def test_bad_settings_are_told(settings: dict[str, Any], labels: list[int], told: str) -> None:
    for kind in (Switchable, Slimmable):
        with pytest.raises(UserError, match=told):
            kind(**settings).resolved(torch.tensor(labels), torch.tensor(labels))


class Pixels(nn.Module):
    """Some pixels of the first channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, images: torch.Tensor) -> Features:
        chosen = torch.randperm(1024, generator=torch.Generator().manual_seed(0))[: self.width]
        flat = images[:, 0].flatten(1)[:, chosen]
        return Features(flat, flat[:, None])


def score(names: list[str], out: Path, *, networks: Any = None, protocol: JointLinear | None = None) -> Results:
    networks = networks or (lambda name: Pixels(int(name.partition("x")[0])))
    seen = Preprocessing(32, 32, (0.0,) * 3, (1.0,) * 3)
    source = ModelSource("mine", tuple(names), networks, networks, "pixels", seen, out.parent)
    protocol = protocol or Switchable(learning_rates=(0.3,), epochs=2)
    indexes = {"train": open_index("digits/train", limit=200), "test": open_index("digits/test")}
    return sweep(source, FrozenFeatures.of(source, names, protocol, **indexes), names, SweepOptions(name=out.name))


def test_sweep_scores_all_at_once(tmp_path: Path) -> None:
    """However few networks are held together otherwise, and only once."""
    found = score(["64x1", "16x1"], tmp_path)
    assert found.scores.keys() == {"16x1", "64x1"}
    assert found.scores["64x1"]["top1"] > found.scores["16x1"]["top1"] > 10
    again = score(["64x1", "16x1"], tmp_path, networks=lambda _: pytest.fail("scored twice"))
    assert again.scores == found.scores
    with pytest.raises(UserError, match="networks"):  # with others, they would have learnt something else
        score(["64x1", "32x1"], tmp_path)


def test_sweep_goes_on_with_all(tmp_path: Path) -> None:
    """If only some were written when it was stopped, the others are not scored by themselves."""
    whole = score(["64x1", "16x1"], tmp_path / "whole")
    stopped = tmp_path / "stopped"
    score(["64x1", "16x1"], stopped)
    path = stopped / "linear-switchable.json"
    content = json.loads(path.read_text())
    del content["scores"]["16x1"], content["intervals"]["16x1"], content["details"]["16x1"]
    path.write_text(json.dumps(content))
    assert score(["64x1", "16x1"], stopped).scores == whole.scores


def test_a_diverged_network_is_told(tmp_path: Path) -> None:
    class Diverged(Pixels):
        def forward(self, images: torch.Tensor) -> Features:
            found = super().forward(images)
            return Features(found.cls * float("nan"), found.patches)

    with pytest.raises(NotScored, match=r"2 of 2 networks could not be scored.*16x1.*NaN"):
        score(["64x1", "16x1"], tmp_path, networks=lambda n: (Diverged if n == "16x1" else Pixels)(int(n[:2])))


def test_learning_rates_are_sorted() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    protocol = Switchable(learning_rates=(1.0, 0.1, 1.0))
    assert protocol.resolved(labels, labels) == protocol.changed(learning_rates=(0.1, 1.0))
