"""Whitening of features: what it makes of them, and where it is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from poa.errors import UserError
from poa.features import whitening
from poa.features.whitening import read_whitening, whitening_of, write_whitening


def features(number: int = 300, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(width, width, generator=generator) * torch.logspace(0, -1.5, width)
    return torch.randn(number, width, generator=generator) @ mixed + 5


def test_nearly_without_damping_directions_vary_alike() -> None:
    rows = features()
    found = whitening_of(rows, damping=1e-9)(rows)
    torch.testing.assert_close(found.T @ found / len(found), torch.eye(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(6), atol=1e-4, rtol=0)


@pytest.mark.parametrize("damping", [0.01, 0.1, 1.0])
def test_equals_the_inverse_root_of_the_covariance(damping: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = features()
    covariance = np.cov(rows.double().numpy().T, bias=True)
    damped = covariance + damping * np.trace(covariance) / 6 * np.eye(6)
    monkeypatch.setattr(whitening, "_CHUNK", 64)
    found = whitening_of(rows, damping=damping)
    torch.testing.assert_close(found.matrix, found.matrix.T)
    np.testing.assert_allclose((found.matrix @ found.matrix).double().numpy(), np.linalg.inv(damped), rtol=1e-3)
    expected = (rows.double().numpy() - rows.double().numpy().mean(axis=0)) @ found.matrix.double().numpy()
    np.testing.assert_allclose(found(rows).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_directions_without_variance_stay_small() -> None:
    rows = torch.cat([features(), torch.ones(300, 2)], dim=1)
    found = whitening_of(rows, damping=0.1)
    assert torch.isfinite(found.matrix).all()
    torch.testing.assert_close(found(rows)[:, 6:], torch.zeros(300, 2), atol=1e-4, rtol=0)


def test_halves_are_summed_in_full_precision() -> None:
    rows = features(number=4000).half()
    torch.testing.assert_close(whitening_of(rows, damping=0.1).mean, rows.double().mean(dim=0).float())


@pytest.mark.parametrize("rows", [torch.ones(5, 3), torch.full((5, 3), torch.nan), torch.ones(1, 3)])
def test_what_cannot_be_whitened(rows: Tensor) -> None:
    with pytest.raises(UserError, match=r"cannot be whitened.*Leave out --whiten"):
        whitening_of(rows, damping=0.1)


def test_files(tmp_path: Path) -> None:
    found, path = whitening_of(features(), damping=0.1), tmp_path / "a-whitening.safetensors"
    write_whitening(found, path)
    again = read_whitening(path, width=6)
    assert torch.equal(again.mean, found.mean)
    assert torch.equal(again.matrix, found.matrix)
    with pytest.raises(UserError, match="is for features of 6 values, and these have 7"):
        read_whitening(path, width=7)
    with pytest.raises(UserError, match="There is no"):
        read_whitening(tmp_path / "none", width=6)
    path.write_bytes(b"no")
    with pytest.raises(UserError, match="is no whitening that poa embed wrote"):
        read_whitening(path, width=6)
