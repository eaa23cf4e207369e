"""Settings of the protocols: the same fields as flags, in Python and in files of results, and what is refused."""

from typing import Any

import pytest
import torch

from poa.config.protocols import QualitySettings, RobustnessSettings
from poa.config.values import Settings
from poa.errors import UserError
from poa.evaluation.evaluate import PROTOCOLS, protocol_of
from poa.evaluation.knn import Knn
from poa.evaluation.retrieval import Retrieval

TOGETHER: dict[
    str, Any
] = {  # official linear evaluation of SlimCLR, but for the rates: those are for standardised features
    "learning_rates": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
    "schedule": "cosine",
    "epochs": 90,
    "batch_size": 256,
    "distilled": True,
    "standardise": True,
    "seed": 0,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "knn": {"ks": None, "temperature": 0.07, "whiten": None},
    "linear": {"fit": "lbfgs", "strengths": None, "seed": 0},
    "linear-switchable": TOGETHER,
    "linear-slimmable": TOGETHER,
    "probe": {  # POA's official linear evaluation, but for passes over the images and standardised features
        "learning_rates": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        "batch_size": 256,
        "epochs": 100,
        "most_steps": 12_500,
        "momentum": 0.9,
        "standardise": True,
        "choose_on": "held-out",
        "seed": 0,
    },
    "few-shot": {"per_class": None, "share": None, "draws": 5, "strengths": None, "seed": 0},
    "cluster": {"clusters": None, "seeds": (0,), "restarts": 10, "normalise": False},
    "retrieval": {"ks": None, "whiten": None},
}
OTHERS: dict[type[Settings], dict[str, Any]] = {
    QualitySettings: {"k": 10, "seed": 0},
    RobustnessSettings: {
        "occlusion": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "grid": None,
        "shuffle": None,
        "corruptions": None,
        "severities": (1, 2, 3, 4, 5),
        "judge": "knn",
        "k": 20,
        "seed": 0,
    },
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_defaults(name: str) -> None:
    """As published, where there is a publication."""
    assert protocol_of(name, {}).model_dump() == DEFAULTS[name]


@pytest.mark.parametrize("kind", OTHERS)
def test_defaults_of_other_measures(kind: type[Settings]) -> None:
    assert kind().model_dump() == OTHERS[kind]


def test_what_stands_for_numbers_that_are_not_given() -> None:
    """Neighbours of k-NN as published, POA Sec. 4.2."""
    labels = torch.arange(1000) % 10
    assert Knn().resolved(labels, labels).model_dump()["ks"] == (10, 20, 100, 200)
    assert Retrieval().resolved(labels, labels).model_dump()["ks"] == (1, 5, 10)
    assert protocol_of("cluster", {}).resolved(labels, labels).model_dump()["clusters"] == 10


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_settings_of_its_own(name: str) -> None:
    protocol = protocol_of(name, {})
    assert (protocol.name, type(protocol)) == (name, PROTOCOLS[name])
    assert protocol.headline
    described = {field: what.description for field, what in type(protocol).model_fields.items()}
    assert described
    assert all(described.values()), "a flag without help"


def test_lists_and_tuples_are_the_same() -> None:
    assert protocol_of("knn", {"ks": [5, 20]}) == protocol_of("knn", {"ks": (5, 20)})


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("k-nn", {}, "no protocol 'k-nn'. Did you mean 'knn'"),
        ("knn", {"k": 5}, "Unknown setting '--k'. Did you mean 'ks'"),
        ("knn", {"temperature": 0.0}, "--temperature cannot be 0.0: it should be greater than 0"),
        ("knn", {"ks": (1.5,)}, "--ks cannot be 1.5: it should be a valid integer"),
        ("linear", {"strengths": (0.0,)}, "--strengths cannot be 0.0: it should be greater than 0"),
        ("few-shot", {"per_class": 1, "strengths": ()}, r"--strengths cannot be \(\)"),
        ("few-shot", {"per_class": 1, "draws": 0}, "--draws cannot be 0: it should be greater than or equal to 1"),
        ("cluster", {"restarts": 0}, "--restarts cannot be 0"),
        ("cluster", {"seeds": ()}, r"--seeds cannot be \(\)"),
        ("linear-switchable", {"schedule": "step"}, "--schedule cannot be 'step'. Did you mean 'steps'"),
    ],
)
def test_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        protocol_of(name, settings)
