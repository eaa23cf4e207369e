"""Draws of images: those of a step, pure functions of seed and step, and those balanced over classes."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from poa.errors import UserError, counted


class Draw(NamedTuple):
    """One image of the batch of a step."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which a draw has no use for
    step: int
    position: int
    """In the global batch of the step, over all processes and micro-batches."""


def spread(labels: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.int64]:
    """Choose images evenly: the classes take turns until the limit is reached or they run out, first classes first.

    Inside a class the images are divided into as many runs as it may give, and one of each is drawn with a fixed seed.
    The positions are ascending; a label of -1 counts as a class.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    turns = np.arange(len(labels)) - np.repeat(starts, sizes)
    first = np.argsort(turns, kind="stable")[:limit]
    quotas = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[first], minlength=len(sizes))
    generator = np.random.Generator(np.random.Philox(key=0))
    chosen = []
    for start, size, quota in zip(starts, sizes, quotas, strict=True):
        edges = np.arange(quota + 1) * size // max(quota, 1)
        drawn = edges[:-1] + (generator.random(quota) * np.diff(edges)).astype(np.int64)
        chosen.append(order[start + drawn])
    return np.sort(np.concatenate(chosen))


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Number of full batches of an epoch; the images left over, others in each epoch, are not used in it."""
    if batch_size > num_images:
        raise UserError(
            f"--batch-size {batch_size:,} is larger than the number of images, {num_images:,}: lower it to at "
            f"most {num_images} or give more images."
        )
    return num_images // batch_size


@lru_cache(maxsize=2)
def epoch_order(num_images: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Every image once, in the order of an epoch; read-only, as it is shared between calls."""
    key = np.array([seed, epoch], dtype=np.uint64)
    order = np.random.Generator(np.random.Philox(key=key)).permutation(num_images)
    order.setflags(write=False)
    return order


def draws(step: int, *, num_images: int, batch_size: int, seed: int) -> tuple[Draw, ...]:
    """The images of a step, counted from 0, in the order of the global batch; no image comes twice in an epoch."""
    epoch, batch = divmod(step, steps_per_epoch(num_images, batch_size))
    chosen = epoch_order(num_images, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]
    return tuple(Draw(index, step, position) for position, index in enumerate(chosen.tolist()))


def places_in_class(labels: Int[Tensor, " images"], *, seed: int) -> Int[Tensor, " images"]:
    """Place of each image among those of its class in a random order, from 0."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    firsts = counts.cumsum(dim=0) - counts
    places = torch.empty_like(labels)
    places[order] = torch.arange(len(labels)) - firsts[labels[order]]
    return places


def folds_of(labels: Int[Tensor, " images"], *, seed: int, num_folds: int) -> Int[Tensor, " images"]:
    """Fold of each image, every class spread evenly over them; -1 for the image of a class with only one."""
    is_alone = labels.bincount()[labels] == 1
    return torch.where(is_alone, -1, places_in_class(labels, seed=seed) % num_folds)


def held_out(labels: Int[Tensor, " images"], *, seed: int, one_in: int) -> Bool[Tensor, " images"]:
    """Choose one in so many images of each class, rounded up, those that come first; none of a class with only one."""
    counts = labels.bincount()[labels]
    return (places_in_class(labels, seed=seed) < -(-counts // one_in)) & (counts > 1)


def check_per_class(per_class: int, labels: Sequence[int]) -> None:
    """Refuse to draw more images of each class than the smallest one has."""
    smallest, fewest = min(Counter(labels).items(), key=lambda item: (item[1], item[0]))
    if not 0 < per_class <= fewest:
        raise UserError(
            f"Taking {counted(per_class, 'image')} per class is not possible: class {smallest} has the fewest training "
            f"images, {fewest}. Ask for 1 to {fewest} images per class, or a share."
        )


@contextmanager
def keyed_random(*key: int, device: torch.device | None = None) -> Iterator[None]:
    """Random numbers of Python, NumPy and torch that depend on the key alone; their generators stay as they were.

    For what timm draws, which takes the global generators: those of the CPU, and of a CUDA device if one is given.
    """
    start = int(np.random.SeedSequence((len(key), *key)).generate_state(1)[0])  # else (1, 0) would be (1,)
    python, numpy_ = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        random.seed(start)
        np.random.seed(start)
        if device is not None and device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(start)
        torch.default_generator.manual_seed(start)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_)
