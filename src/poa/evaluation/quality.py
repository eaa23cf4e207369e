"""How good features are without labels: the measures, and the scorer that takes them of all networks of a source."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from poa import distributed
from poa.config.channels import USUAL
from poa.config.pretraining import ViewSettings
from poa.data.augment import SOLARIZE_THRESHOLD, augment
from poa.data.channels import as_pixels, channels_last
from poa.data.content import Identity
from poa.data.index import ImageIndex
from poa.data.loader import ScoringImages, images_for_scoring
from poa.data.sources import Data, check_out
from poa.data.views import BLUR_SIGMA, RATIO, collate, make_crops, sample_generator
from poa.errors import UserError
from poa.evaluation.knn import nearest_images
from poa.evaluation.protocol import Outcome, check_features, check_widths, full_precision, unit_rows
from poa.evaluation.results import Results
from poa.evaluation.sweep import AT_ONCE, DEFAULTS, Scorer, SweepOptions, sweep
from poa.features.extract import Progress, extract_features
from poa.features.images import note_darkness, open_images
from poa.models.registry import folder_of
from poa.models.run import is_run, load
from poa.models.source import ModelSource
from poa.training.health import rankme

NEIGHBOURS = 10
BATCH = 128
SMALL = 96
"""Side of the smallest images that are blurred, in pixels: the published blur takes all from smaller ones."""
DRAWN = (
    *("global_scale", "ratio", "flip", "jitter", "jitter_probability", "grey_probability", "blur_probabilities"),
    *("blur_sigma", "blur_kernel", "solarize_probability", "solarize_threshold"),
)
"""What decides how two views of an image are drawn."""
FIXED = {"ratio": RATIO, "blur_sigma": BLUR_SIGMA, "solarize_threshold": SOLARIZE_THRESHOLD}
VIEWS = 3
"""Of each image: as it is scored, and two augmented ones."""
_ALIKE = 1e-12  # of the squared features: deviations of a few last places of float32, which is rounding


@torch.inference_mode()
def alignment(
    first: Float[Tensor, "images width"],
    second: Float[Tensor, "other_images other_width"],
    *,
    device: torch.device | None = None,
    chunk: int = 8192,
) -> float:
    """How far apart the features of two views of one image are (Wang & Isola 2020).

    ``mean over images of |u - v| ** 2``, where u and v are the features of the two views at length 1. 0 if views make
    no difference, 2 if they are at right angles. Only of use together with uniformity: features that are the same for
    all images have alignment 0. They are of one network, not yet normalised, and in the same order.

    Raises:
        UserError: The features do not match, or are not finite.
    """
    _check_same_images(first, second)
    check_widths(first, second, names=("first", "second"))
    device = first.device if device is None else device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for u, v in _pairs(first, second, chunk=chunk):
        total += (unit_rows(u, device) - unit_rows(v, device)).square().sum(dim=1).sum(dtype=torch.float64)
    return float(total) / len(first)


@torch.inference_mode()
def uniformity(
    features: Float[Tensor, "images width"], *, device: torch.device | None = None, chunk: int = 2048
) -> float:
    """How evenly features are spread over the sphere; lower is more even (Wang & Isola 2020).

    ``log of the mean over pairs of different images of exp(-2 * |u - v| ** 2)``, where u and v are features at length
    1. 0 if all images have one feature, towards -4 for many images in many dimensions. Blocks of pairs have ``chunk``
    images a side.

    Raises:
        UserError: There are fewer than two images, or features are not finite.
    """
    check_features(features, name="scored", least=2)
    units = unit_rows(features, features.device if device is None else device)
    parts = torch.split(units, chunk)
    logs = [
        _log_sum_of_pairs(u, v, same=further == 0)
        for number, u in enumerate(parts)
        for further, v in enumerate(parts[number:])
    ]
    num_pairs = torch.tensor(len(units) * (len(units) - 1) / 2, dtype=torch.float64)
    return float(torch.stack(logs).double().logsumexp(dim=0).cpu() - num_pairs.log())


def _log_sum_of_pairs(u: Float[Tensor, "n width"], v: Float[Tensor, "m width"], *, same: bool) -> Float[Tensor, ""]:
    with full_precision(u.device):
        distances = u.square().sum(dim=1)[:, None] + v.square().sum(dim=1) - 2 * (u @ v.T)
    logs = -2.0 * distances.clamp_min_(0)
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
    similarities are decided by image number. Features are not yet normalised, and of the same images in the same order.

    Raises:
        UserError: The features do not match or are not finite, or k is not from 1 to the number of other images.
    """
    _check_same_images(first, second, least=2)
    _check_k(k, num_images=len(first))
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


