"""Checks while training: collapse of the features, and k-NN scores of three sizes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Num
from rich.console import Console
from torch import Tensor

from poa.config.pretraining import Config
from poa.data.augment import normalise
from poa.data.channels import alike
from poa.data.loader import images_for_scoring
from poa.data.sources import Data
from poa.elastic.space import Size
from poa.evaluation.knn import Knn
from poa.evaluation.protocol import Rows
from poa.features.images import open_images
from poa.pretraining.advice import cure_of_collapse
from poa.pretraining.build import Parts
from poa.training.health import CollapseCheck, mean_cosine, rankme

BATCH = 128
BANK_SHARE = 0.75


@dataclass(frozen=True)
class Sample:
    """Centre crops that features are extracted from again and again, decoded once, and their classes if needed."""

    images: Num[Tensor, "images channels size size"]
    labels: npt.NDArray[np.int64] | None


def take_sample(source: Data, config: Config, *, labelled: bool, console: Console | None = None) -> Sample:
    """Decode an even part of the images of a source."""
    size, resize = config.views.global_size, config.scoring_resize
    index = open_images(source, console=console)
    if len(index) > config.monitor.num_images:
        index = open_images(source, limit=config.monitor.num_images)
    labels = index.require_labels() if labelled else None
    rows: list[int] = []
    images = []
    for batch in images_for_scoring(index, size=size, resize=resize, batch_size=BATCH, values=config.values):
        rows.extend(batch.indices)
        images.append(batch.images)
    return Sample(torch.cat(alike(images)), None if labels is None else labels[rows])


class Monitor:
    """Scores the exported branch now and then."""

    def __init__(self, config: Config, parts: Parts, *, console: Console | None = None) -> None:
        self._parts, self._views = parts, config.views
        labelled = config.monitor.data is not None
        data = config.monitor.data or config.data
        self._sample = take_sample(data, config, labelled=labelled, console=console)
        sizes = parts.family.space.sizes
        self._sizes = dict.fromkeys((sizes[0], sizes[len(sizes) // 2], sizes[-1])) if labelled else {sizes[-1]: None}
        self._sub_networks = parts.family.sub_networks()
        self._collapse = CollapseCheck(grace_steps=2 * parts.steps_per_epoch, cure=cure_of_collapse(config))

    def score(
        self, step: int, metrics: Mapping[str, float], weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, float], list[str]]:
        """Scores by name after so many steps, NaN where features are not finite, and warnings of what is wrong.

        The weights are those of the exported branch's backbone, by name.
        """
        scores: dict[str, float] = {}
        strange = []
        for size in self._sizes:
            features = self._features(size, weights)
            if not features.isfinite().all():
                strange.append(str(size))
            if size == self._parts.family.space.intact:
                scores |= {"rankme": rankme(features), "cosine": mean_cosine(features)}
            if self._sample.labels is not None:
                scores[f"knn/{size}"] = self._knn(features)
        sentences = self._collapse.check(
            step,
            losses=self._parts.method.headlines(metrics),
            log_prototypes=self._parts.method.log_prototypes,
            rank=scores["rankme"],
            cosine=scores["cosine"],
        )
        if strange:
            sentences.append(f"Features of size {', '.join(strange)} are not finite and have no scores at step {step}.")
        return scores, sentences

    @torch.inference_mode()
    def _features(self, size: Size, weights: Mapping[str, Tensor]) -> Float[Tensor, "images width"]:
        parts = self._parts
        network = self._sub_networks.bind(size, weights, training=False)
        rows = []
        for start in range(0, len(self._sample.images), BATCH):
            batch = self._sample.images[start : start + BATCH]
            images = normalise(batch.to(parts.device), mean=self._views.mean, std=self._views.std)
            rows.append(network(images).cls.float())
        return torch.cat(rows)

    def _knn(self, features: Float[Tensor, "images width"]) -> float:
        if not features.isfinite().all():
            return math.nan
        labels = torch.as_tensor(self._sample.labels)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        border = int(BANK_SHARE * len(order))
        bank, queries = order[:border], order[border:]
        features, k = features.cpu(), min(20, len(bank))
        known, asked = (Rows(features[part], labels[part]) for part in (bank, queries))
        outcome = Knn(ks=(k,))(known, asked, num_classes=int(labels.max()) + 1, device=features.device)
        return outcome.scores[f"top1@{k}"]
