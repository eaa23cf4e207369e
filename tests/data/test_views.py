import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from poa.config.pretraining import ViewSettings
from poa.config.resolve import resolve
from poa.data.images import decode, decode_reduced, image_tensor
from poa.data.resize import resize
from poa.data.views import (
    FACTORS,
    GREY,
    NUM_UNIFORMS,
    ORDER,
    SIGMA,
    SOLARIZE,
    SPARE,
    Box,
    collate,
    colour_parameters,
    crop_box,
    make_crops,
    reduction,
    sample_generator,
)
from poa.errors import UserError

SMALL = ViewSettings(global_size=32, local_size=16, num_locals=3)


def photo(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """A smooth random image, like a photo in that neighbouring pixels are alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


class _Replay:
    """Feeds numbers drawn beforehand to torchvision, four a try."""

    def __init__(self, uniforms: list[float]) -> None:
        self.uniforms, self.num_uniform, self.num_integer = uniforms, 0, 0

    def uniform_(self, tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
        attempt, column = divmod(self.num_uniform, 2)
        self.num_uniform += 1
        return tensor.fill_(low + (high - low) * self.uniforms[4 * attempt + column])

    def randint(self, low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        attempt, column = self.num_uniform // 2 - 1, 2 + self.num_integer
        self.num_integer += 1
        return torch.full(size, low + int(self.uniforms[4 * attempt + column] * (high - low)))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (96, 96), (40, 300), (700, 20), (1, 1)])
@pytest.mark.parametrize("scale", [(0.32, 1.0), (0.05, 0.32)])
def test_crop_box_is_that_of_torchvision(
    height: int, width: int, scale: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.empty(3, height, width)
    for seed in range(40):
        uniforms = np.random.default_rng(seed).random(40).tolist()
        replay = _Replay(uniforms)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "uniform_", lambda *args, replay=replay: replay.uniform_(*args))
            patch.setattr(torch, "randint", replay.randint)
            expected = RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
        assert crop_box(height, width, scale=scale, ratio=(3 / 4, 4 / 3), uniforms=uniforms) == Box(*expected)


def test_crops_are_near_those_of_pillow_and_mirrored_by_probability() -> None:
    image = photo(300, 400)
    generators = [sample_generator(0, 0, 0) for _ in range(2)]
    straight, mirrored = (
        make_crops(
            image_tensor(image),
            augmentation=ViewSettings(global_size=64, local_size=32, flip=flip),
            generator=generator,
        )
        for flip, generator in zip((0.0, 1.0), generators, strict=True)
    )
    assert torch.equal(straight.globals, mirrored.globals.flip(-1))
    assert torch.equal(straight.locals, mirrored.locals.flip(-1))
    region = image.crop((30, 50, 330, 250))
    expected = image_tensor(region.resize((64, 48), Image.Resampling.BICUBIC)).int()
    ours = resize(image_tensor(region), 48, 64).int()
    assert (ours - expected).abs().max() <= 1


def test_every_crop_shows_its_own_region() -> None:
    crops = make_crops(image_tensor(photo(200, 200)), augmentation=SMALL, generator=sample_generator(0, 0, 0))
    assert crops.globals.shape == (2, 3, 32, 32)
    assert crops.locals.shape == (3, 3, 16, 16)
    rows = [*crops.globals.flatten(1).unique(dim=0), *crops.locals.flatten(1).unique(dim=0)]
    assert len(rows) == 5


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (500, 3)])
def test_tiny_and_thin_images_give_crops(size: tuple[int, int]) -> None:
    crops = make_crops(image_tensor(photo(*size)), augmentation=SMALL, generator=sample_generator(0, 0, 0))
    assert crops.globals.shape == (2, 3, 32, 32)


def test_crops_depend_on_seed_step_and_position_alone() -> None:
    def parameters(*key: int) -> list[float]:
        return sample_generator(*key).random(4).tolist()

    assert parameters(1, 2, 3) == parameters(1, 2, 3)
    assert len({tuple(parameters(*key)) for key in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)]}) == 5


def test_a_setting_changes_nothing_but_itself() -> None:
    uniforms = sample_generator(0, 0, 0).random((5, NUM_UNIFORMS))
    default = colour_parameters(uniforms, SMALL)
    grey = colour_parameters(uniforms, ViewSettings(global_size=32, local_size=16, grey_probability=1.0))
    assert (grey[:, GREY] == 1).all()
    grey[:, GREY] = default[:, GREY]
    np.testing.assert_array_equal(grey, default)


def test_colour_parameters_have_the_set_frequencies_and_ranges() -> None:
    augmentation = ViewSettings(global_size=32, local_size=16, num_locals=1)
    draws = [
        colour_parameters(sample_generator(0, 0, place).random((3, NUM_UNIFORMS)), augmentation)
        for place in range(2000)
    ]
    drawn = np.stack(draws)  # [images, crops, parameters]
    np.testing.assert_array_equal(np.sort(drawn[..., ORDER]), np.broadcast_to(np.arange(4), (2000, 3, 4)))
    assert len(np.unique(drawn[..., ORDER].reshape(-1, 4), axis=0)) == 24
    factors = drawn[..., FACTORS].reshape(-1, 4)
    changed = (factors != [1, 1, 1, 0]).any(axis=1)
    assert changed.mean() == pytest.approx(0.8, abs=0.03)
    np.testing.assert_allclose(factors[changed].min(axis=0), [0.6, 0.6, 0.8, -0.1], atol=0.005)
    np.testing.assert_allclose(factors[changed].max(axis=0), [1.4, 1.4, 1.2, 0.1], atol=0.005)
    assert drawn[..., GREY].mean() == pytest.approx(0.2, abs=0.03)
    np.testing.assert_allclose((drawn[..., SIGMA] > 0).mean(axis=0), [0.0, 0.9, 0.5], atol=0.04)
    assert 0.1 <= drawn[..., SIGMA][drawn[..., SIGMA] > 0].min() < 0.15 < 1.95 < drawn[..., SIGMA].max() <= 2.0
    np.testing.assert_allclose(drawn[..., SOLARIZE].mean(axis=0), [0.0, 0.2, 0.0], atol=0.03)


def test_collate_puts_the_first_crops_of_all_images_first() -> None:
    samples = [
        make_crops(image_tensor(photo(64, 64, seed=seed)), augmentation=SMALL, generator=sample_generator(0, 0, seed))
        for seed in range(2)
    ]
    masks = torch.zeros(4, 16, dtype=torch.bool)
    raw = collate(samples, masks=masks, bad=(7,))
    first, second = samples
    expected = [first.globals[0], second.globals[0], first.globals[1], second.globals[1]]
    assert torch.equal(raw.globals, torch.stack(expected))
    assert torch.equal(raw.locals[::2], first.locals)
    assert torch.equal(raw.locals[1::2], second.locals)
    np.testing.assert_array_equal(raw.global_parameters[::2], first.parameters[:2])
    np.testing.assert_array_equal(raw.local_parameters[1::2], second.parameters[2:])
    assert raw.masks is masks
    assert raw.bad == (7,)


def test_no_local_crops_give_an_empty_batch_of_them() -> None:
    augmentation = ViewSettings(global_size=32, local_size=16, num_locals=0)
    crops = make_crops(image_tensor(photo(64, 64)), augmentation=augmentation, generator=sample_generator(0, 0, 0))
    raw = collate([crops, crops], masks=torch.zeros(4, 16, dtype=torch.bool), bad=())
    assert raw.locals.shape == (0, 3, 16, 16)
    assert raw.local_parameters.shape[0] == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"global_scale": (0.5, 0.2)},
            "views.global_scale cannot be (0.5, 0.2): it should be the smallest",
        ),
        ({"local_scale": (0.5, 1.2)}, "views.local_scale.1 cannot be 1.2: it should be less than or equal to 1."),
        ({"flip": 1.5}, "views.flip cannot be 1.5: it should be less than or equal to 1."),
        ({"blur_probabilities": (0.0, -0.1, 0.5)}, "views.blur_probabilities.1 cannot be -0.1"),
        ({"jitter": (0.4, 0.4, 0.2, 0.6)}, "views.jitter.3 cannot be 0.6: it should be less than or equal to 0.5."),
        ({"blur_kernel": 8}, "views.blur_kernel cannot be 8: it should be odd."),
        ({"num_locals": -1}, "views.num_locals cannot be -1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        resolve({"views": settings})


def test_a_local_size_without_local_crops_does_not_matter() -> None:
    assert ViewSettings(global_size=32, local_size=8, num_locals=0).crop_sizes == (32, 32)


@pytest.mark.parametrize(
    ("height", "width", "divisor"),
    [(3000, 4000, 2), (4000, 3000, 2), (2448, 3264, 1), (6000, 8000, 4), (30000, 40000, 4), (500, 24000, 1), (1, 1, 1)],
)
def test_photographs_are_reduced_as_far_as_their_smallest_crops_allow(height: int, width: int, divisor: int) -> None:
    assert reduction(height, width, augmentation=ViewSettings()) == divisor


def test_the_crop_that_needs_most_pixels_decides() -> None:
    sides = {"global_size": 224, "global_scale": (0.05, 1.0)}
    assert reduction(3000, 4000, augmentation=ViewSettings(**sides)) == 1
    assert reduction(3000, 4000, augmentation=ViewSettings(num_locals=0, global_size=96)) == 4


@pytest.mark.parametrize("divisor", [2, 4])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_crop_of_a_reduced_photograph_is_within_a_step_of_that_of_the_whole(divisor: int, subsampling: int) -> None:
    detail = np.random.default_rng(0).normal(0, 12, (480, 640, 1))
    pixels = (np.asarray(photo(480, 640)) + detail).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=92, subsampling=subsampling)
    whole, reduced = decode(stream.getvalue()), decode_reduced(stream.getvalue(), lambda *_: divisor)
    side = int(480 / (SPARE * divisor))  # as few pixels as a reduced image may have for one of a crop
    one, other = (resize(image_tensor(image), side, side).int() for image in (whole, reduced))
    steps = (one - other).abs()
    assert (steps <= 1).float().mean() >= 0.98
    assert 0 < steps.max() <= 10
