"""What the students of a step keep of one image for the backward pass: all of it, or with parts that are recomputed.

Counted in the forward pass of each family's backbone; every student counts as the largest. Recomputed as a whole, one
student at a time has its values; block by block, all students keep the inputs of their blocks and what lies between
blocks, and one block at a time has its values. Takes seconds.

    python benchmarks/recomputed.py [--networks vit swin]
"""

import argparse
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from measure import machine
from poa.config.pretraining import Config
from poa.families.base import Backbone
from poa.models.registry import family_of

MIB = 2**20
PIXELS, IMAGES = 224, 2
STUDENTS = (1, 2, 3, 5, 9, 17)
NETWORKS: dict[str, dict[str, Any]] = {
    "vit": {"width_min": 192, "width_max": 384, "depth_max": [12]},
    "dinov3": {"width_max": 384},
    "swin": {"width_max": 96, "depth_max": [6]},
    "convnext": {"width_max": 96, "depth_max": [9]},
    "resnet": {"width_max": 64, "depths": [3, 4, 6, 3], "depth_min": [2, 3], "depth_max": [4, 6]},
}


class Kept(NamedTuple):
    """MiB of an image."""

    whole: float
    always: float
    """Inputs of blocks, and what lies between blocks."""
    largest: float
    """Of the values of one block."""

    def by_block(self, students: int) -> float:
        """With so many students in a step."""
        return students * self.always + self.largest


def main() -> None:
    """Count and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    print(machine(torch.device("cpu")))
    print(f"MiB an image of {PIXELS} pixels, fp32; block by block with {', '.join(map(str, STUDENTS))} students")
    for name in parser.parse_args().networks:
        family = family_of(Config.model_validate({"model": {"name": name, **NETWORKS[name]}}))
        kept = counted(family.build(family.space.intact), family.mask_grid(PIXELS))
        shown = "".join(f"{kept.by_block(students):7.1f}" for students in STUDENTS)
        print(f"{name:9}{family.space.intact!s:10} as a whole{kept.whole:7.1f}  by block{shown}")


def counted(backbone: Backbone, grid: int) -> Kept:
    """Sizes of the tensors that autograd keeps in and outside of blocks, without parameters."""
    seen = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    alive: list[Tensor] = []  # so that no two have the same place
    kept, inputs, running = {-1: 0}, 0, [-1]

    def enter(number: int, given: Tensor) -> None:
        nonlocal inputs
        inputs += given.untyped_storage().nbytes()
        kept[number] = 0
        running.append(number)

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            alive.append(tensor)
            kept[running[-1]] += storage.nbytes()
        return tensor

    def leave(_: nn.Module, __: object, ___: object) -> None:
        running.pop()

    for number, block in enumerate(backbone.blocks):
        block.register_forward_pre_hook(lambda _, given, number=number: enter(number, given[0]))
        block.register_forward_hook(leave)
    images, masks = torch.randn(IMAGES, 3, PIXELS, PIXELS), torch.zeros(IMAGES, grid * grid, dtype=torch.bool)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(images, masks)
    outside = kept.pop(-1)
    return Kept(*(size / MIB / IMAGES for size in (outside + sum(kept.values()), outside + inputs, max(kept.values()))))


if __name__ == "__main__":
    main()
