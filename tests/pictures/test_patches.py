import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from poa.errors import UserError
from poa.pictures.patches import colours, components


def features(*, images: int = 4, patches: int = 9, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.2])
    turned, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    return (torch.randn(images, patches, width, generator=generator) * scales) @ turned.T + 3


def test_components_are_those_of_scikit_learn() -> None:
    rows = features()
    pca = PCA(3).fit(rows.flatten(0, 1).numpy())
    wanted = pca.transform(rows.flatten(0, 1).numpy())
    for axis, column in zip(pca.components_, range(3), strict=True):
        wanted[:, column] *= np.sign(axis[np.abs(axis).argmax()])
    assert components(rows).flatten(0, 1).numpy() == pytest.approx(wanted, abs=1e-4)


def test_signs_do_not_depend_on_the_order_of_patches() -> None:
    rows = features()
    assert torch.allclose(components(rows.flip(0)).flip(0), components(rows), atol=1e-5)


def test_colours_fill_the_range_over_all_images() -> None:
    found = colours(features(images=30))
    assert len(found) == 30
    assert found[0].shape == (3, 3, 3)
    every = np.stack(found)
    assert (every.min((0, 1, 2)) == 0).all()
    assert (every.max((0, 1, 2)) == 255).all()
    rows = features(images=30)
    first = components(rows)[..., 0].flatten()
    assert every[..., 0].flatten()[int(first.argmax())] == 255


@pytest.mark.parametrize(
    ("rows", "words"),
    [(torch.ones(2, 4, 2), "got 8 of 2"), (torch.full((2, 4, 4), float("nan")), "NaN or infinity")],
)
def test_features_without_colours(rows: torch.Tensor, words: str) -> None:
    with pytest.raises(UserError, match=words):
        colours(rows)
