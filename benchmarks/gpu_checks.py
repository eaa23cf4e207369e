"""Whether a device computes what the CPU does: losses, extraction, resume, compiled blocks and low precision.

Small networks of all methods and families, with random weights large enough that images differ. TF32 is off.
"""

import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import save_for_hf

from poa.config.pretraining import Config
from poa.config.resolve import resolve
from poa.data.index import open_index
from poa.elastic.network import state
from poa.models.origin import METHODS
from poa.models.run import Paths
from poa.pretraining import launch
from poa.pretraining.build import Parts, assemble
from poa.pretraining.step import step_batches, train_step
from poa.training.checkpoint import latest_checkpoint, load_checkpoint
from stages import Figures, Work

Given = Mapping[str, Any]
NOISE = 0.1
"""Standard deviation of what is added to fresh weights."""
DINOV3 = {
    "name": "dinov3",
    "widths": [64, 96, 128],
    "head_dim": 32,
    "depth_min": [3],
    "depth_max": [6],
    "patch_size": 4,
}
PROTOTYPES = {
    "losses": {"kind": "prototypes", "ibot": 0.3},
    "heads": {"layers": 3},
    "views": {"num_locals": 2, "mask_share": 0.5, "drop_patches": 0.0},
}
"""The published losses, local crops and masks."""
FAMILIES: Mapping[str, tuple[str, Given]] = {
    "vit": ("demo", {}),
    "vit over prototypes": ("demo", PROTOTYPES),
    "dinov3": ("demo", {"model": DINOV3}),
    "swin": ("demo-swin", {}),
    "resnet": ("demo-resnet", {}),
    "convnext": ("demo-convnext", {}),
    "slim-resnet": ("demo-slimclr-simclr", {}),
}
"""A recipe for small networks of each family, and what differs from it."""
TEACHER = "test_resnet"
"""The untrained network that others are distilled from."""


class Allowed(NamedTuple):
    """Largest relative difference of the numbers of the first step, and of the second."""

    first: float
    second: float


ROUNDING = Allowed(1e-3, 2e-2)
"""Of fp32. Sums of thousands of terms in another order differ by some 1e-6; the teacher's temperature of 0.025 makes 40
times as much of it. The second step comes after Adam's first ones, which move weights whose gradients are hardly more
than rounding as far as all others."""
LOW = Allowed(5e-2, 5e-2)
"""Of bf16, which rounds to 0.4 %, about as much in each of some layers; of losses only."""
AFTER_STEPS = 5e-3
"""Of weights, where a device has no deterministic way: Adam moves a weight by at most its rate in each of 8 steps."""
EXTRACTED = 1e-4
"""Of features over the largest: a matrix that is part of a larger one may be multiplied by another kernel."""


def works(folder: Path, device: torch.device, *, small: Given, tiny: bool) -> list[Work]:
    """All checks; a tiny run has one of each kind, with what is in ``small`` laid over it."""
    methods = ["poa"] if tiny else [each for each in METHODS if each != "own"]
    families = ["vit"] if tiny else list(FAMILIES)
    checks = [
        *(Work(f"losses {name}", partial(losses, name, device, small, folder)) for name in methods),
        *(Work(f"losses {name}", partial(losses_of_family, name, device, small)) for name in families[1:-1]),
        *(Work(f"extraction {name}", partial(extraction, name, device, small)) for name in families),
        *(Work(f"resume {name}", partial(resume, name, device, small, folder)) for name in families),
    ]
    why = "there is nothing to check on a CPU that the tests do not"
    others: Mapping[str, tuple[Given, Allowed]] = {
        "recomputed": ({"checkpointing": True}, ROUNDING),
        "bf16": ({"precision": "bf16"}, LOW),
        "fp16": ({"precision": "fp16"}, LOW),
        "compiled": ({"compile": True}, ROUNDING),  # last, as it takes longest
    }
    return [
        *checks,
        *(
            Work(f"{name} {family}", partial(otherwise, family, device, small, *others[name]), needs_cuda=why)
            for name in others
            for family in ("vit", "convnext")
        ),
    ]


def losses(method: str, device: torch.device, small: Given, folder: Path, _: float) -> Iterator[Figures]:
    """Losses and gradient norms of a method on the device against those on the CPU."""
    recipe = f"demo-{method}" if method.startswith("slimclr") else "demo"
    given: dict[str, Any] = {"method": method}
    if method in ("seed", "distill"):
        teacher = folder / "teacher"
        if not teacher.exists():
            torch.manual_seed(0)
            save_for_hf(timm.create_model(TEACHER), str(teacher))
        given["distill"] = {"teacher": str(teacher)} | ({"queue": 256} if method == "seed" else {})
    config = settings(recipe, small, given)
    yield compared(steps(config, torch.device("cpu")), steps(config, device), allowed=ROUNDING)


def losses_of_family(family: str, device: torch.device, small: Given, _: float) -> Iterator[Figures]:
    """The same of POA with another family."""
    recipe, given = FAMILIES[family]
    config = settings(recipe, small, given)
    yield compared(steps(config, torch.device("cpu")), steps(config, device), allowed=ROUNDING)


def otherwise(
    family: str, device: torch.device, small: Given, given: Given, allowed: Allowed, _: float
) -> Iterator[Figures]:
    """Another way of computing on the device against the plain one, fp32 and not compiled."""
    recipe, own = FAMILIES[family]
    plain = settings(recipe, small, own)
    other = settings(recipe, small, {**own, **given})
    yield compared(steps(plain, device), steps(other, device), allowed=allowed, norms=allowed is ROUNDING)


