"""Outputs of networks for pictures: features, attention of the class token, and maps of either as colours."""

from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from matplotlib import colormaps
from timm.layers import Attention, AttentionRope
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from poa.errors import UserError

_LAYERS = (Attention, AttentionRope, EvaAttention)
"""Layers whose weights pass through a dropout of their own when they are not fused."""


class Outputs(NamedTuple):
    """Outputs of a network for some images."""

    cls: Float[Tensor, "images width"]
    patches: Float[Tensor, "images patches width"]
    """Row by row."""
    attention: Float[Tensor, "images heads patches"] | None
    """Share of the class token's attention that a patch gets from each head of the last block, if there is one."""


@torch.inference_mode()
def outputs_of(network: nn.Module, images: Float[Tensor, "images 3 side side"]) -> Outputs:
    """Run normalised images through a network in evaluation mode once, and keep what can be drawn.

    Fused kernels never hold the attention weights. For this pass the last block's attention is set to compute them
    itself, and they are caught where they go through its dropout, which does nothing in evaluation mode. Whatever the
    layer does to queries and keys before (norms, rotary positions) is therefore in them.
    """
    layer: Any = _last_attention(network)
    caught: list[Tensor] = []
    if layer is None:
        features = network(images)
        return Outputs(features.cls.float(), features.patches.float(), None)
    was_fused = layer.fused_attn
    handle = layer.attn_drop.register_forward_hook(lambda _, inputs, __: caught.append(inputs[0]))
    layer.fused_attn = False
    try:
        features = network(images)
    finally:
        layer.fused_attn = was_fused
        handle.remove()
    weights = caught[-1][:, :, 0, -features.patches.shape[1] :]
    return Outputs(features.cls.float(), features.patches.float(), weights.float())


def _last_attention(network: nn.Module) -> nn.Module | None:
    """The attention of the last block, of a network that has a class token."""
    if not any(name.rpartition(".")[2] == "cls_token" for name, _ in network.named_parameters()):
        return None
    layers = [module for module in network.modules() if isinstance(module, _LAYERS)]
    last: nn.Module | None = layers[-1] if layers else None
    return last


def grid_of(num_patches: int) -> int:
    """Rows (and columns) of the patches of a square image."""
    side = isqrt(num_patches)
    if side * side != num_patches:
        raise UserError(
            f"{num_patches} patches do not form a square grid, so they cannot be drawn. Choose a network with a "
            "square grid of patches."
        )
    return side


def heat(values: Float[Tensor, " patches"]) -> npt.NDArray[np.uint8]:
    """A map as colours, from its least to its greatest value: dark to bright, RGB with a pixel a patch."""
    side = grid_of(len(values))
    least, greatest = values.min(), values.max()
    scaled = (values - least) / (greatest - least).clamp(min=1e-12)
    colours = colormaps["inferno"](scaled.view(side, side).cpu().numpy())[..., :3]
    return np.asarray(np.rint(colours * 255), np.uint8)


def activation(patches: Float[Tensor, "patches width"]) -> Float[Tensor, " patches"]:
    """Lengths of the patch features, centred over the image: how much a patch stands out."""
    lengths: Tensor = torch.linalg.vector_norm(patches - patches.mean(dim=0), dim=1)
    return lengths
