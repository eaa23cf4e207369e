"""Measurements of the networks of a source, kept beside their scores: a file for each machine, runtime and threads."""

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from poa.data.content import short_digest
from poa.errors import UserError, counted
from poa.evaluation.cost import costs_of
from poa.files import make_folder, one_writer, whole_file
from poa.models.source import ModelSource

FOLDER = "measured"
"""In the folder of the results of a source: ``RUN/eval/measured``."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What measurements depend on besides the network: those of equal setups can be compared.

    Attributes:
        machine: Processor and number of cores, or GPU; no name of a computer.
        device: ``cpu`` or ``cuda``.
        runtime: ``torch`` or ``onnx``.
        version: Of the runtime.
        threads: That the runtime computes with.
        batch: Images in one pass.
        image_size: Side of the images in pixels.
    """

    machine: str
    device: str
    runtime: str
    version: str
    threads: int
    batch: int
    image_size: int

    def __str__(self) -> str:
        runtime = {"torch": "PyTorch", "onnx": "ONNX Runtime"}.get(self.runtime, self.runtime)
        threads = f", {counted(self.threads, 'thread')}" if self.device == "cpu" else ""
        return f"{runtime} {self.version} on {self.machine}{threads}, batch {self.batch}, {self.image_size} pixels"


@dataclass(frozen=True, slots=True)
class Measurement:
    """Of one network.

    Attributes:
        ms: Milliseconds that a batch takes: the median of passes that no other process interrupted.
        ms_p95: What 95 % of all passes stay below.
        passes: Timed passes.
        images_per_second: By the median.
        memory_bytes: The most that weights, images and intermediate results take at once; None where it is not known.
        file_bytes: Of the file of the network: ``model.safetensors`` as ``poa extract`` writes it, or the ONNX file.
        parameters: How many.
        macs: Multiply-adds for one image, half the floating-point operations; None where they cannot be counted.
        date: When it was measured, as ISO 8601 in UTC. Networks of the same date were measured together, in turn.
        interrupted: Passes that another process interrupted.
    """

    ms: float
    ms_p95: float
    passes: int
    images_per_second: float
    memory_bytes: int | None
    file_bytes: int
    parameters: int
    macs: int | None
    date: str
    interrupted: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """The content of a file: measurements by name of the network."""

    setup: Setup
    networks: Mapping[str, Measurement] = field(default_factory=dict)

    @property
    def date(self) -> str:
        """Of the newest measurement."""
        return max((each.date for each in self.networks.values()), default="")


def load(source: ModelSource) -> list[Measured]:
    """All measurements of the networks of a source: those on this machine first, and of these the newest.

    Raises:
        UserError: A file is damaged.
    """
    files = sorted((source.out / FOLDER).glob("*.json"))
    found = [measured for path in files if (measured := _read(path, of=source)) is not None]
    mine = {machine_of(each.setup.device) for each in found}  # to name a GPU, torch has to start it
    return sorted(found, key=lambda each: (each.setup.machine in mine, each.date), reverse=True)


def save(source: ModelSource, measured: Measured) -> Path:
    """Write measurements, in place of earlier ones of the same networks and setup; those of other networks stay.

    Returns:
        The file.

    Raises:
        UserError: The folder cannot be written, or the file there is damaged.
    """
    folder = make_folder(source.out / FOLDER, content="Measurements")
    path = folder / _file_name(measured.setup)
    with one_writer(folder):
        before = _read(path, of=source) if path.exists() else None
        known = {} if before is None else dict(before.networks)
        networks = known | dict(measured.networks)
        ordered = [name for name in source.names if name in networks]
        content = {
            "architecture": architecture_of(source),
            "setup": asdict(measured.setup),
            "networks": {name: asdict(networks[name]) for name in ordered},
        }
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def architecture_of(source: ModelSource) -> str:
    """A digest of what networks are built from: measurements of others of the same name do not count."""
    if source.family is not None:
        built = [source.family.timm_config(size) for size in source.family.space.sizes]
        return short_digest(repr(built).encode())
    shapes = [(name, tuple(value.shape)) for name, value in source.network(source.names[0]).state_dict().items()]
    return short_digest(repr(shapes).encode())


def machine_of(device: str) -> str:
    """What computes on a device: the processor with its number of cores, or the GPU; empty where there is none."""
    if device == "cuda":
        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return f"{_processor()}, {counted(os.cpu_count() or 1, 'core')}"


def _processor() -> str:
    """Name of the processor; Linux tells it in a file of its own."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _file_name(setup: Setup) -> str:
    digest = short_digest(repr(setup).encode())
    return f"{setup.runtime}-{setup.device}-threads{setup.threads}-batch{setup.batch}-{digest}.json"


def _is_of(source: ModelSource, architecture: str, networks: Mapping[str, Measurement]) -> bool:
    """Whether networks are those of a source; earlier versions wrote digests that changed with our code."""
    if architecture == architecture_of(source):
        return True
    if source.family is None:
        return False
    known = {str(size): cost.parameters for size, cost in costs_of(source.family, source.family.image_size).items()}
    return all(each.parameters == known.get(name) for name, each in networks.items())


def _read(path: Path, *, of: ModelSource) -> Measured | None:
    """The content of a file, or None if it is of networks of another architecture."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        networks = {str(name): Measurement(**each) for name, each in content["networks"].items()}
        measured = Measured(Setup(**content["setup"]), networks)
        architecture = str(content["architecture"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged or not a file of measurements. Delete it, and measure again.") from None
    return measured if _is_of(of, architecture, networks) else None
