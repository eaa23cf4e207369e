"""Networks without values: what sub-networks run as, with parameters that are cut anew in each step."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

SETTERS = {
    "uniform_",
    "normal_",
    "erfinv_",
    "mul_",
    "add_",
    "clamp_",
    "zero_",
    "fill_",
    "constant_",
    "kaiming_uniform_",
}
"""Operations by which networks set initial values, in place."""


def skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model without parameter storage; its structure and its buffers are real.

    Matrices move to the meta device as soon as a module has them, before their initial values are drawn; vectors, which
    are cheap, follow when the model is complete, since timm makes a Swin's masks on the device of a norm's scale.

    Args:
        build: Makes the model.
    """
    hook: Any = matrix_without_storage  # torch's annotation forgets that a hook may return another parameter
    with register_module_parameter_registration_hook(hook), InitialValuesLeftOut(), torch.random.fork_rng(devices=[]):
        model = build()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, without_storage(parameter))
    return model


class InitialValuesLeftOut(TorchFunctionMode):
    """Operations that set the values of a tensor without storage cost time, and do nothing."""

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        target: Any = args[0] if args else named.get("tensor")  # so torch.nn.init calls it
        return target if func.__name__ in SETTERS and target.is_meta else func(*args, **named)


def matrix_without_storage(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter:
    """The parameter, on the meta device if it has more than one axis."""
    return without_storage(parameter) if parameter.ndim > 1 else parameter


def without_storage(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter on the meta device."""
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


class SharedParts:
    """Makes skeletons share the parts in which they are equal, as long as one of them is there.

    Networks of one width differ in the number of their blocks alone. A part is another's equal if it has the same name,
    class, attributes, shapes and parts. Without parameters of their own and without a change of mode, parts cannot
    disturb one another; only networks that do not run at the same time may share them.
    """

    def __init__(self) -> None:
        self._known: WeakValueDictionary[Hashable, nn.Module] = WeakValueDictionary()

    def __call__(self, network: nn.Module, name: str = "") -> nn.Module:
        """The network made of parts that are known, where they are equal to its own."""
        for child, part in network.named_children():
            setattr(network, child, self(part, f"{name}.{child}"))
        return self._known.setdefault((name, type(network), _identity(vars(network))), network)


def _identity(value: Any) -> Hashable:
    """What an attribute of a module is known by: its value if it is plain, the shape of a parameter, or itself."""
    if isinstance(value, bool | int | float | str | None):
        return type(value), value
    if isinstance(value, dict):
        return tuple((key, _identity(part)) for key, part in value.items())
    if isinstance(value, tuple | list | set):
        return type(value), *map(_identity, value)
    return (value.shape, value.dtype, value.requires_grad) if isinstance(value, nn.Parameter) else id(value)
