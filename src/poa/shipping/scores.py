"""What an exported file loses in score: k-NN of features, top-1 of classifiers, on labelled images."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from poa.data.images import Preprocessing
from poa.data.index import ImageIndex, labels_among, matched_labels
from poa.data.loader import images_for_scoring
from poa.data.sources import Data
from poa.errors import UserError
from poa.evaluation.knn import Knn
from poa.evaluation.protocol import Rows
from poa.features.images import open_images
from poa.shipping.networks import Exportable

_AT_ONCE = 1024
"""Images in memory."""

Run = Callable[[Tensor], Tensor]
"""From pixels (images x 3 x side x side) to what a network or a file gives for them."""


class Labelled(NamedTuple):
    """Images with labels: those that vote, needed where features are scored, those that are tested, and how many."""

    train: Data | None
    test: Data
    limit: int | None = None


class Scored(NamedTuple):
    """The same, opened."""

    train: ImageIndex | None
    test: ImageIndex


def open_labelled(given: Labelled) -> Scored:
    """Open the images; both sets are limited."""
    train = None if given.train is None else open_images(given.train, limit=given.limit)
    return Scored(train, open_images(given.test, limit=given.limit))


def score(run: Run, network: Exportable, images: Scored) -> float:
    """Of a network or a file of it, in percent: top-1 by 20 neighbours (or as many as there are), or of a classifier.

    Raises:
        UserError: The images do not fit the network.
    """
    if network.task == "classification":
        return _accuracy(run, network, images.test)
    if network.task != "features" or images.train is None:
        raise UserError(
            f"The loss in score of {network.name} needs --train and --test, images with a label each."
            if network.task == "features"
            else f"{network.name} is scored neither by k-NN nor by classes of images. Leave out --train and --test."
        )
    labels = matched_labels(images.train, images.test)
    train, test = (
        _rows(run, network.preprocessing, index, own)
        for index, own in zip((images.train, images.test), labels, strict=True)
    )
    protocol = Knn(ks=(min(20, len(train.labels)),))
    outcome = protocol(train, test, num_classes=len(images.train.classes), device=torch.device("cpu"))
    return next(iter(outcome.scores.values()))


def _rows(run: Run, preprocessing: Preprocessing, index: ImageIndex, labels: np.ndarray) -> Rows:
    size, resize = preprocessing.image_size, preprocessing.resize
    parts, read = list[Tensor](), list[int]()
    for batch in images_for_scoring(index, size=size, resize=resize, batch_size=_AT_ONCE, values=preprocessing.values):
        if batch.indices:
            parts.append(run(batch.images))
            read += batch.indices
    if not read:
        raise UserError(f"None of the images in {index.source} can be read. Check that the files are images.")
    return Rows(torch.cat(parts), torch.from_numpy(labels)[read])


def _accuracy(run: Run, network: Exportable, test: ImageIndex) -> float:
    labels = labels_among(network.classes, test, whose=f"of {network.name}")
    rows = _rows(run, network.preprocessing, test, labels)
    return 100.0 * float((rows.features.argmax(dim=1) == rows.labels).double().mean())


def labelled(train: Data | None, test: Data | None, limit: int | None) -> Labelled | None:
    """The images asked for, if any."""
    if test is not None:
        return Labelled(train, test, limit)
    if train is not None or limit is not None:
        raise UserError("--train and --limit go with --test, the labelled images to test int8 files on.")
    return None
