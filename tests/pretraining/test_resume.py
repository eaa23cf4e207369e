"""What is said where a run is resumed on another number of processes."""

from typing import Any

import pytest

import tiny
from poa.pretraining.resume import changed_processes, identity

SLIM: dict[str, Any] = {"model": {"name": "slim-resnet"}, "views": {"num_locals": 0}}
SIZES = "each step trains 2 of the sizes instead of 1, in another order"
KOLEO = "KoLeo looks for nearest neighbours among 8 images instead of 16"
DROP_PATH = "drop path leaves out blocks of other images"
BATCH_NORM = "BatchNorm takes its statistics over 8 images instead of 16"


@pytest.mark.parametrize(
    ("settings", "effects"),
    [
        ({}, [SIZES, KOLEO]),
        ({"model": {"drop_path": 0.1}}, [SIZES, KOLEO, DROP_PATH]),
        ({"same_sizes_on_all_ranks": True, "losses": {"koleo_over_ranks": True}}, []),
        (
            {"elastic_samples": 2, "losses": {"koleo": 0, "gram": 0.5}},
            ["each step trains 4 of the sizes instead of 2, in another order"],
        ),
        ({"accumulate": 2}, [SIZES, "KoLeo looks for nearest neighbours among 4 images instead of 8"]),
        ({"method": "single"}, [KOLEO]),
        ({"method": "seed"}, []),
        ({"method": "slimclr-mocov2", **SLIM}, [BATCH_NORM]),
        ({"method": "slimclr-simclr", **SLIM}, []),
    ],
)
def test_what_another_number_of_processes_changes(settings: dict[str, Any], effects: list[str]) -> None:
    config = tiny.config(**settings)
    state = identity(config)
    assert changed_processes(state, config, now=1) is None
    expected = (
        "So far this run was trained with 1 process, now it is resumed with 2 processes. This changes what is learned "
        f"from now on: {'; '.join(effects)}. Resume with 1 process (--devices, --num-nodes) to avoid this."
    )
    assert changed_processes(state, config, now=2) == (expected if effects else None)


def test_an_older_checkpoint_does_not_say_how_many_there_were() -> None:
    assert changed_processes({}, tiny.config(), now=2) is None