class Collapsed(UserError):  # noqa: N818  # named like what it says of the features
    """Features are the same for all images."""


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
    get few against the widths: compare only values of the same images and the same widths. Memory is bounded by
    ``chunk``, images at a time, and the squares of the widths.

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
        raise Collapsed(
            "The features are the same for all images, so their agreement is undefined. The run may have "
            "collapsed: check its RankMe."
        )
    return between**2 / (own * others)


def _pairs(first: Tensor, second: Tensor, *, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(first, chunk), torch.split(second, chunk), strict=True)


def _check_k(k: int, *, num_images: int) -> None:
    if not 0 < k < num_images:
        raise UserError(f"--k must be between 1 and the number of other images, here {num_images - 1}, got {k}.")


def _check_same_images(first: Tensor, second: Tensor, *, least: int = 1) -> None:
    if len(first) != len(second):
        raise UserError(
            f"The two sets of features are of {len(first)} and {len(second)} images; both must be of the same "
            "images in the same order. Use only the images that could be read for both."
        )
    check_features(first, name="first", least=least)
    check_features(second, name="second", least=least)


@dataclass(frozen=True)
class Quality(Scorer):
    """Measures of networks that need no labels.

    - ``rankme``: number of dimensions that features fill, in effect (Garrido et al. 2023).
    - ``alignment``, ``uniformity``: of two augmented views, and of plain images (Wang & Isola 2020); lower is better.
    - ``views@k``: share of an image's k nearest neighbours that two augmented views of the images agree on.
    - ``intact@k``: share of an image's k nearest neighbours that a size and the intact network agree on.
    - ``cka``: linear CKA of a size and the intact network (Kornblith et al. 2019).

    CKA is left out where features are the same for all images, and the last two where those of the intact network are
    not finite. They do not exist for the intact network itself, nor for a network that is no size. Views are drawn from
    the central square of an image with the settings of the run, or as published. All measures depend on the images
    and on their number: compare sizes on the same ones.
    """

    source: ModelSource
    index: ImageIndex
    views: ViewSettings
    k: int
    seed: int
    workers: int

    name = "quality"
    done = "measured"
    at_once = AT_ONCE

    @property
    def identities(self) -> Mapping[str, Identity]:
        """The images."""
        return {"images": self.index.identity}

    @property
    def choices(self) -> Mapping[str, Any]:
        """Preprocessing, and how views are drawn."""
        views = self.views.model_dump() | FIXED
        return {
            **self.source.preprocessing.stated(),
            "k": self.k,
            "seed": self.seed,
            "views": {key: views[key] for key in DRAWN},
        }

    def score(self, names: Sequence[str], work: Path, progress: Progress) -> Iterator[tuple[str, Outcome | UserError]]:
        """Measure networks, with the features of the intact one to compare with."""
        intact = self.source.names[-1] if len(self.source.names) > 1 else None
        compared = dict.fromkeys(names) if intact is None else dict.fromkeys([*names, intact])
        rows, read = self._extract(list(compared), work / "rows", progress)
        reference = None if intact is None else rows[intact].plain
        for name in names:
            try:
                measures = self._measures(rows[name], None if name == intact else reference)
            except UserError as error:
                yield name, error
            else:
                yield name, Outcome(measures, left_out={"images": self.index.left_out(read)})

    def _measures(self, rows: "_Rows", reference: Tensor | None) -> dict[str, float]:
        device, k = distributed.this_device(), self.k
        # alignment comes first: it sees that features are finite
        aligned = alignment(rows.first, rows.second, device=device)
        found = {
            "rankme": rankme(rows.plain.to(device)),
            "alignment": aligned,
            "uniformity": uniformity(rows.plain, device=device),
            f"views@{k}": neighbour_stability(rows.first, rows.second, k=k, device=device),
        }
        if reference is not None and reference.isfinite().all():
            found[f"intact@{k}"] = neighbour_stability(rows.plain, reference, k=k, device=device)
            with suppress(Collapsed):
                found["cka"] = linear_cka(rows.plain, reference, device=device)
        return found

    def _extract(
        self, names: Sequence[str], folder: Path, progress: Progress
    ) -> tuple[dict[str, "_Rows"], Int[Tensor, " read"]]:
        """Features of networks and which images could be read, from one pass."""
        device = distributed.this_device()
        found = extract_features(
            {name: self.source.network(name).to(device) for name in names},
            self._batches,
            num_images=VIEWS * len(self.index),
            folder=folder,
            settings=self.settings,
            preprocessing=self.source.preprocessing,
            device=device,
            progress=progress,
            what="views",
        )
        rows = {name: _Rows(*(found.features[name][view::VIEWS] for view in range(VIEWS))) for name in names}
        return rows, found.indices[::VIEWS] // VIEWS

    def _batches(self, start: int) -> Iterator[ScoringImages]:
        """Each image three times in a row, as it is scored and as two views of its central square.

        Image i has the numbers 3 i, 3 i + 1 and 3 i + 2; a pass is only ever stopped behind all three.
        """
        side, size = self.source.preprocessing.resize, self.source.preprocessing.image_size
        border = (side - size) // 2
        inner = slice(border, border + size)
        for batch in images_for_scoring(
            self.index,
            size=side,
            resize=side,
            batch_size=BATCH,
            workers=self.workers,
            start=start // VIEWS,
            values=self.source.preprocessing.values,
        ):
            plain = batch.images[:, :, inner, inner]
            images = torch.stack([plain, *self._drawn(batch)], dim=1).flatten(0, 1) if batch.indices else plain
            yield ScoringImages(_numbers(batch.indices), images, _numbers(batch.bad))

    def _drawn(self, batch: ScoringImages) -> Sequence[Num[Tensor, "rows channels size size"]]:
        """Two views of each image."""
        crops = [
            make_crops(channels_last(pixels), augmentation=self.views, generator=sample_generator(self.seed, 0, image))
            for image, pixels in zip(batch.indices, batch.images, strict=True)
        ]
        raw = collate(crops, masks=torch.empty(0, 0, dtype=torch.bool), bad=())
        coloured = augment(raw, augmentation=self.views, device=distributed.this_device()).globals
        return as_pixels(coloured, like=batch.images).cpu().chunk(2)


