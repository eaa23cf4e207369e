"""How good features are without labels: alignment, uniformity, neighbour stability and linear CKA."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poa.errors import UserError
from poa.evaluation.knn import nearest_images
from poa.evaluation.protocol import check_features, check_widths, full_precision, unit_rows

_ALIKE = 1e-12  # of the squared features: deviations of a few last places of float32, which is rounding


@torch.inference_mode()
def alignment(
    first: Float[Tensor, "images width"],
    second: Float[Tensor, "other_images other_width"],
    *,
    power: float = 2.0,
    device: torch.device | None = None,
    chunk: int = 8192,
) -> float:
    """How far apart the features of two views of one image are (Wang & Isola 2020).

    ``mean over images of |u - v| ** power``, where u and v are the features of the two views at length 1. 0 if views
    make no difference, 2 for ``power`` 2 if they are at right angles. Only of use together with uniformity: features
    that are the same for all images have alignment 0.

    Args:
        first: One row an image, not yet normalised.
        second: Another view of the same images in the same order, by the same network.
        power: Of the distance; 2 as published.
        device: Where to compute; that of ``first`` if None.
        chunk: Images at a time.

    Raises:
        UserError: The features do not match, or are not finite.
    """
    _check_same_images(first, second)
    check_widths(first, second, names=("first", "second"))
    device = first.device if device is None else device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for u, v in _units(first, second, chunk=chunk, device=device):
        total += (u - v).square().sum(dim=1).pow(power / 2).sum(dtype=torch.float64)
    return float(total) / len(first)


@torch.inference_mode()
def uniformity(
    features: Float[Tensor, "images width"],
    *,
    sharpness: float = 2.0,
    device: torch.device | None = None,
    chunk: int = 2048,
) -> float:
    """How evenly features are spread over the sphere; lower is more even (Wang & Isola 2020).

    ``log of the mean over pairs of different images of exp(-sharpness * |u - v| ** 2)``, where u and v are features at
    length 1. 0 if all images have one feature, towards ``-2 * sharpness`` for many images in many dimensions.

    Args:
        features: One row an image, not yet normalised.
        sharpness: Called t in the paper; 2 as published.
        device: Where to compute; that of the features if None.
        chunk: Side of the blocks of pairs.

    Raises:
        UserError: There are fewer than two images, features are not finite, or the sharpness is not positive.
    """
    check_features(features, name="scored", least=2)
    if not sharpness > 0:
        raise UserError(f"Uniformity needs a sharpness above 0, got {sharpness}. Published is 2.")
    units = unit_rows(features, features.device if device is None else device)
    parts = torch.split(units, chunk)
    logs = [
        _log_sum_of_pairs(u, v, sharpness=sharpness, same=further == 0)
        for number, u in enumerate(parts)
        for further, v in enumerate(parts[number:])
    ]
    num_pairs = torch.tensor(len(units) * (len(units) - 1) / 2, dtype=torch.float64)
    return float(torch.stack(logs).double().logsumexp(dim=0).cpu() - num_pairs.log())


def _log_sum_of_pairs(
    u: Float[Tensor, "n width"], v: Float[Tensor, "m width"], *, sharpness: float, same: bool
) -> Float[Tensor, ""]:
    with full_precision(u.device):
        distances = u.square().sum(dim=1)[:, None] + v.square().sum(dim=1) - 2 * (u @ v.T)
    logs = -sharpness * distances.clamp_min_(0)
    if same:  # each pair once, and no image with itself
        logs = logs.masked_fill_(torch.ones_like(logs, dtype=torch.bool).tril(), -torch.inf)
    return logs.flatten().logsumexp(dim=0)


@torch.inference_mode()
def neighbour_stability(
    first: Float[Tensor, "images width"],
    second: Float[Tensor, "other_images other_width"],
    *,
    k: int = 10,
    device: torch.device | None = None,
    chunk: int = 2048,
) -> float:
    """Share of an image's k nearest neighbours by cosine that are the same in two feature sets, mean over images.

    1 if both see the same neighbours; about ``k / (images - 1)`` by chance. An image is not its own neighbour; equal
    similarities are decided by image number.

    Args:
        first: One row an image, such as a size's; not yet normalised.
        second: The same images in the same order, such as the teacher's; of any width.
        k: Number of neighbours.
        device: Where to compute; that of ``first`` if None.
        chunk: Side of the blocks of similarities.

    Raises:
        UserError: The features do not match or are not finite, or k is not from 1 to the number of other images.
    """
    _check_same_images(first, second, least=2)
    if not 0 < k < len(first):
        raise UserError(
            f"Neighbour stability with k={k} is not possible: k goes from 1 to the number of other images, here "
            f"{len(first) - 1}. Give another k or more images."
        )
    device = first.device if device is None else device
    near, also_near = (_neighbours(rows, k=k, device=device, chunk=chunk) for rows in (first, second))
    at_once = max(1, chunk * chunk // (k * k))
    shared = [
        (a[:, :, None] == b[:, None, :]).sum()
        for a, b in zip(torch.split(near, at_once), torch.split(also_near, at_once), strict=True)
    ]
    return int(torch.stack(shared).sum()) / near.numel()


def _neighbours(
    features: Float[Tensor, "images width"], *, k: int, device: torch.device, chunk: int
) -> Int[Tensor, "images k"]:
    _, found = nearest_images(features, features, k=k + 1, device=device, chunk=chunk)
    is_self: Bool[Tensor, "images found"] = found == torch.arange(len(found), device=device)[:, None]
    # Copies of an image can push it off its own list; then the last one found is one too many.
    is_self[:, -1] |= ~is_self.any(dim=1)
    return found[~is_self].view(len(found), k)


@torch.inference_mode()
def linear_cka(
    first: Float[Tensor, "images width"],
    second: Float[Tensor, "other_images other_width"],
    *,
    device: torch.device | None = None,
    chunk: int = 8192,
) -> float:
    """Agreement of two feature sets up to rotation and scale: linear centred kernel alignment (Kornblith et al. 2019).

    ``|Y'X|^2 / (|X'X| |Y'Y|)`` with Frobenius norms and columns of mean 0; from 0 to 1. It grows by chance as images
    get few against the widths: compare only values of the same images and the same widths.

    Args:
        first: One row an image.
        second: The same images in the same order; of any width.
        device: Where to compute; that of ``first`` if None.
        chunk: Images at a time; the memory is bounded by this and the squares of the widths.

    Raises:
        UserError: The features do not match or are not finite, or are the same for all images.
    """
    _check_same_images(first, second, least=2)
    device = first.device if device is None else device
    centres = [rows.mean(dim=0, dtype=torch.float64).to(device) for rows in (first, second)]
    products = [torch.zeros((), dtype=torch.float64, device=device)] * 3
    with full_precision(device):
        for part in _pairs(first, second, chunk=chunk):
            x, y = ((rows.to(device).double() - c).float() for rows, c in zip(part, centres, strict=True))
            products = [
                total + (a.T @ b).double() for total, (a, b) in zip(products, ((x, x), (y, y), (y, x)), strict=True)
            ]
    own, others, between = (float(product.norm()) for product in products)
    levels = [len(first) * float(centre.square().sum()) for centre in centres]
    if own <= _ALIKE * levels[0] or others <= _ALIKE * levels[1]:
        raise UserError(
            "The features are the same for all images, so that they agree with nothing. Has the run collapsed? "
            "Look at its RankMe."
        )
    return between**2 / (own * others)


def _pairs(first: Tensor, second: Tensor, *, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(first, chunk), torch.split(second, chunk), strict=True)


def _units(first: Tensor, second: Tensor, *, chunk: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    return ((unit_rows(u, device), unit_rows(v, device)) for u, v in _pairs(first, second, chunk=chunk))


def _check_same_images(first: Tensor, second: Tensor, *, least: int = 1) -> None:
    if len(first) != len(second):
        raise UserError(
            f"The two sets of features are of {len(first)} and {len(second)} images; both must be of the same images "
            "in the same order. Take the features of the images that both could read."
        )
    check_features(first, name="first", least=least)
    check_features(second, name="second", least=least)
