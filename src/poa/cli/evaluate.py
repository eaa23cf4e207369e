"""The command ``poa evaluate``: a sub-command for each way to score networks, and what they show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from cyclopts import App, Parameter, validators

from poa.cli.show import show_sizes, show_table
from poa.config.protocols import (
    MAX_BAD_SHARE,
    ClusterSettings,
    FewShotSettings,
    JointLinearSettings,
    KnnSettings,
    LinearSettings,
    ProbeSettings,
    QualitySettings,
    RetrievalSettings,
    RobustnessSettings,
)
from poa.config.values import Settings, Step, flag
from poa.errors import UserError
from poa.machine.launchers import is_first
from poa.text import plain_console, tell

if TYPE_CHECKING:
    from poa.data.sources import Data
    from poa.evaluation.results import Results, Scores
    from poa.evaluation.sweep import SweepOptions
    from poa.models.source import ModelSource
    from poa.plots.tables import SizeRow

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.

evaluate = App(
    name="evaluate",
    help="Score networks on labelled images: sizes of a run, extracted sizes, or timm models.\n\n"
    "Example: poa evaluate knn runs/mine --train LABELLED/train --test LABELLED/test",
)

FLAGS = Parameter(name="*", consume_multiple=1, negative_iterable=())
"""For settings that are flags, each by its own name."""
SEVERAL = Parameter(consume_multiple=1, negative=())
"""For a list, which is not empty: a flag that has lost its values shall not stand for all or for nothing."""
Model = Annotated[
    str, Parameter(help="Folder of a run; an extracted size or another folder that timm loads; or a timm name.")
]
Kinds = Annotated[tuple[Literal["occlusion", "shuffle", "corruptions"], ...] | None, SEVERAL]
Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Names = Annotated[tuple[str, ...], SEVERAL, Parameter(show_default=False)]
Sources = Annotated[tuple[str, ...], SEVERAL]
"""Images of one source or of several."""
OptionalSources = Annotated[tuple[str, ...] | None, SEVERAL]


@Parameter(name="*")
@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        train: Labelled images to learn from: a folder of class folders, a CSV list, an archive; or several of these.
        test: Labelled images to test on.
    """

    train: Sources
    test: Sources


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """Options of all evaluations.

    Attributes:
        sizes: Names such as 96x4; all by default.
        branch: The trained teacher; or, for comparison, untrained networks, or networks cut out of the weights that the
            run started from (--init).
        name: Folder of the results in --out; by default named after the protocol and the branch.
        image_size: Side of the images in pixels; by default the size that the network is made for.
        out: Folder of all results; by default RUN/eval, or eval/NAME for other networks.
        checkpoint: Step of the run's checkpoint to use, or `best`; the newest by default.
        limit: Use only so many training images, balanced over classes (test images where no training images are used).
        workers: Processes that decode images.
        overwrite: Replace earlier results of that name.
        max_bad_share: Largest share of the training or test images that may be unreadable and left out of the scores.
    """

    sizes: Names = ("all",)
    branch: Literal["teacher", "untrained", "initial"] = "teacher"
    name: str | None = None
    image_size: int | None = None
    out: Path | None = None
    checkpoint: Step | None = None
    limit: int | None = None
    workers: int = 0
    overwrite: Switch = False
    max_bad_share: float = MAX_BAD_SHARE

    def source(self, model: str) -> "ModelSource":
        """The networks that are meant."""
        from poa.models.source import model_source

        source = model_source(
            model, branch=self.branch, image_size=self.image_size, out=self.out, checkpoint=self.checkpoint
        )
        if self.out is None and source.family is None:  # not in a folder of its own
            text = f"Results are written to {source.out} in the current folder; --out FOLDER names another place."
            tell(plain_console(stderr=True, quiet=not is_first()), text)
        return source

    def at(self, image_size: int) -> Self:
        """With a size of images where none is given and this one is not 0."""
        return self if self.image_size is not None else replace(self, image_size=image_size or None)

    def of_sweep(self) -> "SweepOptions":
        """Those that all sweeps take."""
        from poa import distributed
        from poa.evaluation.sweep import SweepOptions

        console = plain_console(stderr=True, quiet=not distributed.is_main())
        return SweepOptions(self.sizes, self.name, self.workers, self.overwrite, console, self.max_bad_share)


DEFAULTS = Options()


def _add(kind: type[KnnSettings | FewShotSettings | RetrievalSettings]) -> None:
    """Make the command of a protocol, whose flags and help are its settings."""
    usual: Settings = kind()

    def command(model: Model, /, *, images: Images, settings: Settings = usual, options: Options = DEFAULTS) -> None:
        _score(model, kind.name, settings.given(), images.train, images.test, options)

    command.__annotations__["settings"] = Annotated[kind, FLAGS]
    evaluate.command(command, name=kind.name, help=kind.__doc__)


