from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa.errors import UserError
from poa.models.source import any_size
from poa.tasks.maps import Level, Maps, Pyramid, level_blocks

TINY = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 6, "num_heads": 2},
    "vit_small_patch16_dinov3": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 6, "num_heads": 1},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 2,
        "embed_dim": 16,
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 4, 8),
    },
    "resnet10t": {},
    "resnetv2_50": {"layers": (1, 1, 1, 1), "channels": (32, 64, 128, 256), "stem_chs": 8, "preact": False},
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128)},
    "mobilenetv3_small_050": {},
}


def network(name: str, **over: Any) -> nn.Module:
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0, **TINY[name], **over)
    return timm.create_model(name, num_classes=0, **TINY[name], **over, **any_size(plain)).eval()


def test_blocks() -> None:
    assert level_blocks(12) == (3, 5, 7, 11)  # as published
    assert level_blocks(24) == (7, 11, 15, 23)
    assert level_blocks(6) == (1, 2, 3, 5)
    assert level_blocks(4) == (1, 1, 2, 3)
    assert level_blocks(1) == (0, 0, 0, 0)
    for depth in range(1, 40):
        assert list(level_blocks(depth)) == sorted(level_blocks(depth))
        assert level_blocks(depth)[-1] == depth - 1


@pytest.mark.parametrize("name", TINY)
def test_levels_say_what_comes_out(name: str) -> None:
    maps = Maps(network(name), image_size=(64, 96))
    images = torch.randn(2, 3, 2 * maps.multiple, 3 * maps.multiple)
    with torch.no_grad():
        found = maps(images)
    assert len(found) == len(maps.levels) == 4
    for each, level in zip(found, maps.levels, strict=True):
        assert each.shape == (2, level.channels, images.shape[2] / level.stride, images.shape[3] / level.stride)
    strides = [level.stride for level in maps.levels]
    assert strides == ([8.0] * 4 if name.startswith("vit") else [4.0, 8.0, 16.0, 32.0])
    assert maps.multiple == strides[-1]


