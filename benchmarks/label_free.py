"""How well measures without labels predict k-NN scores over the sizes of a run.

Every size is measured by `poa evaluate quality` and scored by k-NN, as far as the run's folder does not hold that yet;
then the correlations over sizes are printed. Those of the number of parameters stand beside them: a measure that does
not do better says no more than that larger is better.

    python benchmarks/label_free.py RUN --data IMAGES --train LABELLED --test LABELLED [--limit 2000]
"""

import argparse
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from measure import machine
from poa import distributed
from poa.evaluation import evaluate, quality
from poa.evaluation.cost import parameters
from poa.evaluation.knn import Knn
from poa.evaluation.results import Results, Scores, results_file
from poa.evaluation.sweep import SweepOptions
from poa.models.source import model_source
from poa.plots.tables import LOWER_IS_BETTER

SIZE = "parameters"


def main() -> None:
    """Measure, score and print."""
    arguments = parse()
    source = model_source(arguments.run)
    options = SweepOptions(workers=arguments.workers)
    measured = quality.evaluate(source, arguments.data, limit=arguments.limit, options=options).scores
    path = results_file(source, Knn.name)
    if path.exists():
        scores = Results.read(path).scores
    else:
        scores = evaluate.evaluate(
            source,
            Knn(),
            train=arguments.train,
            test=arguments.test,
            limit=arguments.train_limit,
            options=options,
        ).scores
    rows: Scores = {
        size: measures | {SIZE: float(parameters(source.network(size)))} for size, measures in measured.items()
    }
    print(machine(distributed.this_device()))
    print(f"{arguments.run}, {source.weights}; {arguments.limit or 'all'} images; k-NN from {path}")
    print_table(rows, {size: found[arguments.score] for size, found in scores.items()}, arguments.score)


def parse() -> argparse.Namespace:
    """What to compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", required=True, help="images; labels are not looked at")
    parser.add_argument("--limit", type=int, help="take only so many of them")
    parser.add_argument("--train", help="labelled images that vote")
    parser.add_argument("--train-limit", type=int, help="take only so many of them")
    parser.add_argument("--test", help="labelled images that are classified")
    parser.add_argument("--score", default=Knn.headline)
    parser.add_argument("--workers", type=int, default=0)
    return parser.parse_args()


class Correlation(NamedTuple):
    """How well a measure without labels goes with a score with labels, over sizes.

    Attributes:
        spearman: Of their orders; NaN if one of them does not vary.
        pearson: Of their values.
        num_sizes: Over how many sizes.
    """

    spearman: float
    pearson: float
    num_sizes: int


def correlations(measured: Mapping[str, Mapping[str, float]], scores: Mapping[str, float]) -> dict[str, Correlation]:
    """Correlation of every measure with a score, over the sizes that have both, of which there must be three."""
    found = {}
    for measure in dict.fromkeys(name for measures in measured.values() for name in measures):
        both = [(row[measure], scores[size]) for size, row in measured.items() if size in scores and measure in row]
        if len(both) < 3:
            raise SystemExit(f"A correlation needs at least 3 sizes with {measure} and a score, got {len(both)}.")
        values, wanted = np.array(both).T
        varies = min(np.ptp(values), np.ptp(wanted)) > 0
        spearman, pearson = (
            float(correlation(values, wanted).statistic) if varies else float("nan")
            for correlation in (stats.spearmanr, stats.pearsonr)
        )
        found[measure] = Correlation(spearman, pearson, len(both))
    return found


def by_chance(num_sizes: int, *, level: float = 0.95) -> float:
    """How far from 0 a correlation over so many sizes is in 1 of 20 cases where there is none.

    As if sizes were independent; those of one run share parameters, so that it takes even more.
    """
    beyond = float(stats.t.ppf((1 + level) / 2, num_sizes - 2))
    return beyond / float(np.sqrt(num_sizes - 2 + beyond**2))


def print_table(measured: Scores, scores: dict[str, float], score: str) -> None:
    """All values, and below them the correlations."""
    found = correlations(measured, scores)
    print(f"{'size':10}" + "".join(f"{name:>12}" for name in (*found, score)))
    for size, measures in measured.items():
        cells = [f"{measures[name]:12.4g}" if name in measures else f"{'-':>12}" for name in found]
        print(f"{size:10}" + "".join(cells) + f"{scores[size]:12.2f}")
    rows = {
        "spearman": [f"{one.spearman:12.2f}" for one in found.values()],
        "pearson": [f"{one.pearson:12.2f}" for one in found.values()],
        "sizes": [f"{one.num_sizes:12}" for one in found.values()],
        "chance": [f"{by_chance(one.num_sizes):12.2f}" for one in found.values()],
    }
    for name, cells in rows.items():
        print(f"{name:10}" + "".join(cells))
    print(
        "chance: unrelated values are further from 0 in 1 of 20 cases, if sizes were independent. They share "
        f"parameters, so it takes more; so few sizes say little. {' and '.join(LOWER_IS_BETTER)} should be negative."
    )


if __name__ == "__main__":
    main()
