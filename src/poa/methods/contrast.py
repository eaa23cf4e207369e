"""SimCLR, MoCo v2 and MoCo v3 with slimmable networks; with one width they are the plain methods."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poa import distributed
from poa.config.pretraining import SlimSettings
from poa.elastic.space import Size
from poa.families.base import Family
from poa.losses.contrastive import Similarities, batch_similarities, pair_similarities, queue_similarities
from poa.methods.layers import EmbeddingQueue, synced
from poa.methods.slimclr import Embed, Embedder, SlimCLR


def _initialised(head: nn.Sequential) -> nn.Sequential:
    """Draw the linear layers of a head from a narrow normal distribution (SlimCLR, official code)."""
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return head


def _normalised(features: int, hidden: int, dim: int) -> nn.Sequential:
    """The projection of SimCLR as in SlimCLR's official code: BatchNorm after both layers."""
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, dim, bias=False),
        nn.BatchNorm1d(dim),
    )


class SimCLR(SlimCLR):
    """Both views through one network, against all other views of the batch (arXiv 2002.05709)."""

    def __init__(self, family: Family, settings: SlimSettings, **further: bool) -> None:
        full, hidden, dim = family.space.intact.width, settings.hidden or 2048, settings.dim or 128

        def build(size: Size) -> Embedder:
            backbone, inner = family.build(size), hidden * size.width // full
            return synced(Embedder(backbone, _initialised(_normalised(backbone.num_features, inner, dim))))

        super().__init__(family, build, settings=settings, temperature=0.1, **further)

    def similarities(self, networks: Sequence[Embed], first: Tensor, second: Tensor) -> list[list[Similarities]]:
        """One pairing: all views against all others."""
        return [[pair_similarities(network(first), network(second)) for network in networks]]


class MoCoV2(SlimCLR):
    """First views against keys of second views and a queue of earlier ones, from a momentum encoder of full width.

    Under several processes the momentum encoder sees images shuffled over them, so that its BatchNorm does not tell
    which ones belong together (MoCo, arXiv 1911.05722, Sec. 3.3; v2: arXiv 2003.04297).

    Without BatchNorm in its head, as published, all embeddings begin almost alike, and short runs stay there. With
    `settings.head_norm` the head is that of SimCLR (ours).
    """

    shuffles: Tensor

    def __init__(self, family: Family, settings: SlimSettings, **further: bool) -> None:
        full, hidden, dim = family.space.intact.width, settings.hidden or 2048, settings.dim or 128

        def build(size: Size) -> Embedder:
            backbone = family.build(size)
            width = backbone.num_features
            published = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
            head = _normalised(width, hidden * size.width // full, dim) if settings.head_norm else published
            return Embedder(backbone, _initialised(head))

        super().__init__(family, build, settings=settings, temperature=0.2, **further)
        self.momentum = build(self.intact).requires_grad_(False)
        self.momentum.load_state_dict(self.plain())
        self.queue = EmbeddingQueue(settings.queue, dim)
        self.register_buffer("shuffles", torch.zeros((), dtype=torch.int64))
        self.drawn = 0  # as many, known without asking a device
        self.register_load_state_dict_post_hook(MoCoV2._loaded)  # type: ignore[no-untyped-call]  # untyped in torch

    def similarities(self, networks: Sequence[Embed], first: Tensor, second: Tensor) -> list[list[Similarities]]:
        """One pairing: first views against keys, which are then put into the queue."""
        keys = self._keys(second)
        earlier = self.queue.rows.clone()  # the backward pass needs it as it was
        found = [queue_similarities(network(first), keys, earlier) for network in networks]
        self.queue.enqueue(keys)
        return [found]

    @torch.no_grad()
    def _keys(self, images: Float[Tensor, "batch channels height side"]) -> Float[Tensor, "batch width"]:
        everyone = distributed.gather_rows(images)
        generator = torch.Generator().manual_seed(self.drawn)  # the same order on all processes
        order = torch.randperm(len(everyone), generator=generator).to(images.device, non_blocking=images.is_cuda)
        self.shuffles += 1
        self.drawn += 1
        own = slice(distributed.rank() * len(images), (distributed.rank() + 1) * len(images))
        keys: Tensor = distributed.gather_rows(self.momentum(everyone.index_select(0, order[own])))
        return keys[order.argsort()[own]]

    @staticmethod
    def _loaded(method: nn.Module, _: object) -> None:
        assert isinstance(method, MoCoV2)
        method.drawn = int(method.shuffles)

    def update_teacher(self, momentum: float) -> None:
        """Move the momentum encoder towards the full width."""
        self.follow(self.momentum, momentum=momentum)


class MoCoV3(SlimCLR):
    """Each view against the other views of the batch, from a momentum encoder of full width (arXiv 2104.02057)."""

    usual_temperatures: ClassVar[Mapping[str, float]] = {"soft": 1.0}

    def __init__(self, family: Family, settings: SlimSettings, **further: bool) -> None:
        full, hidden, dim = family.space.intact.width, settings.hidden or 4096, settings.dim or 256

        def projector(width: int, inner: int) -> nn.Sequential:
            return _initialised(
                nn.Sequential(
                    nn.Linear(width, inner, bias=False),
                    nn.BatchNorm1d(inner),
                    nn.ReLU(),
                    nn.Linear(inner, dim, bias=False),
                    nn.BatchNorm1d(dim, affine=False),
                )
            )

        def build(size: Size) -> Embedder:
            backbone, inner = family.build(size), hidden * size.width // full
            predictor = nn.Sequential(
                nn.Linear(dim, inner, bias=False),
                nn.BatchNorm1d(inner),
                nn.ReLU(),
                nn.Linear(inner, dim, bias=False),
            )
            return synced(Embedder(backbone, nn.Sequential(projector(backbone.num_features, inner), predictor)))

        super().__init__(family, build, settings=settings, temperature=1.0, **further)
        self.loss_scale = 2 * self.temperature
        backbone = family.build(self.intact)
        self.momentum = synced(Embedder(backbone, nn.Sequential(projector(backbone.num_features, hidden))))
        self.momentum.requires_grad_(False)
        own = self.momentum.state_dict()
        self.momentum.load_state_dict({name: value for name, value in self.plain().items() if name in own})

    def similarities(self, networks: Sequence[Embed], first: Tensor, second: Tensor) -> list[list[Similarities]]:
        """Two pairings: first views against keys of second ones, and the other way round."""
        with torch.no_grad():
            keys = [self.momentum(view) for view in (second, first)]
        embedded = [[network(first), network(second)] for network in networks]
        return [[batch_similarities(views[number], keys[number]) for views in embedded] for number in range(len(keys))]

    def compared(self, cosines: Float[Tensor, "rows candidates"]) -> Float[Tensor, "rows candidates"]:
        """Unlike with the other two methods, online distillation compares logits (SlimCLR, official code)."""
        return cosines / self.temperature

    def update_teacher(self, momentum: float) -> None:
        """Move the momentum encoder towards the full width, without its predictor."""
        self.follow(self.momentum, momentum=momentum)
