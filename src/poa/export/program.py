"""A network as one program of torch: traced for any number of images, and written as .pt2 or, for devices, as .pte."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from poa.data.images import Preprocessing
from poa.errors import UserError, first_line, lacking

MOST_IMAGES = 4096
"""At once."""


class _Half(nn.Module):
    """A network with weights of 16 bits that takes and gives 32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, images: Tensor) -> Any:
        """What the network gives."""
        found = self.network(images.half())
        return found.float() if isinstance(found, Tensor) else tuple(each.float() for each in found)


class _OfPixels(nn.Module):
    """A network that takes pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: UInt8[Tensor, "batch height width 3"]) -> Any:
        """What the network gives for the same images normalised."""
        values = images.permute(0, 3, 1, 2).float() / 255
        return self.network((values - self.mean) / self.std)


def portable(network: nn.Module, preprocessing: Preprocessing, *, half: bool, pixels: bool) -> nn.Module:
    """The network as it is to be written: ``half`` with 16 bits inside, and taking ``pixels`` as they are."""
    inner = _Half(network) if half else network
    return (_OfPixels(inner, preprocessing) if pixels else inner).cpu().eval().requires_grad_(False)


def example(preprocessing: Preprocessing, *, pixels: bool, batch: int = 2) -> Tensor:
    """Black images that a network can be traced with."""
    side = preprocessing.image_size
    if pixels:
        return torch.zeros(batch, side, side, 3, dtype=torch.uint8)
    return torch.zeros(batch, preprocessing.values.number, side, side)


@torch.no_grad()
def traced(network: nn.Module, images: Tensor, *, name: str, any_batch: bool = True) -> torch.export.ExportedProgram:
    """The program of a network, for ``any_batch``, of 1 to ``MOST_IMAGES``, or for one as large as that of ``images``.

    It says nothing about the files of this machine.

    Raises:
        UserError: torch cannot trace the network.
    """
    shapes = ({0: torch.export.Dim("batch", min=1, max=MOST_IMAGES)},) if any_batch else None
    try:
        with quiet_exporters():
            program = torch.export.export(network, (images,), dynamic_shapes=shapes)
            if folded := _folded(program):
                program = torch.export.export(folded, (images,), dynamic_shapes=shapes)
    except Exception as error:  # torch raises all kinds for what it cannot follow
        raise UserError(
            f"{name} cannot be exported: torch.export cannot trace it ({first_line(error)}). Choose another network, "
            "or use its folder with timm."
        ) from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _folded(program: torch.export.ExportedProgram) -> nn.Module | None:
    """The network with everything computed that depends on no image, such as resized positions; None without such."""
    module: Any = program.module(check_guards=False)
    known: dict[torch.fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            known[node] = attrgetter(node.target)(module)
        elif (
            node.op == "call_function" and node.all_input_nodes and all(each in known for each in node.all_input_nodes)
        ):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    last = [
        node
        for node, value in known.items()
        if node.op == "call_function" and isinstance(value, Tensor) and any(user not in known for user in node.users)
    ]
    for number, node in enumerate(last):
        module.register_buffer(f"folded_{number}", known[node])
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(f"folded_{number}"))
    for node, value in known.items():
        if value is None:  # an assertion, which holds, and would keep what it looks at
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    _drop_unused(module)
    module.recompile()
    return module if last else None


def _drop_unused(module: Any) -> None:
    """Remove parameters and buffers that the graph of a module does not use."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [*dict(module.named_parameters()), *dict(module.named_buffers())]:
        if name not in used:
            owner, _, own = name.rpartition(".")
            delattr(module.get_submodule(owner), own)


def write_program(program: torch.export.ExportedProgram, file: Path, metadata: Mapping[str, str]) -> None:
    """Write a .pt2 file, which ``torch.export.load`` reads; the metadata are extra files inside."""
    with quiet_exporters():
        torch.export.save(program, file, extra_files=dict(metadata))


def check_executorch() -> None:
    """See that the library for .pte files is installed."""
    if find_spec("executorch") is None:
        raise lacking("--format executorch", "executorch", extra="executorch")


def write_executorch(program: torch.export.ExportedProgram, file: Path) -> None:
    """Write a .pte file, with the operations for CPUs that XNNPACK has.

    Raises:
        UserError: It has an operation that ExecuTorch lacks.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    try:
        with quiet_exporters():
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            file.write_bytes(lowered.to_executorch().buffer)
    except Exception as error:  # of an exporter that meets what it does not know
        raise UserError(
            f"{file.name} cannot be written: ExecuTorch cannot translate the network ({first_line(error)}). Choose "
            "another --format."
        ) from error


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Keep the exporters' remarks about their own inner workings from the user, who can do nothing about them."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