for _kind in (KnnSettings, FewShotSettings, RetrievalSettings):
    _add(_kind)


@evaluate.command
def linear(
    model: Model,
    /,
    *,
    images: Images,
    classifier: Literal["own", "switchable", "slimmable"] = "own",
    own: Annotated[LinearSettings, FLAGS] = LinearSettings(),
    joint: Annotated[JointLinearSettings, FLAGS] = JointLinearSettings(),
    options: Options = DEFAULTS,
) -> None:
    """Score by logistic regression on all training images, with the penalty chosen on a fifth of them.

    Or, as SlimCLR does, by classifiers of all sizes that are trained together by SGD.

    Args:
        classifier: A classifier for each size, trained by itself (own) or together with the others (switchable); or
            one for all sizes, of which narrow ones use the first columns (slimmable).
    """
    if classifier == "own" and joint.given():
        flags = ", ".join(flag([name]) for name in joint.given()).replace("--distilled", "--no-distil")
        raise UserError(f"--classifier own does not use {flags}. Leave out {flags}, or choose switchable or slimmable.")
    if classifier != "own" and own.given():
        raise UserError(f"--classifier {classifier} does not use --strengths. Leave out --strengths, or choose own.")
    protocol = "linear" if classifier == "own" else f"linear-{classifier}"
    _score(model, protocol, own.given() | joint.given(), images.train, images.test, options)


@evaluate.command
def probe(
    model: Model,
    /,
    *,
    images: Images,
    settings: Annotated[ProbeSettings, FLAGS] = ProbeSettings(),
    raw: Switch = False,
    options: Options = DEFAULTS,
) -> None:
    """Score by a linear probe: many linear classifiers on several layers, trained together by SGD; the best is kept.

    Args:
        raw: Do not standardise features (as published).
    """
    given = settings.given() | ({"standardise": False} if raw else {})
    _score(model, "probe", given, images.train, images.test, options)


@evaluate.command
def cluster(
    model: Model,
    /,
    *,
    test: Sources,
    settings: Annotated[ClusterSettings, FLAGS] = ClusterSettings(),
    seeds: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1,
    options: Options = DEFAULTS,
) -> None:
    """Score by k-means on the test images: how well clusters match classes.

    Args:
        test: Labelled images that are clustered.
        seeds: Number of clusterings to average over.
    """
    _score(model, "cluster", settings.given() | {"seeds": tuple(range(seeds))}, None, test, options)


def _score(
    model: str, protocol: str, given: Mapping[str, Any], train: "Data | None", test: "Data", options: Options
) -> None:
    """Score by a protocol with the settings that are given; show a table, and draw a map of sizes."""
    from poa.evaluation import evaluate as scoring
    from poa.evaluation.headings import heading_of
    from poa.plots.maps import map_of_rows

    source, chosen = options.source(model), scoring.protocol_of(protocol, given)

    def show(results: "Results", path: Path) -> None:
        rows, headline = show_scores(source, results, path, headline=chosen.headline, sizes=options.sizes)
        if map_of_rows(rows, headline, out=path.with_suffix(".png"), title=heading_of(source, test)):
            say(f"Map: {path.with_suffix('.png')}")

    sweep = partial(scoring.evaluate, source, chosen, train=train, test=test, limit=options.limit)
    show_results(sweep, show, source, options)


@evaluate.command
def quality(
    model: Model,
    /,
    *,
    data: Sources,
    settings: Annotated[QualitySettings, FLAGS] = QualitySettings(),
    options: Options = DEFAULTS,
) -> None:
    """Measure features without labels: RankMe, alignment, uniformity, neighbours, and CKA with the intact network.

    Args:
        data: Images, labelled or not; some thousand are enough, see --limit.
    """
    from poa.evaluation import quality as measuring
    from poa.plots.tables import quality_table

    source = options.source(model)

    def show(results: "Results", path: Path) -> None:
        show_table(quality_table(_asked(source, results, options)))
        say(f"Measures: {path.with_suffix('.csv')}")

    sweep = partial(measuring.evaluate, source, data, **settings.given(), limit=options.limit)
    show_results(sweep, show, source, options)