class _Rows(NamedTuple):
    """Features of the images that could be read, from one network: plain, and of two views."""

    plain: Float[Tensor, "images width"]
    first: Float[Tensor, "images width"]
    second: Float[Tensor, "images width"]


def _numbers(images: Sequence[int]) -> tuple[int, ...]:
    return tuple(VIEWS * image + view for image in images for view in range(VIEWS))


def evaluate(
    source: ModelSource,
    data: Data,
    *,
    k: int = NEIGHBOURS,
    seed: int = 0,
    limit: int | None = None,
    options: SweepOptions = DEFAULTS,
) -> Results:
    """The measures of `Quality`, also written to ``NAME/quality.json`` and ``.csv``.

    Labels of the images are not used. Time grows with the square of their number, of which ``limit`` takes a
    class-balanced part.

    Raises:
        NotScored: Some networks could not be measured; the others are written.
        UserError: A size or the images are invalid, or the name holds results of other settings.
    """
    names = source.choose(options.sizes)
    check_out(source.out, data)
    index = open_images(data, limit=limit, console=options.console)
    if source.preprocessing.values == USUAL:
        note_darkness(index, console=options.console)
    _check_k(k, num_images=len(index))
    return sweep(source, Quality(source, index, views_of(source), k, seed, options.workers), names, options)


def views_of(source: ModelSource) -> ViewSettings:
    """How two views are made: as in the training of a run, else as published, but small images are not blurred."""
    folder, size = folder_of(source.name), source.preprocessing.image_size
    channels = source.preprocessing.values.number
    if is_run(folder):
        published = load(folder).config.views
    elif size < SMALL:
        published = ViewSettings(global_size=size, local_size=size, blur_probabilities=(0.0, 0.0, 0.0), blur_kernel=1)
    else:
        published = ViewSettings(global_size=size, local_size=size)
    return published.changed(
        global_size=size,
        local_size=size,
        num_locals=0,
        blur_kernel=min(published.blur_kernel, size - 1 + size % 2),  # odd
        mean=(0.0,) * channels,  # they become pixels again
        std=(1.0,) * channels,
    )
