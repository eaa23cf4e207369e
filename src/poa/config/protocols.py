"""Settings of the protocols that score frozen features: at once flags and arguments. Imports no torch."""

from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter
from pydantic import Field

from poa.config.values import NO_FLAG, Count, Positive, Seed, Settings, ShareAboveZero, ShareBelowOne

NO_DEFAULT = Parameter(show_default=False)
"""Of settings whose help says what is usual."""
SWITCH = Parameter(negative=(), show_default=False)
MAX_BAD_SHARE = 0.01
"""Share of the images that may be left out of scores as they cannot be read."""
Whiten = Annotated[ShareAboveZero | None, NO_DEFAULT]
"""See ``poa.features.whitening``."""
LearningRates = Annotated[tuple[Positive, ...], Field(min_length=1), NO_DEFAULT]
Strengths = Annotated[tuple[Positive, ...], Field(min_length=1)]


class KnnSettings(Settings):
    """Score by weighted k-nearest neighbours."""

    name: ClassVar[str] = "knn"

    ks: Annotated[tuple[int, ...] | None, Parameter(name="k")] = None
    """Numbers of neighbours; 10, 20, 100 and 200 by default."""
    temperature: Annotated[Positive, NO_FLAG] = 0.07
    """Temperature of the softmax that turns similarities into votes."""
    whiten: Whiten = None
    """Whiten features by those of the training images, so that directions in which they vary little count as much as
    others. The number is added to each direction's variance, as a share of the mean: 0.1 suits. It helps networks
    that were trained long, and not those of minutes; by default nothing is whitened."""


class LinearSettings(Settings):
    """Logistic regression on all training images."""

    fit: Annotated[Literal["lbfgs"], NO_FLAG] = "lbfgs"
    """How the loss is minimised, until it has converged."""
    strengths: Strengths | None = None
    """Strengths of the penalty to choose from; by default eleven around 1 / number of classes."""
    seed: Annotated[Seed, NO_FLAG] = 0
    """Seed of the choice of held-out images."""


class FewShotSettings(Settings):
    """Score by logistic regression on a few training images of each class, drawn several times."""

    name: ClassVar[str] = "few-shot"

    per_class: Count | None = None
    """Training images per class, such as 1, 5 or 10."""
    share: ShareAboveZero | None = None
    """Share of the training images of each class, such as 0.01 or 0.1; instead of --per-class."""
    draws: Count = 5
    """Number of random draws of the training images."""
    strengths: Strengths | None = None
    """Strengths of the penalty to choose from; by default eleven around 1 / number of classes."""
    seed: Annotated[Seed, NO_FLAG] = 0
    """Seed of the first draw; the others use the numbers after it."""


class ProbeSettings(Settings):
    """Many linear classifiers trained by SGD at once, of which one is chosen (DINOv2; POA official code)."""

    learning_rates: LearningRates = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    """Learning rates to choose from, at batch size 256; by default thirteen from 1e-5 to 0.1."""
    batch_size: Annotated[Count, NO_FLAG] = 256
    """Images per step; all of them if there are fewer. Learning rates are scaled in proportion to it."""
    epochs: Count = 100
    """Passes over the training images, at most 12,500 steps."""
    most_steps: Annotated[Count, NO_FLAG] = 12_500
    """Largest number of steps, where ``epochs`` would take more."""
    momentum: Annotated[ShareBelowOne, NO_FLAG] = 0.9
    """Of SGD."""
    standardise: Annotated[bool, NO_FLAG] = True
    """Scale each feature to mean 0 and standard deviation 1 over the training images. The published probe does not:
    with its learning rates and few images it stops long before it has converged."""
    choose_on: Literal["held-out", "test"] = "held-out"
    """Images on which the classifier is chosen: a fifth of the training images, or, as published, the test images."""
    seed: Annotated[Seed, NO_FLAG] = 0
    """Seed of initial weights, of the order of images and of the choice of held-out images."""


class JointLinearSettings(Settings):
    """Linear classifiers of all sizes, trained together by SGD (SlimCLR, official linear evaluation)."""

    learning_rates: LearningRates = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    """Learning rates to choose from on a fifth of the training images; by default six from 0.0003 to 0.1."""
    schedule: Annotated[Literal["cosine", "steps"], NO_FLAG] = "cosine"
    """Schedule of the learning rate: ``steps`` divides it by 10 after 60 % and 80 % of the epochs (published after MoCo
    v2)."""
    epochs: Count = 90
    """Passes over the training images."""
    batch_size: Annotated[Count, NO_FLAG] = 256
    """Images per step; the last batch of an epoch may be smaller."""
    distilled: Annotated[bool, Parameter(name="distil")] = True
    """Train smaller sizes on the predictions of the largest too."""
    standardise: Annotated[bool, NO_FLAG] = True
    """Scale each feature to mean 0 and standard deviation 1 over the training images."""
    seed: Annotated[Seed, NO_FLAG] = 0
    """Seed of the choice of held-out images, of initial weights and of the order of images."""


class ClusterSettings(Settings):
    """K-means on the test images."""

    clusters: int | None = None
    """Number of clusters; by default the number of classes."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), NO_FLAG] = (0,)
    """Seeds, one clustering for each; scores are their means."""
    restarts: Count = 10
    """Number of random starts of each clustering; the one with the smallest distances is kept."""
    normalise: Annotated[bool, SWITCH] = False
    """Scale features to length 1 first."""


class RetrievalSettings(Settings):
    """Score by retrieval: how high training images of the same class rank by cosine similarity to a test image."""

    name: ClassVar[str] = "retrieval"

    ks: Annotated[tuple[int, ...] | None, Parameter(name="k")] = None
    """Numbers of images for recall; 1, 5 and 10 by default."""
    whiten: Whiten = None
    """Whiten features by those of the training images, as for k-NN, where 0.1 suits; by default nothing is whitened."""


class QualitySettings(Settings):
    """Measures without labels."""

    k: int = 10
    """Number of neighbours to compare."""
    seed: Seed = 0
    """Seed of the augmented views."""


class RobustnessSettings(Settings):
    """Conditions under which images are classified, and by what."""

    occlusion: Annotated[tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...], NO_DEFAULT] = tuple(
        tenth / 10 for tenth in range(1, 10)
    )
    """Shares of hidden cells; 0.1 to 0.9 by default."""
    grid: int | None = None
    """Rows and columns of the grid of hidden cells; by default the largest number up to 14 that divides the images."""
    shuffle: tuple[int, ...] | None = None
    """Rows and columns of shuffled cells; by default those of 2, 4, 8 and 14 that divide the images."""
    corruptions: tuple[str, ...] | None = None
    """Kinds of corruptions, such as jpeg; all by default."""
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], NO_DEFAULT] = (1, 2, 3, 4, 5)
    """Severities of corruptions, from 1 to 5; all by default."""
    judge: Literal["knn", "linear"] = "knn"
    """The classifier: nearest neighbours, or logistic regression."""
    k: int = 20
    """Number of neighbours."""
    seed: Seed = 0
    """Seed of everything random."""
