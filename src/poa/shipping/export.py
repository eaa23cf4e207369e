"""``poa export``: each network in each format and precision, written, run apart from this package, and compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxtyping import UInt8
from rich.console import Console
from torch import Tensor

from poa.data.index import ImageIndex
from poa.data.sources import Data
from poa.errors import UserError, first_line
from poa.export.about import Precision
from poa.export.apart import run_apart
from poa.export.onnx import check_onnx
from poa.export.openvino import check_openvino
from poa.export.program import check_executorch
from poa.features.images import open_images
from poa.files import make_folder, working_folder
from poa.shipping.check import BATCHES, Agreement, Outputs, agreement, as_input, outputs, refusal, sample
from poa.shipping.maker import ENDINGS, Maker
from poa.shipping.networks import PRECISIONS, Exportable, Exportables
from poa.shipping.scores import Labelled, Scored, open_labelled, score
from poa.text import note, plain_console
from poa.training.progress import Bars

NUM_CALIBRATED = 128
"""Images that give the ranges of int8."""


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        formats: Keys of ``ENDINGS``.
        precisions: Of the computation.
        pixels: Whether files take pixels and normalise them themselves.
        images: Images to compare on; by default those of the calibration or of the run, else digits.
        calibrate: Images that give the ranges of int8; by default those of the run.
        labelled: Images with labels, for the loss in score of int8 files.
        tolerance: Largest difference allowed, as a share of the largest value; by default that of the precision.
        max_loss: Of an int8 file in score, in points of percent.
        out: Folder of the files; by default that of the networks.
        overwrite: Replace files that are there.
    """

    formats: Sequence[str] = ("onnx",)
    precisions: Sequence[str] = ("fp32",)
    pixels: bool = False
    images: Data | None = None
    calibrate: Data | None = None
    labelled: Labelled | None = None
    tolerance: float | None = None
    max_loss: float = 1.0
    out: str | Path | None = None
    overwrite: bool = False


class Exported(NamedTuple):
    """A file, and how it compares with the network.

    Attributes:
        file: Where it is.
        num_bytes: Its size, with that of files that belong to it.
        agreement: On the images of the comparison.
        milliseconds: Median time of one image, on one thread.
        scores: In percent, of the network and of the file, where labelled images are given.
    """

    file: Path
    num_bytes: int
    agreement: Agreement
    milliseconds: float
    scores: tuple[float, float] | None = None


class Result(NamedTuple):
    """All files that are good, why others are not, by name, and the images of the comparison in words."""

    files: tuple[Exported, ...]
    refused: Mapping[str, str]
    images: str


class _Opened(NamedTuple):
    """The images of a command; those of a calibration if files of int8 are asked for."""

    compared: ImageIndex
    calibration: ImageIndex | None
    scored: Scored | None


class _Reference(NamedTuple):
    """What the files of a network are compared with."""

    images: UInt8[Tensor, "images 3 side side"]
    outputs: Outputs
    score: float | None


def export(given: Exportables, wish: Wish, *, console: Console | None = None) -> Result:
    """Export networks to files; each is kept only if it does what the network does.

    Raises:
        UserError: Something asked for does not exist or is not possible. Nothing is written then.
    """
    console = console or plain_console(stderr=True)
    combinations, out = _combinations(given, wish, console), Path(wish.out or given.out)
    targets = {
        name: {each: out / _file_name(f"{name}{given.mark}", *each, pixels=wish.pixels) for each in combinations}
        for name in given.names
    }
    there = [path for own in targets.values() for path in own.values() if path.exists()]
    if there and not wish.overwrite:
        raise UserError(f"{there[0]} already exists. Choose another --out, or replace it with --overwrite.")
    opened = _open(given, wish, has_int8=any(precision == "int8" for _, precision in combinations), console=console)
    make_folder(out, content="Exported files")
    found, refused = list[Exported](), dict[str, str]()
    with Bars(console) as bars:
        advance = bars.add("files", len(given.names) * len(combinations))
        for name, own in targets.items():
            for target, file in _of_network(given.network(name), own, opened, wish):
                if isinstance(file, Exported):
                    found.append(file)
                else:
                    refused[target.name] = str(file)
                advance(note=target.name)
    return Result(tuple(found), refused, opened.compared.source)


def _combinations(given: Exportables, wish: Wish, console: Console) -> list[tuple[str, Precision]]:
    """Formats with those of the precisions that they have; packages that these need are there."""
    for what, asked, known in (
        ("--format", wish.formats, tuple(ENDINGS)),
        ("--precision", wish.precisions, PRECISIONS["onnx"]),
    ):
        if not asked or not set(asked) <= set(known):
            raise UserError(f"{what} must be one or more of {', '.join(known)}, got {', '.join(asked) or 'none'}.")
    for what, value in (("--tolerance", wish.tolerance), ("--max-loss", wish.max_loss)):
        if value is not None and not value >= 0:
            raise UserError(f"{what} must be 0 or more, got {value:g}.")
    checks = {"onnx": check_onnx, "openvino": check_openvino, "executorch": check_executorch}
    found = list[tuple[str, Precision]]()
    for kind in dict.fromkeys(wish.formats):
        if kind in checks:
            checks[kind]()
        possible = given.precisions.get(kind, ())
        own = [precision for precision in possible if precision in wish.precisions]
        lacking = [precision for precision in wish.precisions if precision not in own]
        if not own:
            choices = "; ".join(f"--format {name}: {', '.join(known)}" for name, known in given.precisions.items())
            raise UserError(
                f"{given.names[0]} cannot be exported with --format {kind} --precision {' '.join(lacking)}. Choose "
                f"from {choices}."
            )
        if lacking:
            note(console, f"--format {kind} has no {' and no '.join(lacking)}; it is written in {', '.join(own)}.")
        found += [(kind, precision) for precision in own]
    return found


