"""Classifiers of one network's frozen features that are fitted once and then asked about any images."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poa.evaluation.knn import Knn
from poa.evaluation.linear import Linear
from poa.evaluation.logistic import fit_logistic
from poa.evaluation.protocol import Rows, check_features, classes_of

Judge = Callable[[Float[Tensor, "images width"], Int[Tensor, " images"]], Bool[Tensor, " images"]]
"""Features and true classes of images to whether each is classified rightly."""
Kind = Literal["knn", "linear"]


def judge_of(kind: Kind, train: Rows, *, k: int, num_classes: int, device: torch.device) -> Judge:
    """A classifier fitted to training images.

    Args:
        kind: ``knn`` for weighted votes of the nearest training images, ``linear`` for logistic regression whose
            penalty is chosen on a fifth of them.
        train: Features and classes of the training images.
        k: Number of neighbours.
        num_classes: Number of classes.
        device: Where to compute.

    Raises:
        UserError: The features or the labels cannot be used.
    """
    return _knn(train, k, num_classes, device) if kind == "knn" else _linear(train, num_classes, device)


def _knn(train: Rows, k: int, num_classes: int, device: torch.device) -> Judge:
    check_features(train.features, name="training")

    def judge(features: Float[Tensor, "images width"], labels: Int[Tensor, " images"]) -> Bool[Tensor, " images"]:
        found = Knn(ks=(k,))(train, Rows(features, labels), num_classes=num_classes, device=device)
        return found.values[f"top1@{k}"] > 0

    return judge


def _linear(train: Rows, num_classes: int, device: torch.device) -> Judge:
    one = Rows(train.features[:1], train.labels[:1])  # nothing is tested yet
    chosen = Linear()(train, one, num_classes=num_classes, device=device).details["strength"]
    classes, numbers = classes_of(train.labels)
    fit = fit_logistic(train.features, numbers, strengths=(chosen,), num_classes=len(classes), device=device)

    def judge(features: Float[Tensor, "images width"], labels: Int[Tensor, " images"]) -> Bool[Tensor, " images"]:
        check_features(features, name="test")
        return classes[fit.logits(features)[0].argmax(dim=1).cpu()] == labels.cpu()

    return judge
