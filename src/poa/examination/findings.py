"""From the measures of images to what may be wrong with them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from poa.config.examination import Examination, Kind
from poa.data.index import ImageIndex
from poa.examination.alike import FIRST, Rows
from poa.examination.measures import GOOD, TRUNCATED, UNREADABLE
from poa.examination.scan import Scan

KINDS: tuple[Kind, ...] = get_args(Kind)
USUAL_MODES = (b"RGB", b"L")
FLAT = 1 / 255
"""Images of which no channel has a larger standard deviation are constant."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found in the images of an index.

    Attributes:
        index: The images.
        scan: Their measures.
        settings: What counts as a finding.
        of: Of each duplicate and near-duplicate the image that it is like; ``FIRST`` for others.
        rows: Numbers of the images by kind of finding, ascending. An image may be of several kinds.
        kept: Numbers of those that are to be kept.
    """

    index: ImageIndex
    scan: Scan
    settings: Examination
    of: Rows
    rows: Mapping[Kind, Rows]
    kept: Rows

    def detail(self, kind: Kind, i: int) -> str:
        """What is to be said of an image with a finding."""
        record = self.scan.records[i]
        if kind in ("unreadable", "truncated"):
            return self.scan.reasons.get(i, "")
        if kind in ("duplicate", "near-duplicate"):
            first = int(self.of[i])
            labels = self.index.label(first), self.index.label(i)
            other = f", which is labelled {self.label_name(labels[0])!r}" if labels[0] != labels[1] else ""
            return f"of {self.index.name(first)}{other}"
        if kind == "other-mode":
            return str(record["mode"].decode())
        return f"{record['width']} x {record['height']} pixels"

    def label_name(self, label: int) -> str:
        """The name of a class; empty where there is none."""
        return self.index.classes[label] if label >= 0 else ""

    def in_two_classes(self) -> int:
        """How many duplicates have another label than the image that they are a duplicate of."""
        rows, labels = self.rows["duplicate"], self.index.labels()
        return int((labels[rows] != labels[self.of[rows]]).sum())

    def modes(self) -> Counter[str]:
        """Number of images by mode."""
        names, counts = np.unique(self._good("mode"), return_counts=True)
        return Counter({name.decode(): int(count) for name, count in zip(names, counts, strict=True)})

    def sides(self) -> tuple[tuple[int, int], ...]:
        """Of the images that can be read, the smallest, median and largest width, and height."""
        width, height = self._good("width"), self._good("height")
        if not len(width):
            return ()
        return tuple(
            (int(at(width)), int(at(height)))
            for at in (np.min, lambda values: np.percentile(values, 50, method="nearest"), np.max)
        )

    def channels(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of the channels, values in 0..1, of the images that can be read.

        Each image counts the same, whatever its size, as the crops of a training do.
        """
        mean = self._good("mean").mean(axis=0, dtype=np.float64)
        spread = np.sqrt(np.maximum(0.0, self._good("square").mean(axis=0, dtype=np.float64) - mean**2))
        return mean.tolist(), spread.tolist()

    def class_counts(self) -> dict[str, int]:
        """Number of images by class; empty where there are no labels."""
        if not self.index.classes:
            return {}
        counts = np.bincount(self.index.labels() + 1, minlength=len(self.index.classes) + 1)
        found = dict(zip(self.index.classes, counts[1:].tolist(), strict=True))
        return found | ({"": int(counts[0])} if counts[0] else {})

    def _good(self, measure: str) -> npt.NDArray[Any]:
        """One measure of the images that can be read."""
        records = self.scan.records
        return np.asarray(records[measure][records["state"] == GOOD])


def plain_rows(scan: Scan, settings: Examination) -> dict[Kind, Rows]:
    """Numbers of the images by kind of finding, of all kinds that the measures of an image decide by themselves."""
    records = scan.records
    state, width, height = records["state"], records["width"], records["height"]
    good, shorter = state == GOOD, np.minimum(width, height)
    spread = np.sqrt(np.maximum(0.0, records["square"].astype(np.float64) - records["mean"].astype(np.float64) ** 2))
    is_of: dict[Kind, npt.NDArray[np.bool_]] = {
        "unreadable": state == UNREADABLE,
        "truncated": state == TRUNCATED,
        "constant": good & (spread.max(axis=1, initial=0.0) < FLAT),
        "tiny": good & (shorter < settings.min_side),
        "elongated": good & (np.maximum(width, height) > settings.max_ratio * shorter),
        "grey": good & records["grey"],
        "other-mode": good & ~np.isin(records["mode"], USUAL_MODES),
    }
    return {kind: np.flatnonzero(found) for kind, found in is_of.items()}


def gather(
    index: ImageIndex, scan: Scan, settings: Examination, *, plain: Mapping[Kind, Rows], exact: Rows, near: Rows
) -> Findings:
    """Put together what was found."""
    found: dict[Kind, Rows] = {
        **plain,
        "duplicate": np.flatnonzero(exact != FIRST),
        "near-duplicate": np.flatnonzero(near != FIRST),
    }
    dropped = np.concatenate([np.empty(0, np.int64), *(found[kind] for kind in settings.drop)])
    kept = np.setdiff1d(np.arange(len(index)), dropped)
    of = np.where(exact == FIRST, near, exact)
    return Findings(index, scan, settings, of, {kind: found[kind] for kind in KINDS}, kept)
