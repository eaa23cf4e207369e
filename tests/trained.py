"""Networks with weights, in files and folders, and runs that start from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

import tiny
from poa.data.index import open_index
from poa.models.registry import family_of
from poa.pretraining.build import Parts, assemble

State = dict[str, Tensor]


def randomise(network: nn.Module, *, seed: int = 7) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def made(family: str = "vit", /, **over: Any) -> Any:
    """A timm model with random weights and a classifier: the intact network of the tiny run, but for what is given."""
    chosen = family_of(tiny.config(family))
    architecture, arguments = chosen.timm_config(chosen.space.intact)
    architecture = over.pop("architecture", architecture)
    return randomise(timm.create_model(architecture, **{**arguments, "num_classes": 3, **over}))


def saved(model: Any, folder: Path, *, safe: bool = True) -> str:
    """A folder as timm writes it."""
    save_for_hf(model, str(folder), safe_serialization=safe)
    return str(folder)


def features_of(model: nn.Module) -> State:
    """All but the classifier."""
    classifier = model.pretrained_cfg["classifier"]
    assert isinstance(classifier, str)
    return {name: value for name, value in model.state_dict().items() if not name.startswith(f"{classifier}.")}


def started(family: str = "vit", /, **over: Any) -> Parts:
    config = tiny.config(family, **over)
    return assemble(config, open_index(config.data, limit=config.limit), device=torch.device("cpu"))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def assert_same_state(found: Any, expected: Any) -> None:
    """Bit for bit."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same_state(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same_state(ours, theirs)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def written(content: Any, file: Path) -> str:
    torch.save(content, file)
    return str(file)


def from_folder(family: str, folder: str, **over: Any) -> dict[str, Any]:
    """Settings of a run of the network in a folder, from its weights."""
    given = tiny.settings(family, epochs=1, saving={"every_epochs": 0.5}, **over)
    return given | {"model": {"name": folder, "drop_path": 0.0}, "init": folder}


def unreachable(*_: object, **__: object) -> None:
    raise URLError(OSError(-2, "Name or service not known"))
