"""How fast a device trains ViTs with all their heads, in how much memory, and whether images come fast enough."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from augment import make_files
from measure import wait
from memory import steps_by_size, use_of
from poa.config.resolve import resolve
from poa.data.index import ImageIndex, open_index
from poa.data.views import RawViews
from poa.pretraining.build import Parts, assemble
from poa.pretraining.step import step_batches, train_step, views_of
from stages import Figures, Record, Work, free

T = TypeVar("T")
PEAKS: Mapping[str, tuple[float, float, float]] = {
    "B200": (2250, 1125, 75),
    "H200": (989, 495, 67),
    "H100 NVL": (835, 418, 60),
    "H100 PCIe": (756, 378, 51),
    "H100": (989, 495, 67),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 91.6),
    "RTX 4090": (165, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
}
"""Peak TFLOP/s of matrix products without sparsity, in bf16, TF32 and fp32, by a part of the card's name, of which the
first that fits counts (data sheets of NVIDIA)."""
KINDS = ("bf16", "tf32", "fp32")
MIB = 2**20


@dataclass(frozen=True)
class Variant:
    """A way to compute: precision of backbones and heads, and whether fp32 products may use TF32."""

    name: str
    dtype: torch.dtype
    tf32: bool
    kind: str
    """Of KINDS: the peak that it is compared with."""


BF16 = Variant("bf16", torch.bfloat16, tf32=False, kind="bf16")
VARIANTS = (
    BF16,
    Variant("TF32", torch.float32, tf32=True, kind="tf32"),
    Variant("fp32", torch.float32, tf32=False, kind="fp32"),
)


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        recipe: Of the steps; digits take the place of its images.
        networks: Sections of the settings of the intact networks, by name.
        batch: Images of a step; halved where they do not fit.
        rounds: Least and most steps that are timed.
        seconds: For which the steps of a variant and a loader are timed.
        batches: By which memory is measured.
        photos: JPEGs for the loader.
        workers: Numbers of loader processes.
    """

    recipe: str
    networks: Mapping[str, Mapping[str, Any]]
    batch: int
    rounds: tuple[int, int]
    seconds: float
    batches: Sequence[int]
    photos: int
    workers: Sequence[int]


def speed_works(scale: Scale, device: torch.device, peak: float | None) -> list[Work]:
    """Steps of each network, first as they are and then compiled, and what matrix products reach."""
    steps = [Work(name, partial(speed, name, scale, device, peak)) for name in scale.networks]
    why = "on a CPU compiling takes minutes"
    compiled = [
        Work(f"{name} compiled", partial(speed, name, scale, device, peak, compiled=True), needs_cuda=why)
        for name in reversed(list(scale.networks))
    ]
    return [Work("matrix products", partial(products, scale, device)), *steps, *compiled]


def memory_works(scale: Scale, device: torch.device) -> list[Work]:
    """Memory of each network by batch size, students' blocks stored or recomputed."""
    return [
        Work(f"{name} {how}", partial(memory, name, scale, device, checkpointing=how == "recomputed"))
        for how in ("stored", "recomputed")
        for name in scale.networks
    ]


def loader_works(scale: Scale, device: torch.device, folder: Path, record: Record) -> list[Work]:
    """Rate of the loader by workers, and of what the device does to the crops."""
    return [
        Work("colours on the device", partial(colours, scale, device)),
        *(Work(f"{n} workers", partial(loading, n, scale, device, folder, record)) for n in scale.workers),
    ]


# ---- steps -----------------------------------------------------------------------------------------------------------


def products(scale: Scale, device: torch.device, _: float) -> Iterator[Figures]:
    """What products of two square matrices reach."""
    side = 8192 if device.type == "cuda" else 128
    for kind in KINDS:
        one, other = (
            torch.randn(side, side, device=device).to(torch.bfloat16 if kind == "bf16" else torch.float32)
            for _ in range(2)
        )
        with tf32(kind == "tf32"):
            seconds = seconds_of(partial(torch.matmul, one, other), scale, device)
        yield {"precision": kind, "TFLOP/s": 2 * side**3 / seconds / 1e12, "peak": peak_of(device, kind)}


