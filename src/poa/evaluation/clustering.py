"""Unsupervised classification: k-means on frozen features, and how well the clusters match the classes."""

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment  # comes with scikit-learn
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    fowlkes_mallows_score,
    normalized_mutual_info_score,
)
from torch import Tensor

from poa.errors import UserError
from poa.evaluation.protocol import Outcome, Protocol, Rows, check_features, check_labels


@dataclass(frozen=True, slots=True)
class ClusterScores:
    """How well clusters match classes, in percent.

    Attributes:
        accuracy: Share of images whose cluster is matched with their class, by the best one-to-one matching.
        ari: Adjusted Rand index; 0 by chance.
        nmi: Normalised mutual information, by the mean of the two entropies.
        fmi: Fowlkes-Mallows index.
        ami: Adjusted mutual information; 0 by chance.
    """

    accuracy: float
    ari: float
    nmi: float
    fmi: float
    ami: float


@dataclass(frozen=True, slots=True)
class ClusteringResult:
    """Scores of k-means with several seeds.

    Attributes:
        mean: Over the seeds.
        spread: Standard deviation over the seeds (of a sample); 0 for a single seed.
        seeds: The scores of each.
    """

    mean: ClusterScores
    spread: ClusterScores
    seeds: tuple[ClusterScores, ...]

    def scores(self) -> dict[str, float]:
        """The means and spreads as one flat mapping: ``accuracy``, ``ari``, ..., ``accuracy_spread``, ..."""
        return asdict(self.mean) | {f"{name}_spread": value for name, value in asdict(self.spread).items()}


def kmeans_scores(
    features: Float[Tensor, "images width"],
    labels: Int[Tensor, " labels"],
    *,
    num_clusters: int | None = None,
    seeds: Sequence[int] = (0,),
    restarts: int = 10,
    normalise: bool = False,
) -> ClusteringResult:
    """Cluster images by k-means without their labels, then compare clusters and classes.

    As published: scikit-learn's k-means on features as they are, one cluster a class. It runs on the CPU.

    Args:
        features: One row an image.
        labels: Their classes, from 0.
        num_clusters: As many as there are classes among the labels if None.
        seeds: One clustering for each.
        restarts: Times that each begins anew; the one with the smallest distances is kept, without a look at labels.
        normalise: Scale features to length 1 first, so that distances are those of cosines.

    Raises:
        UserError: The features, the labels or the request cannot be used.
    """
    check_features(features, name="clustered", least=2)
    check_labels(features, labels, name="clustered")
    num_clusters = _check_request(labels, num_clusters=num_clusters, seeds=seeds, restarts=restarts)
    rows = features.detach().cpu().float()
    table = (F.normalize(rows, dim=1) if normalise else rows).numpy()
    found = tuple(
        compare_clusters(_kmeans(table, num_clusters=num_clusters, seed=seed, restarts=restarts), labels)
        for seed in seeds
    )
    columns = {name: [asdict(scores)[name] for scores in found] for name in asdict(found[0])}
    mean = {name: statistics.fmean(values) for name, values in columns.items()}
    spread = {name: statistics.stdev(values) if len(values) > 1 else 0.0 for name, values in columns.items()}
    return ClusteringResult(ClusterScores(**mean), ClusterScores(**spread), found)


def compare_clusters(clusters: Int[Tensor, " images"], labels: Int[Tensor, " labels"]) -> ClusterScores:
    """Compare any clustering with the classes.

    Clusters and classes need not be equally many: without a partner, the images of a cluster count as wrong.

    Args:
        clusters: Number of each image's cluster, from 0.
        labels: Their classes, from 0.

    Raises:
        UserError: There are no images, or not as many clusters as labels.
    """
    if len(clusters) == 0 or len(clusters) != len(labels):
        raise UserError(
            f"Clusters and classes are compared image by image, got {len(clusters)} clusters and {len(labels)} labels. "
            "Give one of each for every image."
        )
    ours, theirs = clusters.cpu().numpy(), labels.cpu().numpy()
    counts = np.zeros((int(ours.max()) + 1, int(theirs.max()) + 1), np.int64)
    np.add.at(counts, (ours, theirs), 1)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return ClusterScores(
        accuracy=100.0 * float(matched) / len(ours),
        ari=100.0 * float(adjusted_rand_score(theirs, ours)),
        nmi=100.0 * float(normalized_mutual_info_score(theirs, ours)),
        fmi=100.0 * float(fowlkes_mallows_score(theirs, ours)),
        ami=100.0 * float(adjusted_mutual_info_score(theirs, ours)),
    )


def _num_classes(labels: Int[Tensor, " labels"]) -> int:
    num_classes = len(torch.unique(labels))
    if num_classes < 2:
        raise UserError(
            "All labels are of one class, so that clusters have nothing to match. Give images of two classes or more."
        )
    return num_classes


def _check_request(
    labels: Int[Tensor, " images"], *, num_clusters: int | None, seeds: Sequence[int], restarts: int
) -> int:
    """The number of clusters."""
    num_classes = _num_classes(labels)
    num_clusters = num_classes if num_clusters is None else num_clusters
    if not 1 < num_clusters <= len(labels) or restarts < 1 or not seeds:
        raise UserError(
            f"K-means needs from 2 to {len(labels)} clusters (the number of images), at least one restart and one "
            f"seed; got {num_clusters} clusters, {restarts} restarts and {len(seeds)} seeds."
        )
    return num_clusters


def _kmeans(table: npt.NDArray[np.float32], *, num_clusters: int, seed: int, restarts: int) -> Int[Tensor, " images"]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told below as a sentence
        clusters = KMeans(num_clusters, n_init=restarts, random_state=seed).fit(table).labels_
    num_found = len(np.unique(clusters))
    if num_found < num_clusters:
        raise UserError(
            f"K-means found {num_found} different features for {num_clusters} clusters: most images have the same. "
            "Has the run collapsed? Otherwise ask for fewer clusters, or leave out copies of images."
        )
    return torch.from_numpy(clusters).long()


@dataclass(frozen=True)
class Cluster(Protocol):
    """K-means on the test images, without training images; see ``kmeans_scores``.

    Attributes:
        clusters: How many; as many as there are classes if None.
        seeds: One clustering for each.
        restarts: Times that each begins anew.
        normalise: Scale features to length 1 first.
    """

    clusters: int | None = None
    seeds: tuple[int, ...] = (0,)
    restarts: int = 10
    normalise: bool = False

    name: ClassVar[str] = "cluster"
    headline: ClassVar[str] = "accuracy"
    needs_train: ClassVar[bool] = False

    def settled(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "Cluster":  # noqa: ARG002
        """With a number of clusters."""
        wanted = _check_request(test_labels, num_clusters=self.clusters, seeds=self.seeds, restarts=self.restarts)
        return replace(self, clusters=wanted)

    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:  # noqa: ARG002
        """How well the clusters match the classes; the spreads as well if there are several seeds."""
        result = kmeans_scores(
            test.features,
            test.labels,
            num_clusters=self.clusters,
            seeds=self.seeds,
            restarts=self.restarts,
            normalise=self.normalise,
        )
        return Outcome(result.scores() if len(self.seeds) > 1 else asdict(result.mean))
