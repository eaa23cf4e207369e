import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from poa.errors import UserError
from poa.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt, generator_of

DRAWN = ("gaussian-noise", "shot-noise", "impulse-noise", "motion-blur", "fog")
PLACE = {name: place for place, name in enumerate(CORRUPTIONS)}


def scene(*, side: int = 32, images: int = 3) -> Tensor:
    """Large and small shapes, different in each image."""
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(images):
        pixels = ndimage.zoom(generator.random((8, 8, 3)), (side // 8, side // 8, 1), order=1)
        pixels = 0.2 + 0.6 * pixels + 0.1 * generator.standard_normal((side, side, 1))
        pictures.append(torch.from_numpy((pixels.clip(0, 1) * 255).round().astype(np.uint8)).permute(2, 0, 1))
    return torch.stack(pictures)


def point(*, side: int) -> Tensor:
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    image[:, :, side // 2, side // 2] = 255
    return image


def bytes_of(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.rint(values.clip(0, 1) * 255).astype(np.uint8))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_worse_than_the_one_before(name: str) -> None:
    images = scene(side=224 if "blur" in name else 64, images=2)
    errors = [
        (corrupt(images, name, severity, numbers=[0, 1]).float() - images.float()).square().mean().item()
        for severity in SEVERITIES
    ]
    if name == "pixelate":  # cells that end inside pixels blur besides: compare those that do not
        errors = [errors[1], errors[4]]
    assert errors == sorted(errors)
    assert errors[0] > 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_is_drawn_depends_on_seed_and_number_alone(name: str) -> None:
    images = scene()
    together = corrupt(images, name, 3, numbers=[4, 5, 6], seed=1)
    assert together.dtype == torch.uint8
    assert together.shape == images.shape
    for place, number in enumerate((4, 5, 6)):
        alone = corrupt(images[place : place + 1], name, 3, numbers=[number], seed=1)
        assert torch.equal(alone[0], together[place])
    other_number = corrupt(images, name, 3, numbers=[7, 8, 9], seed=1)
    other_seed = corrupt(images, name, 3, numbers=[4, 5, 6], seed=2)
    assert torch.equal(other_number, together) == (name not in DRAWN)
    assert torch.equal(other_seed, together) == (name not in DRAWN)


def test_the_same_is_drawn_at_every_severity() -> None:
    images = torch.full((1, 3, 16, 16), 128, dtype=torch.uint8)
    weak, strong = (corrupt(images, "gaussian-noise", severity, numbers=[3]).double() - 128 for severity in (1, 2))
    assert torch.allclose(strong, weak * 0.12 / 0.08, atol=1.3)
    hit = [corrupt(images, "impulse-noise", severity, numbers=[3]) != images for severity in (1, 4)]
    assert 0 < hit[0].sum() < hit[1].sum()
    assert not (hit[0] & ~hit[1]).any()


def test_noise_by_hand() -> None:
    images = scene(images=2)
    for place, number in enumerate((0, 11)):
        clean = images[place].numpy() / 255
        shape = clean.shape
        normal = generator_of(0, number, stream=PLACE["gaussian-noise"]).standard_normal(shape, np.float32)
        found = corrupt(images, "gaussian-noise", 5, numbers=[0, 11])[place]
        assert (found.int() - bytes_of(clean + 0.38 * normal).int()).abs().max() <= 1
        counted = generator_of(0, number, stream=PLACE["shot-noise"]).poisson((images[place].float() / 255).numpy() * 3)
        assert torch.equal(corrupt(images, "shot-noise", 5, numbers=[0, 11])[place], bytes_of(counted / 3))
        drawn = generator_of(0, number, stream=PLACE["impulse-noise"]).random(shape, np.float32)
        spotted = np.where(drawn < 0.135, 0, np.where(drawn > 0.865, 1, clean))
        assert torch.equal(corrupt(images, "impulse-noise", 5, numbers=[0, 11])[place], bytes_of(spotted))


@pytest.mark.parametrize(("side", "severity"), [(32, 5), (112, 2)])
def test_gaussian_blur_is_scipys(side: int, severity: int) -> None:
    images = scene(side=side, images=1)
    sigma = (1.0, 2.0, 3.0, 4.0, 6.0)[severity - 1] * side / 224
    wanted = ndimage.gaussian_filter(
        images[0].numpy() / 255, (0, sigma, sigma), mode="mirror", radius=math.ceil(4 * sigma)
    )
    found = corrupt(images, "gaussian-blur", severity, numbers=[0])[0]
    assert (found.int() - bytes_of(wanted).int()).abs().max() <= 1


@pytest.mark.parametrize("side", [16, 56, 113])
def test_defocus_spreads_a_point_over_a_disk(side: int) -> None:
    radius = 10 * side / 224
    fine = (np.arange(40) + 0.5) / 40 - 0.5
    wanted = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            rows, columns = row - side // 2 + fine[:, None], column - side // 2 + fine
            wanted[row, column] = (rows**2 + columns**2 <= radius**2).mean()
    found = corrupt(point(side=side), "defocus-blur", 5, numbers=[0])[0, 0].double() / 255
    assert found.numpy() == pytest.approx(wanted / wanted.sum(), abs=0.02)
    assert found.sum() == pytest.approx(1, abs=0.15)


def test_motion_spreads_a_point_along_a_line() -> None:
    side, number = 112, 5
    images = point(side=side).repeat(2, 1, 1, 1)
    found = corrupt(images, "motion-blur", 5, numbers=[number, number + 1])[0, 0].double()
    angle = generator_of(0, number, stream=PLACE["motion-blur"]).uniform(0, math.pi)
    rows, columns = found.nonzero(as_tuple=True)
    weights = found[rows, columns] / found.sum()
    along = (rows - side // 2) * math.sin(angle) + (columns - side // 2) * math.cos(angle)
    across = (rows - side // 2) * math.cos(angle) - (columns - side // 2) * math.sin(angle)
    length = 32 * side / 224
    assert (weights * along).sum() == pytest.approx(0, abs=0.2)
    assert (weights * along**2).sum() == pytest.approx(length**2 / 12, rel=0.05)
    assert across.abs().max() < 1.5


@pytest.mark.parametrize("name", ["gaussian-blur", "defocus-blur", "motion-blur"])
@pytest.mark.parametrize("side", [2, 16])
def test_blur_leaves_plain_images_alone(name: str, side: int) -> None:
    images = torch.full((2, 3, side, side), 77, dtype=torch.uint8)
    assert torch.equal(corrupt(images, name, 5, numbers=[0, 1]), images)


def test_fog_is_one_cloud_for_all_colours() -> None:
    images = torch.stack([torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (0, 255)])
    black, white = corrupt(images, "fog", 2, numbers=[1, 1]).double() / 255
    assert torch.allclose(white - black, torch.tensor(1 / 2.5, dtype=torch.float64), atol=0.01)
    assert torch.equal(black[0], black[1])
    assert (float(black.min()), float(black.max())) == (0, pytest.approx(1.5 / 2.5, abs=0.01))
    step = (black[0, 1:] - black[0, :-1]).abs().mean()
    assert step < 0.2 * black[0].std(), "neighbouring pixels have nearly the same fog"


def test_brightness_raises_the_value_alone() -> None:
    images = torch.tensor([[10, 200, 30], [0, 0, 0], [250, 240, 10], [90, 90, 90]], dtype=torch.uint8)
    found = corrupt(images.T.reshape(1, 3, 2, 2), "brightness", 3, numbers=[0]).reshape(3, 4).T
    for before, after in zip(images.tolist(), found.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(each / 255 for each in before))
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
        assert after == pytest.approx([255 * each for each in wanted], abs=0.51)


def test_contrast_shrinks_towards_the_mean() -> None:
    images = torch.tensor([0, 100, 200, 100], dtype=torch.uint8).reshape(1, 1, 2, 2).repeat(1, 3, 1, 1)
    images[:, 1] = 7
    found = corrupt(images, "contrast", 4, numbers=[0])[0]
    assert found[0].flatten().tolist() == [90, 100, 110, 100]
    assert set(found[1].flatten().tolist()) == {7}


def test_pixelation_keeps_means_of_blocks() -> None:
    images = scene(images=1)
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    wanted = np.asarray(picture.resize((8, 8), Image.Resampling.BOX).resize((32, 32), Image.Resampling.NEAREST))
    found = corrupt(images, "pixelate", 5, numbers=[0])[0].permute(1, 2, 0)
    assert (found.int() - torch.from_numpy(wanted.astype(np.int32))).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "severity", "words"),
    [
        ("snow", 1, "no corruption 'snow'. Choose from gaussian-noise"),
        ("jpg", 1, "Did you mean 'jpeg'"),
        ("fog", 6, "got 6"),
    ],
)
def test_unknown_ones(name: str, severity: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        corrupt(scene(), name, severity, numbers=[0, 1, 2])