def _file_name(name: str, kind: str, precision: Precision, *, pixels: bool) -> str:
    marks = [mark for mark, is_there in ((precision, precision != "fp32"), ("pixels", pixels)) if is_there]
    return "-".join([name.replace("/", "-"), *marks]) + ENDINGS[kind]


def _open(given: Exportables, wish: Wish, *, has_int8: bool, console: Console) -> _Opened:
    if wish.labelled is not None and not has_int8:
        raise UserError("--train and --test score files of int8. Add --precision int8, or leave them out.")
    calibration = _calibration(given, wish, console) if has_int8 else None
    scored = None if wish.labelled is None else open_labelled(wish.labelled)
    named = wish.calibrate if wish.images is None else wish.images
    if wish.images is None and calibration is not None:
        compared = calibration
    elif named is not None:
        compared = open_images(named, console=console)
    else:
        compared = _usual_images(given.data, console)
    return _Opened(compared, calibration, scored)


def _calibration(given: Exportables, wish: Wish, console: Console) -> ImageIndex:
    if wish.calibrate is not None:
        return open_images(wish.calibrate, console=console)
    if given.data is None:
        raise UserError("--precision int8 needs images that are like those of later use: give --calibrate FOLDER.")
    try:
        return open_images(given.data, console=console)
    except UserError as error:
        raise UserError(
            f"--precision int8 needs images, and those of the run cannot be opened ({first_line(error)}). Give "
            "--calibrate FOLDER with images that are like those of later use."
        ) from None


def _usual_images(data: Data | None, console: Console) -> ImageIndex:
    """Of the run, as far as they are still there; else the digits that every installation has."""
    try:
        return open_images(data or "digits", console=console)
    except UserError:
        return open_images("digits", console=console)


def _of_network(
    network: Exportable, targets: Mapping[tuple[str, Precision], Path], opened: _Opened, wish: Wish
) -> Iterator[tuple[Path, Exported | UserError]]:
    """The files of a network, or why there is none."""
    prepared = network.preprocessing
    images = sample(opened.compared, prepared, most=sum(BATCHES))
    expected = outputs(network.network, images, prepared, at_once=1 if network.task == "detection" else 32)
    calibration = before = None
    if opened.calibration is not None:
        calibration = as_input(sample(opened.calibration, prepared, most=NUM_CALIBRATED), prepared, pixels=wish.pixels)
        if opened.scored is not None:
            before = score(lambda some: outputs(network.network, some, prepared)[0], network, opened.scored)
    reference = _Reference(images, expected, before)
    folder = next(iter(targets.values())).parent
    with working_folder(folder / "files") as work:
        maker = Maker(network, work, pixels=wish.pixels, calibration=calibration)
        for (kind, precision), target in targets.items():
            try:
                written = maker.make(kind, precision, target.name)
                file = _checked(written, network, precision, reference, opened.scored, wish)
                for part in reversed(written):
                    part.replace(folder / part.name)
                yield target, file._replace(file=target)
            except UserError as error:
                yield target, error


def _checked(
    written: Sequence[Path],
    network: Exportable,
    precision: Precision,
    reference: _Reference,
    scored: Scored | None,
    wish: Wish,
) -> Exported:
    """Run a file apart from this package.

    Raises:
        UserError: It does something else than the network.
    """
    file, prepared = written[0], network.preprocessing
    single = file.suffix == ".pte" or network.task == "detection"

    def run(images: Tensor) -> Tensor:
        given = as_input(images, prepared, pixels=wish.pixels)
        return run_apart(file, given, batch=1 if single else 32).outputs[0]

    given = as_input(reference.images, prepared, pixels=wish.pixels)
    reply = run_apart(file, given, batches=() if single else BATCHES, batch=1, is_timed=True)
    found = agreement(reply.outputs, reference.outputs)
    why = refusal(found, precision, tolerance=wish.tolerance)
    scores = None
    if why is None and precision == "int8" and scored is not None and reference.score is not None:
        scores = (reference.score, score(run, network, scored))
        if scores[0] - scores[1] > wish.max_loss:
            why = (
                f"its score is {scores[1]:.1f}, that of the network {scores[0]:.1f}, a loss of more than "
                f"{_points(wish.max_loss)}; calibrate on more images, take fp16, or allow it with --max-loss"
            )
    if why is not None:
        raise UserError(f"{file.name} is not kept: {why}.")
    return Exported(file, sum(part.stat().st_size for part in written), found, reply.milliseconds, scores)


def _points(number: float) -> str:
    return "1 point" if number == 1 else f"{number:g} points"
