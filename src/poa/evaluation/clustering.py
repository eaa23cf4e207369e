"""Unsupervised classification: k-means on frozen features, and how well the clusters match the classes."""

import statistics
import warnings
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from poa.config.protocols import ClusterSettings
from poa.errors import UserError
from poa.evaluation.protocol import Outcome, Protocol, Rows, check_features, check_labels


class Cluster(ClusterSettings, Protocol):
    """Cluster the test images by k-means without their labels, then compare clusters and classes.

    As published: scikit-learn's k-means on features as they are, one cluster a class. It runs on the CPU.
    """

    name: ClassVar[str] = "cluster"
    headline: ClassVar[str] = "accuracy"
    needs_train: ClassVar[bool] = False

    def resolved(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "Cluster":  # noqa: ARG002
        """With a number of clusters."""
        return self.changed(clusters=self._num_clusters(test_labels))

    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:  # noqa: ARG002
        """How well the clusters match the classes: means over the seeds, and their spreads if there are several."""
        check_features(test.features, name="clustered", least=2)
        check_labels(test.features, test.labels, name="clustered")
        num_clusters = self._num_clusters(test.labels)
        rows = test.features.detach().cpu().float()
        table = (F.normalize(rows, dim=1) if self.normalise else rows).numpy()
        found = [
            compare_clusters(_kmeans(table, num_clusters=num_clusters, seed=seed, restarts=self.restarts), test.labels)
            for seed in self.seeds
        ]
        columns = {name: [scores[name] for scores in found] for name in found[0]}
        scores = {name: statistics.fmean(values) for name, values in columns.items()}
        if len(found) > 1:
            scores |= {f"{name}_spread": statistics.stdev(values) for name, values in columns.items()}
        return Outcome(scores)

    def _num_clusters(self, labels: Int[Tensor, " labels"]) -> int:
        num_classes = len(torch.unique(labels))
        if num_classes < 2:
            raise UserError(
                "All images have the same class, so clusters cannot be compared with classes. Give images of "
                "two classes or more."
            )
        num_clusters = num_classes if self.clusters is None else self.clusters
        if not 1 < num_clusters <= len(labels):
            raise UserError(
                f"The number of clusters must be from 2 to {len(labels)} (the number of images), got "
                f"{num_clusters}. Give another --clusters, or more images."
            )
        return num_clusters


def compare_clusters(clusters: Int[Tensor, " images"], labels: Int[Tensor, " labels"]) -> dict[str, float]:
    """Compare any clustering with the classes; both are numbered from 0 and need not be equally many.

    Args:
        clusters: Number of each image's cluster.
        labels: Class of each image.

    Returns:
        In percent: ``accuracy``, the share of images whose cluster is matched with their class by the best one-to-one
        matching (without a partner, the images of a cluster count as wrong); the adjusted Rand index ``ari`` (0 by
        chance); normalised mutual information ``nmi``, by the mean of the two entropies; the Fowlkes-Mallows index
        ``fmi``; adjusted mutual information ``ami`` (0 by chance).

    Raises:
        UserError: There are no images, or not as many clusters as labels.
    """
    if len(clusters) == 0 or len(clusters) != len(labels):
        raise UserError(
            f"Clusters and classes are compared image by image, got {len(clusters)} clusters and {len(labels)} "
            "labels. Give one of each for every image."
        )
    from scipy.optimize import linear_sum_assignment  # comes with scikit-learn; imported here as in `_kmeans`
    from sklearn import metrics

    ours, theirs = clusters.cpu().numpy(), labels.cpu().numpy()
    counts = np.zeros((int(ours.max()) + 1, int(theirs.max()) + 1), np.int64)
    np.add.at(counts, (ours, theirs), 1)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return {
        "accuracy": 100.0 * float(matched) / len(ours),
        "ari": 100.0 * float(metrics.adjusted_rand_score(theirs, ours)),
        "nmi": 100.0 * float(metrics.normalized_mutual_info_score(theirs, ours)),
        "fmi": 100.0 * float(metrics.fowlkes_mallows_score(theirs, ours)),
        "ami": 100.0 * float(metrics.adjusted_mutual_info_score(theirs, ours)),
    }


def _kmeans(table: npt.NDArray[np.float32], *, num_clusters: int, seed: int, restarts: int) -> Int[Tensor, " images"]:
    from sklearn.cluster import KMeans  # only here: importing it takes a second, and all commands know this protocol
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told below as a sentence
        clusters = KMeans(num_clusters, n_init=restarts, random_state=seed).fit(table).labels_
    num_found = len(np.unique(clusters))
    if num_found < num_clusters:
        raise UserError(
            f"K-means needs as many different features as clusters, got {num_found} for {num_clusters} clusters. The "
            "run may have collapsed: check its RankMe. Otherwise lower --clusters, or remove duplicate images."
        )
    return torch.from_numpy(clusters).long()
