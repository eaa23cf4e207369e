"""Linear layers of low precision for processors that multiply float32 faster (ADR 0009)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def widen(model: nn.Module) -> None:
    """Let a network's linear layers, in place, multiply in float32 under autocast; names and parameters stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = WideLinear
        elif type(module) is Mlp and _is_plain(module):
            module.__class__ = WideMlp


def _is_plain(mlp: Mlp) -> bool:
    """Whether there is nothing but GELU between two linear layers."""
    gelu = type(mlp.act) is nn.GELU and mlp.act.approximate == "none"
    nothing_else = isinstance(mlp.norm, nn.Identity) and mlp.drop1.p == mlp.drop2.p == 0
    return gelu and nothing_else and isinstance(mlp.fc2, nn.Linear)


class WideLinear(nn.Linear):
    """Under autocast multiplies in float32; inputs kept for the backward pass and outputs are of low precision."""

    def forward(self, input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows out"]:
        """Without autocast a linear layer as any other."""
        return product(input, self) if is_low(input) else super().forward(input)


class WideMlp(Mlp):  # type: ignore[misc]  # timm is untyped
    """Under autocast keeps the hidden layer once, before GELU, which is computed again in the backward pass."""

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows out"]:
        """Without autocast timm's."""
        made: Tensor = product(self.fc1(x), self.fc2, gelu=True) if is_low(x) else super().forward(x)
        return made


def is_low(x: Tensor) -> bool:
    """Whether autocast is on."""
    return torch.is_autocast_enabled(x.device.type)


def product(rows: Float[Tensor, "*rows width"], layer: nn.Linear, *, gelu: bool = False) -> Float[Tensor, "*rows out"]:
    """What a layer makes of rows, perhaps after GELU, in autocast's precision."""
    dtype = torch.get_autocast_dtype(rows.device.type)
    made: Tensor = _Product.apply(rows, layer.weight, layer.bias, dtype, gelu)
    return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu: bool) -> Tensor:
        ctx.save_for_backward(rows.to(dtype), weight)
        ctx.dtypes, ctx.gelu = (rows.dtype, bias.dtype if bias is not None else None), gelu
        with torch.autocast(rows.device.type, enabled=False):
            inputs = F.gelu(rows.float()) if gelu else rows.float()
            return F.linear(inputs, weight.float(), bias.float() if bias is not None else None).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight = ctx.saved_tensors
        (of_rows, of_bias), rows, given = ctx.dtypes, kept.float(), given.float()
        needed, flat = ctx.needs_input_grad, given.flatten(0, -2)
        with torch.autocast(given.device.type, enabled=False):  # a compiled backward pass has that of the forward pass
            inputs = F.gelu(rows) if ctx.gelu else rows
            of_inputs = given @ weight.float() if needed[0] else None
            of_weight = (flat.T @ inputs.flatten(0, -2)).to(weight.dtype) if needed[1] else None
            if ctx.gelu and of_inputs is not None:
                of_inputs = torch.ops.aten.gelu_backward(of_inputs, rows)
        return (
            None if of_inputs is None else of_inputs.to(of_rows),
            of_weight,
            flat.sum(0).to(of_bias) if needed[2] else None,
            None,
            None,
        )