def blocks_by_hand(vit: Any, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
    rows, columns = (side // 8 for side in images.shape[2:])
    tokens, found = vit._pos_embed(vit.patch_embed(images)), {}
    for number, block in enumerate(vit.blocks):
        tokens = block(tokens)
        found[number] = vit.norm(tokens)[:, 1:].mT.unflatten(2, (rows, columns))
    return [found[number] for number in blocks]


def test_maps_of_a_vit_are_normalised_patch_tokens() -> None:
    model = network("vit_tiny_patch16_224")
    nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        found, expected = Maps(model, image_size=(32, 48))(images), blocks_by_hand(model, images, (1, 2, 3, 5))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    # positions depend on the place: the same patch everywhere still gives different tokens
    flat = found[0].new_zeros(1, 3, 32, 48)
    with torch.no_grad():
        assert Maps(model, image_size=(32, 48))(flat)[0].std(dim=(2, 3)).min() > 0


def test_short_transformers_give_a_map_twice() -> None:
    maps = Maps(network("vit_tiny_patch16_224"), image_size=(32, 32))
    assert (maps.indices, maps.different) == ((1, 2, 3, 5), (0, 1, 2, 3))
    short = timm.create_model("vit_tiny_patch16_224", **{**TINY["vit_tiny_patch16_224"], "depth": 2}).eval()
    maps = Maps(short, image_size=(32, 32))
    assert (maps.indices, maps.different, len(maps.levels)) == ((0, 1), (0, 2), 4)
    with torch.no_grad():
        found = maps(torch.randn(1, 3, 32, 32))
    assert found[0] is found[1]
    assert found[2] is found[3]
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_maps_of_stages_are_their_outputs(name: str) -> None:
    model: Any = network(name)
    images, outputs = torch.randn(1, 3, 64, 64), []
    stages = [model.layer1, model.layer2, model.layer3, model.layer4] if name == "resnet10t" else model.stages
    hooks = [stage.register_forward_hook(lambda _, __, out: outputs.append(out)) for stage in stages]
    with torch.no_grad():
        maps = Maps(model, image_size=(64, 64))
        outputs.clear()
        found = maps(images)
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(one, other) for one, other in zip(found, outputs, strict=True))


def test_mode_stays() -> None:
    model = network("resnet10t").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Maps(model, image_size=(64, 64))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # BatchNorm's too


def test_any_size() -> None:
    known = {"vit_tiny_patch16_224": {"dynamic_img_size": True}, "resnet10t": {}}
    known["swin_tiny_patch4_window7_224"] = {"strict_img_size": False}
    for name, expected in known.items():
        assert any_size(timm.create_model(name, **TINY[name])) == expected


def test_networks_that_cannot() -> None:
    with pytest.raises(UserError, match=r"Linear provides no intermediate layers"):
        Maps(nn.Linear(2, 2), image_size=(32, 32))
    strict = timm.create_model("vit_tiny_patch16_224", **TINY["vit_tiny_patch16_224"])
    assert Maps(strict, image_size=(32, 32)).multiple == 8
    with pytest.raises(UserError, match=r"cannot process images of 32x40 pixels .*Try square images"):
        Maps(strict, image_size=(32, 35))


@pytest.mark.parametrize(
    ("stride", "expected"),
    [(16.0, (4, 8, 16, 32)), (8.0, (4, 8, 16, 32)), (4.0, (4, 8, 16, 32)), (14.0, (3.5, 7, 14, 28))],
)
def test_pyramid_of_one_resolution(stride: float, expected: tuple[float, ...]) -> None:
    for count in (1, 4):
        pyramid = Pyramid([Level(6, stride)] * count)
        assert tuple(level.stride for level in pyramid.levels) == expected
        maps = [torch.randn(2, 6, 16, 24) for _ in range(count)]
        for level, found in zip(pyramid.levels, pyramid(maps), strict=True):
            assert found.shape == (2, 6, 16 * stride / level.stride, 24 * stride / level.stride)


def test_steps_of_the_published_pyramid() -> None:
    pyramid = Pyramid([Level(4, 16.0)] * 4)
    kinds = [[type(layer).__name__ for layer in getattr(step, "children", list)()] for step in pyramid.steps]
    assert kinds == [["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d"], ["ConvTranspose2d"], [], []]
    maps = [torch.randn(1, 4, 4, 6) for _ in range(4)]
    _, second, third, fourth = pyramid(maps)
    torch.testing.assert_close(second[:, :, 1::2, ::2], _odd_rows(pyramid.steps[1], maps[1]))
    assert torch.equal(third, maps[2])
    assert torch.equal(fourth, F.max_pool2d(maps[3], 2))


def _odd_rows(step: Any, maps: Tensor) -> Tensor:
    """A deconvolution of kernel and stride 2 is a matrix for each of the four places of a cell."""
    matrix = step[0].weight[:, :, 1, 0]
    return torch.einsum("bchw,cd->bdhw", maps, matrix) + step[0].bias[:, None, None]


def test_stages_pass_unchanged() -> None:
    pyramid = Pyramid([Level(4 * 2**number, 4.0 * 2**number) for number in range(4)])
    maps = [torch.randn(1, 4 * 2**number, 16 // 2**number, 16 // 2**number) for number in range(4)]
    assert all(torch.equal(one, other) for one, other in zip(pyramid(maps), maps, strict=True))
    assert not list(pyramid.parameters())
    with pytest.raises(UserError, match="one or 4 maps, got 3"):
        Pyramid(pyramid.levels[:3])


def test_something_is_left_of_small_maps() -> None:
    found = Pyramid([Level(2, 4.0)])([torch.arange(18.0).view(1, 2, 3, 3)])
    assert [tuple(each.shape[2:]) for each in found] == [(3, 3), (2, 2), (1, 1), (1, 1)]
    assert found[3].flatten().tolist() == [8.0, 17.0]
