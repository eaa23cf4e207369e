"""Cross-entropies between targets and a student's features (POA, Sec. 3; iBOT for masked patches).

All take features and prototypes; a student's log-probabilities are
``log_softmax(features @ prototypes.T / temperature)``. They compute in float32 (float64 stays), also under autocast.
Without rows a loss is 0, still connected to its inputs, so that every process runs the same backward pass.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from poa.losses.targets import prototype_logits


def cross_entropy(
    targets: Float[Tensor, "rows prototypes"],
    features: Float[Tensor, "rows width"],
    prototypes: Float[Tensor, "prototypes width"],
    *,
    temperature: float = 0.1,
    weights: Float[Tensor, "rows"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over rows of ``-sum(target * log_probability)``, or the weighted sum.

    Args:
        targets: Distributions over prototypes.
        features: Student features.
        prototypes: Student prototypes.
        temperature: Divides the student's logits.
        weights: Weight of each row in a sum, instead of the mean.
    """
    with torch.autocast(features.device.type, enabled=False):
        log_probabilities = prototype_logits(features, prototypes, temperature=temperature).log_softmax(1)
        # einsum, because it forms no product as large as the targets
        rows = -torch.einsum("rp,rp->r", targets.to(log_probabilities.dtype), log_probabilities)
    if weights is None:
        return rows.sum() / max(len(rows), 1)
    return (weights * rows).sum()


def local_cross_view(
    targets: Float[Tensor, "twice_batch prototypes"],
    features: Float[Tensor, "crops_times_batch width"],
    prototypes: Float[Tensor, "prototypes width"],
    *,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Each local crop against both global views: sum over crops and views of the mean over images.

    Cross-entropy is linear in the target, so both views' targets are added first.

    Args:
        targets: Targets of all images' first views, then of their second views.
        features: Student features of local crops: all images' first crops, then their second ones, and so on.
        prototypes: Student prototypes.
        temperature: Divides the student's logits.
    """
    first, second = targets.chunk(2)
    batch = len(first)
    with torch.autocast(features.device.type, enabled=False):
        log_probabilities = prototype_logits(features, prototypes, temperature=temperature).log_softmax(1)
        crops = log_probabilities.view(len(features) // batch, *first.shape)
        return -torch.einsum("bp,lbp->", (first + second).to(crops.dtype), crops) / batch


def same_view(
    teacher_features: Float[Tensor, "rows width"],
    teacher_prototypes: Float[Tensor, "prototypes width"],
    features: Float[Tensor, "rows width"],
    prototypes: Float[Tensor, "prototypes width"],
    *,
    teacher_temperature: float = 0.1,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """The elastic student against the intact student on the same crops, mean over rows (POA, Sec. 3).

    Args:
        teacher_features: Intact features; no gradient reaches them.
        teacher_prototypes: Intact prototypes; no gradient reaches them.
        features: Elastic features.
        prototypes: Elastic prototypes.
        teacher_temperature: Divides the intact logits, whose softmax is the target.
        temperature: Divides the elastic logits.
    """
    with torch.no_grad():
        targets = prototype_logits(teacher_features, teacher_prototypes, temperature=teacher_temperature).softmax(1)
    return cross_entropy(targets, features, prototypes, temperature=temperature)


def masked_patch_loss(
    targets: Float[Tensor, "masked prototypes"],
    features: Float[Tensor, "masked width"],
    prototypes: Float[Tensor, "prototypes width"],
    *,
    weights: Float[Tensor, "masked"],
    num_images: int,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """``sum(weight * cross_entropy) / num_images`` over masked patches (iBOT, DINOv2).

    Args:
        targets: Teacher's distributions at the masked patches.
        features: Student features at the masked patches, from the masked images.
        prototypes: Student prototypes.
        weights: See :func:`mask_weights`.
        num_images: Number of global crops, masked or not.
        temperature: Divides the student's logits.
    """
    return cross_entropy(targets, features, prototypes, temperature=temperature, weights=weights) / num_images


def mask_weights(masks: Bool[Tensor, "images patches"]) -> Float[Tensor, "masked"]:
    """One over the number of masked patches of its image, for every masked patch in row-major order."""
    counts = masks.sum(1, keepdim=True).clamp(min=1)
    return counts.float().reciprocal().expand_as(masks)[masks]
