"""The command ``poa evaluate``: one sub-command for each way of scoring."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console

from poa.cli.showing import show_scores, then
from poa.errors import UserError

if TYPE_CHECKING:
    from poa.evaluation.protocol import Protocol
    from poa.evaluation.sweep import SweepOptions
    from poa.models.source import ModelSource

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.

evaluate = App(name="evaluate", help="Score networks on labelled images: sizes of a run, extracted ones, or timm's.")

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]
Numbers = Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())]
Strengths = Annotated[list[float] | None, Parameter(consume_multiple=True, negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What all ways of scoring take.

    Attributes:
        sizes: Names such as 384x12; all by default.
        branch: The trained teacher, or to compare with: untrained networks, or those cut out of the weights that the
            run began with (--init).
        name: Folder of the results in --out; the protocol's name, with the branch, by default.
        image_size: Side of the images in pixels; that which the network is made for by default.
        out: Folder of all results; RUN/eval, or eval/NAME of another network, by default.
        limit: Take only a class-balanced part of the training images (of the test images where none are needed).
        workers: Processes that decode images.
        overwrite: Forget earlier results of that name.
    """

    sizes: Names = ("all",)
    branch: Literal["teacher", "untrained", "initial"] = "teacher"
    name: str | None = None
    image_size: int | None = None
    out: Path | None = None
    limit: int | None = None
    workers: int = 0
    overwrite: Switch = False

    def of_sweep(self) -> "SweepOptions":
        """Those that all sweeps take."""
        from poa.evaluation.sweep import SweepOptions

        return SweepOptions(self.sizes, self.name, self.workers, self.overwrite, Console(stderr=True))


DEFAULTS = Options()


@Parameter(name="*")
@dataclass(frozen=True)
class Together:
    """How linear classifiers of all sizes are trained together.

    Attributes:
        learning_rates: To choose from on a fifth of the training images; six from 0.0003 to 0.1 by default.
        epochs: Passes over the training images.
        distil: Smaller sizes learn from the largest as well.
    """

    learning_rates: Strengths = None
    epochs: int = 90
    distil: bool = True

    def settings(self) -> dict[str, Any]:
        """Of the protocol."""
        rates = {} if self.learning_rates is None else {"learning_rates": tuple(self.learning_rates)}
        return {"epochs": self.epochs, "distilled": self.distil, **rates}


TOGETHER = Together()


@evaluate.command
def knn(model: str, /, *, train: str, test: str, k: Numbers = None, options: Options = DEFAULTS) -> None:
    """Score by weighted k-nearest neighbours.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        train: Labelled images that vote: a folder of class folders, a CSV list, an archive.
        test: Labelled images that are classified.
        k: Numbers of neighbours; 10, 20, 100 and 200 by default.
        options: As for all.
    """
    from poa.evaluation.knn import Knn

    _score(model, Knn(ks=None if k is None else tuple(k)), train, test, options)


@evaluate.command
def linear(
    model: str,
    /,
    *,
    train: str,
    test: str,
    classifier: Literal["own", "switchable", "slimmable"] = "own",
    strengths: Strengths = None,
    together: Together = TOGETHER,
    options: Options = DEFAULTS,
) -> None:
    """Score by logistic regression on all training images, its penalty chosen on a fifth of them.

    Or, as SlimCLR does, by classifiers of all sizes that are trained together by SGD.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        train: Labelled images to learn from: a folder of class folders, a CSV list, an archive.
        test: Labelled images that are classified.
        classifier: Each size by itself; or all together, a classifier for each (switchable), or one of which narrow
            sizes read the first columns (slimmable).
        strengths: Of the penalty, to choose from; eleven around 1 / number of classes by default.
        together: How classifiers are trained together.
        options: As for all.
    """
    from poa.evaluation.joint_linear import Slimmable, Switchable
    from poa.evaluation.linear import Linear

    protocol: Protocol
    if classifier == "own":
        _refuse(together != TOGETHER, "--learning-rates, --epochs and --no-distil are for --classifier switchable.")
        protocol = Linear(strengths=None if strengths is None else tuple(strengths))
    else:
        _refuse(strengths is not None, "--strengths are those of --classifier own; others take --learning-rates.")
        protocol = (Switchable if classifier == "switchable" else Slimmable)(**together.settings())
    _score(model, protocol, train, test, options)


