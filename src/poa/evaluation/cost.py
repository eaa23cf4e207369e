"""What a network costs: parameters and floating-point operations, counted without running it."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from poa.elastic.space import Size
from poa.families.base import Family


class Cost(NamedTuple):
    """Of a network: parameters, and floating-point operations for one image."""

    parameters: int
    flops: int


def parameters(network: nn.Module) -> int:
    """Number of parameters of the network that is handed out: all but the mask token, which only training needs."""
    return sum(
        parameter.numel() for name, parameter in network.named_parameters() if name.split(".")[-1] != "mask_token"
    )


@torch.no_grad()
def flops(network: nn.Module, image_size: int, *, channels: int = 3) -> int:
    """Floating-point operations of the forward pass for one image.

    Shapes alone are followed (meta device), so that a large network takes no more memory than a small one. As torch
    counts: matrix products, convolutions and attention, a multiply-add as two operations; halve it for "MACs".

    Args:
        network: Any network of images, on any device, also ``meta``.
        image_size: Side of the square image in pixels.
        channels: Channels of the image.
    """
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    shapes = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    image = torch.empty(1, channels, image_size, image_size, device="meta")
    was_training = network.training
    network.eval()  # BatchNorm cannot train on one image
    with FlopCounterMode(display=False) as counter:
        functional_call(network, shapes, (image,))
    network.train(was_training)
    return int(counter.get_total_flops())


def known_flops(network: nn.Module, image_size: int, *, channels: int = 3) -> int | None:
    """The same, or None for a network that cannot be followed by shapes alone."""
    try:
        return flops(network, image_size, channels=channels)
    except (AssertionError, RuntimeError, TypeError, ValueError):
        return None


def costs(
    build: Callable[[Size], nn.Module], sizes: Iterable[Size], *, image_size: int, channels: int = 3
) -> dict[Size, Cost]:
    """Costs of many sizes, quickly: the further blocks of an elastic stage all cost the same.

    Of every width only the network with one block a stage, and with two in one of them, is counted. ``build`` makes a
    network of a size on the current default device.
    """
    counted: dict[Size, Cost] = {}

    def count(size: Size) -> Cost:
        if size not in counted:
            with torch.device("meta"):
                network = build(size)
            counted[size] = Cost(parameters(network), flops(network, image_size, channels=channels))
        return counted[size]

    return {
        size: Cost(of_depth(size, lambda of: count(of).parameters), of_depth(size, lambda of: count(of).flops))
        for size in sizes
    }


@cache
def costs_of(family: Family, image_size: int) -> Mapping[Size, Cost]:
    """Costs of all sizes of a family, counted once in a process."""
    return MappingProxyType(costs(family.build, family.space.sizes, image_size=image_size, channels=family.in_chans))


def of_depth(size: Size, count: Callable[[Size], int]) -> int:
    """What a network costs, of which only those of its width with the fewest blocks are counted."""
    first, shortest = count(shallowest(size)), shallowest(size).depths
    longer = (Size(size.width, (*shortest[:stage], 2, *shortest[stage + 1 :])) for stage in range(len(shortest)))
    return first + sum((depth - 1) * (count(each) - first) for depth, each in zip(size.depths, longer, strict=True))


def shallowest(size: Size) -> Size:
    """The size of that width with one block in each elastic stage."""
    return Size(size.width, (1,) * len(size.depths))
