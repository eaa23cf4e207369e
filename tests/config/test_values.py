import re
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter

from poa.config.values import (
    Ascending,
    Count,
    Natural,
    NotNegative,
    Positive,
    Settings,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    preset_of,
)
from poa.errors import UserError

NAN = float("nan")


class Example(Settings):
    lr: Positive = 1e-3
    min_lr: NotNegative = 0.0
    drop_path: ShareBelowOne = 0.0
    flip: Share = 1.0
    layer_decay: ShareAboveZero = 1.0
    epochs: Count = 1
    seed: Natural = 0
    scale: Annotated[tuple[Positive, Positive], Ascending] = (0.5, 2.0)
    limit: Count | None = None
    tried: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)

    def check(self) -> None:
        if self.epochs > 10 * self.lr:
            raise UserError("Too many epochs.")


def test_a_list_of_wrong_values_is_not_called_empty() -> None:
    with pytest.raises(UserError, match=r"^--tried cannot be 0: it should be greater than or equal to 1\.$"):
        Example(tried=(0,))
    with pytest.raises(UserError, match=r"--tried cannot be .*at least 1 item"):
        Example(tried=())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"lr": 0.0}, "--lr cannot be 0.0: it should be greater than 0."),
        ({"lr": NAN}, "--lr cannot be nan"),
        ({"lr": float("inf")}, "--lr cannot be inf: it should be a finite number."),
        ({"min_lr": NAN}, "--min-lr cannot be nan"),
        ({"min_lr": -0.1}, "--min-lr cannot be -0.1: it should be greater than or equal to 0."),
        ({"drop_path": 1.0}, "--drop-path cannot be 1.0: it should be less than 1."),
        ({"flip": 1.1}, "--flip cannot be 1.1: it should be less than or equal to 1."),
        ({"flip": NAN}, "--flip cannot be nan"),
        ({"layer_decay": 0.0}, "--layer-decay cannot be 0.0: it should be greater than 0."),
        ({"epochs": 0}, "--epochs cannot be 0: it should be greater than or equal to 1."),
        ({"seed": -1}, "--seed cannot be -1"),
        ({"scale": (2.0, 0.5)}, "--scale cannot be (2.0, 0.5): it should be the smallest value, then the largest."),
        ({"seeds": 1}, "Unknown setting '--seeds'. Did you mean 'seed'?"),
        ({"lr": 0.0, "seed": -1}, "--seed cannot be -1"),
    ],
)
def test_settings_are_checked_by_the_name_of_their_flag(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        Example(**{"lr": 1.0, **wrong})


def test_settings_of_flags_fit_together_once_they_are_laid_over_a_preset() -> None:
    preset = Example(lr=5.0)
    flags = TypeAdapter(Example).validate_python({"epochs": "20", "limit": "none"})
    assert flags.over(preset) == Example(lr=5.0, epochs=20, limit=None)
    assert preset.changed(lr=2.0).lr == 2.0
    for wrong in (lambda: Example(epochs=20), lambda: flags.over(Example(lr=1.0)), lambda: preset.changed(epochs=60)):
        with pytest.raises(UserError, match="Too many epochs"):
            wrong()


def test_presets_by_name() -> None:
    with pytest.raises(UserError, match=r"There is no preset 'tiny'. .*small"):
        preset_of({"small": 1, "large": 2}, "tiny")
