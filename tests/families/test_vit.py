"""Elastic ViTs are the official ones, cut into timm's."""

import random
import re
from dataclasses import replace
from typing import Literal

import pytest
import timm
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from conformance import filler
from families.networks import VIT, noisy, sub_networks
from poa.elastic.network import SubNetworks
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.families.vit import ViT, ViTBackbone, official_positions
from poa.methods.layers import ProjectionHead

pytestmark = pytest.mark.usefixtures("same_random_numbers")
OFFICIAL = ViT(SearchSpace.grid(range(128, 257, 64), range(3, 7)), image_size=64, resize_positions="official")


# ---- the official modules' numbers -----------------------------------------------------------------------------------


def official_name(name: str) -> str:
    """What the official code calls a parameter of the backbone."""
    name = re.sub(r"(blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12]))\.", r"\1.linear.", name.removeprefix("model."))
    return re.sub(r"(norm[12]?)\.(weight|bias)$", r"\1.norm.\2", name)


def official_value(name: str, shape: torch.Size) -> Tensor:
    """Values of a parameter of that official name."""
    values = 0.2 * filler(tuple(shape), len(name))
    is_scale = len(shape) == 1 and name != "mask_token" and name.endswith(("weight", "gamma"))
    return values + float(is_scale)


def official_backbone() -> ViTBackbone:
    backbone = OFFICIAL.build(OFFICIAL.space.intact).double().eval()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            parameter.copy_(official_value(official_name(name), parameter.shape))
    return backbone


def official_head(number: int, *, num_prototypes: int) -> ProjectionHead:
    head = ProjectionHead(256, num_prototypes=num_prototypes, hidden=32, bottleneck=16).double()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            theirs = re.sub(r"^layers\.0", f"mlp{number}.0.linear", name)
            theirs = re.sub(r"^layers", f"mlp{number}", theirs)
            theirs = re.sub(r"^weight", f"last_layer{number}.weight", theirs)
            parameter.copy_(official_value(theirs, parameter.shape))
        head.weight_g.fill_(1.0)
    return head


CONFORMANCE = {
    "256x6": {
        "cls": [0.25369, -2.43601, 1.538306, 0.635029],
        "squares": 518.36862,
        "masked cls": [1.532962, -1.261419, 0.461291],
        "masked patch": [2.884896, -0.882253],
        "small": [1.070542, -1.710856, 1.474515],
        "heads": ([-0.440608, 0.196274, 0.115081], [-0.219672, 0.420329]),
    },
    "128x3": {
        "cls": [2.117144, -1.102942, -1.937041, 1.119165],
        "squares": 260.42421,
        "masked cls": [2.474554, -2.997604, 0.094664],
        "masked patch": [2.952921, -2.495433],
        "small": [2.533518, -1.471164, 0.067118],
        "heads": ([-0.111691, 0.417199, 0.197998], [0.119402, 0.538256]),
    },
}


@pytest.mark.parametrize("name", CONFORMANCE)
def test_features_are_those_of_the_official_modules(name: str) -> None:
    expected = CONFORMANCE[name]
    network = sub_networks(OFFICIAL).extract(Size.parse(name), official_backbone())
    images = 4 * filler((2, 3, 64, 64))
    mask = (torch.arange(32) % 3 == 0).view(2, 16)
    plain, masked, small = network(images), network(images, mask), network(4 * filler((2, 3, 32, 32)))
    found = {
        "cls": plain.cls[0, :4],
        "squares": plain.cls.square().sum(),
        "masked cls": masked.cls[1, :3],
        "masked patch": masked.patches[1, 5, :2],
        "small": small.cls[0, :3],
    }
    for key, values in found.items():
        assert values.tolist() == pytest.approx(expected[key], abs=1e-5), key


