"""SlimCLR: one slimmable network, pre-trained at all its widths at once by contrast (arXiv 2209.15525)."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from poa.config.pretraining import SlimSettings
from poa.data.views import Views
from poa.elastic.network import state
from poa.elastic.space import Size
from poa.families.base import Backbone, Family
from poa.losses.contrastive import Similarities, contrast
from poa.losses.slimmable import online_distillation, width_weights
from poa.methods.base import Branch, Method, elastic_students

Embed = Callable[[Tensor], Tensor]
"""From images to embeddings on the unit sphere."""


class Embedder(Branch):
    """A backbone of any width, and the MLPs from its features to embeddings."""

    def __init__(self, backbone: Backbone, heads: nn.Module) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, heads
        backbone.mask_token.requires_grad_(False)  # nothing is hidden

    def forward(self, images: Float[Tensor, "batch channels height side"]) -> Float[Tensor, "batch width"]:
        """Embeddings on the unit sphere; MLPs compute in float32."""
        features = self.backbone(images, None).cls
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.heads(features.float()), dim=1)


class SlimCLR(Method):
    """What the contrastive methods share: all active widths see the same two views, and the losses are added.

    ``L = sum_i lambda_i L_i`` with ``L_1 = C_1`` and ``L_i = (1 - alpha) C_i + alpha D_i``: contrast C and distillation
    D from the full width. While the full width is alone its loss weighs 1 (slow start).

    Args:
        family: Slimmable backbones.
        build: Network of a size.
        settings: How widths are trained together.
        temperature: Divides similarities, unless the settings say otherwise.
        checkpointing: Recompute the networks' blocks and heads in the backward pass instead of storing them.
        compile_blocks: Compile the backbones' blocks.
    """

    shown: ClassVar[str] = "contrast"
    loss_scale: float = 1.0
    """Factor on each contrastive loss."""
    usual_temperatures: ClassVar[Mapping[str, float]] = {}
    """Temperatures of online distillation that are usual for this method, where they are not those of the loss."""

    def __init__(
        self,
        family: Family,
        build: Callable[[Size], Embedder],
        *,
        settings: SlimSettings,
        temperature: float,
        checkpointing: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.settings, self.temperature = settings, settings.temperature or temperature
        self.intact = family.space.intact

        def prepared(size: Size) -> Embedder:
            return build(size).prepare(checkpointing=checkpointing, compile_blocks=compile_blocks)

        self.networks = family.sub_networks(prepared, castable=lambda name: name.startswith("backbone."))
        student = self.networks.whole()
        assert isinstance(student, Embedder)
        self.student: Embedder = student

    @abstractmethod
    def similarities(
        self,
        networks: Sequence[Embed],
        first: Float[Tensor, "batch channels height side"],
        second: Float[Tensor, "batch channels height side"],
    ) -> list[list[Similarities]]:
        """For each pairing of first and second views, what each active width finds similar, the full one first."""

    def weights(self, sizes: Sequence[Size], *, num_locals: int, frozen: float = 1.0) -> dict[str, float]:  # noqa: ARG002
        """Weight of each term; sizes are the active widths besides the full one, descending."""
        if not sizes:
            return {f"{self.intact}/contrast": 1.0}
        shares = [size.width / self.intact.width for size in (self.intact, *sizes)]
        full, *others = width_weights(shares, weighting=self.settings.weighting)
        alpha = self.settings.distillation_share if self.settings.distillation else 0.0
        weights = {f"{self.intact}/contrast": full}
        for size, weight in zip(sizes, others, strict=True):
            weights[f"{size}/contrast"] = weight * (1 - alpha)
            if self.settings.distillation:
                weights[f"{size}/distillation"] = weight * alpha
        return weights

    def forward(self, views: Views, sizes: Sequence[Size], *, temperature: float) -> dict[str, Tensor]:  # noqa: ARG002
        """Unweighted losses of every active width, from two global crops an image."""
        active = (self.intact, *sizes)
        networks = list(elastic_students(self.networks, self.student, active, device=views.globals.device))
        pairings = self.similarities(networks, *views.globals.chunk(2))
        losses: dict[str, Tensor] = {}
        for number, size in enumerate(active):
            terms = [contrast(pairing[number], temperature=self.temperature) for pairing in pairings]
            losses[f"{size}/contrast"] = self.loss_scale * torch.stack(terms).sum()
            if number and self.settings.distillation:
                terms = [self._distil(pairing[number], pairing[0]) for pairing in pairings]
                losses[f"{size}/distillation"] = torch.stack(terms).sum()
        return losses

    def _distil(self, width: Similarities, full: Similarities) -> Tensor:
        name, temperature = self.settings.distillation, self.settings.distillation_temperature
        assert name is not None
        if temperature is None:
            temperature = self.usual_temperatures.get(name)
        student, teacher = self.compared(width.values), self.compared(full.values)
        return online_distillation(name, student, teacher, full.positives, temperature=temperature)

    def compared(self, cosines: Float[Tensor, "rows candidates"]) -> Float[Tensor, "rows candidates"]:
        """What online distillation compares: cosines as they are, not yet divided by the temperature of contrast."""
        return cosines

    def plain(self) -> dict[str, Tensor]:
        """Parameters and buffers of the full width by the names of a network of its own."""
        return dict(self.networks.extract(self.intact, self.student).state_dict())

    @torch.no_grad()
    def follow(self, encoder: nn.Module, *, momentum: float) -> None:
        """Move an encoder of full width, or its first parts, towards the student, but for BatchNorms' statistics."""
        source = self.networks.plan(self.intact)(state(self.student))
        ours = dict(encoder.named_parameters())
        torch._foreach_lerp_(list(ours.values()), [source[name].detach() for name in ours], 1.0 - momentum)

    def update_teacher(self, momentum: float) -> None:
        """Nothing follows the optimiser's step where there is no momentum encoder."""
