"""Whether small widths push the large ones aside: gradients measured slice by slice (SlimCLR, arXiv 2209.15525)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from poa import distributed
from poa.elastic.plan import SlicePlan
from poa.errors import UserError
from poa.families.base import Family
from poa.methods.base import Branch


@dataclass(frozen=True)
class GradientDiagnosis:
    """Measures, every so many steps, how widths pull at the weights that they share (SlimCLR, Sec. 3, official code).

    Attributes:
        plans: By size, how gradients of the intact network are cut; the intact size comes first.
        every: Steps between two measurements.
    """

    plans: Mapping[str, SlicePlan]
    every: int

    @classmethod
    def of(cls, family: Family, *, every: int) -> "GradientDiagnosis":
        """Of all widths at full depth."""
        networks = family.sub_networks()
        deepest = [size for size in family.space.sizes[::-1] if size.depths == family.space.intact.depths]
        return cls({str(size): networks.plan(size) for size in deepest}, every)

    def measure(self, student: Branch, step: int) -> dict[str, float]:
        """Mean norms over the weights that each width uses, and of the others by these; nothing at steps between.

        Also the two leading singular values of the gradient of the heads' last matrix, which are near each other where
        widths pull different ways.
        """
        if (step + 1) % self.every:
            return {}
        named = student.backbone.named_parameters()
        gradients = {name: distributed.whole(each.grad) for name, each in named if each.grad is not None}
        found = slice_norms(gradients, list(self.plans.values()))
        measured = {f"gradient/{size}": mean for size, mean in zip(self.plans, found.means(), strict=True)}
        measured |= {f"gradient_rest/{size}": found.rest_ratio(n) for n, size in enumerate(self.plans) if n}
        last = [matrix.grad for matrix in student.heads.parameters() if matrix.ndim == 2][-1]
        assert last is not None
        leading = leading_singular_values(distributed.whole(last))
        return measured | dict(zip(("gradient_first", "gradient_second"), leading, strict=True))


@dataclass(frozen=True, slots=True)
class SliceNorms:
    """L2 norms of a gradient over nested parts of weights.

    Attributes:
        layers: Names of the intact network's weights.
        norms: For each layer and width the norm over what that width uses, in float64; the full width comes first.
    """

    layers: tuple[str, ...]
    norms: Float[Tensor, "layers widths"]

    def means(self) -> tuple[float, ...]:
        """Of each width, the mean over layers."""
        return tuple(self.norms.mean(0).tolist())

    def rest_ratio(self, width: int) -> float:
        """Mean norm over what a width, named by its number, does *not* use by that over what it uses; below 1 it leads.

        The rest is taken layer by layer, ``sqrt(|whole|^2 - |part|^2)``, before the mean. (The official code does so
        after it, which is near.)
        """
        whole, part = self.norms[:, 0], self.norms[:, width]
        rest = (whole.square() - part.square()).clamp(min=0).sqrt()
        return float(rest.mean() / part.mean())


@torch.no_grad()
def slice_norms(gradients: Mapping[str, Tensor], plans: Sequence[SlicePlan]) -> SliceNorms:
    """Norms of a gradient over the parts of weights that each width uses.

    Biases and norms are left aside, as are weights without a gradient in ``gradients`` and those with one that is not
    finite (fp16 before its scaler has settled); where none is left, means and ratios are NaN.

    Args:
        gradients: Of the intact network's parameters by name.
        plans: How widths are cut, the full width first.

    Raises:
        UserError: No weight has a gradient.
    """
    cuts = [{cut.source: replace(cut, scale=1.0) for cut in plan.cuts.values() if len(cut.shape) > 1} for plan in plans]
    layers, rows = [], []
    for name in cuts[0]:
        if name in gradients and all(name in of_width for of_width in cuts):
            row = torch.stack([_exact(of_width[name](gradients[name])).norm() for of_width in cuts])
            layers.append(name)
            rows.append(row)
    norms = torch.stack(rows).cpu() if rows else torch.zeros(0, len(plans), dtype=torch.float64)
    if not rows:
        raise UserError("None of the weights has a gradient. Measure gradients after a backward pass.")
    finite = norms.isfinite().all(1)
    kept = tuple(layer for layer, good in zip(layers, finite.tolist(), strict=True) if good)
    return SliceNorms(kept, norms[finite])


@torch.no_grad()
def leading_singular_values(gradient: Float[Tensor, "rows columns"], *, number: int = 2) -> tuple[float, ...]:
    """The largest singular values, descending, or NaN; a second one near the first says that widths pull apart."""
    if not gradient.isfinite().all():
        return (float("nan"),) * number
    return tuple(torch.linalg.svdvals(_exact(gradient))[:number].tolist())


def _exact(values: Tensor) -> Tensor:
    """In float64; on the CPU where the device, a Mac's, does not have it."""
    return (values.cpu() if values.device.type == "mps" else values).double()
