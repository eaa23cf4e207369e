"""Sizes of a Swin against a slow one: windows, queries and cuts one by one, inputs scaled instead of weights."""

from itertools import product

import pytest
import torch
from torch import Tensor

from conformance import filler
from poa.elastic.network import SubNetworks
from poa.elastic.space import SearchSpace, Size
from poa.families.swin import Swin

WIDTH, HEAD = 8, 4  # of the intact network's first stage; of a head
WINDOW = 2
FAMILY = Swin(
    SearchSpace.grid([4, 8], [2, 4, 6]),
    image_size=32,
    patch_size=2,
    window_size=WINDOW,
    head_dim=HEAD,
    depths=(2, 1, 6, 1),
)  # maps of 16, 8, 4 and 2 cells a side: the third stage shifts, the last is one window
KEPT = {2: [0, 5], 4: [0, 1, 3, 5], 6: [0, 1, 2, 3, 4, 5]}
"""Blocks of the third stage in a size of so many."""

Parameters = dict[str, Tensor]


def groups(number: int, *, whole: int, part: int) -> list[int]:
    return [group * whole + place for group in range(number) for place in range(part)]


def normed(x: Tensor, p: Parameters, name: str, *, rows: list[int] | None = None) -> Tensor:
    kept = slice(x.shape[-1]) if rows is None else rows
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * p[f"{name}.weight"][kept] + p[f"{name}.bias"][kept]


def linear(x: Tensor, p: Parameters, name: str, *, rows: list[int], columns: list[int] | None = None) -> Tensor:
    """The official elastic layer: the input times alpha, the weights as they are."""
    weight = p[f"{name}.weight"]
    columns = list(range(x.shape[-1])) if columns is None else columns
    y = (x * (weight.shape[1] / len(columns))) @ weight[rows][:, columns].T
    return y + p[f"{name}.bias"][rows] if f"{name}.bias" in p else y


def region(i: int, side: int, shift: int) -> int:
    """What was apart before the map was rolled must not look at one another: three bands along each side."""
    return 0 if not shift or i < side - WINDOW else 1 if i < side - shift else 2


def attention(x: Tensor, p: Parameters, name: str, *, whole: int, shift: int) -> Tensor:
    """Of one map [rows, columns, width], window by window, head by head, query by query."""
    side, width = x.shape[0], x.shape[2]
    x = x.roll((-shift, -shift), (0, 1))
    qkv = linear(x, p, f"{name}.qkv", rows=groups(3, whole=whole, part=width))
    out = torch.zeros_like(x)
    for top, left, head in product(range(0, side, WINDOW), range(0, side, WINDOW), range(width // HEAD)):
        cells = list(product(range(top, top + WINDOW), range(left, left + WINDOW)))
        q, k, v = (torch.stack([qkv[i, j, part * width + head * HEAD :][:HEAD] for i, j in cells]) for part in range(3))
        for number, (i, j) in enumerate(cells):
            scores = k @ q[number] / HEAD**0.5
            for other, (m, n) in enumerate(cells):
                place = (i - m + WINDOW - 1) * (2 * WINDOW - 1) + j - n + WINDOW - 1
                scores[other] += p[f"{name}.relative_position_bias_table"][place, head]
                if (region(i, side, shift), region(j, side, shift)) != (region(m, side, shift), region(n, side, shift)):
                    scores[other] -= 100.0
            out[i, j, head * HEAD :][:HEAD] = scores.softmax(0) @ v
    return linear(out, p, f"{name}.proj", rows=list(range(width))).roll((shift, shift), (0, 1))


def block(x: Tensor, p: Parameters, name: str, *, whole: int, shift: int) -> Tensor:
    width = x.shape[-1]
    x = x + attention(normed(x, p, f"{name}.norm1"), p, f"{name}.attn", whole=whole, shift=shift)
    inner = linear(normed(x, p, f"{name}.norm2"), p, f"{name}.mlp.fc1", rows=list(range(4 * width)))
    return x + linear(torch.nn.functional.gelu(inner), p, f"{name}.mlp.fc2", rows=list(range(width)))


def merged(x: Tensor, p: Parameters, name: str, *, whole: int) -> Tensor:
    """Four neighbours side by side, column by column; each has its own run of the layer's inputs."""
    width = x.shape[-1]
    x = torch.cat([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], dim=-1)
    columns = groups(4, whole=whole, part=width)
    x = normed(x, p, f"{name}.norm", rows=columns)
    return linear(x, p, f"{name}.reduction", rows=list(range(2 * width)), columns=columns)


def slow_swin(image: Tensor, p: Parameters, size: Size) -> Tensor:
    """The last normed map of a size, from the intact network's parameters and one image [3, 32, 32]."""
    weight, bias = p["patch_embed.proj.weight"][: size.width], p["patch_embed.proj.bias"][: size.width]
    x = torch.stack(
        [
            torch.stack([(weight * image[:, i : i + 2, j : j + 2]).sum((1, 2, 3)) + bias for j in range(0, 32, 2)])
            for i in range(0, 32, 2)
        ]
    )
    x = normed(x, p, "patch_embed.norm")
    for stage, kept in enumerate(([0, 1], [0], KEPT[size.depths[0]], [0])):
        whole = WIDTH * 2**stage
        if stage:
            x = merged(x, p, f"layers.{stage}.downsample", whole=whole // 2)
        for number, source in enumerate(kept):
            shift = WINDOW // 2 if number % 2 and len(x) > WINDOW else 0
            x = block(x, p, f"layers.{stage}.blocks.{source}", whole=whole, shift=shift)
    return normed(x, p, "norm")


@pytest.mark.parametrize("size", FAMILY.space.sizes, ids=str)
@torch.no_grad()
def test_every_size_equals_the_slow_one(size: Size) -> None:
    intact = FAMILY.build(FAMILY.space.intact).double()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in intact.named_parameters():
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64) + float(is_scale))
    nets = SubNetworks(FAMILY.build, FAMILY.space.intact, source=FAMILY.source, groups=FAMILY.groups)
    image = 4 * filler((1, 3, 32, 32))
    features = nets.bind(size, dict(intact.named_parameters()), training=False)(image)
    expected = slow_swin(image[0], dict(intact.model.named_parameters()), size)
    torch.testing.assert_close(features.cls[0], expected.mean((0, 1)), rtol=0.0, atol=1e-11)
    twice = expected.repeat_interleave(2, 0).repeat_interleave(2, 1).flatten(0, 1)
    torch.testing.assert_close(features.patches[0], twice, rtol=0.0, atol=1e-11)


def test_fresh_networks_start_as_timms() -> None:
    """Layers and position tables narrowly; the official code leaves layers to PyTorch and tables at 0."""
    torch.manual_seed(0)
    fresh = dict(FAMILY.build(FAMILY.space.intact).named_parameters())
    drawn = [value for name, value in fresh.items() if name.endswith(("qkv.weight", "fc1.weight", "bias_table"))]
    assert all(0.01 < float(value.detach().std()) < 0.03 for value in drawn)
    zero = [value for name, value in fresh.items() if name.endswith(("qkv.bias", "fc1.bias", "mask_token"))]
    assert not any(value.count_nonzero() for value in zero)
    assert len(drawn) == 3 * 10
    assert len(zero) == 2 * 10 + 1
