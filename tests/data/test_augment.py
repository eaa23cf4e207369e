from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from poa.config.pretraining import ViewSettings
from poa.data import augment as module
from poa.data.augment import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    augment,
    gaussian_blur,
    normalise,
    solarize,
    to_grey,
)
from poa.data.views import FACTORS, GREY, NUM_PARAMETERS, ORDER, SIGMA, SOLARIZE, RawViews

AUGMENTATION = ViewSettings(global_size=32, local_size=16, num_locals=3)


def pictures(num: int, size: int = 20) -> Tensor:
    """Random images, among them grey ones, flat ones and ones with few values, where hue has edge cases."""
    images = torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0))
    images[0] = images[0, :1]
    images[1] = torch.tensor([0.2, 0.7, 0.7])[:, None, None]
    images[2] = (images[2] * 2).round() / 2
    images[3] = 0.0
    return images


def raw_views(num_images: int, *, seed: int = 0) -> RawViews:
    """Random bytes with random parameters, each change on and off at random, on any row."""
    generator = np.random.default_rng(seed)

    def parameters(rows: int) -> Tensor:
        drawn = np.zeros((rows, NUM_PARAMETERS), dtype=np.float32)
        drawn[:, ORDER] = generator.permuted(np.tile(np.arange(4), (rows, 1)), axis=1)
        change = generator.random((rows, 1)) < 0.8
        drawn[:, FACTORS] = np.where(
            change, generator.uniform([0.6, 0.6, 0.8, -0.1], [1.4, 1.4, 1.2, 0.1], (rows, 4)), [1, 1, 1, 0]
        )
        drawn[:, GREY] = generator.random(rows) < 0.3
        drawn[:, SIGMA] = (generator.random(rows) < 0.5) * generator.uniform(0.1, 2.0, rows)
        drawn[:, SOLARIZE] = generator.random(rows) < 0.3
        return torch.from_numpy(drawn)

    def crops(rows: int, size: int) -> Tensor:
        return torch.from_numpy(generator.integers(0, 256, (rows, 3, size, size), dtype=np.uint8))

    return RawViews(
        crops(2 * num_images, 32),
        crops(3 * num_images, 16),
        parameters(2 * num_images),
        parameters(3 * num_images),
        torch.from_numpy(generator.random((2 * num_images, 16)) < 0.3),
        (),
    )


def torchvision_chain(crop: Tensor, row: Tensor) -> Tensor:
    """What torchvision makes of one crop."""
    image = tv.to_dtype(crop, torch.float32, scale=True)
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    factors = row[FACTORS].tolist()
    if factors != [1, 1, 1, 0]:
        for operation in row[ORDER].int().tolist():
            image = adjust[operation](image, factors[operation])
    if row[GREY]:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    if row[SIGMA] > 0:
        image = tv.gaussian_blur(image, [9, 9], [row[SIGMA].item()] * 2)
    if row[SOLARIZE]:
        image = tv.solarize(image, 128 / 255)
    return tv.normalize(image, list(AUGMENTATION.mean), list(AUGMENTATION.std))


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (adjust_brightness, tv.adjust_brightness, 0.0, 2.0),
        (adjust_contrast, tv.adjust_contrast, 0.0, 2.0),
        (adjust_saturation, tv.adjust_saturation, 0.0, 2.0),
        (adjust_hue, tv.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour_change_is_that_of_torchvision(
    ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, float], Tensor], low: float, high: float
) -> None:
    images = pictures(24)
    factors = torch.linspace(low, high, 24)
    expected = torch.stack([theirs(image, factor) for image, factor in zip(images, factors.tolist(), strict=True)])
    assert torch.allclose(ours(images, factors), expected, rtol=0, atol=1e-5)


def test_grey_and_solarize_are_those_of_torchvision() -> None:
    images = pictures(8)
    assert torch.allclose(to_grey(images), tv.rgb_to_grayscale(images), atol=1e-6)
    assert torch.equal(solarize(images, threshold=0.5), tv.solarize(images, 0.5))


