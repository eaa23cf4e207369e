from typing import Any

import pytest

from poa.config.pretraining import Config
from poa.pretraining.advice import warnings_of


def config(**settings: Any) -> Config:
    return Config(data="digits", out="out", device="cpu", **settings)


AT_ONCE: dict[str, Any] = {
    "losses": {"ibot": 0.0, "teacher_temperature": (0.04, 0.04)},
    "optimizer": {"warmup_epochs": 0.0},
}
"""Nothing but the prototypes begins late."""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 10}, ["learning rate rises to the end", "does not reach 0.07", "no patches are ever masked"]),
        (
            {"epochs": 1, **AT_ONCE},
            ["With --epochs 1 prototypes never learn (--optimizer.freeze-last-layer-epochs 1). L"],
        ),
        ({"epochs": 2, **AT_ONCE}, []),
        ({"epochs": 31}, []),
        (
            {"epochs": 31, "optimizer": {"backbone_warmup_epochs": 31}},
            ["the backbone's learning rate rises to the end ("],
        ),
        ({"epochs": 30}, ["With --epochs 30 no patches are ever masked (--losses.ibot-start-epoch 30). Lower"]),
        ({"epochs": 29, "method": "single"}, ["(--losses.teacher-temperature-epochs 30); no patches"]),
        ({"epochs": 10, "method": "seed"}, ["With --epochs 10 the learning rate rises to the end (--opt"]),
        ({"epochs": 11, "method": "slimclr-simclr", "slim": {"slow_start_epochs": 11}}, ["only the full width learns"]),
        ({"epochs": 11, "method": "slimclr-simclr"}, []),
        ({"optimizer": {"final_lr": 0.01}, "lr": 0.005}, ["The learning rate rises to the end, from 0.005 to 0.01."]),
        ({"batch_size": 16}, ["Sinkhorn-Knopp sees only 16 images at a time"]),
        ({"batch_size": 16, "losses": {"centering": "moving-average"}}, []),
        (
            {"epochs": 31, "views": {"small_size": 96, "small_epochs": 31}},
            ["crops never have their full size (--views"],
        ),
    ],
)
def test_what_a_run_is_too_short_for(settings: dict[str, Any], said: list[str]) -> None:
    """Where settings are not those of a recipe, which would be shortened."""
    notes = warnings_of(config(**settings), num_images=10**6)
    assert len(notes) == bool(said)
    assert all(part in notes[0] for part in said)
