"""What every way of judging frozen features asks of the rows it is given, in sentences."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from poa.errors import UserError

_CHECKED_AT_ONCE = 8192  # rows; features may be mapped from disk


def check_features(features: Float[Tensor, "images width"], *, name: str, least: int = 1) -> None:
    """Refuse too few rows, and rows that are not finite.

    Args:
        features: One row an image.
        name: What the images are, such as ``training``, for the sentence.
        least: How many images are needed.

    Raises:
        UserError: As said.
    """
    if len(features) < max(least, 1):
        raise UserError(
            f"There are too few {name} images: got {len(features)}, at least {max(least, 1)} are needed. "
            "Give more images, or look why images were left out."
        )
    if not all(bool(rows.isfinite().all()) for rows in torch.split(features, _CHECKED_AT_ONCE)):
        raise UserError(
            f"The features of the {name} images hold NaN or infinity, so that scores have no meaning. Has the network "
            "diverged? Look at the loss of the run, score an earlier checkpoint, or score in float32."
        )


def check_labels(
    features: Float[Tensor, "images width"],
    labels: Int[Tensor, " labels"],
    *,
    name: str,
    num_classes: int | None = None,
) -> None:
    """Refuse labels that do not belong to the features.

    Args:
        features: One row an image.
        labels: One class an image.
        name: What the images are, such as ``training``, for the sentence.
        num_classes: Labels go from 0 to this number less one; None for no upper end.

    Raises:
        UserError: Their numbers differ, or a label is out of range.
    """
    if len(features) != len(labels):
        raise UserError(
            f"There are {len(features)} rows of {name} features but {len(labels)} labels; each image needs one of "
            "each. Take the labels of the images that could be read."
        )
    lowest, highest = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        until = "on" if num_classes is None else f"to {num_classes - 1}"
        raise UserError(
            f"The {name} labels go from {lowest} to {highest}; "
            f"{'' if num_classes is None else f'with {num_classes} classes '}they go from 0 {until}. "
            "Number the classes from 0."
        )


def check_widths(first: Float[Tensor, "n width"], second: Float[Tensor, "m other"], *, names: tuple[str, str]) -> None:
    """Refuse features of two different networks where those of one are needed.

    Args:
        first: One row an image.
        second: One row an image, of the same width.
        names: What the images of each are, for the sentence.

    Raises:
        UserError: The widths differ.
    """
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"The features of the {names[0]} images have width {first.shape[1]}, those of the {names[1]} images "
            f"{second.shape[1]}. Take both from the same network."
        )


def unit_rows(features: Float[Tensor, "images width"], device: torch.device) -> Float[Tensor, "images width"]:
    """Rows of length 1 in float32; rows of zeros stay.

    Args:
        features: One row an image.
        device: Where the result lies.
    """
    return F.normalize(features.to(device, torch.float32), dim=1)


def class_ranks(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> Int[Tensor, " images"]:
    """Place of the true class of each image from 0, ties by class number; beyond all places if logits are not finite.

    Args:
        logits: One row an image.
        labels: One class an image, on the same device.
    """
    own, numbers = logits.gather(1, labels[:, None]), torch.arange(logits.shape[1], device=logits.device)
    before = ((logits > own) | ((logits == own) & (numbers < labels[:, None]))).sum(dim=1)
    return torch.where(logits.isfinite().all(dim=1), before, logits.shape[1] + 5)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products as they are, whatever a training run has set (TF32, autocast): scores depend on them.

    Args:
        device: Where the products are made.
    """
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