def speed(
    name: str, scale: Scale, device: torch.device, peak: float | None, _: float, *, compiled: bool = False
) -> Iterator[Figures]:
    """Images a second of whole steps on prepared crops, by precision; all train the same sub-network of middle size."""
    parts, index = built(name, scale, device, compile=compiled)
    ordered = steps_by_size(parts)
    step = ordered[len(ordered) // 2]
    (size,) = parts.subnets(step)
    operations: dict[int, float | None] = {}
    for variant in (BF16,) if compiled else VARIANTS:
        own = replace(parts, dtype=variant.dtype)

        def attempt(batch: int, own: Parts = own) -> tuple[float, float, RawViews]:
            raw = crops(own, index, batch=batch, step=step)
            began = time.perf_counter()
            train_step(own, step, [raw])
            wait(device)
            first = time.perf_counter() - began
            return first, seconds_of(lambda: train_step(own, step, [raw]), scale, device), raw

        with tf32(variant.tf32):
            batch, (first, seconds, raw) = fitting(scale.batch, attempt, own)
            if batch not in operations:
                operations[batch] = None if compiled else counted(own, step, raw)
        rate = operations[batch]
        most = peak_of(device, variant.kind, given=peak)
        teraflops = None if rate is None else rate / seconds / 1e12
        yield {
            "precision": variant.name,
            "sizes": f"{parts.family.space.intact} and {size}",
            "batch": batch,
            "images/s": batch / seconds,
            "s a step": seconds,
            "first step, s": first,
            "TFLOP a step": None if rate is None else rate / 1e12,
            "MFU": None if teraflops is None or most is None else teraflops / most,
        }


def memory(name: str, scale: Scale, device: torch.device, deadline: float, *, checkpointing: bool) -> Iterator[Figures]:
    """The most memory in use by batch size, up to the first that does not fit, with the largest sub-network."""
    parts, index = built(name, scale, device, checkpointing=checkpointing)
    parts = replace(parts, dtype=BF16.dtype)
    for batch in scale.batches:
        if time.monotonic() > deadline:
            return
        try:
            use = use_of(parts, index, batch_size=batch)
        except torch.OutOfMemoryError:
            yield {"batch": batch, "MiB": "does not fit", "s a step": None}
            return
        yield {"batch": batch, "MiB": use.memory_bytes / MIB, "s a step": use.seconds}


def counted(parts: Parts, step: int, raw: RawViews) -> float:
    """Floating-point operations of a step as torch counts them: products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        train_step(parts, step, [raw])
    return float(counter.get_total_flops())


def built(name: str, scale: Scale, device: torch.device, **over: Any) -> tuple[Parts, ImageIndex]:
    """The parts of a run of one network."""
    given = {"data": "digits", "batch_size": scale.batch, "precision": "fp32", "model": scale.networks[name], **over}
    config = resolve(given, recipe=scale.recipe)
    index = open_index(config.data)
    return assemble(config, index, device=device), index


def crops(parts: Parts, index: ImageIndex, *, batch: int, step: int) -> RawViews:
    """One batch of crops as the workers make them."""
    loader = step_batches(
        parts,
        index,
        batch_size=batch,
        start_step=step,
        num_steps=1,
    )
    ((raw,),) = loader
    return raw


def fitting(batch: int, attempt: Callable[[int], T], parts: Parts) -> tuple[int, T]:
    """The largest batch that fits, out of a number and its halves, and what the attempt with it has given."""
    while True:
        try:
            return batch, attempt(batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        batch //= 2
        parts.optimizer.zero_grad(set_to_none=True)
        free(parts.device)


def seconds_of(work: Callable[[], object], scale: Scale, device: torch.device) -> float:
    """Seconds of a piece of work that has run before, the mean of several without a pause."""
    least, most = scale.rounds
    work()
    wait(device)
    began, done = time.perf_counter(), 0
    while done < least or (done < most and time.perf_counter() - began < scale.seconds):
        work()
        done += 1
    wait(device)
    return (time.perf_counter() - began) / done


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether fp32 products of matrices may round their factors to TF32; convolutions may, as torch has it."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def peak_of(device: torch.device, kind: str, *, given: float | None = None) -> float | None:
    """Peak TFLOP/s of a device, None if it is not known; what is given is that of bf16."""
    if given is not None and kind == "bf16":
        return given
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = next((peaks for part, peaks in PEAKS.items() if part in name), None)
    return None if found is None else found[KINDS.index(kind)]


# ---- images ----------------------------------------------------------------------------------------------------------


def colours(scale: Scale, device: torch.device, _: float) -> Iterator[Figures]:
    """Colour, blur and normalisation of a batch of crops on the device."""
    parts, index = built(next(iter(scale.networks)), scale, device)
    raw = crops(parts, index, batch=scale.batch, step=parts.ibot_start)
    seconds = seconds_of(lambda: views_of(parts, raw), scale, device)
    yield {"batch": scale.batch, "images/s": scale.batch / seconds}


def loading(
    workers: int, scale: Scale, device: torch.device, folder: Path, record: Record, deadline: float
) -> Iterator[Figures]:
    """Images a second that the loader brings from JPEGs of 500x375 pixels, against what the fastest step takes."""
    photos = folder / "photos"
    if not photos.exists():
        photos.mkdir()
        for number, content in enumerate(make_files(scale.photos)):
            (photos / f"{number:05}.jpg").write_bytes(content)
    parts, _ = built(next(iter(scale.networks)), scale, device)
    loader = step_batches(
        parts,
        open_index(str(photos)),
        batch_size=scale.batch,
        start_step=0,
        num_steps=10_000,
        workers=workers,
    )
    for _ in range(1 + 3 * workers):  # what was prepared while they started
        next(loader)
    began, done = time.perf_counter(), 0
    while done < scale.rounds[0] or (time.perf_counter() - began < scale.seconds and time.monotonic() < deadline):
        next(loader)
        done += 1
    rate = done * scale.batch / (time.perf_counter() - began)
    fastest = max(record.figures("speed"), key=lambda row: row.get("images/s", 0.0), default={})
    needed = fastest.get("images/s")
    yield {
        "images/s": rate,
        "needed": needed,
        "by": fastest.get("work"),
        "enough": None if needed is None else rate >= needed,
    }
