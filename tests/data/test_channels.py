"""The values that networks see, computed by hand."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from poa.config.channels import USUAL, Values, values_in
from poa.config.pretraining import ViewSettings
from poa.data.augment import adjust_contrast, augment, normalise
from poa.data.channels import in_range, of_image, pixels_of, require_rgb, with_channels
from poa.data.given import given_images
from poa.data.images import BadImage, Preprocessing, decode, image_tensor
from poa.data.resize import centre_crop, resize
from poa.data.views import FACTORS, GREY, collate, make_crops, sample_generator
from poa.errors import UserError


def encoded(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def grey(*values: float, dtype: str = "uint16") -> bytes:
    return encoded(np.array([values], dtype), "TIFF" if dtype == "float32" else "PNG")


def test_16_bits_are_kept() -> None:
    assert pixels_of(grey(0, 257, 1000, 65535), Values(1)).flatten().tolist() == pytest.approx(
        [0, 1 / 255, 1000 / 65535, 1], abs=1e-9
    )
    assert pixels_of(grey(0, 1000), Values(3)).shape == (1, 3, 1, 2)
    assert pixels_of(grey(0, 60_000)).dtype == torch.uint8  # 8-bit RGB, unless channels are asked for


def test_a_range_becomes_0_to_1_and_the_rest_is_cut_off() -> None:
    assert pixels_of(grey(50, 100, 150, 300), Values(1, (100, 200))).flatten().tolist() == [0, 0, 0.5, 1]
    floats = grey(-1000, 0, float("nan"), 3000, dtype="float32")
    assert pixels_of(floats, Values(1, (-1000, 1000))).flatten().tolist() == [0, 0.5, 0, 1]
    assert in_range(np.full((1, 1, 2), 51, np.uint8), Values(2, (0, 204))).flatten().tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.float32([[[-1.0]], [[2.5]]]), "its values go from -1 to 2.5, and floats from 0 to 1 are read; say what"),
        (np.int16([[[3]], [[40]]]), "its values go from 3 to 40, and signed values need a range; .* --value-range LOW"),
        (np.float32([[[np.nan]]]), "none that is a finite number"),
        (np.array([[[True]]]), "values of type bool"),
    ],
)
def test_values_without_a_known_range_are_refused(array: np.ndarray, said: str) -> None:
    with pytest.raises(BadImage, match=said):
        in_range(array, Values(1))


def test_three_channels_of_8_bits_are_as_without_channels() -> None:
    pixels = np.arange(4 * 5 * 4, dtype=np.uint8).reshape(4, 5, 4) * 3
    for array, options in ((pixels, {}), (pixels[:, :, :3], {}), (pixels[:, :, 0], {})):
        file = encoded(array, **options)
        assert torch.equal(pixels_of(file, Values(3)), pixels_of(file))
        assert torch.equal(pixels_of(file), image_tensor(decode(file)))
        assert pixels_of(file, Values(3)).stride() == pixels_of(file).stride()
    assert pixels_of(encoded(pixels), Values(4)).flatten().tolist() == np.moveaxis(pixels, 2, 0).flatten().tolist()


def test_other_numbers_of_channels_are_refused_and_equal_ones_are_grey() -> None:
    assert with_channels(np.full((2, 2, 3), 7), 1).tolist() == np.full((2, 2, 1), 7).tolist()
    for stored, wanted in ((3, 1), (4, 3), (1, 8)):
        with pytest.raises(BadImage, match=f"it has {stored} channels?, and --channels is {wanted}"):
            with_channels(np.arange(4 * stored).reshape(2, 2, stored), wanted)
    for mode in ("1", "L", "P"):
        image = Image.new("L", (3, 2), 0).convert(mode)
        assert of_image(image, Values(1)).flatten().tolist() == [0] * 6


def test_images_are_turned_upright() -> None:
    image = Image.fromarray(np.array([[1, 2, 3]], np.uint8))
    image.getexif()[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=image.getexif())
    assert pixels_of(file.getvalue(), Values(1)).shape == (1, 1, 3, 1)


def test_the_network_sees_values_without_mean_and_deviation() -> None:
    eight = torch.tensor([0.1 * channel for channel in range(8)]).view(1, 8, 1, 1).expand(1, 8, 4, 4)
    crop = centre_crop(eight, size=2, resize_to=2)
    mean, std = tuple(0.1 * channel - 0.5 for channel in range(8)), (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    found = normalise(crop, mean=mean, std=std)
    assert found[0, :, 0, 0].tolist() == pytest.approx([0.5 / deviation for deviation in std])
    assert eight.max() == pytest.approx(0.7)  # normalising changes no image in place
    assert normalise(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8), mean=(0.1,), std=(0.5,)).item() == pytest.approx(
        0.2
    )


def test_resizing_keeps_floats_in_their_range() -> None:
    edge = torch.cat([torch.zeros(1, 2, 8, 8), torch.ones(1, 2, 8, 8)], dim=3)
    found = resize(edge, 16, 32)
    assert (found.min(), found.max()) == (0, 1)
    as_bytes = resize((255 * edge).to(torch.uint8), 16, 32)
    assert (255 * found - as_bytes).abs().max() <= 1


def test_jitter_does_what_it_can_to_other_channels() -> None:
    two = torch.tensor([[0.2, 0.4], [0.6, 1.0]]).view(1, 2, 1, 2)  # means of the channels: 0.3 and 0.8
    halved = adjust_contrast(two, torch.tensor([0.5]))
    assert halved.flatten().tolist() == pytest.approx([0.25, 0.35, 0.7, 0.9])
    settings = ViewSettings(global_size=8, local_size=4, num_locals=1, blur_kernel=3, jitter_probability=1.0)
    settings = settings.changed(grey_probability=1.0, mean=(0.0,) * 2, std=(1.0,) * 2, solarize_probability=1.0)
    pixels = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    crops = make_crops(pixels, augmentation=settings, generator=sample_generator(0, 0, 0))
    neutral = np.array([1, 1, 1, 0])
    assert ((crops.parameters[:, FACTORS] != neutral).any(axis=0)).tolist() == [True, True, False, False]
    assert not crops.parameters[:, GREY].any()
    raw = collate([crops], masks=torch.zeros(2, 1, dtype=torch.bool), bad=())
    before = raw.globals.clone()
    views = augment(raw, augmentation=settings, device="cpu")
    assert torch.equal(raw.globals, before)
    assert views.globals.shape == (2, 2, 8, 8)
    assert 0 <= views.globals.min() < views.globals.max() <= 1


def test_bytes_and_floats_of_one_batch_are_laid_together() -> None:
    settings = ViewSettings(global_size=4, local_size=4, num_locals=1, blur_kernel=3)
    bytes_ = torch.full((1, 3, 8, 8), 51, dtype=torch.uint8)
    samples = [
        make_crops(pixels, augmentation=settings, generator=sample_generator(0, 0, 0))
        for pixels in (bytes_, torch.full((1, 3, 8, 8), 0.5))
    ]
    raw = collate(samples, masks=torch.zeros(4, 1, dtype=torch.bool), bad=())
    assert raw.globals[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.5, 0.2, 0.5])


def test_values_are_read_back_as_they_are_stated() -> None:
    for values in (USUAL, Values(8), Values(1, (-1000.0, 1000.0))):
        assert values_in(values.stated()) == values
    assert USUAL.stated() == {}
    assert (USUAL.number, Values(8).number) == (3, 8)


def test_parts_that_know_rgb_alone_refuse_other_networks() -> None:
    require_rgb(USUAL, what="A part", name="96x4")
    with pytest.raises(UserError, match="A part takes 8-bit RGB images, but 96x4 sees 8 channels with all their bits"):
        require_rgb(Values(8), what="A part", name="96x4")


def test_arrays_of_a_program_are_values_as_files_hold_them() -> None:
    seen = Preprocessing(2, 2, (0.0,), (1.0,), Values(1, (0, 100)))
    rows = given_images(np.full((3, 2, 2), 50, np.int16)[:, :, :, None], seen)
    assert rows.shape == (3, 1, 2, 2)
    assert rows.unique().tolist() == [0.5]
    assert given_images([Image.new("L", (4, 4), 100)], seen).unique().tolist() == [1.0]
    with pytest.raises(UserError, match=r"it has 2 channels, and --channels is 1.*Give height x width x channels"):
        given_images(np.zeros((2, 2, 2)), seen)
