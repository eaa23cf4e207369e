"""Settings of the protocols: the same fields as flags, in Python and in files of results, and what is refused."""

from typing import Any

import pytest

from poa.errors import UserError
from poa.evaluation.evaluate import PROTOCOLS, protocol_of


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
