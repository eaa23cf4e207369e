"""Pictures of what chosen sizes see in the user's images, as PNG files and one page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from rich.console import Console
from torch import Tensor

from poa import distributed
from poa.config.pretraining import SELF_DISTILLED
from poa.data.augment import augment, normalise
from poa.data.index import ImageIndex, open_index, spread
from poa.data.loader import ScoringImages, images_for_scoring
from poa.data.views import BOX, FLIP, NUM_UNIFORMS, RATIO, collate, crop_box, make_crops, sample_generator
from poa.errors import UserError, nearest
from poa.evaluation.quality import views_of
from poa.models import registry
from poa.models.run import is_run, load
from poa.models.source import ModelSource
from poa.pictures.attention import Look, look
from poa.pictures.kinds import KINDS, Album, Head, Sight, Views, partners_of
from poa.pictures.page import write
from poa.pictures.patches import region_of
from poa.pictures.prototypes import heads_of
from poa.training.progress import Bars

USUAL_LIMIT = 1000
"""Images that are taken of larger sets, unless the user says how many."""
SHOWN = 8
_BATCH = 64
_AT_ONCE = 16
"""Images in one pass through a network: attention weights grow with the square of the patches."""
_NEED_ALL = {"neighbours", "matches", "prototypes"}
"""Kinds for which more images are wanted than are shown one by one."""


def draw(
    sources: Sequence[ModelSource],
    images: str,
    *,
    out: Path,
    sizes: str | Sequence[str] = (),
    kinds: Sequence[str] = tuple(KINDS),
    limit: int | None = None,
    show: int = SHOWN,
    seed: int = 0,
    workers: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Draw what networks see, side by side, and write a page with all pictures.

    Args:
        sources: Whose networks.
        images: Where the images are found; labels are used where there are some.
        out: Folder to write, new or empty.
        sizes: ``all``, or names of sizes of the runs; their smallest and largest by default.
        kinds: Of pictures, by the names of ``KINDS``.
        limit: Images to look for neighbours and prototypes among, evenly from all classes; up to 1,000 by default.
        show: How many of them to show one by one.
        seed: Of the augmented views.
        workers: Processes that decode images.
        overwrite: Replace the pictures of an earlier call in ``out``.
        console: Where to show progress.

    Returns:
        The page.

    Raises:
        UserError: The request makes no sense, no image can be read, or nothing could be drawn.
    """
    kinds = _checked_kinds(kinds)
    sitters = _sitters(sources, sizes)
    if show < 1:
        raise UserError(f"At least one image is shown, got --show {show}.")
    index = _open(images, limit, show=show, needs_all=bool(_NEED_ALL & set(kinds)))
    _check_folder(out, overwrite=overwrite)
    with Bars(console or Console(stderr=True)) as bars:
        numbers, crops = _gather(sources, index, workers)
        labels = index.labels()[list(numbers)]
        shown = tuple(spread(labels, min(show, len(numbers))).tolist())
        partners = partners_of(shown, labels.tolist())
        sights = []
        for done, sitter in enumerate(sitters):
            bars("networks", done, len(sitters))
            sights.append(_see(sitter, crops[sitter.source.name], (shown, partners), kinds, seed))
        bars("networks", len(sitters), len(sitters))
    names = tuple(index.name(number) for number in numbers)
    album = Album(out, names, _classes(index, numbers), shown, partners)
    _make(out, overwrite=overwrite)
    sections = [KINDS[kind](sights, album) for kind in kinds]
    if not any(section.pictures for section in sections):
        raise UserError("Nothing could be drawn. " + " ".join(note for each in sections for note in each.notes))
    about = f"{', '.join(sitter.label for sitter in sitters)}. {len(names):,} images of {index.source}."
    return write(out, f"What {', '.join(_short(each) for each in sources)} sees", about, sections)


@dataclass(frozen=True)
class _Sitter:
    """One network to draw."""

    source: ModelSource
    name: str
    label: str


def _checked_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"There are no pictures of the kind {kind!r}. {nearest(kind, KINDS)}")
    if not kinds:
        raise UserError(f"Say which pictures to draw: --kinds {' '.join(KINDS)}.")
    return tuple(kind for kind in KINDS if kind in kinds)


def _short(source: ModelSource) -> str:
    return Path(source.name).resolve().name if Path(source.name).exists() else source.name.rpartition("/")[2]


def _sitters(sources: Sequence[ModelSource], sizes: str | Sequence[str]) -> list[_Sitter]:
    """The networks, each with a label that no other has."""
    if not sources:
        raise UserError("Say whose networks to draw: the folder of a run, an extracted size, or a timm name.")
    if len({source.name for source in sources}) < len(sources):
        raise UserError("Each run or network is named once; of a run, --sizes says which sizes.")
    found = []
    for source in sources:
        ends = source.names[0], source.names[-1]
        has_sizes = len(source.names) > 1 or len(sources) == 1
        names = source.choose(sizes) if sizes and has_sizes else ends
        for name in dict.fromkeys(names):
            alone = len(sources) == 1 or len(source.names) == 1
            found.append(_Sitter(source, name, name if alone else f"{_short(source)} {name}"))
    labels = [sitter.label for sitter in found]
    return [
        replace(each, label=f"{each.source.name} {each.name}") if labels.count(each.label) > 1 else each
        for each in found
    ]


def _open(images: str, limit: int | None, *, show: int, needs_all: bool) -> ImageIndex:
    """As many images as are looked at."""
    index = open_index(images, limit=limit)
    most = USUAL_LIMIT if limit is None else limit
    return open_index(images, limit=min(len(index), most if needs_all else show))