@pytest.mark.parametrize("kernel", [1, 3, 9])
def test_blur_is_that_of_torchvision(kernel: int) -> None:
    images = pictures(8)
    sigmas = torch.linspace(0.1, 2.0, 8)
    expected = [
        tv.gaussian_blur(image, [kernel] * 2, [sigma] * 2) for image, sigma in zip(images, sigmas.tolist(), strict=True)
    ]
    assert torch.allclose(gaussian_blur(images, sigmas, kernel=kernel), torch.stack(expected), rtol=0, atol=1e-5)


def test_chain_is_that_of_torchvision_for_each_sample() -> None:
    raw = raw_views(32)
    views = augment(raw, augmentation=AUGMENTATION, device="cpu")
    globals_ = [torchvision_chain(*pair) for pair in zip(raw.globals, raw.global_parameters, strict=True)]
    locals_ = [torchvision_chain(*pair) for pair in zip(raw.locals, raw.local_parameters, strict=True)]
    # A value that a rounding error moves over the solarise threshold jumps; none does here. The last step divides by
    # about 0.23, which multiplies rounding errors by four.
    assert torch.allclose(views.globals, torch.stack(globals_), rtol=0, atol=5e-5)
    assert torch.allclose(views.locals, torch.stack(locals_), rtol=0, atol=5e-5)
    assert torch.equal(views.masks, raw.masks)


def test_result_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_views(5)
    whole = augment(raw, augmentation=AUGMENTATION, device="cpu")
    monkeypatch.setattr(module, "CPU_CHUNK_VALUES", 2 * 3 * 32 * 32)
    parts = augment(raw, augmentation=AUGMENTATION, device="cpu")
    assert torch.allclose(parts.globals, whole.globals, rtol=0, atol=1e-5)
    assert torch.allclose(parts.locals, whole.locals, rtol=0, atol=1e-5)


def test_rows_without_a_change_are_only_normalised() -> None:
    raw = raw_views(2)
    neutral = torch.zeros(4, NUM_PARAMETERS)
    neutral[:, ORDER] = torch.arange(4.0)
    neutral[:, FACTORS] = torch.tensor([1.0, 1, 1, 0])
    views = augment(raw._replace(global_parameters=neutral), augmentation=AUGMENTATION, device="cpu")
    assert torch.equal(views.globals, normalise(raw.globals, mean=AUGMENTATION.mean, std=AUGMENTATION.std))
    assert views.globals[:, 1].max() == pytest.approx((1 - 0.456) / 0.224)


def test_dtype_is_that_asked_for_and_the_bytes_are_kept() -> None:
    raw = raw_views(2)
    before = raw.globals.clone()
    half = augment(raw, augmentation=AUGMENTATION, device="cpu", dtype=torch.bfloat16)
    full = augment(raw, augmentation=AUGMENTATION, device="cpu")
    assert torch.equal(half.globals, full.globals.bfloat16())
    assert torch.equal(raw.globals, before)


def test_crops_lie_in_memory_as_asked_for() -> None:
    raw = raw_views(2)
    usual = augment(raw, augmentation=AUGMENTATION, device="cpu")
    last = augment(raw, augmentation=AUGMENTATION, device="cpu", memory_format=torch.channels_last)
    for one, other in ((usual.globals, last.globals), (usual.locals, last.locals)):
        assert torch.equal(one, other)
        assert one.is_contiguous()
        assert other.is_contiguous(memory_format=torch.channels_last)


def test_no_local_crops_pass() -> None:
    raw = raw_views(2)
    raw = raw._replace(locals=raw.locals[:0], local_parameters=raw.local_parameters[:0])
    assert augment(raw, augmentation=AUGMENTATION, device="cpu").locals.shape == (0, 3, 16, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    raw = raw_views(32)
    here, there = (augment(raw, augmentation=AUGMENTATION, device=device) for device in ("cpu", "cuda"))
    # A rounding error may move a single value over the solarise threshold, where it jumps.
    assert ((there.globals.cpu() - here.globals).abs() > 1e-4).float().mean() < 1e-4
    assert ((there.locals.cpu() - here.locals).abs() > 1e-4).float().mean() < 1e-4
    assert torch.equal(there.masks.cpu(), raw.masks)
