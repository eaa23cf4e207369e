"""Settings without an effect are told, by what a run reads of them."""

import logging
from typing import Any

import pytest

from poa.config.effect import without_effect
from poa.config.nested import flat
from poa.config.pretraining import Config
from poa.config.resolve import resolve
from poa.config.values import names_of_settings


def told(**settings: Any) -> str | None:
    return without_effect(Config(**settings), flat(settings))


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({"slim": {"queue": 3}, "distill": {"weight": (3, 3)}}, "prototypes: --distill.weight, --slim.queue."),
        ({"losses": {"kind": "coding-rate", "centering": "moving-average"}}, "coding-rate: --losses.centering."),
        ({"losses": {"rate": 2.0}}, "--losses.kind prototypes: --losses.rate."),
        ({"method": "single", "sampling": "sandwich", "elastic_samples": 3}, ": --elastic-samples, --sampling."),
        ({"method": "seed", "heads": {"hidden": 8}, "losses": {"koleo": 2.0}}, "seed: --heads.hidden, --losses.koleo."),
        ({"heads": {"layers": 1, "hidden": 8}}, ": --heads.hidden."),
        ({"method": "slimclr-simclr", "heads": {"layers": 1}}, ": --heads.layers."),
        ({"method": "distill", "distill": {"queue": 8}}, "--method distill: --distill.queue."),
        ({"method": "slimclr-mocov3", "slim": {"head_norm": True}}, ": --slim.head-norm."),
        ({"method": "slimclr-simclr", "optimizer": {"teacher_momentum": (0.5, 1)}}, ": --optimizer.teacher-momentum."),
        ({"views": {"num_locals": 0, "local_size": 48}}, ": --views.local-size."),
        ({"views": {"small_size": 48}}, ": --views.small-size."),
    ],
)  # fmt: skip
def test_what_nothing_reads_is_told(settings: dict[str, Any], unused: str) -> None:
    assert unused in (told(**settings) or "")


@pytest.mark.parametrize(
    "settings",
    [
        {"slim": {"queue": 65536}},  # as by default
        {"losses": {"kind": "coding-rate", "rate": 2.0, "koleo": 0.5}, "views": {"mask_share": 0.3}},
        {"method": "distill", "heads": {"hidden": 8}, "elastic_samples": 2, "losses": {"intact_share": 0.5}},
        {"distill": {"teacher": "there", "weight": (3, 3)}},
        {"distill": {"teacher": "there"}, "heads": {"layers": 1, "hidden": 8}},
        {"method": "slimclr-mocov2", "slim": {"queue": 64}, "optimizer": {"teacher_momentum": (0.5, 1)}},
        {"method": "slimclr-mocov2", "slim": {"head_norm": True}},
        {"method": "own", "own": "a:B", "slim": {"queue": 64}},
    ],
)
def test_what_is_read_is_not_told(settings: dict[str, Any]) -> None:
    assert told(**settings) is None


def test_it_is_told_once_of_what_is_given_and_not_of_recipes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            resolve({"method": "single", "elastic_samples": 7}, recipe="demo")
    assert [each.getMessage() for each in caplog.records] == [
        "Note: Without effect with --method single and --losses.kind coding-rate: --elastic-samples. "
        "Leave out what has none."
    ]


def test_settings_have_their_dotted_names() -> None:
    names = names_of_settings(Config)
    assert {"lr", "optimizer.base_lr", "views.local_scale"} < set(names)
    assert sorted(names) == sorted(flat(Config().model_dump()))