def _classes(index: ImageIndex, numbers: Sequence[int]) -> tuple[str, ...]:
    """The class of each image in words; none where there are none, or one alone."""
    if len(index.classes) < 2:
        return ()
    labels = [index.label(number) for number in numbers]
    return tuple(index.classes[label] if label >= 0 else "no class" for label in labels)


def _check_folder(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file. Give --out the name of a folder.")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise UserError(
            f"{out} is not empty. Choose another --out, or replace the pictures that are there with --overwrite."
        )


def _make(out: Path, *, overwrite: bool) -> None:
    """Make the folder; of an earlier call's files none is left, so that the page and its pictures belong together."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in [*(path for kind in KINDS for path in out.glob(f"{kind}*.png"))] if overwrite else []:
            path.unlink()
    except OSError as error:
        raise UserError(f"Pictures cannot be written to {out}: {error.strerror}. Choose another --out.") from None


def _gather(
    sources: Sequence[ModelSource], index: ImageIndex, workers: int
) -> tuple[tuple[int, ...], dict[str, UInt8[Tensor, "images 3 side side"]]]:
    """The numbers of the images that can be read, and all of them as the networks of each source see them."""
    ways: dict[tuple[int, int], list[ScoringImages]] = {}
    for source in sources:
        size, resize = source.preprocessing.image_size, source.preprocessing.resize
        if (size, resize) not in ways:
            batches = images_for_scoring(index, size=size, resize=resize, batch_size=_BATCH, workers=workers)
            ways[size, resize] = list(batches)
    numbers = tuple(number for batch in next(iter(ways.values())) for number in batch.indices)
    if not numbers:
        raise UserError(f"None of the {len(index)} images of {index.source} could be read. Check that they are images.")
    crops = {way: torch.cat([batch.images for batch in batches]) for way, batches in ways.items()}
    return numbers, {
        source.name: crops[source.preprocessing.image_size, source.preprocessing.resize] for source in sources
    }


@torch.inference_mode()
def _see(
    sitter: _Sitter,
    crops: UInt8[Tensor, "images 3 side side"],
    chosen: tuple[tuple[int, ...], tuple[int, ...]],
    kinds: Sequence[str],
    seed: int,
) -> Sight:
    """Run a network over the images."""
    device = distributed.this_device()  # that of a run is perhaps on another machine
    network = sitter.source.network(sitter.name).to(device).eval()

    own = sitter.source.preprocessing

    def seen(images: UInt8[Tensor, "images 3 side side"]) -> Look:
        parts = [
            look(network, normalise(part.to(device), mean=own.mean, std=own.std))
            for part in torch.split(images, _AT_ONCE)
        ]
        return _joined(parts)

    shown, partners = chosen
    both = seen(crops[[*shown, *partners]])
    shown_look, partner_look = _parted(both, len(shown))
    cls = seen(crops).cls if {"neighbours", "prototypes"} & set(kinds) else None
    views = _views(sitter.source, crops, shown, seed, seen) if "matches" in kinds else None
    head = _head(sitter, cls) if "prototypes" in kinds and cls is not None else None
    return Sight(sitter.label, crops, shown_look, partner_look, cls, views, head)


def _joined(parts: Sequence[Look]) -> Look:
    weights = [part.attention.cpu() for part in parts if part.attention is not None]
    return Look(
        torch.cat([part.cls.cpu() for part in parts]),
        torch.cat([part.patches.cpu() for part in parts]),
        torch.cat(weights) if weights else None,
    )


def _parted(joined: Look, first: int) -> tuple[Look, Look]:
    """The first images and the others."""
    cls, patches, weights = joined
    return (
        Look(cls[:first], patches[:first], None if weights is None else weights[:first]),
        Look(cls[first:], patches[first:], None if weights is None else weights[first:]),
    )


def _views(
    source: ModelSource,
    crops: UInt8[Tensor, "images 3 side side"],
    shown: Sequence[int],
    seed: int,
    seen: Callable[[UInt8[Tensor, "images 3 side side"]], Look],
) -> Views:
    """Two views of each shown image, as in training, and where they lie."""
    augmentation = views_of(source)
    side = crops.shape[-1]
    samples, regions = [], []
    for number in shown:
        image = Image.fromarray(crops[number].permute(1, 2, 0).numpy())
        samples.append(make_crops(image, augmentation=augmentation, generator=sample_generator(seed, 0, number)))
        drawn = sample_generator(seed, 0, number).random((2 + augmentation.num_locals, NUM_UNIFORMS)).tolist()
        both = [
            region_of(
                crop_box(side, side, scale=augmentation.global_scale, ratio=RATIO, uniforms=row[BOX:]),
                side=side,
                flipped=row[FLIP] < augmentation.flip,
            )
            for row in drawn[:2]
        ]
        regions.append((both[0], both[1]))
    raw = collate(samples, masks=torch.empty(0, 0, dtype=torch.bool), bad=())
    coloured = augment(raw, augmentation=augmentation, device="cpu").globals
    first, second = coloured.mul(255).round().to(torch.uint8).chunk(2)
    return Views(first, second, tuple(regions), (seen(first), seen(second)))


def _head(sitter: _Sitter, cls: Float[Tensor, "images width"]) -> Head | None:
    """The first projection head of a trained run, and what it makes of all images."""
    folder = registry.folder_of(sitter.source.name)
    if not is_run(folder) or sitter.source.branch != "teacher":
        return None
    run = load(folder)
    if run.config.method not in SELF_DISTILLED:
        return None
    head = heads_of(run, sitter.name)[0]
    return Head(head(cls), head.prototypes())
