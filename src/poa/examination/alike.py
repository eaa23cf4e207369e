"""Images that are copies of earlier ones: the same bytes, or nearly the same pixels or features."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from poa.features.extract import Progress

Rows = npt.NDArray[np.int64]
Pairs = tuple[Rows, Rows]
Finder = Callable[[Rows, Rows], Iterator[Pairs]]
"""Given new rows and all rows that they may be alike to, ascending, pairs of a new row and an earlier one."""
FIRST = -1
"""Of an image that is no copy."""
MOST_BITS = 4
"""Of the 63 of a hash, those in which the hashes of near-duplicates may differ."""
LEAST_CORRELATION = 0.98
"""Of the thumbnails of near-duplicates."""
MOST_COLOUR = 0.06
"""Difference of the mean of a channel, in 0..1."""
_BANDS = tuple(np.array_split(np.arange(64), MOST_BITS + 1))
"""Hashes that differ in so few bits are equal in one of these groups of bits."""
_BLOCK, _MOST_AT_ONCE, _TILE = 4096, 1 << 22, 8192


def exact(digests: npt.NDArray[np.uint64]) -> Rows:
    """Of each file the first one of the same content, ``FIRST`` where it is the first itself; 0 is no content."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    of = first[inverse].astype(np.int64)
    return np.where((of == np.arange(len(digests))) | (digests == 0), FIRST, of)


def near(rows: Rows, find: Finder, *, num_images: int, progress: Progress) -> Rows:
    """Of each image an earlier one that it is nearly like, ``FIRST`` where there is none or it is not among ``rows``.

    Images are taken in order, and compared with those that are no copies themselves: each copy is alike to the image
    that it is reported with, however long a chain of similar images is.
    """
    of = np.full(num_images, FIRST, np.int64)
    firsts = np.empty(0, np.int64)
    for start in range(0, len(rows), _BLOCK):
        new = rows[start : start + _BLOCK]
        found = [np.stack(pairs) for pairs in find(new, np.concatenate([firsts, new]))]
        pairs = np.unique(np.concatenate([np.empty((2, 0), np.int64), *found], axis=1), axis=1)  # by the new row
        for later, earlier in pairs.T.tolist():
            if of[later] == FIRST and of[earlier] == FIRST:
                of[later] = earlier
        firsts = np.concatenate([firsts, new[of[new] == FIRST]])
        progress("images compared", start + len(new), len(rows))
    return of


def by_hash(records: npt.NDArray[Any]) -> Finder:
    """Find images of nearly the same pixels: copies that are resized, compressed again, or a little brighter.

    Those that are cropped, turned or mirrored are not found. Candidates are found by a perceptual hash (C. Zauner,
    Implementation and Benchmarking of Perceptual Image Hash Functions, 2010): which of the lowest frequencies of
    the discrete cosine transform of a thumbnail are above their median. Thumbnails and mean colours decide.
    """
    hashes = _hashes(records)
    bands = [((hashes >> np.uint64(band[0])) & np.uint64((1 << len(band)) - 1)).astype(np.uint16) for band in _BANDS]

    def find(new: Rows, earlier: Rows) -> Iterator[Pairs]:
        for keys in bands:
            for some, others in _sharing(keys[new], keys[earlier]):
                first, second = new[some], earlier[others]
                fits = (first > second) & (np.bitwise_count(hashes[first] ^ hashes[second]) <= MOST_BITS)
                for part in _parts(np.flatnonzero(fits), _TILE):
                    same = part[_look_alike(records, first[part], second[part])]
                    yield first[same], second[same]

    return find


def by_features(rows: Rows, features: Float[Tensor, "rows width"], similarity: float, device: torch.device) -> Finder:
    """Find images whose features have at least this cosine similarity; ``features`` are those of ``rows``."""

    def unit(some: Rows) -> Float[Tensor, "some width"]:
        return F.normalize(features[torch.from_numpy(np.searchsorted(rows, some))].to(device), dim=1)

    def find(new: Rows, earlier: Rows) -> Iterator[Pairs]:
        for first in _parts(new, 1024):
            queries = unit(first)
            for second in _parts(earlier[earlier < first[-1]], _TILE):
                i, j = (queries @ unit(second).T >= similarity).nonzero().cpu().numpy().T
                is_earlier = second[j] < first[i]
                yield first[i[is_earlier]], second[j[is_earlier]]

    return find


def _parts(rows: Rows, length: int) -> list[Rows]:
    return [rows[start : start + length] for start in range(0, len(rows), length)]


def _hashes(records: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """The hash of each thumbnail."""
    found = np.empty(len(records), np.uint64)
    for start in range(0, len(records), _BLOCK):
        thumbnails = records["thumbnail"][start : start + _BLOCK].astype(np.float32)
        low = scipy.fft.dctn(thumbnails, axes=(1, 2))[:, :8, :8].reshape(-1, 64)[:, 1:]  # the first is the brightness
        bits = low > np.median(low, axis=1, keepdims=True)
        packed = np.packbits(np.pad(bits, ((0, 0), (0, 1))), axis=1)
        found[start : start + _BLOCK] = packed.view(np.uint64)[:, 0]
    return found


def _sharing(keys: npt.NDArray[np.uint16], others: npt.NDArray[np.uint16]) -> Iterator[Pairs]:
    """Places of all pairs of equal keys, not too many at once."""
    order = np.argsort(others, kind="stable")
    ordered = others[order]
    low, high = np.searchsorted(ordered, keys, "left"), np.searchsorted(ordered, keys, "right")
    counts = high - low
    ends = np.cumsum(counts)
    start = 0
    while start < len(keys):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + _MOST_AT_ONCE, "right")))
        number = counts[start:end]
        which = np.repeat(np.arange(start, end), number)
        place = np.arange(len(which)) - np.repeat(np.cumsum(number) - number, number)
        yield which, order[low[which] + place]
        start = end


def _look_alike(records: npt.NDArray[Any], first: Rows, second: Rows) -> npt.NDArray[np.bool_]:
    colours = np.abs(records["mean"][first] - records["mean"][second]).max(axis=1, initial=0.0)
    some, others = (_centred(records["thumbnail"][rows]) for rows in (first, second))
    return np.asarray(((some * others).sum(axis=1) >= LEAST_CORRELATION) & (colours <= MOST_COLOUR))


def _centred(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Thumbnails as rows of mean 0 and length 1, so that their products are correlations."""
    values = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6))
