"""The state of networks and their optimizer as checkpoints have it: whole, whatever part of it each process holds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from poa.distributed import as_parts, whole_state


def state_of(method: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The present state of both, to be asked for by all processes; only the main one gets all (``whole_state``)."""
    return {"method": whole_state(method.state_dict()), "optimizer": whole_state(optimizer.state_dict())}


def load(state: Mapping[str, Any], method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load such a state, of which each process may take a part."""
    own = method.state_dict()
    method.load_state_dict({name: as_parts(value, own.get(name)) for name, value in state["method"].items()})
    parameters = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    moments = {
        number: {name: as_parts(value, parameters.get(number)) for name, value in of_one.items()}
        for number, of_one in state["optimizer"]["state"].items()
    }
    optimizer.load_state_dict({**state["optimizer"], "state": moments})