def extraction(family: str, device: torch.device, small: Given, _: float) -> Iterator[Figures]:
    """Features of a size cut out in place against those of the extracted network, for the first and a middle size."""
    recipe, given = FAMILIES[family]
    parts, _index = prepared(settings(recipe, small, given), device)
    backbone, side = parts.method.exported.backbone.eval(), parts.views.global_size
    sub_networks = parts.family.sub_networks()
    images = torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    for size in dict.fromkeys(
        (parts.family.space.sizes[0], parts.family.space.sizes[len(parts.family.space.sizes) // 2])
    ):
        with torch.no_grad(), full_precision():
            cut = sub_networks.bind(size, state(backbone), training=False)(images).cls
            alone = sub_networks.extract(size, backbone).to(device)(images).cls
        difference = ((cut - alone).abs().max() / cut.abs().max()).item()
        yield {"size": str(size), "difference": difference, "allowed": EXTRACTED, "holds": difference <= EXTRACTED}


def resume(family: str, device: torch.device, small: Given, folder: Path, _: float) -> Iterator[Figures]:
    """Weights at the end of a run against those after its second half was trained anew from a checkpoint."""
    recipe, given = FAMILIES[family]
    out = folder / f"resume-{family}"
    shutil.rmtree(out, ignore_errors=True)
    own = {
        "out": str(out),
        "limit": 64,
        "batch_size": 16,
        "epochs": 2,
        "device": device.type,
        "workers": 0,
        "saving": {"every_epochs": 1, "keep_last": 2},
        "optimizer": {"warmup_epochs": 0},
        "monitor": {"num_images": 64},
    }
    config = settings(recipe, small, {**given, **own})
    with full_precision(), deterministic() as without:
        launch.train(config)
        whole = final(out, delete=True)
        launch.train(config, resume=True)
    again = final(out)
    shutil.rmtree(out)
    difference = max((whole[name] - again[name]).abs().max().item() for name in whole)
    allowed = AFTER_STEPS if without else 0.0
    yield {
        "difference": difference,
        "allowed": allowed,
        "holds": difference <= allowed,
        "not deterministic": ", ".join(sorted(without)) or "nothing",
    }


# ---- parts -----------------------------------------------------------------------------------------------------------


def settings(recipe: str, small: Given, given: Given) -> Config:
    """A recipe in fp32 without what differs between devices by design: random numbers drawn on them."""
    merged: dict[str, Any] = {"precision": "fp32", **given, **small}
    if "slimclr" not in recipe:
        merged["model"] = {"drop_path": 0.0, **merged.get("model", {})}
    return resolve(merged, recipe=recipe)


def prepared(config: Config, device: torch.device) -> tuple[Parts, Any]:
    """The parts of a run, with the same noise on the weights of every device, and the images."""
    index = open_index(config.data, limit=config.limit)
    parts = assemble(config, index, device=device)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parts.method.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(device), alpha=NOISE)
    return parts, index


def steps(config: Config, device: torch.device) -> list[dict[str, float]]:
    """What two steps in the middle of a run measure."""
    parts, index = prepared(config, device)
    first = config.epochs * parts.steps_per_epoch // 2
    loader = step_batches(
        parts,
        index,
        batch_size=config.batch_size,
        start_step=first,
        num_steps=2,
    )
    with full_precision():
        return [train_step(parts, first + number, batch).metrics for number, batch in enumerate(loader)]


def compared(
    expected: list[dict[str, float]], found: list[dict[str, float]], *, allowed: Allowed, norms: bool = True
) -> Figures:
    """The largest relative differences of two steps."""
    first, second = (differences(*pair, norms=norms) for pair in zip(expected, found, strict=True))
    worst = max(first, key=lambda name: first[name] if math.isfinite(first[name]) else math.inf)
    at_most = [max(each.values()) if all(map(math.isfinite, each.values())) else math.inf for each in (first, second)]
    return {
        "step 1": at_most[0],
        "allowed": allowed.first,
        "step 2": at_most[1],
        "allowed then": allowed.second,
        "largest of": worst,
        "holds": at_most[0] <= allowed.first and at_most[1] <= allowed.second,
    }


def differences(expected: Mapping[str, float], found: Mapping[str, float], *, norms: bool) -> dict[str, float]:
    """By name, over the value or a hundredth, whichever is more."""
    assert expected.keys() == found.keys(), sorted(expected.keys() ^ found.keys())
    kept = [name for name in expected if norms or not name.startswith("grad_norm")]
    return {name: abs(found[name] - expected[name]) / max(abs(expected[name]), 1e-2) for name in kept}


def final(out: Path, *, delete: bool = False) -> dict[str, torch.Tensor]:
    """The networks in the newest checkpoint of a run, which is deleted if asked for."""
    newest = latest_checkpoint(Paths(out).checkpoints)
    assert newest is not None
    found: dict[str, torch.Tensor] = load_checkpoint(newest)["method"]
    if delete:
        newest.unlink()
    return {name: value.double() for name, value in found.items()}


@contextmanager
def full_precision() -> Iterator[None]:
    """Without TF32, which rounds the factors of fp32 products to 10 bits; torch has it on for convolutions."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = True


@contextmanager
def deterministic() -> Iterator[set[str]]:
    """With torch's deterministic algorithms; filled at the end with the operations that have none."""
    found: set[str] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield found
        finally:
            torch.use_deterministic_algorithms(False)
    texts = [str(warning.message) for warning in caught]
    found |= {text.split()[0] for text in texts if "does not have a deterministic implementation" in text}
