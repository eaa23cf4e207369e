"""Sub-networks of one intact network, run in place or handed out."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from poa.elastic.plan import Cut, SlicePlan
from poa.elastic.skeleton import SharedParts, skeleton
from poa.elastic.space import Size

KEPT = 1024
"""Skeletons that are kept: of equal parts there is one, so that each takes little."""


class SubNetworks:
    """The sizes of one intact network: a skeleton and a slice plan each, made when first asked for.

    Not a module on purpose: skeletons hold no parameters of their own and must not show up in a state dict.

    Attributes:
        build: Makes a network of a size on the current default device.
        intact: Size of the intact network.
    """

    def __init__(
        self,
        build: Callable[[Size], nn.Module],
        intact: Size,
        *,
        source: Callable[[str, Size], str],
        groups: Callable[[str], tuple[int, ...]],
        castable: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Remember how sizes are built and cut; see ``SlicePlan.between`` for the callables."""
        self.build, self.intact = build, intact
        self._source, self._groups, self._castable = source, groups, castable
        self._whole = skeleton(lambda: build(intact))
        self._shared = SharedParts()
        self._skeleton = lru_cache(KEPT)(self._make)
        self._plans: dict[Size, SlicePlan] = {}
        self._cuts: dict[tuple[str, Cut], tuple[str, Cut]] = {}

    def _make(self, size: Size, training: bool) -> nn.Module:
        return self._shared(skeleton(lambda: self.build(size)).train(training))

    def whole(self) -> nn.Module:
        """A freshly initialised intact network, on the current default device."""
        return self.build(self.intact)

    def plan(self, size: Size, *, training: bool = False) -> SlicePlan:
        """The slice plan of a size, the same in both modes."""
        if size not in self._plans:
            made = SlicePlan.between(
                self._whole,
                self._skeleton(size, training),
                source=lambda name: self._source(name, size),
                groups=self._groups,
                castable=self._castable,
            )
            self._plans[size] = SlicePlan(dict(self._cuts.setdefault(cut, cut) for cut in made.cuts.items()))
        return self._plans[size]

    def bind(
        self, size: Size, intact: Mapping[str, Tensor], *, training: bool, dtype: torch.dtype | None = None
    ) -> Callable[..., Any]:
        """A size as a function: cut once, then call as often as there are inputs.

        Args:
            size: Which sub-network.
            intact: Parameters of the intact network by name, see ``state``; gradients flow into them.
            training: Whether drop path is active.
            dtype: Precision of the layers under autocast, see ``SlicePlan``.
        """
        sub, plan = self._skeleton(size, training), self.plan(size, training=training)
        device = next(iter(intact.values())).device
        state = plan(intact, dtype=dtype) | {
            name: buffer.to(device, non_blocking=True) for name, buffer in sub.named_buffers()
        }
        return lambda *inputs, **options: functional_call(sub, state, inputs, options)

    @torch.no_grad()
    def extract(self, size: Size, intact: nn.Module) -> nn.Module:
        """A size cut out of the intact network, as a network of its own in evaluation mode."""
        network = skeleton(lambda: self.build(size))
        parameters = self.plan(size)(dict(intact.named_parameters()))
        network.load_state_dict({name: value.clone() for name, value in parameters.items()}, strict=False, assign=True)
        assert not any(param.is_meta for param in network.parameters()), "a parameter was left out of the plan"
        return network.requires_grad_(False).eval()


def state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, themselves and not copies."""
    return dict(network.named_parameters()) | dict(network.named_buffers())
