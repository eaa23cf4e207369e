"""Every setting of robustness acts: with another value other images are rightly classified under some condition.

What is seen is compared condition by condition, without their names. A new setting without a row fails.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pixel_features
from pixel_features import SIZES, pictures, source
from poa.config.protocols import RobustnessSettings
from poa.errors import UserError
from poa.evaluation.protocol import Outcome
from poa.robustness import evaluate as robustness
from poa.robustness.conditions import Robustness
from poa.robustness.occlusion import MaskedImages

NONE: dict[str, Any] = {"occlusion": (), "shuffle": (), "corruptions": (), "severities": (3,), "k": 5, "seed": 3}
BASE = {
    "hidden": NONE | {"occlusion": (0.5,)},
    "shuffled": NONE | {"shuffle": (2,)},
    "noisy": NONE | {"corruptions": ("gaussian-noise",)},
}
ROWS = [
    ("hidden", "occlusion", (0.7,)),
    ("hidden", "grid", 4),
    ("hidden", "seed", 4),
    ("hidden", "judge", "linear"),
    ("hidden", "k", 1),
    ("shuffled", "shuffle", (4,)),
    ("shuffled", "seed", 4),
    ("noisy", "corruptions", ("impulse-noise",)),
    ("noisy", "severities", (5,)),
    ("noisy", "seed", 4),
]


def hits(settings: dict[str, Any], out: Path, **over: Any) -> list[Tensor]:
    """Which test images are rightly classified, condition by condition; from ``evaluate`` on, without its files."""
    seen: list[Outcome | UserError] = []

    def sweep(_: Any, scorer: robustness.RobustnessScorer, *__: Any) -> Any:
        seen.extend(outcome for _, outcome in scorer.score(SIZES[:1], out, lambda *_: None))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(robustness, "sweep", sweep)
        pixel_features.evaluate(source(out), Robustness(**settings), **{"limit": 60, "test_limit": 60, **over})
    (outcome,) = seen
    assert isinstance(outcome, Outcome)
    return [values for name, values in outcome.values.items() if name != "clean" and " " in name]


def differ(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) != len(second) or not all(map(torch.equal, first, second))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    folder = tmp_path_factory.mktemp("usual")
    return {name: hits(settings, folder) for name, settings in BASE.items()}


@pytest.mark.parametrize("name", BASE)
def test_the_same_settings_find_the_same(usual: dict[str, list[Tensor]], name: str, tmp_path: Path) -> None:
    """Else the next test could not fail."""
    assert len(usual[name]) == 1
    assert not differ(usual[name], hits(BASE[name], tmp_path))


@pytest.mark.parametrize(("name", "field", "value"), ROWS)
def test_another_value_finds_something_else(
    usual: dict[str, list[Tensor]], name: str, field: str, value: Any, tmp_path: Path
) -> None:
    assert differ(usual[name], hits(BASE[name] | {field: value}, tmp_path))


def test_backgrounds_follow_the_seed(tmp_path: Path) -> None:
    images = {"train": pictures(tmp_path / "train", seed=1), "test": pictures(tmp_path / "test"), "limit": None}
    images |= {"test_limit": None, "masks": tmp_path / "test/masks"}

    def backgrounds(seed: int) -> Tensor:
        made: list[MaskedImages] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(robustness, "MaskedImages", lambda *given: (made.append(MaskedImages(*given)), made[0])[1])
            hits(NONE | {"seed": seed}, tmp_path / "out", **images)
        return torch.stack([made[0].background(number)[0] for number in range(8)])

    assert torch.equal(backgrounds(3), backgrounds(3))
    assert not torch.equal(backgrounds(3), backgrounds(4))


def test_every_setting_has_a_row() -> None:
    assert {field for _, field, _ in ROWS} == set(RobustnessSettings.model_fields)
