"""The only file that slices: how a sub-network's parameters are cut out of the intact network's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Cut:
    """How one parameter of a sub-network is taken from the intact network.

    Along every axis the leading part is kept; along an axis made of equal groups (the fused q, k, v rows of an
    attention layer), the leading part of every group.

    Attributes:
        source: Name of the intact network's parameter.
        shape: Shape of the cut.
        groups: Number of equal groups along each axis.
        scale: Factor on the values. Where a layer's fan-in shrinks from ``M`` to ``m`` it is ``M / m``, so that
            activations keep their scale (POA, Sec. 3, the factor alpha; folded into the weight).
        castable: The parameter belongs to a layer that autocast runs in low precision.
    """

    source: str
    shape: tuple[int, ...]
    groups: tuple[int, ...]
    scale: float = 1.0
    castable: bool = False

    def __call__(self, intact: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Cut.

        Args:
            intact: The intact network's parameter.
            dtype: Precision of castable parameters; None leaves them as they are.
        """
        part = intact
        for axis, (length, groups) in enumerate(zip(self.shape, self.groups, strict=True)):
            if length == intact.shape[axis]:
                continue
            if groups == 1:
                part = part.narrow(axis, 0, length)
            else:
                grouped = part.unflatten(axis, (groups, -1))  # type: ignore[no-untyped-call]  # torch's
                part = grouped.narrow(axis + 1, 0, length // groups).flatten(axis, axis + 1)
        if self.scale != 1.0:
            part = part * self.scale
        return part.to(dtype) if dtype is not None and self.castable else part


@dataclass(frozen=True)
class SlicePlan:
    """All cuts of one size, by the sub-network's own parameter names."""

    cuts: Mapping[str, Cut]

    def __call__(self, intact: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Parameters of the sub-network.

        Args:
            intact: Parameters of the intact network by name.
            dtype: Precision of the layers that run under autocast. Casting here happens once a step; autocast itself
                would cast again in every forward pass, since it remembers the casts of leaf parameters only.
        """
        return {name: cut(intact[cut.source], dtype=dtype) for name, cut in self.cuts.items()}

    @classmethod
    def between(
        cls,
        intact: nn.Module,
        sub: nn.Module,
        *,
        source: Callable[[str], str],
        groups: Callable[[str], tuple[int, ...]],
        castable: Callable[[str], bool] = lambda _: False,
    ) -> "SlicePlan":
        """Derive the cuts by comparing the shapes of two models of one family.

        Args:
            intact: The intact network; only its shapes are used.
            sub: The sub-network; only its shapes are used, so both may live on the meta device.
            source: The intact network's parameter name for a sub-network's parameter name.
            groups: Number of equal groups along the leading axes of a parameter.
            castable: Whether autocast covers the linear and convolution layer that owns a parameter.

        Raises:
            ValueError: A parameter has no source, or does not fit into it or into its groups.
        """
        whole = dict(intact.named_parameters())
        layers = {name for name, module in sub.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
        cuts = {}
        for name, param in sub.named_parameters():
            origin = source(name)
            if origin not in whole:
                raise ValueError(f"parameter {name!r} of the sub-network has no source {origin!r} in the intact one")
            full, shape = tuple(whole[origin].shape), tuple(param.shape)
            if len(full) != len(shape) or any(part > all_ for part, all_ in zip(shape, full, strict=True)):
                raise ValueError(f"{name!r} of shape {shape} cannot be cut from {origin!r} of shape {full}")
            all_groups = (*groups(name), *(1,) * len(shape))[: len(shape)]
            if any(part % number or all_ % number for part, all_, number in zip(shape, full, all_groups, strict=True)):
                raise ValueError(f"{name!r} of shape {shape} cannot be cut from {full} in {all_groups} equal groups")
            owner, _, kind = name.rpartition(".")
            scale = full[1] / shape[1] if owner in layers and kind == "weight" else 1.0
            cuts[name] = Cut(origin, shape, all_groups, scale, owner in layers and castable(name))
        return cls(cuts)


def even_blocks(full: int, kept: int) -> tuple[int, ...]:
    """Blocks that a shallower network keeps: evenly spread, the first and the last always among them.

    Block ``j`` of the sub-network is block ``floor(j * (full - 1) / (kept - 1))`` of the intact one (POA, Sec. 3,
    elastic depth), computed in integers.

    Args:
        full: Number of blocks of the intact network.
        kept: Number of blocks of the sub-network.
    """
    return (0,) if kept == 1 else tuple(j * (full - 1) // (kept - 1) for j in range(kept))
