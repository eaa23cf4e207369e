import pytest
import timm
import torch
from torch import nn

import tiny
from poa.errors import UserError
from poa.features.taps import PATCHES, Taps, Variant, probed_blocks, timm_model, variants_of, whole_rows
from poa.models.registry import family_of

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def small_vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 6, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", **settings | options).eval()


@pytest.mark.parametrize(
    ("num_blocks", "expected"),
    [(1, (0,)), (2, (0, 1)), (3, (1, 2)), (6, (2, 3, 4, 5)), (12, (3, 6, 9, 11)), (24, (6, 12, 18, 23))],
)
def test_blocks(num_blocks: int, expected: tuple[int, ...]) -> None:
    assert probed_blocks(num_blocks) == expected


def test_tokens_of_a_transformer() -> None:
    model = small_vit()
    taps = Taps(model.train(), image_size=32)
    assert not model.training
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *call: seen.append(call[2])) for block in model.blocks]
    with torch.no_grad():
        cls, patches = taps(IMAGES)
        for hook in hooks:
            hook.remove()
        tokens = [model.norm(seen[block]) for block in (2, 3, 4, 5)]
        returned = model(IMAGES)
    assert list(taps.columns) == ["block 2", "block 3", "block 4", "block 5", PATCHES]
    assert list(taps.columns.values()) == [(start, start + 24) for start in range(0, 120, 24)]
    assert torch.equal(cls[:, :96], torch.cat([each[:, 0] for each in tokens], dim=1))
    assert torch.equal(cls[:, 72:96], returned)
    assert torch.equal(cls[:, 96:], tokens[-1][:, 1:].mean(dim=1))
    assert torch.equal(patches, tokens[-1][:, 1:])


def test_maps_of_a_convolutional_network() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=0).eval()
    taps = Taps(model, image_size=32)
    with torch.no_grad():
        cls, patches = taps(IMAGES)
        first = model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(IMAGES)))))
        returned = model(IMAGES)
    assert dict(taps.columns) == {
        "stage 0": (0, 64),
        "stage 1": (64, 192),
        "stage 2": (192, 448),
        "stage 3": (448, 960),
    }
    assert torch.allclose(cls[:, :64], first.mean(dim=(2, 3)))
    assert torch.equal(cls[:, 448:], returned)
    assert patches.shape == (3, 1, 512)


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_last_layer_is_what_the_backbone_returns(family: str) -> None:
    config = tiny.config(family)
    built = family_of(config)
    for size in (built.space.sizes[0], built.space.intact):
        torch.manual_seed(0)
        backbone = built.build(size).eval()
        side = config.views.global_size
        taps = Taps(backbone, image_size=side)
        layers = [name for name in taps.columns if name != PATCHES]
        images = torch.randn(2, 3, side, side)
        with torch.no_grad():
            row, returned = taps(images).cls, backbone(images)
        start, end = taps.columns[layers[-1]]
        assert torch.equal(row[:, start:end], returned.cls)
        assert row.shape[1] == max(end for _, end in taps.columns.values())
        if PATCHES in taps.columns:
            start, end = taps.columns[PATCHES]
            assert family in ("vit", "dinov3", "convnext")
            if family != "convnext":  # its own patches are normed
                assert torch.equal(row[:, start:end], returned.patches.mean(dim=1))


@pytest.mark.parametrize("pooling", ["avg", "map"])
def test_without_class_token(pooling: str) -> None:
    model = small_vit(class_token=False, global_pool=pooling)
    taps = Taps(model, image_size=32)
    with torch.no_grad():
        row, returned = taps(IMAGES).cls, model(IMAGES)
    assert torch.equal(row[:, 72:96], returned)


def test_variants() -> None:
    columns = {"block 1": (0, 2), "block 2": (2, 4), PATCHES: (4, 6)}
    assert variants_of(columns) == (
        Variant(1, False, ((2, 4),)),
        Variant(1, True, ((2, 4), (4, 6))),
        Variant(2, False, ((0, 2), (2, 4))),
        Variant(2, True, ((0, 2), (2, 4), (4, 6))),
    )
    assert [variant.name for variant in variants_of(columns)] == [
        "1 layer",
        "1 layer + patches",
        "2 layers",
        "2 layers + patches",
    ]


def test_equal_variants_are_dropped() -> None:
    assert variants_of({"stage 0": (0, 2), "stage 1": (2, 4)}) == (
        Variant(1, False, ((2, 4),)),
        Variant(2, False, ((0, 2), (2, 4))),
    )
    assert Taps(small_vit(depth=1), image_size=32).variants == (
        Variant(1, False, ((0, 24),)),
        Variant(1, True, ((0, 24), (24, 48))),
    )
    assert whole_rows(7) == (Variant(1, False, ((0, 7),)),)


def test_the_model_is_found_inside() -> None:
    model = small_vit()
    assert timm_model(model) is model
    assert timm_model(nn.Sequential(model)) is model


def test_networks_without_layers() -> None:
    with pytest.raises(UserError, match=r"Linear provides no intermediate layers.*k-NN"):
        Taps(nn.Linear(2, 2), image_size=32)
    with pytest.raises(UserError, match=r"gives no layers of VisionTransformer.*k-NN"):
        Taps(small_vit(dynamic_img_size=False), image_size=40)