@evaluate.command
def robustness(
    model: Model,
    /,
    *,
    images: Images,
    masks: Path | None = None,
    test_limit: int | None = None,
    kinds: Kinds = None,
    settings: Annotated[RobustnessSettings, FLAGS] = RobustnessSettings(),
    options: Options = DEFAULTS,
) -> None:
    """Score under conditions: hidden cells, shuffled cells, common corruptions, other backgrounds.

    A classifier of frozen features is fitted to clean training images, once for each network. `poa evaluate
    disturbances` shows the conditions.

    Args:
        masks: Folder with a mask of each test image: a PNG file of the same name, 0 on the background. With masks,
            backgrounds are swapped too.
        test_limit: Use only so many test images, balanced over classes.
        kinds: Conditions besides other backgrounds; occlusion, shuffle and corruptions by default.
    """
    from poa.evaluation.headings import heading_of
    from poa.robustness import evaluate as scoring
    from poa.robustness.conditions import Robustness
    from poa.robustness.plots import curves, robustness_table

    given = settings.given()
    for kind in ("occlusion", "shuffle", "corruptions"):
        if kinds is not None and kind not in kinds:
            if kind in given:
                raise UserError(
                    f"--{kind} is given, but --kinds does not include {kind}. Add it to --kinds, or leave out --{kind}."
                )
            given[kind] = ()
    source = options.source(model)

    def show(results: "Results", path: Path) -> None:
        shown = _asked(source, results, options)
        show_table(robustness_table(shown, results.intervals))
        say("±: half of the 95 % interval over test images; each score is a mean over strengths")
        say(f"Scores: {path.with_suffix('.csv')}")
        if panels := scoring.panels(shown):
            curves(panels, out=path.with_suffix(".png"), title=heading_of(source, images.test))
            say(f"Curves: {path.with_suffix('.png')}")

    sweep = partial(scoring.evaluate, source, Robustness(**given), train=images.train, test=images.test, masks=masks)
    show_results(partial(sweep, limit=options.limit, test_limit=test_limit), show, source, options)


@evaluate.command
def disturbances(*, images: Sources, out: Path, image_size: int = 224, number: int = 0, seed: int = 0) -> None:
    """Show the conditions of `poa evaluate robustness` on an image: a table of strengths, and a picture of them all.

    Args:
        images: A folder of images, an archive, a list, or digits.
        out: PNG file to write.
        image_size: Side in pixels, to which lengths such as those of blur are scaled.
        number: Number of the image, counted from 0.
        seed: Seed of everything random.
    """
    from poa.robustness.plots import show

    plain_console().print(show(images, out=out, image_size=image_size, number=number, seed=seed))
    say(f"Picture: {out}")


def say(line: str) -> None:
    """Print a line as it is, however long."""
    tell(plain_console(), line)


def show_results(
    sweep: Callable[..., "Results"],
    show: Callable[["Results", Path], None],
    source: "ModelSource",
    options: Options,
) -> None:
    """Run a sweep, on all processes of a launcher, and show its results, if some were asked for.

    Networks without scores are reported after that.
    """
    from poa import distributed
    from poa.evaluation.results import NotScored, results_file

    problem = None
    with distributed.process_group(device=distributed.this_device()):
        try:
            results = sweep(options=options.of_sweep())
        except NotScored as error:
            results, problem = error.results, error
        if distributed.is_main() and _asked(source, results, options):
            show(results, results_file(source, results.protocol, options.name))
        distributed.barrier()  # torchrun ends all processes once one has failed
    if problem is not None:
        raise problem


def _asked(source: "ModelSource", results: "Results", options: Options) -> "Scores":
    """The scores of the networks asked for, as far as they have some."""
    return {name: results.scores[name] for name in source.choose(options.sizes) if name in results.scores}


def show_scores(
    source: "ModelSource",
    results: "Results",
    path: Path,
    *,
    headline: str,
    sizes: Sequence[str],
    further: Sequence[str] = (),
) -> "tuple[list[SizeRow], str]":
    """Print the table of the networks asked for, where the files are, and further lines.

    Returns:
        All networks with scores, those that were not asked for too, and the score to draw: ``headline``, or the first
        score where it is missing.
    """
    from poa.choice.subjects import measured_rows
    from poa.evaluation.rows import scored_rows
    from poa.plots.tables import score_names

    rows, notes = measured_rows(source, scored_rows(source, results.scores, intervals=results.intervals))
    chosen = set(source.choose(sizes))
    shown = [row for row in rows if str(row.size) in chosen]
    names = sorted(score_names(shown), key=lambda name: (name != headline, not name.startswith("top1")))
    show_sizes(shown, names, notes=notes, all_in=path.with_suffix(".csv"))
    for line in (f"Scores: {path.with_suffix('.csv')}", *further):
        say(line)
    return rows, names[0]