@pytest.mark.parametrize("name", CONFORMANCE)
def test_logits_are_those_of_the_official_heads(name: str) -> None:
    size = Size.parse(name)
    cls = sub_networks(OFFICIAL).extract(size, official_backbone())(4 * filler((2, 3, 64, 64))).cls
    for number, num_prototypes in enumerate((8, 16)):
        heads = SubNetworks(
            lambda each, k=num_prototypes: ProjectionHead(each.width, num_prototypes=k, hidden=32, bottleneck=16),
            OFFICIAL.space.intact,
            source=lambda name, _: name,
            groups=lambda _: (),
        )
        head = heads.extract(size, official_head(number, num_prototypes=num_prototypes))
        assert isinstance(head, ProjectionHead)
        values = CONFORMANCE[name]["heads"][number]
        logits = head(cls) @ head.prototypes().T
        assert logits[number, : len(values)].tolist() == pytest.approx(values, abs=1e-5)


# ---- sizes -----------------------------------------------------------------------------------------------------------
SETTINGS = {
    "plain": VIT,
    "patch 4": replace(VIT, patch_size=4),
    "patch 16": replace(VIT, patch_size=16, image_size=48),
    "registers": replace(VIT, register_tokens=4),
    "SwiGLU": replace(VIT, swiglu=True, register_tokens=1),
    "no LayerScale": replace(VIT, layer_scale=0.0),
    "small heads, wide MLPs": replace(VIT, head_dim=16, mlp_ratio=5.3),
    "own attention": replace(VIT, fused_attention=False),
    "mean of patches": replace(VIT, global_pool="avg", register_tokens=2),
    "norm after the mean": replace(VIT, global_pool="avg", fc_norm=True),
    "convolutional stem": replace(VIT, stem="conv"),
    "convolutional stem, a cell a patch": replace(VIT, stem="conv", patch_size=4, global_pool="avg"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_timm_model_equals_the_elastic_sub_network_bit_for_bit(name: str) -> None:
    family = SETTINGS[name]
    intact, nets = noisy(family), sub_networks(family)
    parameters = dict(intact.named_parameters())
    sizes = [family.space.intact, *random.Random(name).sample(family.space.sizes[:-1], 4)]
    for size in sizes:
        extracted = nets.extract(size, intact)
        architecture, arguments = family.timm_config(size)
        model = timm.create_model(architecture, **arguments).eval()
        model.load_state_dict(extracted.model.state_dict())
        if not family.fused_attention:
            for block in model.blocks:
                block.attn.fused_attn = False
        elastic = nets.bind(size, parameters, training=False)
        for image_size in (family.image_size, family.image_size - family.patch_size, 2 * family.image_size):
            images = filler((2, 3, image_size, image_size), image_size).float()
            features, tokens = elastic(images), model.forward_features(images)
            assert torch.equal(model(images), features.cls)
            assert torch.equal(tokens[:, model.num_prefix_tokens :], features.patches)
            assert features.patches.shape == (2, (image_size // family.patch_size) ** 2, size.width)


@pytest.mark.usefixtures("uninitialised")
def test_every_published_width_and_depth_can_be_cut() -> None:
    """Names, shapes and scales of every width and of every depth of the published ViT, on the meta device."""
    family = ViT(SearchSpace.grid(range(384, 1025, 64), range(12, 25)))
    nets = sub_networks(family)
    assert len(family.space.sizes) == 143
    for size in (size for size in family.space.sizes if size.width in (384, 1024) or size.depths in ((12,), (23,))):
        width, (depth,), alpha = size.width, size.depths, 1024 / size.width
        cuts = nets.plan(size).cuts
        assert len(cuts) == 7 + 14 * depth
        assert cuts["mask_token"].shape == (width,)
        assert cuts["model.pos_embed"].shape == (1, 197, width)
        assert cuts["model.patch_embed.proj.weight"].shape == (width, 3, 16, 16)
        last = f"model.blocks.{depth - 1}."
        assert cuts[f"{last}attn.qkv.weight"].shape == (3 * width, width)
        assert cuts[f"{last}attn.qkv.weight"].groups == (3, 1)
        assert cuts[f"{last}attn.qkv.bias"].groups == (3,)
        assert cuts[f"{last}mlp.fc1.weight"].shape == (4 * width, width)
        assert cuts[f"{last}mlp.fc2.weight"].shape == (width, 4 * width)
        assert cuts[f"{last}mlp.fc2.weight"].source == "model.blocks.23.mlp.fc2.weight"
        scaled = {name for name, cut in cuts.items() if cut.scale != 1.0}
        layers = re.compile(r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])\.weight")
        assert scaled == ({name for name in cuts if layers.search(name)} if alpha > 1 else set())
        assert {cut.scale for cut in cuts.values()} <= {1.0, alpha}


def test_published_parameter_counts() -> None:
    """In millions, without the mask token."""
    family = ViT(SearchSpace.grid([384, 768, 1024], [12, 24]))
    with torch.device("meta"):
        counts = {
            name: sum(parameter.numel() for parameter in family.build(Size.parse(name)).model.parameters())
            for name in ("384x12", "768x12", "1024x24")
        }
    assert {name: round(count / 1e6, 2) for name, count in counts.items()} == {
        "384x12": 21.67,
        "768x12": 85.82,
        "1024x24": 303.35,
    }


def test_qkv_keeps_whole_heads() -> None:
    """Rows are ordered by q, k, v, then by head: the first heads of each are kept."""
    weight = torch.arange(3 * 96.0)[:, None].expand(3 * 96, 96)
    cut = sub_networks(VIT).plan(Size(32, (2,))).cuts["model.blocks.0.attn.qkv.weight"]
    rows = (cut(weight)[:, 0] / cut.scale).round().tolist()
    assert rows == [*range(32), *range(96, 128), *range(192, 224)]


PREFIXES = [
    VIT,
    replace(VIT, register_tokens=3),
    replace(VIT, resize_positions="official"),
    replace(VIT, global_pool="avg"),
    replace(VIT, global_pool="avg", fc_norm=True, register_tokens=1, resize_positions="official"),
    replace(VIT, stem="conv", resize_positions="official"),
]


# ---- masks and positions ---------------------------------------------------------------------------------------------


def tokens_into_blocks(backbone: ViTBackbone, images: Tensor, mask: Tensor | None) -> Tensor:
    seen: list[Tensor] = []
    with backbone.model.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        backbone(images, mask)
    return seen[0]


@pytest.mark.parametrize("family", PREFIXES)
@pytest.mark.parametrize("image_size", [32, 16])
def test_masked_patches_keep_their_positions(family: ViT, image_size: int) -> None:
    backbone = noisy(family)
    images = torch.randn(3, 3, image_size, image_size)
    patches = (image_size // 8) ** 2
    mask = torch.rand(3, patches) < 0.5
    mask[0] = False
    plain, masked = (tokens_into_blocks(backbone, images, each) for each in (None, mask))
    prefix = backbone.model.num_prefix_tokens
    embedded = backbone.model.patch_embed(images).flatten(1, 2)
    positions = plain[:, prefix:] - embedded
    expected = torch.where(mask[..., None], backbone.mask_token + positions, plain[:, prefix:])
    torch.testing.assert_close(masked[:, prefix:], expected)
    assert torch.equal(masked[:, :prefix], plain[:, :prefix])
    assert torch.equal(masked[0], plain[0])
    assert positions[0].std(0).min() > 0.01  # there are positions to lose


@pytest.mark.parametrize("family", PREFIXES)
def test_patches_that_are_left_out_take_no_part(family: ViT) -> None:
    """As if no token could attend to them."""
    backbone, images = noisy(family), torch.randn(3, 3, 16, 16)
    kept = torch.tensor([[0, 2], [1, 2], [0, 3]])
    found = backbone.visible(images, kept)
    prefix = backbone.model.num_prefix_tokens
    seen = torch.zeros(3, prefix + 4, dtype=torch.bool).scatter(1, kept + prefix, True)
    seen[:, :prefix] = True
    tokens = tokens_into_blocks(backbone, images, None)
    for block in backbone.model.blocks:
        tokens = block(tokens, attn_mask=seen[:, None, None])
    tokens = backbone.model.norm(tokens)
    mean = torch.stack([each[prefix:][places].mean(0) for each, places in zip(tokens, kept, strict=True)])
    pooled = backbone.model.fc_norm(mean) if family.global_pool == "avg" else tokens[:, 0]
    torch.testing.assert_close(found.cls, pooled)
    scale = tokens.abs().max().clamp(min=1.0)  # of patches without a norm, and so of what rounding does to them
    torch.testing.assert_close(found.patches / scale, tokens[:, prefix:] * seen[:, prefix:, None] / scale)
    found.cls.sum().backward()
    assert backbone.mask_token.grad is not None
    everything = backbone.visible(images, torch.arange(4).expand(3, -1))
    assert torch.equal(everything.cls, backbone(images).cls)
    assert torch.equal(everything.patches, backbone(images).patches)


@pytest.mark.parametrize("fc_norm", [False, True])
def test_a_mean_of_patches_is_that_of_their_features_without_registers(fc_norm: bool) -> None:
    backbone = noisy(replace(VIT, global_pool="avg", register_tokens=2, fc_norm=fc_norm))
    images, name = torch.randn(3, 3, 32, 32), "fc_norm" if fc_norm else "norm"
    weight, bias = (backbone.get_parameter(f"model.{name}.{each}") for each in ("weight", "bias"))
    patches = backbone.model.blocks(tokens_into_blocks(backbone, images, None))[:, 2:]
    normed = layer_norm(patches.mean(1) if fc_norm else patches, (96,), weight, bias, 1e-6)
    torch.testing.assert_close(backbone(images).cls, normed if fc_norm else normed.mean(1))


def test_a_norm_after_a_class_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"Add --model\.global-pool avg"):
        replace(VIT, fc_norm=True)


def test_an_architecture_without_a_class_token_cannot_have_one() -> None:
    family = replace(VIT, architecture="vit_base_patch16_gap_224")
    with pytest.raises(UserError, match=r"cannot give vit_base_patch16_gap_224 a class token\. Leave it out"):
        family.build(VIT.space.intact)


def test_an_empty_mask_is_no_mask_and_still_gives_the_mask_token_a_gradient() -> None:
    backbone, images = noisy(VIT), torch.randn(2, 3, 32, 32)
    features = backbone(images, torch.zeros(2, 16, dtype=torch.bool))
    assert torch.equal(features.cls, backbone(images).cls)
    features.cls.sum().backward()
    assert backbone.mask_token.grad is not None
    assert backbone.mask_token.grad.count_nonzero() == 0


@pytest.mark.parametrize("register_tokens", [0, 2])
def test_both_ways_to_resize_positions_agree_at_the_size_of_the_table(register_tokens: int) -> None:
    family = replace(VIT, register_tokens=register_tokens)
    timms = noisy(family)
    official = replace(family, resize_positions="official").build(family.space.intact)
    official.load_state_dict(timms.state_dict())
    for image_size, is_equal in ((32, True), (48, False)):
        images = torch.randn(2, 3, image_size, image_size)
        assert torch.equal(timms(images).cls, official(images).cls) == is_equal


def test_official_positions_sample_a_little_apart_and_keep_prefix_and_shape() -> None:
    """Position 0 of a table that counts its rows lies half an old step in, by the scale (7 + 0.1) / 14."""
    rows = torch.arange(14.0)[:, None].expand(14, 14).reshape(1, 196, 1)
    table = torch.cat([torch.full((1, 1, 1), -5.0), rows], dim=1)
    resized = official_positions(table, old=(14, 14), new=(7, 7), prefix=1)
    assert resized.shape == (1, 50, 1)
    assert resized[0, 0] == -5.0
    inner = resized[0, 1:, 0].view(7, 7)[1:-1]
    expected = (torch.arange(1.0, 6.0) + 0.5) * 14 / 7.1 - 0.5
    torch.testing.assert_close(inner, expected[:, None].expand(5, 7), atol=0.05, rtol=0.0)
    assert official_positions(table, old=(14, 14), new=(14, 14), prefix=1) is table


# ---- settings --------------------------------------------------------------------------------------------------------


def test_layers_count_from_the_input() -> None:
    names = [f"backbone.{name}" for name, _ in VIT.build(VIT.space.intact).named_parameters()]
    layers = {name: VIT.layer(name) for name in names}
    assert {name for name, layer in layers.items() if layer == 0} == {
        "backbone.mask_token",
        "backbone.model.cls_token",
        "backbone.model.pos_embed",
        "backbone.model.patch_embed.proj.weight",
        "backbone.model.patch_embed.proj.bias",
    }
    assert {name for name, layer in layers.items() if layer is None} == {
        "backbone.model.norm.weight",
        "backbone.model.norm.bias",
    }
    assert layers["backbone.model.blocks.0.norm1.weight"] == 1
    assert layers["backbone.model.blocks.4.mlp.fc2.bias"] == VIT.num_layers == 5


def test_fresh_networks_start_as_published() -> None:
    backbone = VIT.build(VIT.space.intact)
    assert backbone.mask_token.count_nonzero() == 0
    assert backbone.model.blocks[0].ls1.gamma.unique().tolist() == pytest.approx([1e-5])
    assert backbone.model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert backbone.model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert backbone.model.blocks[0].mlp.fc1.bias.count_nonzero() == 0


def test_mask_grid_and_blocks() -> None:
    assert VIT.mask_grid(32) == 4
    backbone = VIT.build(Size(64, (3,)))
    assert (len(tuple(backbone.blocks)), backbone.num_features) == (3, 64)


def test_widths_are_multiples_of_the_head_dimension() -> None:
    with pytest.raises(UserError, match="multiples of the head dimension 64, got 32"):
        replace(VIT, head_dim=64)


def test_images_are_multiples_of_the_patch() -> None:
    with pytest.raises(UserError, match="image size 32 is not a multiple of the patch size 5"):
        replace(VIT, patch_size=5)


def test_a_convolutional_stem_needs_whole_cells_and_plain_mlps() -> None:
    with pytest.raises(UserError, match=r"multiple of 4, got 6\. Set --model\.patch-size to such as 8, or add"):
        replace(VIT, stem="conv", patch_size=6, image_size=24)
    with pytest.raises(UserError, match=r"--model\.swiglu needs --model\.stem patch"):
        replace(VIT, stem="conv", swiglu=True)


@pytest.mark.parametrize(("name", "stem"), [("vit_tiny_patch16_224", "conv"), ("vit_tiny_r_s16_p8_224", "patch")])
def test_an_architecture_keeps_its_stem(name: str, stem: Literal["patch", "conv"]) -> None:
    with pytest.raises(UserError, match=rf"--model\.stem cannot change the stem of {name}\. Leave it out\."):
        replace(VIT, architecture=name, stem=stem)


def test_a_convolutional_stem_is_that_of_timms_smallest_hybrid() -> None:
    size = Size(192, (12,))
    with torch.device("meta"):
        theirs = timm.create_model("vit_tiny_r_s16_p8_224", num_classes=0)
        plain = ViT(SearchSpace.grid([192], [12]), patch_size=32, layer_scale=0.0, stem="conv").build(size).model
    assert {k: v.shape for k, v in plain.named_parameters()} == {k: v.shape for k, v in theirs.named_parameters()}
    assert ViT.read(theirs) == ViT.read(plain)
    assert ViT.read(plain)["patch_size"] == 32
