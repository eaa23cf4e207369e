"""The command ``poa evaluate quality``: features judged without labels."""

from typing import TYPE_CHECKING

from rich.console import Console

from poa.cli.evaluate import DEFAULTS, Options
from poa.cli.showing import then

if TYPE_CHECKING:
    from poa.models.source import ModelSource

# torch is imported when the command runs: `poa --help` and a mistyped flag shall not wait for it.


def quality(model: str, /, *, data: str, k: int = 10, seed: int = 0, options: Options = DEFAULTS) -> None:
    """Judge features without labels: RankMe, alignment, uniformity, neighbours, and CKA with the intact network.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        data: Images, labelled or not; some thousand say enough, see --limit.
        k: Number of neighbours to compare.
        seed: Of the augmented views.
        options: As for all.
    """
    from poa.evaluation import quality as measures
    from poa.models.source import model_source

    networks = model_source(model, branch=options.branch, image_size=options.image_size, out=options.out)
    with then(lambda: _show(networks, options)):
        measures.evaluate(
            networks,
            data,
            k=k,
            seed=seed,
            limit=options.limit,
            options=options.of_sweep(),
        )


def _show(source: "ModelSource", options: Options) -> None:
    from poa.evaluation.evaluate import read_scores
    from poa.evaluation.results import results_file
    from poa.plots.tables import quality_table

    path = results_file(source, "quality", options.name)
    measures, _, _ = read_scores(path)
    shown = {network: measures[network] for network in source.choose(options.sizes) if network in measures}
    if shown:
        Console().print(quality_table(shown))
        Console(soft_wrap=True, highlight=False, markup=False).print(f"Measures: {path.with_suffix('.csv')}")