@evaluate.command
def probe(
    model: str,
    /,
    *,
    train: str,
    test: str,
    epochs: int = 100,
    learning_rates: Strengths = None,
    choose_on: Literal["held-out", "test"] = "held-out",
    raw: Switch = False,
    options: Options = DEFAULTS,
) -> None:
    """Score by many linear classifiers on several layers, trained by SGD at once, of which one is kept.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        train: Labelled images to learn from: a folder of class folders, a CSV list, an archive.
        test: Labelled images that are classified.
        epochs: Passes over the training images, at most 12,500 steps.
        learning_rates: To choose from, at batch size 256; thirteen from 1e-5 to 0.1 by default.
        choose_on: A fifth of the training images, or, as published, the test images themselves.
        raw: Leave features as they are (as published) in place of standardising them.
        options: As for all.
    """
    from poa.evaluation.probe import Probe

    given: dict[str, Any] = {} if learning_rates is None else {"learning_rates": tuple(learning_rates)}
    _score(model, Probe(epochs=epochs, choose_on=choose_on, standardise=not raw, **given), train, test, options)


@evaluate.command
def few_shot(
    model: str,
    /,
    *,
    train: str,
    test: str,
    per_class: int | None = None,
    share: float | None = None,
    draws: int = 5,
    strengths: Strengths = None,
    options: Options = DEFAULTS,
) -> None:
    """Score by logistic regression on a few training images of each class, drawn several times.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        train: Labelled images to draw from: a folder of class folders, a CSV list, an archive.
        test: Labelled images that are classified.
        per_class: Images of each class, such as 1, 5 or 10.
        share: Or the share of each class's images, such as 0.01 or 0.1.
        draws: How often to draw.
        strengths: Of the penalty, to choose from; eleven around 1 / number of classes by default.
        options: As for all.
    """
    from poa.evaluation.linear import FewShot

    chosen = None if strengths is None else tuple(strengths)
    protocol = FewShot(per_class=per_class, share=share, draws=draws, strengths=chosen)
    _score(model, protocol, train, test, options)


@evaluate.command
def cluster(
    model: str,
    /,
    *,
    test: str,
    clusters: int | None = None,
    seeds: int = 1,
    restarts: int = 10,
    normalise: Switch = False,
    options: Options = DEFAULTS,
) -> None:
    """Score by k-means on the test images: how well clusters match classes.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        test: Labelled images that are clustered.
        clusters: How many; as many as there are classes by default.
        seeds: Number of clusterings to average over.
        restarts: Times that each begins anew.
        normalise: Scale features to length 1 first.
        options: As for all.
    """
    from poa.evaluation.clustering import Cluster

    protocol = Cluster(clusters=clusters, seeds=tuple(range(seeds)), restarts=restarts, normalise=normalise)
    _score(model, protocol, None, test, options)


@evaluate.command
def retrieval(model: str, /, *, train: str, test: str, k: Numbers = None, options: Options = DEFAULTS) -> None:
    """Score by how early the training images of a test image's class come, by cosine.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        train: Labelled images to find: a folder of class folders, a CSV list, an archive.
        test: Labelled images to find them by.
        k: For recall; 1, 5 and 10 by default.
        options: As for all.
    """
    from poa.evaluation.retrieval import Retrieval

    _score(model, Retrieval(ks=None if k is None else tuple(k)), train, test, options)


def _refuse(wrong: bool, sentence: str) -> None:
    if wrong:
        raise UserError(sentence)


def _score(name: str, protocol: "Protocol", train: str | None, test: str, options: Options) -> None:
    """Score, show the table and say where the rest is; networks that could not be scored are told after that."""
    from poa.evaluation import evaluate as scoring
    from poa.models.source import model_source

    source = model_source(name, branch=options.branch, image_size=options.image_size, out=options.out)
    with then(lambda: _show(source, protocol, options)):
        scoring.evaluate(
            source,
            protocol,
            train=train,
            test=test,
            limit=options.limit,
            options=options.of_sweep(),
        )


def _show(source: "ModelSource", protocol: "Protocol", options: Options) -> None:
    from poa.evaluation.results import results_file
    from poa.plots.sizes import map_of_rows

    path = results_file(source, protocol.name, options.name)
    rows, headline = show_scores(source, path, headline=protocol.headline, sizes=options.sizes)
    title = f"{Path(source.name).resolve().name}, {path.parent.name}"
    if map_of_rows(rows, headline, out=path.with_suffix(".png"), title=title):
        Console(soft_wrap=True, highlight=False).print(f"Map: {path.with_suffix('.png')}")
