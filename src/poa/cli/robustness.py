"""The commands ``poa evaluate robustness`` and ``poa evaluate disturbances``: disturbed images, judged and shown."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from poa.cli.evaluate import DEFAULTS, Options
from poa.cli.showing import then

if TYPE_CHECKING:
    from poa.models.source import ModelSource
    from poa.robustness.conditions import Robustness

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.

Kinds = Annotated[
    list[Literal["occlusion", "shuffle", "corruptions"]] | None, Parameter(consume_multiple=True, negative=())
]
Words = Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())]
Numbers = Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())]
Shares = Annotated[list[float] | None, Parameter(consume_multiple=True, negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class Disturbing:
    """How images are disturbed, and who judges.

    Attributes:
        kinds: Disturbances besides those of backgrounds; occlusion, shuffle and corruptions by default.
        occlusion: Shares of hidden cells; 0.1 to 0.9 by default.
        grid: Rows and columns of the cells that are hidden; up to 14, as many as divide the images, by default.
        shuffle: Rows and columns of shuffled cells; of 2, 4, 8 and 14 those that divide the images by default.
        corruptions: Such as jpeg; all by default.
        severities: From 1 to 5; all by default.
        judge: The classifier: nearest neighbours, or logistic regression.
        k: Number of neighbours.
        seed: Of all that is drawn.
    """

    kinds: Kinds = None
    occlusion: Shares = None
    grid: int | None = None
    shuffle: Numbers = None
    corruptions: Words = None
    severities: Numbers = None
    judge: Literal["knn", "linear"] = "knn"
    k: int = 20
    seed: int = 0

    def settings(self) -> "Robustness":
        """What was asked for over what is usual; kinds that were not named are left out.

        Raises:
            UserError: A kind is left out, and yet said how strong it shall be.
        """
        from poa.errors import UserError
        from poa.robustness.conditions import Robustness

        given = {"occlusion": self.occlusion, "shuffle": self.shuffle, "corruptions": self.corruptions}
        left_out = {name for name in given if self.kinds is not None and name not in self.kinds}
        for name in given:
            if name in left_out and given[name] is not None:
                raise UserError(
                    f"--{name} is given, but --kinds leaves it out. Name it there, or leave one of them out."
                )
        chosen: dict[str, Any] = {name: tuple(values) for name, values in given.items() if values is not None}
        if self.severities is not None:
            chosen["severities"] = tuple(self.severities)
        chosen |= dict.fromkeys(left_out, ())
        return Robustness(grid=self.grid, judge=self.judge, k=self.k, seed=self.seed, **chosen)


USUAL = Disturbing()


def robustness(
    model: str,
    /,
    *,
    train: str,
    test: str,
    masks: Path | None = None,
    test_limit: int | None = None,
    disturbing: Disturbing = USUAL,
    options: Options = DEFAULTS,
) -> None:
    """Score on disturbed images: hidden cells, shuffled cells, common corruptions, other backgrounds.

    A classifier of frozen features is fitted to clean training images, once for each network. `poa evaluate
    disturbances` shows what it is then asked about.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        train: Labelled images to fit the classifier to: a folder of class folders, a CSV list, an archive.
        test: Labelled images that are disturbed and classified.
        masks: Folder with a mask of each test image, its name with the ending .png, not 0 where the object is: also
            swap backgrounds.
        test_limit: Take only a class-balanced part of the test images.
        disturbing: How images are disturbed, and who judges.
        options: As for all.
    """
    from poa.models.source import model_source
    from poa.robustness import evaluate as sweep

    settings = disturbing.settings()
    networks = model_source(model, branch=options.branch, image_size=options.image_size, out=options.out)
    with then(lambda: _show(networks, options)):
        sweep.evaluate(
            networks,
            settings,
            train=train,
            test=test,
            masks=masks,
            limit=options.limit,
            test_limit=test_limit,
            options=options.of_sweep(),
        )


def disturbances(*, images: str, out: Path, image_size: int = 224, number: int = 0, seed: int = 0) -> None:
    """Show what `poa evaluate robustness` does to an image: a table of strengths, and a picture of all of them.

    Args:
        images: A folder of images, an archive, a list, or digits.
        out: PNG file to write.
        image_size: Side in pixels, to which lengths such as those of blur are scaled.
        number: Which of the images, from 0.
        seed: Of all that is drawn.
    """
    from poa.robustness.sheet import show

    strengths = show(images, out=out, image_size=image_size, number=number, seed=seed)
    Console().print(strengths)
    Console(soft_wrap=True, highlight=False, markup=False).print(f"Picture: {out}")


def _show(source: "ModelSource", options: Options) -> None:
    from poa.evaluation.evaluate import read_scores
    from poa.evaluation.results import results_file
    from poa.plots.robustness import curves, robustness_table
    from poa.robustness import evaluate as sweep

    path = results_file(source, "robustness", options.name)
    scores, intervals, _ = read_scores(path)
    shown = {network: scores[network] for network in source.choose(options.sizes) if network in scores}
    if not shown:
        return
    Console().print(robustness_table(shown, intervals))
    print_plain = Console(soft_wrap=True, highlight=False, markup=False).print
    print_plain("±: half of the 95 % interval over test images; all are means over strengths")
    print_plain(f"Scores: {path.with_suffix('.csv')}")
    panels = sweep.panels(shown)
    if panels:
        curves(panels, out=path.with_suffix(".png"), title=f"{Path(source.name).resolve().name}, {path.parent.name}")
        print_plain(f"Curves: {path.with_suffix('.png')}")
