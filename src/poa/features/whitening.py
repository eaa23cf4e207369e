"""Whitening: features all of whose directions vary alike, as in retrieval (Jegou and Chum, ECCV 2012, Sec. 3)."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from poa.errors import UserError

_CHUNK = 8192
"""Rows looked at together; features may be mapped from disk."""


class Whitening(NamedTuple):
    """``(row - mean) @ matrix`` for each row.

    Attributes:
        mean: Of the features that it was made of.
        matrix: Symmetric, so that a channel stays as near as possible to what it was.
    """

    mean: Float[Tensor, " width"]
    matrix: Float[Tensor, "width width"]

    def __call__(self, rows: Shaped[Tensor, "images width"]) -> Float[Tensor, "images width"]:
        """Whitened rows in float32, on the device of the rows."""
        mean, matrix = self.mean.to(rows.device), self.matrix.to(rows.device)
        return (rows.to(torch.float32) - mean) @ matrix


@torch.inference_mode()
def whitening_of(features: Shaped[Tensor, "images width"], *, damping: float) -> Whitening:
    """What makes the covariance of features the identity, but for directions that hardly vary.

    Args:
        features: Of many images; read twice, some rows at a time.
        damping: Added to the variance of every direction, as a share of their mean: few images, or directions of noise,
            would otherwise count as much as what tells images apart.

    Raises:
        UserError: The features are all equal, or not finite.
    """
    width, parts = features.shape[1], torch.split(features, _CHUNK)
    mean, covariance = (torch.zeros(shape, dtype=torch.float64) for shape in ((width,), (width, width)))
    for part in parts:
        mean += part.cpu().double().sum(dim=0) / len(features)
    for part in parts:
        rows = part.cpu().double() - mean
        covariance += rows.T @ rows / len(features)
    level = covariance.diagonal().mean()
    if not (torch.isfinite(covariance).all() and level > 0):
        raise UserError(
            "These features cannot be whitened: they are not finite, or the same for all images. Leave out --whiten."
        )
    variances, directions = torch.linalg.eigh(covariance)
    scales = (variances.clamp_min(0) + damping * level).rsqrt()
    return Whitening(mean.float(), (directions * scales @ directions.T).float())


def whitening_file(path: Path) -> Path:
    """Where the whitening of a file of features is."""
    return path.with_name(f"{path.stem}-whitening.safetensors")


def write_whitening(whitening: Whitening, path: Path) -> None:
    """As tensors ``mean`` and ``matrix``."""
    save_file(whitening._asdict(), path)


def require_whitening(path: Path) -> None:
    """See that a file is there."""
    if not path.is_file():
        raise UserError(
            f"There is no {path}. Give --whitened-as the --out of a command that was given --whiten, with these sizes."
        )


def read_whitening(path: Path, *, width: int) -> Whitening:
    """What ``write_whitening`` wrote, for features of ``width`` values.

    Raises:
        UserError: There is none, or it is for other features.
    """
    require_whitening(path)
    try:
        found = load_file(path)
        whitening = Whitening(found["mean"], found["matrix"])
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"{path} is no whitening that poa embed wrote ({error}).") from error
    if whitening.mean.shape != (width,) or whitening.matrix.shape != (width, width):
        raise UserError(
            f"{path} is for features of {len(whitening.mean)} values, and these have {width}. Give --whitened-as the "
            "features of the same network."
        )
    return whitening
