"""Scores of the networks of a source on frozen features, by a protocol."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from poa import distributed
from poa.config.channels import USUAL
from poa.data.content import Identity
from poa.data.index import ImageIndex, matched_labels
from poa.data.sources import Data, check_out
from poa.errors import UserError, nearest
from poa.evaluation.clustering import Cluster
from poa.evaluation.joint_linear import Slimmable, Switchable
from poa.evaluation.knn import Knn
from poa.evaluation.linear import FewShot, Linear
from poa.evaluation.probe import Probe
from poa.evaluation.protocol import Columns, Outcome, Protocol, Rows
from poa.evaluation.results import Results
from poa.evaluation.retrieval import Retrieval
from poa.evaluation.sweep import AT_ONCE, DEFAULTS, Scorer, SweepOptions, sweep
from poa.features.extract import Extracted, Progress, extract_features, read_batches
from poa.features.images import note_darkness, open_images
from poa.models.source import ModelSource

BATCH = 256
"""Images in one pass through a network."""
PROTOCOLS: Mapping[str, type[Protocol]] = {
    kind.name: kind for kind in (Knn, Linear, Switchable, Slimmable, Probe, FewShot, Cluster, Retrieval)
}
"""All ways of scoring frozen features."""


def evaluate(
    source: ModelSource,
    protocol: Protocol,
    *,
    train: Data | None = None,
    test: Data,
    limit: int | None = None,
    options: SweepOptions = DEFAULTS,
) -> Results:
    """Scores of networks on frozen features, in percent, also written to ``NAME/PROTOCOL.json`` and ``.csv``.

    Args:
        source: Whose networks.
        protocol: How to score.
        train: Labelled images to learn from, for protocols that need them.
        test: Labelled images to test on.
        limit: Take only a class-balanced part of the training images; of the test images where none are needed.
        options: Which networks, and where to write.

    Raises:
        NotScored: Some networks could not be scored; the scores of the others are written.
        UserError: A size, the images or the labels are invalid, or the name holds results of other settings.
    """
    names = source.choose(options.sizes)
    check_out(source.out, test, *([] if train is None else [train]))
    train_index = None if train is None else open_images(train, limit=limit, console=options.console)
    test_index = open_images(test, limit=limit if train is None else None, console=options.console)
    if source.preprocessing.values == USUAL:
        note_darkness(*([] if train_index is None else [train_index]), test_index, console=options.console)
    scorer = FrozenFeatures.of(source, names, protocol, train=train_index, test=test_index, workers=options.workers)
    return sweep(source, scorer, names, options)


def protocol_of(name: str, settings: Mapping[str, Any]) -> Protocol:
    """The protocol of a name, such as ``knn``, with some of its settings.

    Raises:
        UserError: There is no such protocol, or it has no such setting.
    """
    if name not in PROTOCOLS:
        raise UserError(f"There is no protocol {name!r}. {nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name](**settings)


@dataclass(frozen=True, slots=True)
class _Labelled:
    """Images, and the class of each as the training images number them."""

    index: ImageIndex
    labels: npt.NDArray[np.int64]


_NONE = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class FrozenFeatures(Scorer):
    """Scores of features that no training changes, by a protocol whose settings are resolved.

    Attributes:
        images: Those to ``test`` on, and before them those to ``train`` on if the protocol needs them.
    """

    source: ModelSource
    names: tuple[str, ...]
    protocol: Protocol
    images: Mapping[str, _Labelled]
    workers: int = 0

    @classmethod
    def of(
        cls,
        source: ModelSource,
        names: Sequence[str],
        protocol: Protocol,
        *,
        train: ImageIndex | None,
        test: ImageIndex,
        workers: int = 0,
    ) -> "FrozenFeatures":
        """The scorer, after checking the labels and the settings against one another."""
        images = _labelled(protocol, train, test)
        labels = {what: torch.from_numpy(each.labels) for what, each in images.items()}
        protocol = protocol.resolved(labels.get("train", _NONE), labels["test"])
        return cls(source, tuple(dict.fromkeys(names)), protocol, images, workers)

    @property
    def name(self) -> str:
        """That of the protocol."""
        return self.protocol.name

    @cached_property
    def identities(self) -> Mapping[str, Identity]:
        """The images."""
        return {what: each.index.identity for what, each in self.images.items()}

    @property
    def choices(self) -> Mapping[str, Any]:
        """Preprocessing and the protocol; of a joint one also which networks there are."""
        return {
            **self.source.preprocessing.stated(),
            "precision": "torch.float32",
            **dict(self.protocol),
            **({"networks": self.names} if self.protocol.joint else {}),
        }

    @property
    def at_once(self) -> int | None:
        """All networks of a joint protocol."""
        return None if self.protocol.joint else AT_ONCE

    def score(self, names: Sequence[str], work: Path, progress: Progress) -> Iterator[tuple[str, Outcome | UserError]]:
        """Extract the features of all images from the networks, and pass them to the protocol."""
        device, preprocessing = distributed.this_device(), self.source.preprocessing
        prepared = {
            name: self.protocol.prepare(
                self.source.network(name).to(device).eval(),
                image_size=preprocessing.image_size,
                channels=preprocessing.values.number,
            )
            for name in (self.names if self.protocol.joint else names)
        }
        found = {
            what: extract_features(
                {name: network for name, (network, _) in prepared.items()},
                read_batches(each.index, preprocessing, batch_size=BATCH, workers=self.workers),
                num_images=len(each.index),
                folder=work / what,
                settings=self.settings,
                preprocessing=preprocessing,
                device=device,
                progress=progress,
                what=f"{what} images",
            )
            for what, each in self.images.items()
        }
        rows = {
            name: (self._rows(found, "train", name, columns), self._rows(found, "test", name, columns))
            for name, (_, columns) in prepared.items()
        }
        num_classes = len(next(iter(self.images.values())).index.classes)
        left_out = {what: self.images[what].index.left_out(each.indices) for what, each in found.items()}
        for name, outcome in self.protocol.outcomes(rows, num_classes=num_classes, device=device):
            yield name, replace(outcome, left_out=left_out) if isinstance(outcome, Outcome) else outcome

    def _rows(self, found: Mapping[str, Extracted], what: str, name: str, columns: Columns) -> Rows:
        if what not in found:
            return Rows(torch.empty(0, 0), _NONE, columns)
        labels = torch.from_numpy(self.images[what].labels)[found[what].indices]
        return Rows(found[what].features[name], labels, columns)


def _labelled(protocol: Protocol, train: ImageIndex | None, test: ImageIndex) -> dict[str, _Labelled]:
    """Labels of both sets, those of the test images translated to the training images' numbers by name."""
    if not protocol.needs_train:
        if train is not None:
            raise UserError(f"The protocol {protocol.name} uses only test images. Leave out the training images.")
        return {"test": _Labelled(test, test.require_labels())}
    if train is None:
        raise UserError(f"The protocol {protocol.name} needs labelled training images. Give --train.")
    train_labels, test_labels = matched_labels(train, test)
    return {"train": _Labelled(train, train_labels), "test": _Labelled(test, test_labels)}
