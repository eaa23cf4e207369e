"""CIFAR-10 within the minutes that are left: a run of as many epochs as fit, and the k-NN scores of three sizes."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import poa
from measure import wait
from poa.config.pretraining import Config
from poa.config.resolve import of_run, resolve
from poa.data.index import ImageIndex, open_index
from poa.data.sampler import steps_per_epoch
from poa.models.run import Paths
from poa.pretraining import launch
from poa.pretraining.build import assemble, workers_of
from poa.pretraining.step import step_batches, train_step
from poa.training.checkpoint import latest_checkpoint
from stages import Figures, TimeIsUpError, Work, at_most

SLACK = 0.85
"""Of the time, to be filled by steps; the rest is for the start, checkpoints and what the device does beside."""
SCORING = 0.15
"""Of the time, for k-NN."""
SAVES = 8
"""Checkpoints of a run."""


@dataclass(frozen=True)
class Scale:
    """What is trained on: a source with the parts ``train`` and ``test``, a recipe, and what is laid over it.

    Attributes:
        warm: Steps before the clock is read.
        timed: Steps that are timed, before the run.
    """

    data: str
    recipe: str
    given: Mapping[str, Any]
    most_epochs: int
    warm: int = 4
    timed: int = 12


def works(scale: Scale, device: torch.device, folder: Path) -> list[Work]:
    """One work, which a second start resumes."""
    name = f"{scale.recipe} on {Path(scale.data).name}"
    return [Work(name, partial(train, scale, device, folder / "run"), resumes=True)]


def train(scale: Scale, device: torch.device, out: Path, deadline: float) -> Iterator[Figures]:
    """Train, or go on with it, and score.

    Raises:
        TimeIsUpError: The run has not come to its end; another start resumes it.
    """
    ends = time.monotonic() + (deadline - time.monotonic()) * (1 - SCORING)
    resume = Paths(out).config.exists()
    if resume:
        config = of_run(Paths(out).config)
    else:
        config, figures = fitting(scale, device, out, ends)
        yield figures
    began = time.monotonic()
    try:
        with at_most(ends - time.monotonic()):
            launch.train(config, resume=resume)
    except TimeIsUpError:
        if latest_checkpoint(Paths(out).checkpoints) is None:
            raise
        print("The time of the run is up. Start again to go on with it.", flush=True)
    seconds, run = time.monotonic() - began, poa.load(out)
    names = run.sizes()
    sizes = list(dict.fromkeys((names[0], names[len(names) // 2], names[-1])))
    data = {"train": f"{scale.data}/train", "test": f"{scale.data}/test"}
    scores = poa.evaluate_knn(run, **data, sizes=sizes, limit=config.limit, workers=workers_of(config), overwrite=True)
    num_images = len(open_index(config.data, limit=config.limit))
    num_steps = config.epochs * steps_per_epoch(num_images, config.batch_size)
    for size in sizes:
        steps = f"{run.step} of {num_steps}"
        yield {"size": size, "steps": steps, "seconds of training": seconds, "k-NN (20)": scores[size]["top1@20"]}
    if run.step < num_steps:
        raise TimeIsUpError


def fitting(scale: Scale, device: torch.device, out: Path, ends: float) -> tuple[Config, Figures]:
    """The settings of a run of as many epochs as there is time for, by the time of some steps."""
    config = settings(scale, device, out, epochs=scale.most_epochs)
    index = open_index(config.data, limit=config.limit)
    seconds, waiting = step_seconds(scale, config, index, device)
    of_epoch = seconds * steps_per_epoch(len(index), config.batch_size)
    epochs = max(1, min(scale.most_epochs, int(SLACK * (ends - time.monotonic()) / of_epoch)))
    return settings(scale, device, out, epochs=epochs), {
        "images": len(index),
        "epochs": epochs,
        "batch": config.batch_size,
        "images/s": config.batch_size / seconds,
        "s a step": seconds,
        "waiting for images": waiting / seconds,
    }


def settings(scale: Scale, device: torch.device, out: Path, *, epochs: int) -> Config:
    """Of a run that saves and looks at its features only now and then."""
    every = max(1.0, epochs / SAVES)
    given = {
        "data": f"{scale.data}/train",
        "out": str(out),
        "epochs": epochs,
        "device": device.type,
        "saving": {"every_epochs": every},
        "monitor": {"every_epochs": every},
    }
    return resolve({**given, **scale.given}, recipe=scale.recipe)


def step_seconds(scale: Scale, config: Config, index: ImageIndex, device: torch.device) -> tuple[float, float]:
    """Seconds of a step of a run, and of waiting for images in it."""
    parts = assemble(config, index, device=device)
    loader = step_batches(
        parts,
        index,
        batch_size=config.batch_size,
        start_step=parts.ibot_start,
        num_steps=scale.warm + scale.timed,
        workers=workers_of(config),
    )
    waited = began = 0.0
    for number in range(scale.warm + scale.timed):
        if number == scale.warm:
            wait(device)
            waited, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - asked
        train_step(parts, parts.ibot_start + number, batch)
    wait(device)
    return (time.perf_counter() - began) / scale.timed, waited / scale.timed
