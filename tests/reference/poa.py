"""The method once more: one image at a time, loops over heads, crops, views and pairs. Slow, and plain enough to check.

Every sum is written as the official code forms it, for the total loss at once, not term by term.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poa.data.views import Views
from poa.methods.poa import Network
from reference import losses

Rows = list[list[float]]


class Seen(NamedTuple):
    """What one network makes of one batch, for one head; crops by view (or number) and image."""

    globals: list[Rows]
    locals: list[Rows]
    patches: Rows
    prototypes: Rows


@torch.no_grad()
def look(network: Network, views: Views, *, batch: int, masked: bool) -> tuple[list[Seen], list[Rows]]:
    """Features of every crop by itself: by head, and the class features of the global crops by view."""
    heads: list[Any] = list(network.heads)

    def features(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        cls, patches = network.backbone(image[None], None if mask is None else mask[None])
        return cls, patches[0]

    raw: list[Rows] = []
    by_head = [Seen([], [], [], head.prototypes().tolist()) for head in heads]
    for view in range(2):
        rows = range(view * batch, (view + 1) * batch)
        crops = [features(views.globals[row], views.masks[row] if masked else None) for row in rows]
        raw.append([cls[0].tolist() for cls, _ in crops])
        for seen, head in zip(by_head, heads, strict=True):
            seen.globals.append([head(cls)[0].tolist() for cls, _ in crops])
            for row, (_, patches) in zip(rows, crops, strict=True):
                for place in views.masks[row].nonzero().flatten().tolist():
                    seen.patches.append(head(patches[place][None])[0].tolist())
    for number in range(len(views.locals) // batch):
        crops = [features(views.locals[number * batch + image], None) for image in range(batch)]
        for seen, head in zip(by_head, heads, strict=True):
            seen.locals.append([head(cls)[0].tolist() for cls, _ in crops])
    return by_head, raw


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def cross_view(student: Seen, targets: list[Rows]) -> tuple[float, float]:
    """Sums over pairs of different crops, a student's and a teacher's, of the mean over images: global, local."""

    def pair(crop: Rows, target: Rows) -> float:
        return mean(losses.cross_entropies(target, crop, student.prototypes))

    global_pairs = [pair(student.globals[i], targets[j]) for i in range(2) for j in range(2) if i != j]
    local_pairs = [pair(crop, targets[j]) for crop in student.locals for j in range(2)]
    return sum(global_pairs), sum(local_pairs)


def same_view(elastic: Seen, intact: Seen) -> tuple[float, float]:
    """Mean over crops of the elastic student against the intact one on the same crop: global, local."""

    def crops(ours: list[Rows], theirs: list[Rows]) -> float:
        values = []
        for student, teacher in zip(ours, theirs, strict=True):
            target = [losses.softmax(row) for row in losses.logits(teacher, intact.prototypes, 0.1)]
            values += losses.cross_entropies(target, student, elastic.prototypes)
        return mean(values) if values else 0.0

    return crops(elastic.globals, intact.globals), crops(elastic.locals, intact.locals)


def total(
    teacher: Network,
    intact: Network,
    elastics: Sequence[Network],
    views: Views,
    *,
    temperature: float,
    paper: bool = False,
    share: float = 0.8,
    koleo_weight: float = 0.1,
    targets_of: Callable[[Rows, Rows, float], Rows] = losses.sinkhorn,
) -> float:
    """The loss that is minimised, for several elastic students the mean of the losses with each."""
    if len(elastics) > 1:
        options: dict[str, Any] = {"temperature": temperature, "paper": paper, "share": share}
        options |= {"koleo_weight": koleo_weight, "targets_of": targets_of}
        return mean([total(teacher, intact, [elastic], views, **options) for elastic in elastics])
    batch = len(views.globals) // 2
    num_locals = len(views.locals) // batch
    by_teacher, _ = look(teacher, views, batch=batch, masked=False)
    by_intact, raw_intact = look(intact, views, batch=batch, masked=True)
    by_elastic, raw_elastic = look(elastics[0], views, batch=batch, masked=True)
    sums = []
    for t, i, e in zip(by_teacher, by_intact, by_elastic, strict=True):
        cls = targets_of(t.globals[0] + t.globals[1], t.prototypes, temperature)
        patches = targets_of(t.patches, t.prototypes, temperature)
        value = 0.0
        for student, weight in ((i, share), (e, 1 - share)):
            global_pairs, local_pairs = cross_view(student, [cls[:batch], cls[batch:]])
            if paper:
                value += weight * (global_pairs / 2 + local_pairs / max(2 * num_locals, 1))
            else:
                value += weight * (global_pairs + local_pairs) / (2 + 2 * num_locals)
            masks = views.masks.tolist()
            value += weight * losses.masked_patch_loss(patches, student.patches, student.prototypes, masks)
        value += (1 - share) * sum(same_view(e, i))
        sums.append(value)
    spread = sum(losses.koleo(raw[view]) for raw in (raw_intact, raw_elastic) for view in range(2))
    return mean(sums) + koleo_weight * spread * (1.0 if paper else 0.5)
