"""Every setting of a protocol acts: with another value the same features give other scores, values or details.

What the settings do is tested with each protocol; here it is that they arrive. A new setting without a row fails.
"""

from functools import cache
from typing import Any

import pytest
import torch

from evaluation.scored import CPU, same
from poa.errors import UserError
from poa.evaluation.evaluate import PROTOCOLS, protocol_of
from poa.evaluation.protocol import Outcome, Rows

CLASSES = 6
JOINT: dict[str, Any] = {"learning_rates": (0.03, 0.1), "epochs": 3, "batch_size": 32}
BASE: dict[str, dict[str, Any]] = {
    "knn": {"ks": (15,)},
    "linear": {"strengths": (0.1, 10.0)},
    "linear-switchable": JOINT,
    "linear-slimmable": JOINT,
    "probe": {"learning_rates": (0.01, 0.1, 0.3, 1.0, 3.0), "epochs": 3, "batch_size": 32},
    "few-shot": {"per_class": 3, "draws": 1, "strengths": (0.1,)},
    "cluster": {"restarts": 1},
    "retrieval": {"ks": (1,)},
}
TOGETHER: dict[str, Any] = {
    "learning_rates": (1.0,),
    "schedule": "steps",
    "epochs": 5,
    "batch_size": 16,
    "distilled": False,
    "standardise": False,
    "seed": 1,
}
OTHER: dict[str, dict[str, Any]] = {
    "knn": {"ks": (3,), "temperature": 0.5, "whiten": 0.1},
    "linear": {"strengths": (10.0,), "seed": 2},
    "linear-switchable": TOGETHER,
    "linear-slimmable": TOGETHER,
    "probe": {
        "learning_rates": (1.0,),
        "batch_size": 16,
        "epochs": 6,
        "most_steps": 2,
        "momentum": 0.0,
        "standardise": False,
        "choose_on": "test",
        "seed": 1,
    },
    "few-shot": {"per_class": 5, "draws": 2, "strengths": (10.0,), "seed": 5},
    "cluster": {"clusters": 4, "seeds": (0, 1), "restarts": 2, "normalise": True},
    "retrieval": {"ks": (1, 3), "whiten": 0.1},
}
ELSEWHERE = {
    ("linear", "fit"): "has one value",
    ("few-shot", "share"): "excludes per_class: below",
}
ROWS = [(name, field, value) for name, values in OTHER.items() for field, value in values.items()]


def make(images: int, *, seed: int) -> dict[str, Rows]:
    """Overlapping classes; features of a network, and half of them as those of a smaller one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    centres = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(0))
    rows = 2 + (centres[labels] + 1.5 * torch.randn(images, 8, generator=generator)) * torch.linspace(0.2, 3, 8)
    return {f"{width}x1": Rows(rows[:, :width].contiguous(), labels) for width in (8, 4)}


TRAIN, TEST = make(90, seed=1), make(61, seed=2)


def outcomes(name: str, settings: dict[str, Any]) -> dict[str, Outcome]:
    rows = {size: (TRAIN[size], TEST[size]) for size in TRAIN}
    found = dict(protocol_of(name, settings).outcomes(rows, num_classes=CLASSES, device=CPU))
    failed = [outcome for outcome in found.values() if isinstance(outcome, UserError)]
    assert not failed
    return found  # type: ignore[return-value]  # just seen


@cache
def usual(name: str) -> dict[str, Outcome]:
    return outcomes(name, BASE[name])


def equal(first: dict[str, Outcome], second: dict[str, Outcome]) -> bool:
    return all(same(outcome, second[size]) for size, outcome in first.items())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_same_settings_find_the_same(name: str) -> None:
    """Else the next test could not fail."""
    assert equal(usual(name), outcomes(name, BASE[name]))


@pytest.mark.parametrize(("name", "field", "value"), ROWS)
def test_another_value_finds_something_else(name: str, field: str, value: Any) -> None:
    assert not equal(usual(name), outcomes(name, BASE[name] | {field: value}))


def test_a_share_is_as_many_images_of_each_class() -> None:
    assert equal(outcomes("few-shot", {**BASE["few-shot"], "per_class": None, "share": 0.2}), usual("few-shot"))


def test_every_setting_has_a_row() -> None:
    tested = {(name, field) for name, field, _ in ROWS} | set(ELSEWHERE)
    assert {(name, field) for name, kind in PROTOCOLS.items() for field in kind.model_fields} - tested == set()
