"""ViTs whose patches are those of the map of a convolution."""

from dataclasses import replace

import pytest
import torch

from conformance import filler
from families.networks import TINY, sub_networks
from poa.elastic.space import Size
from poa.families.vit import StemNorm

VIT = TINY["vit"]


def test_all_sizes_share_the_convolution_of_the_stem() -> None:
    family = replace(VIT, stem="conv")
    assert (VIT.memory_format, family.memory_format) == (torch.contiguous_format, torch.channels_last)
    cuts = sub_networks(family).plan(Size(32, (2,))).cuts
    assert cuts["model.patch_embed.backbone.conv.weight"].shape == (64, 3, 7, 7)
    assert cuts["model.patch_embed.proj.weight"].shape == (32, 64, 2, 2)
    assert {cuts[f"model.patch_embed.{name}.weight"].scale for name in ("backbone.conv", "proj")} == {1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_norm_of_the_stem_hands_maps_on_as_they_lie_in_memory(
    layout: torch.memory_format, dtype: torch.dtype
) -> None:
    norm = replace(VIT, stem="conv").build(VIT.space.intact).model.patch_embed.backbone.norm
    assert type(norm) is StemNorm
    maps = filler((2, 64, 6, 5), 1).to(dtype).contiguous(memory_format=layout).requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        made = norm(maps)
    assert made.is_contiguous(memory_format=layout)
    expected = torch.nn.functional.group_norm(maps.float(), 32).relu()
    torch.testing.assert_close(made.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)
    (gradient,) = torch.autograd.grad(made.float().square().sum(), maps)
    (wanted,) = torch.autograd.grad(expected.square().sum(), maps)
    torch.testing.assert_close(gradient, wanted, rtol=0.05, atol=1e-5 if dtype == torch.float32 else 0.05)
