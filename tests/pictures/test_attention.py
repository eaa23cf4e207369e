from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import Attention
from torch import Tensor

from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.families.base import Features
from poa.families.dinov3 import DINOv3
from poa.families.resnet import ResNet
from poa.families.vit import ViT
from poa.models.source import model_source
from poa.pictures.attention import activation, grid_of, heat, outputs_of

SPACE = SearchSpace.grid((32,), (2,))


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    family = ViT(SPACE, image_size=16, patch_size=4, head_dim=16, layer_scale=0.5, **options)
    network: Any = family.build(Size(32, (2,))).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)  # else attention is nearly even
    return network


def by_hand(network: Any, images: Tensor) -> Tensor:
    """Softmax of q k / sqrt(d) in the last block, from the qkv layer and the block's own input."""
    model = network.model
    entered: list[Tensor] = []
    handle = model.blocks[-1].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    network(images)
    handle.remove()
    block = model.blocks[-1]
    heads = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(entered[0]))
    queries, keys, _ = qkv.unflatten(2, (3, heads, -1)).unbind(2)
    scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) / (qkv.shape[2] // 3 // heads) ** 0.5
    return scores.softmax(-1)[:, :, 0, model.num_prefix_tokens :]


@pytest.mark.parametrize("architecture", ["", "vit_small_patch14_reg4_dinov2"])
def test_weights_are_softmax_of_queries_and_keys(architecture: str) -> None:
    network = vit(**({"architecture": architecture} if architecture else {}))
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = outputs_of(network, images)
    assert found.attention is not None
    assert found.attention.shape == (3, 2, 16)
    with torch.no_grad():
        wanted = by_hand(network, images)
        assert torch.allclose(found.attention, wanted, atol=1e-6)
        assert wanted.std(dim=2).min() > 1e-3
        cls, patches = network(images)
    assert torch.allclose(found.cls, cls, atol=1e-4)
    assert torch.allclose(found.patches, patches, atol=1e-4)


def test_the_network_is_left_as_it_was() -> None:
    network = vit()
    layers = [module for module in network.modules() if isinstance(module, Attention)]
    assert all(layer.fused_attn for layer in layers)
    outputs_of(network, torch.zeros(1, 3, 16, 16))
    assert all(layer.fused_attn for layer in layers)
    assert not any(layer.attn_drop._forward_hooks for layer in layers)
    with pytest.raises(AssertionError):
        outputs_of(network, torch.zeros(1, 3, 15, 15))
    assert all(layer.fused_attn for layer in layers)
    assert not any(layer.attn_drop._forward_hooks for layer in layers)


def test_rotary_positions_are_in_the_weights() -> None:
    torch.manual_seed(0)
    family = DINOv3(SPACE, image_size=16, patch_size=4, head_dim=16, layer_scale=0.5)
    network: Any = family.build(Size(32, (2,))).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)
    found = outputs_of(network, torch.ones(1, 3, 16, 16)).attention
    assert found is not None
    assert found.shape == (1, 2, 16)
    assert (found.amax(dim=2) > 2 * found.amin(dim=2)).all(), "all patches are the same but for their positions"


def test_networks_without_class_token() -> None:
    family = ResNet(SearchSpace.grid((32,), ((1, 1),)), image_size=32, channels=16, depths=(1, 1, 1, 1))
    network = family.build(Size(32, (1, 1))).eval()
    found = outputs_of(network, torch.randn(2, 3, 32, 32))
    assert found.attention is None
    assert isinstance(network(torch.randn(2, 3, 32, 32)), Features)


def test_a_network_that_timm_names(tmp_path: Path) -> None:
    source = model_source("test_vit", branch="untrained", out=tmp_path)
    found = outputs_of(source.network("test_vit"), torch.randn(1, 3, 160, 160))
    assert found.attention is not None
    assert found.attention.shape == (1, timm.create_model("test_vit").blocks[-1].attn.num_heads, 100)


def test_heat_goes_from_dark_to_bright_row_by_row() -> None:
    pixels = heat(torch.tensor([0.1, 0.2, 0.3, 0.5]))
    assert pixels.shape == (2, 2, 3)
    brightness = pixels.astype(int).sum(axis=2)
    assert brightness[0, 0] < brightness[0, 1] < brightness[1, 0] < brightness[1, 1]
    assert np.array_equal(pixels, heat(torch.tensor([1.0, 2.0, 3.0, 5.0])))
    assert np.array_equal(heat(torch.ones(4)), heat(torch.zeros(4)))


def test_activation_by_hand() -> None:
    patches = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0], [1.0, -3.0]])
    assert activation(patches).tolist() == pytest.approx([1, 1, 3, 3])


def test_patches_that_make_no_square() -> None:
    assert grid_of(49) == 7
    with pytest.raises(UserError, match="12 patches do not form a square"):
        grid_of(12)
