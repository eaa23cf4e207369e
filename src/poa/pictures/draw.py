"""Pictures of the outputs of chosen networks for the user's images, as PNG files and one page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from rich.console import Console
from torch import Tensor

from poa import distributed
from poa.config.pretraining import SELF_DISTILLED
from poa.config.values import check_seed
from poa.data.augment import augment, normalise
from poa.data.channels import channels_last, require_rgb
from poa.data.index import ImageIndex
from poa.data.loader import images_for_scoring
from poa.data.sampler import spread
from poa.data.sources import Data, check_out
from poa.data.views import BOX, FLIP, NUM_UNIFORMS, RATIO, collate, crop_box, make_crops, sample_generator
from poa.errors import UserError, counted, nearest
from poa.evaluation.quality import views_of
from poa.features.images import note_darkness, open_images
from poa.files import make_folder
from poa.models import registry
from poa.models.run import is_run, load
from poa.models.source import ModelSource
from poa.pictures.attention import Outputs, outputs_of
from poa.pictures.kinds import KINDS, Head, ImageSet, NetworkOutputs, Views, partners_of
from poa.pictures.page import Section, write
from poa.pictures.patches import region_of
from poa.pictures.prototypes import heads_of
from poa.text import plain_console
from poa.training.progress import Bars

USUAL_LIMIT = 1000
"""Images that are taken of larger sets, unless the user says how many."""
SHOWN = 8
_BATCH = 64
_AT_ONCE = 16
"""Images in one pass through a network: attention weights grow with the square of the patches."""
_NEED_ALL = {"neighbours", "matches", "prototypes"}
"""Kinds for which more images are wanted than are shown one by one."""


class Drawn(NamedTuple):
    """What was written: the page, and what it shows."""

    page: Path
    sections: Sequence[Section]


def draw(
    sources: Sequence[ModelSource],
    images: Data,
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
) -> Drawn:
    """Draw the outputs of networks side by side, as PNG files and a page of all of them.

    Args:
        sources: Whose networks.
        images: What ``--data`` may name; labels are used where there are some.
        out: Folder to write, new or empty.
        sizes: ``all``, or names of sizes of the runs; their smallest and largest by default.
        kinds: Of pictures, by the names of ``KINDS``.
        limit: Images to search for neighbours and prototypes, evenly from all classes; up to 1,000 by default.
        show: How many of them to show one by one.
        seed: Of the augmented views.
        workers: Processes that decode images.
        overwrite: Replace the pictures of an earlier call in ``out``.
        console: Where to show progress.
    """
    kinds = _checked_kinds(kinds)
    for source in sources:
        require_rgb(source.preprocessing.values, what="`poa pictures`", name=source.name)
    networks = _networks(sources, sizes)
    if show < 1:
        raise UserError(f"--show must be at least 1, got {show}.")
    check_seed(seed)
    check_out(out, images)
    console = console or plain_console(stderr=True)
    index = _open(images, limit, console, show=show, needs_all=bool(_NEED_ALL & set(kinds)))
    _check_folder(out, overwrite=overwrite)
    with Bars(console) as bars:
        numbers, crops = _gather(sources, index, workers)
        labels = index.labels()[list(numbers)]
        shown = tuple(spread(labels, min(show, len(numbers))).tolist())
        partners = partners_of(shown, labels.tolist())
        outputs = []
        for done, network in enumerate(networks):
            bars("networks", done, len(networks))
            outputs.append(_run(network, crops[network.source.name], shown, partners, kinds, seed))
        bars("networks", len(networks), len(networks))
    names = tuple(index.name(number) for number in numbers)
    image_set = ImageSet(out, names, _classes(index, numbers), shown, partners)
    _make(out, overwrite=overwrite)
    sections = [KINDS[kind](outputs, image_set) for kind in kinds]
    if not any(section.pictures for section in sections):
        raise UserError("Nothing could be drawn. " + " ".join(note for each in sections for note in each.notes))
    about = f"{', '.join(network.label for network in networks)}. {counted(len(names), 'image')} from {index.source}."
    return Drawn(write(out, f"What {', '.join(_short(each) for each in sources)} sees", about, sections), sections)


@dataclass(frozen=True)
class _Network:
    """One network to draw."""

    source: ModelSource
    name: str
    label: str


def _checked_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"There are no pictures of the kind {kind!r}. {nearest(kind, KINDS)}")
    if not kinds:
        raise UserError(f"No kind of picture is named. Choose from --kinds {' '.join(KINDS)}.")
    return tuple(kind for kind in KINDS if kind in kinds)


def _short(source: ModelSource) -> str:
    return Path(source.name).resolve().name if Path(source.name).exists() else source.name.rpartition("/")[2]


def _networks(sources: Sequence[ModelSource], sizes: str | Sequence[str]) -> list[_Network]:
    """The networks, each with a label that no other has."""
    if not sources:
        raise UserError("No network is named. Give the folder of a run, an extracted size, or a timm name.")
    if len({source.name for source in sources}) < len(sources):
        raise UserError("A run or network is named twice. Name each once, and choose sizes of a run by --sizes.")
    found = []
    for source in sources:
        ends = source.names[0], source.names[-1]
        has_sizes = len(source.names) > 1 or len(sources) == 1
        names = source.choose(sizes) if sizes and has_sizes else ends
        for name in dict.fromkeys(names):
            alone = len(sources) == 1 or len(source.names) == 1
            found.append(_Network(source, name, name if alone else f"{_short(source)} {name}"))
    labels = [network.label for network in found]
    return [
        replace(each, label=f"{each.source.name} {each.name}") if labels.count(each.label) > 1 else each
        for each in found
    ]


def _open(images: Data, limit: int | None, console: Console, *, show: int, needs_all: bool) -> ImageIndex:
    """As many images as the kinds need."""
    index = open_images(images, limit=limit, console=console)
    most = USUAL_LIMIT if limit is None else limit
    index = open_images(images, limit=min(len(index), most if needs_all else show), console=console)
    note_darkness(index, console=console)
    return index


def _classes(index: ImageIndex, numbers: Sequence[int]) -> tuple[str, ...]:
    """The class of each image in words; empty where there are fewer than two classes."""
    if len(index.classes) < 2:
        return ()
    labels = [index.label(number) for number in numbers]
    return tuple(index.classes[label] if label >= 0 else "no class" for label in labels)


def _check_folder(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file. --out must be a folder.")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise UserError(
            f"{out} is not empty. Choose another --out, or replace the pictures that are there with --overwrite."
        )


def _make(out: Path, *, overwrite: bool) -> None:
    """Make the folder without the pictures of an earlier call, so that the page and its pictures belong together."""
    make_folder(out, content="Pictures")
    for path in [*(path for kind in KINDS for path in out.glob(f"{kind}*.png"))] if overwrite else []:
        path.unlink()


def _gather(
    sources: Sequence[ModelSource], index: ImageIndex, workers: int
) -> tuple[tuple[int, ...], dict[str, UInt8[Tensor, "images 3 side side"]]]:
    """The numbers of the images that can be read, and all of them as the networks of each source get them."""
    sides = {source.name: (source.preprocessing.image_size, source.preprocessing.resize) for source in sources}
    batches = {
        (size, resize): list(images_for_scoring(index, size=size, resize=resize, batch_size=_BATCH, workers=workers))
        for size, resize in dict.fromkeys(sides.values())
    }
    numbers = tuple(number for batch in next(iter(batches.values())) for number in batch.indices)
    if not numbers:
        raise UserError(
            f"Of {counted(len(index), 'image')} in {index.source}, none could be read. Check that they are images."
        )
    crops = {both: torch.cat([batch.images for batch in read]) for both, read in batches.items()}
    return numbers, {name: crops[both] for name, both in sides.items()}


@torch.inference_mode()
def _run(
    chosen: _Network,
    crops: UInt8[Tensor, "images 3 side side"],
    shown: tuple[int, ...],
    partners: tuple[int, ...],
    kinds: Sequence[str],
    seed: int,
) -> NetworkOutputs:
    """Run a network over the images."""
    device = distributed.this_device()  # that of a run is perhaps on another machine
    network = chosen.source.network(chosen.name).to(device).eval()
    own = chosen.source.preprocessing

    def run(images: UInt8[Tensor, "images 3 side side"]) -> Outputs:
        parts = torch.split(images, _AT_ONCE)
        return _joined([outputs_of(network, normalise(part.to(device), mean=own.mean, std=own.std)) for part in parts])

    both = run(crops[[*shown, *partners]])
    cls = run(crops).cls if {"neighbours", "prototypes"} & set(kinds) else None
    views = _views(chosen.source, crops, shown, seed, run) if "matches" in kinds else None
    head = _head(chosen, cls) if "prototypes" in kinds and cls is not None else None
    first, others = slice(len(shown)), slice(len(shown), None)
    return NetworkOutputs(chosen.label, crops, _part(both, first), _part(both, others), cls, views, head)


def _joined(parts: Sequence[Outputs]) -> Outputs:
    weights = [part.attention.cpu() for part in parts if part.attention is not None]
    return Outputs(
        torch.cat([part.cls.cpu() for part in parts]),
        torch.cat([part.patches.cpu() for part in parts]),
        torch.cat(weights) if weights else None,
    )


def _part(outputs: Outputs, images: slice) -> Outputs:
    weights = outputs.attention
    return Outputs(outputs.cls[images], outputs.patches[images], None if weights is None else weights[images])


def _views(
    source: ModelSource,
    crops: UInt8[Tensor, "images 3 side side"],
    shown: Sequence[int],
    seed: int,
    run: Callable[[UInt8[Tensor, "images 3 side side"]], Outputs],
) -> Views:
    """Two views of each shown image, as in training, and where they lie."""
    augmentation = views_of(source)
    side = crops.shape[-1]
    samples, regions = [], []
    for number in shown:
        pixels = channels_last(crops[number])
        samples.append(make_crops(pixels, augmentation=augmentation, generator=sample_generator(seed, 0, number)))
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
    return Views(first, second, tuple(regions), (run(first), run(second)))


def _head(network: _Network, cls: Float[Tensor, "images width"]) -> Head | None:
    """The first projection head of a trained run, with all images projected by it."""
    folder = registry.folder_of(network.source.name)
    if not is_run(folder) or network.source.branch != "teacher":
        return None
    run = load(folder)
    if run.config.method not in SELF_DISTILLED:
        return None
    head = heads_of(run, network.name)[0]
    return Head(head(cls), head.prototypes())
