"""Sub-networks with BatchNorm: weights are cut out of the intact network, BatchNorms are each size's own.

Statistics of BatchNorm belong to one width, so the intact network keeps one for each (switchable BatchNorm, Yu et al.
2019, arXiv 1812.08928; SlimCLR, arXiv 2209.15525). As everywhere, a sub-network is an ordinary smaller model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from poa.elastic.network import state
from poa.elastic.plan import SlicePlan
from poa.elastic.space import Size
from poa.errors import UserError


class Switchable(nn.ModuleList):
    """A layer for each size, in their order; called as it is, it is that of the first, the intact network."""

    def forward(self, *inputs: Any) -> Any:
        """As the intact network's layer."""
        return self[0](*inputs)


class SwitchableNetworks:
    """The sizes of one intact network that keeps some layers for each size on its own.

    The intact network is :meth:`whole`: that of the first size, in which a layer ``norm`` of the kinds has become
    ``norm.0`` and those of the other sizes are ``norm.1``, ``norm.2`` and so on. One optimizer and one state dict hold
    them all. Parameters are cut without a factor: BatchNorm takes it out again (SlimCLR, official code).

    Like ``SubNetworks`` no module, as skeletons must not show up in a state dict.

    Attributes:
        build: Makes a network of a size on the current default device, with layers of the same names at all sizes.
        sizes: All of them, the intact network first.
        kinds: Layers that each size has for itself.
    """

    def __init__(
        self,
        build: Callable[[Size], nn.Module],
        sizes: Sequence[Size],
        *,
        kinds: tuple[type[nn.Module], ...] = (_BatchNorm,),
        castable: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Remember how sizes are built; see ``SlicePlan.between`` for ``castable``."""
        self.build, self.sizes, self.kinds = build, tuple(sizes), kinds
        self._castable = castable
        self._made: dict[Size, tuple[nn.Module, SlicePlan, Mapping[str, str]]] = {}
        with torch.device("meta"):
            whole = self.whole()
        self._whole = whole

    def whole(self) -> nn.Module:
        """A freshly initialised intact network with the own layers of all sizes, on the current default device."""
        intact = self.build(self.sizes[0])
        with torch.random.fork_rng(devices=[]):  # the intact network's random numbers do not depend on other sizes
            others = [self.build(size) for size in self.sizes[1:]]
        for name in self._switched(intact):
            parent, _, own = name.rpartition(".")
            layers = [network.get_submodule(name) for network in (intact, *others)]
            setattr(intact.get_submodule(parent), own, Switchable(layers))
        return intact

    def _switched(self, network: nn.Module) -> list[str]:
        return [name for name, layer in network.named_modules() if isinstance(layer, self.kinds)]

    def _get(self, size: Size) -> tuple[nn.Module, SlicePlan, Mapping[str, str]]:
        if size not in self.sizes:
            raise UserError(
                f"This network has no layers for size {size}. Choose from {', '.join(map(str, self.sizes))}."
            )
        if size not in self._made:
            with torch.device("meta"):
                sub = self.build(size)
            sources = self._sources(sub, self.sizes.index(size))
            plan = SlicePlan.between(
                self._whole, sub, source=sources.__getitem__, groups=lambda _: (), castable=self._castable
            )
            plain = SlicePlan({name: replace(cut, scale=1.0) for name, cut in plan.cuts.items()})
            self._made[size] = sub, plain, _buffers(self._whole, sub, sources)
        return self._made[size]

    def _sources(self, sub: nn.Module, number: int) -> Mapping[str, str]:
        """Name in the intact network of everything that a size holds."""
        own = {f"{name}.": f"{name}.{number}." for name in self._switched(sub)}
        names = [name for name, _ in (*sub.named_parameters(), *sub.named_buffers())]
        prefixes = {name: next((prefix for prefix in own if name.startswith(prefix)), "") for name in names}
        return {name: own.get(prefix, "") + name.removeprefix(prefix) for name, prefix in prefixes.items()}

    def plan(self, size: Size) -> SlicePlan:
        """The slice plan of a size; the first size's gives the intact network's parameters their plain names."""
        return self._get(size)[1]

    def bind(
        self, size: Size, intact: Mapping[str, Tensor], *, training: bool, dtype: torch.dtype | None = None
    ) -> Callable[..., Any]:
        """A size as a function: cut once, then call as often as there are inputs.

        In training its BatchNorms update the running statistics that ``intact`` holds for this size, in place.
        Arguments as of ``SubNetworks.bind``.
        """
        sub, plan, buffers = self._get(size)
        sub.train(training)
        tensors = plan(intact, dtype=dtype) | {name: intact[source] for name, source in buffers.items()}
        return lambda *inputs, **options: functional_call(sub, tensors, inputs, options)

    @torch.no_grad()
    def extract(self, size: Size, intact: nn.Module) -> nn.Module:
        """A size cut out of the intact network that :meth:`whole` made, as a network of its own in evaluation mode."""
        _, plan, buffers = self._get(size)
        with torch.device("meta"):
            network = self.build(size)
        tensors = state(intact)
        own = plan(tensors) | {name: tensors[source] for name, source in buffers.items()}
        network.load_state_dict({name: value.clone() for name, value in own.items()}, assign=True)
        return network.requires_grad_(False).eval()


def _buffers(whole: nn.Module, sub: nn.Module, sources: Mapping[str, str]) -> Mapping[str, str]:
    """Where a size finds its buffers, which cannot be cut."""
    known = dict(whole.named_buffers())
    for name, buffer in sub.named_buffers():
        if sources[name] not in known or known[sources[name]].shape != buffer.shape:
            raise ValueError(f"buffer {name!r} of the sub-network is not among those of the intact one")
    return {name: sources[name] for name, _ in sub.named_buffers()}
