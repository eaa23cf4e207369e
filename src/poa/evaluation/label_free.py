"""How good the features of sizes are without any label, and how well that foretells scores with labels."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from rich.console import Console
from scipy import stats
from torch import Tensor

from poa import distributed
from poa.config.pretraining import ViewSettings
from poa.data.augment import SOLARIZE_THRESHOLD, augment
from poa.data.index import ImageIndex, open_index
from poa.data.loader import ScoringImages, images_for_scoring
from poa.data.views import BLUR_SIGMA, RATIO, collate, make_crops, sample_generator
from poa.errors import UserError
from poa.evaluation.protocol import Outcome
from poa.evaluation.quality import alignment, linear_cka, neighbour_stability, uniformity
from poa.evaluation.results import ResultFiles, Scores
from poa.features.extract import Progress, extract_features
from poa.models import registry
from poa.models.run import load
from poa.models.source import ModelSource, is_run
from poa.training.health import rankme
from poa.training.progress import Bars

NAME = "quality"
NEIGHBOURS = 10
BATCH = 128
AT_ONCE = 8
"""Networks that share each decoded image."""
SMALL = 96
DRAWN = (
    "global_scale",
    "ratio",
    "flip",
    "jitter",
    "jitter_probability",
    "grey_probability",
    "blur_probabilities",
    "blur_sigma",
    "blur_kernel",
    "solarize_probability",
    "solarize_threshold",
)
"""What decides how two views of an image are drawn."""
"""Side of the smallest images that are blurred, in pixels: the published blur takes all from smaller ones."""
VIEWS = 3
"""Of each image: as it is scored, and two augmented ones."""


def evaluate(
    source: ModelSource,
    data: str,
    *,
    sizes: str | Sequence[str] = "all",
    name: str | None = None,
    k: int = NEIGHBOURS,
    seed: int = 0,
    limit: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> Scores:
    """Measures of networks that need no labels, also written to ``NAME/quality.json`` and ``.csv``.

    - ``rankme``: number of dimensions that features fill, in effect (Garrido et al. 2023).
    - ``alignment``, ``uniformity``: of two augmented views, and of plain images (Wang & Isola 2020); lower is better.
    - ``views@k``: share of an image's k nearest neighbours that two augmented views of the images agree on.
    - ``intact@k``: share of an image's k nearest neighbours that a size and the intact network agree on.
    - ``cka``: linear CKA of a size and the intact network (Kornblith et al. 2019).

    The last two are not had of the intact network itself, nor of a network that is no size. Views are drawn from the
    central square of an image with the settings of the run, or as published. All measures depend on the images and
    on their number: compare sizes on the same ones. Called again, it leaves out what is written.

    Args:
        source: Whose networks.
        data: Images; labels are not looked at.
        sizes: ``all``, or names of sizes.
        name: Folder of the results in the source's ``out``; ``quality``, with the branch unless it is ``teacher``.
        k: Number of neighbours.
        seed: Of the views.
        limit: Take only a class-balanced part of the images. Time grows with the square of their number.
        workers: Processes that decode images.
        overwrite: Forget results of that name.
        console: Where to show progress.

    Raises:
        NotScored: Some networks could not be measured; the others are written.
        UserError: Sizes or images are not as they must be, or the name holds results of other settings.
    """
    chosen = source.choose(sizes)
    path = results_file(source, name)
    index = open_index(data, limit=limit)
    if not 0 < k < len(index):
        raise UserError(f"There are {len(index) - 1} other images to be neighbours, got k={k}. Give another --k.")
    task = _Task(source, index, views_of(source), k, seed, workers)
    files = ResultFiles(path.parent, NAME, task.settings)
    files.start(overwrite=overwrite)
    with Bars(console or Console(stderr=True)) as bars:
        _measure(task, [size for size in chosen if size not in files.known.scores], files, bars)
    return files.finished(chosen, what="measured")


def results_file(source: ModelSource, name: str | None = None) -> Path:
    """Where results are written.

    Args:
        source: Whose networks.
        name: Of the folder, as in ``evaluate``.

    Raises:
        UserError: The name has slashes.
    """
    return source.results(NAME, name) / f"{NAME}.json"


def views_of(source: ModelSource) -> ViewSettings:
    """How two views of an image are made: as in the training of a run, else as published, but small images not blurred.

    Args:
        source: Whose networks will see them.
    """
    folder, size = registry.folder_of(source.name), source.preprocessing.image_size
    if is_run(folder):
        published = load(folder).config.views
    elif size < SMALL:
        published = ViewSettings(global_size=size, local_size=size, blur_probabilities=(0.0, 0.0, 0.0), blur_kernel=1)
    else:
        published = ViewSettings(global_size=size, local_size=size)
    odd = size - 1 + size % 2
    return published.changed(
        global_size=size,
        local_size=size,
        num_locals=0,
        blur_kernel=min(published.blur_kernel, odd),
        mean=(0.0, 0.0, 0.0),  # they become pixels again
        std=(1.0, 1.0, 1.0),
    )


@dataclass(frozen=True)
class _Task:
    """What all groups of networks share."""

    source: ModelSource
    index: ImageIndex
    views: ViewSettings
    k: int
    seed: int
    workers: int

    @property
    def settings(self) -> dict[str, Any]:
        """All that the measures depend on, as JSON gives it back."""
        source = self.source
        views = self.views.model_dump(mode="json") | {
            "ratio": list(RATIO),
            "blur_sigma": list(BLUR_SIGMA),
            "solarize_threshold": SOLARIZE_THRESHOLD,
        }
        drawn = {key: views[key] for key in DRAWN}
        return {
            "weights": source.weights,
            "images": f"{len(self.index)} images {self.index.fingerprint}",
            "image_size": source.preprocessing.image_size,
            "resize": source.preprocessing.resize,
            "mean": list(source.preprocessing.mean),
            "std": list(source.preprocessing.std),
            "k": self.k,
            "seed": self.seed,
            "views": drawn,
        }

    @property
    def intact(self) -> str | None:
        """The network that others are compared with."""
        return self.source.names[-1] if len(self.source.names) > 1 else None

    @cached_property
    def device(self) -> torch.device:
        """Where to compute."""
        return distributed.this_device()


class _Rows(NamedTuple):
    """Features of the images that could be read, from one network: plain, and of two views."""

    plain: Float[Tensor, "images width"]
    first: Float[Tensor, "images width"]
    second: Float[Tensor, "images width"]


def _measure(task: _Task, pending: Sequence[str], files: ResultFiles, progress: Progress) -> None:
    """Measure group by group; the intact network is a group of its own, since all are compared with it."""
    if not pending:
        return
    reference = None
    rest = [name for name in pending if name != task.intact]
    if task.intact is not None:
        rows, num_bad = _extract(task, [task.intact], files.work / "intact", progress)
        reference = rows[task.intact].plain
        if task.intact in pending:
            _add(files, task.intact, partial(_measures, rows[task.intact], task=task), num_bad=num_bad)
    for group in (rest[start : start + AT_ONCE] for start in range(0, len(rest), AT_ONCE)):
        progress("networks", len(pending) - len(rest) + rest.index(group[0]), len(pending))
        rows, num_bad = _extract(task, group, files.work / group[0], progress)
        for name in group:
            _add(files, name, partial(_measures, rows[name], reference, task=task), num_bad=num_bad)
        shutil.rmtree(files.work / group[0], ignore_errors=True)
    progress("networks", len(pending), len(pending))


def _add(files: ResultFiles, name: str, measures: Callable[[], dict[str, float]], *, num_bad: int) -> None:
    """Write down what is found out about a network; one that cannot be measured does not keep others from it."""
    try:
        found = measures()
    except UserError as error:
        files.fail(name, str(error))
    else:
        files.add(name, Outcome(found), bad_images={"images": num_bad})


def _measures(
    rows: _Rows, reference: Float[Tensor, "images other_width"] | None = None, *, task: _Task
) -> dict[str, float]:
    # alignment comes first: it sees that features are finite
    near = partial(neighbour_stability, k=task.k, device=task.device)
    found = {
        "alignment": alignment(rows.first, rows.second, device=task.device),
        "uniformity": uniformity(rows.plain, device=task.device),
        f"views@{task.k}": near(rows.first, rows.second),
        "rankme": rankme(rows.plain.to(task.device)),
    }
    if reference is not None:
        found |= {
            f"intact@{task.k}": near(rows.plain, reference),
            "cka": linear_cka(rows.plain, reference, device=task.device),
        }
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(measure: str) -> int:
    """Order of columns."""
    return ("rankme", "alignment", "uniformity", "views", "intact", "cka").index(measure.partition("@")[0])


def _extract(task: _Task, names: Sequence[str], folder: Path, progress: Progress) -> tuple[dict[str, _Rows], int]:
    """Features of a group of networks and the number of images that could not be read, from one pass."""
    source = task.source
    found = extract_features(
        {name: source.network(name).to(task.device) for name in names},
        partial(_batches, task),
        num_images=VIEWS * len(task.index),
        folder=folder,
        settings=task.settings,
        device=task.device,
        mean=source.preprocessing.mean,
        std=source.preprocessing.std,
        progress=progress,
        what="views",
    )
    rows = {name: _Rows(*(found.features[name][view::VIEWS] for view in range(VIEWS))) for name in names}
    return rows, found.num_bad // VIEWS


def _batches(task: _Task, start: int) -> Iterator[ScoringImages]:
    """Each image three times in a row, as it is scored and as two views of its central square.

    Image i has the numbers 3 i, 3 i + 1 and 3 i + 2; a pass is only ever stopped behind all three.
    """
    side = task.source.preprocessing.resize
    border = (side - task.source.preprocessing.image_size) // 2
    inner = slice(border, border + task.source.preprocessing.image_size)
    for batch in images_for_scoring(
        task.index, size=side, resize=side, batch_size=BATCH, workers=task.workers, start=start // VIEWS
    ):
        images = _with_views(batch, task, inner) if batch.indices else batch.images[:, :, inner, inner]
        yield ScoringImages(_numbers(batch.indices), images, _numbers(batch.bad))


def _numbers(images: Sequence[int]) -> tuple[int, ...]:
    return tuple(VIEWS * image + view for image in images for view in range(VIEWS))


def _with_views(batch: ScoringImages, task: _Task, inner: slice) -> UInt8[Tensor, "rows 3 size size"]:
    drawn = [
        make_crops(
            Image.fromarray(pixels.permute(1, 2, 0).numpy()),
            augmentation=task.views,
            generator=sample_generator(task.seed, 0, image),
        )
        for image, pixels in zip(batch.indices, batch.images, strict=True)
    ]
    raw = collate(drawn, masks=torch.empty(0, 0, dtype=torch.bool), bad=())
    coloured = augment(raw, augmentation=task.views, device=task.device).globals.mul(255).round().to(torch.uint8)
    first, second = coloured.cpu().chunk(2)
    return torch.stack([batch.images[:, :, inner, inner], first, second], dim=1).flatten(0, 1)


class Prediction(NamedTuple):
    """How well a measure without labels goes with a score with labels, over sizes.

    Attributes:
        spearman: Correlation of their orders; NaN if one of them does not vary.
        pearson: Correlation of their values.
        num_sizes: Over how many sizes.
    """

    spearman: float
    pearson: float
    num_sizes: int


def predicts(quality: Mapping[str, Mapping[str, float]], scores: Mapping[str, float]) -> dict[str, Prediction]:
    """Correlation of every measure with a score, over the sizes that have both.

    Args:
        quality: Measures by name of the size, as ``evaluate`` gives them.
        scores: One score by name of the size, such as k-NN's top-1.

    Raises:
        UserError: A measure and the score have fewer than three sizes in common.
    """
    found = {}
    for measure in dict.fromkeys(name for measures in quality.values() for name in measures):
        both = [
            (quality[size][measure], scores[size]) for size in quality if size in scores and measure in quality[size]
        ]
        if len(both) < 3:
            raise UserError(
                f"A correlation needs at least 3 sizes with {measure} and a score, got {len(both)}. "
                "Measure and score more sizes."
            )
        values, wanted = np.array(both).T
        varies = min(np.ptp(values), np.ptp(wanted)) > 0
        spearman, pearson = (
            float(correlation(values, wanted).statistic) if varies else float("nan")
            for correlation in (stats.spearmanr, stats.pearsonr)
        )
        found[measure] = Prediction(spearman, pearson, len(both))
    return found


def by_chance(num_sizes: int, *, level: float = 0.95) -> float:
    """How far from 0 a correlation over so many sizes is in 1 of 20 cases where there is none.

    As if sizes were independent; those of one run share parameters, so that it takes even more.

    Args:
        num_sizes: At least 3.
        level: Share of the cases in which it is less far.
    """
    beyond = float(stats.t.ppf((1 + level) / 2, num_sizes - 2))
    return beyond / float(np.sqrt(num_sizes - 2 + beyond**2))
