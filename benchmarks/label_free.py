"""How well measures without labels foretell k-NN scores over the sizes of a run.

Every size is judged by `poa evaluate quality` and scored by k-NN, as far as the run's folder does not hold that yet;
then the correlations over sizes are printed. Those of the number of parameters stand beside them: a measure that does
not do better says no more than that larger is better.

    python benchmarks/label_free.py RUN --data IMAGES --train LABELLED --test LABELLED [--limit 2000]
"""

import argparse

from measure import machine
from poa import distributed
from poa.evaluation import evaluate, label_free
from poa.evaluation.cost import parameters
from poa.evaluation.knn import Knn
from poa.evaluation.results import Scores
from poa.models.source import model_source
from poa.plots.quality import LOWER_IS_BETTER

SIZE = "parameters"


def main() -> None:
    """Measure, score and print."""
    arguments = parse()
    source = model_source(arguments.run)
    quality = label_free.evaluate(source, arguments.data, limit=arguments.limit, workers=arguments.workers)
    protocol = Knn()
    path = evaluate.results_file(source, protocol)
    if path.exists():
        scores, _, _ = evaluate.read_scores(path)
    else:
        scores = evaluate.evaluate(
            source,
            protocol,
            train=arguments.train,
            test=arguments.test,
            limit=arguments.train_limit,
            workers=arguments.workers,
        )
    judged: Scores = {
        size: measures | {SIZE: float(parameters(source.network(size)))} for size, measures in quality.items()
    }
    print(machine(distributed.this_device()))
    print(f"{arguments.run}, {source.weights}; {arguments.limit or 'all'} images; k-NN from {path}")
    print_table(judged, {size: found[arguments.score] for size, found in scores.items()}, arguments.score)


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


def print_table(judged: Scores, scores: dict[str, float], score: str) -> None:
    """All values, and below them the correlations."""
    found = label_free.predicts(judged, scores)
    print(f"{'size':10}" + "".join(f"{name:>12}" for name in (*found, score)))
    for size, measures in judged.items():
        cells = [f"{measures[name]:12.4g}" if name in measures else f"{'-':>12}" for name in found]
        print(f"{size:10}" + "".join(cells) + f"{scores[size]:12.2f}")
    rows = {
        "spearman": [f"{one.spearman:12.2f}" for one in found.values()],
        "pearson": [f"{one.pearson:12.2f}" for one in found.values()],
        "sizes": [f"{one.num_sizes:12}" for one in found.values()],
        "chance": [f"{label_free.by_chance(one.num_sizes):12.2f}" for one in found.values()],
    }
    for name, cells in rows.items():
        print(f"{name:10}" + "".join(cells))
    print(
        "chance: unrelated values are further from 0 in 1 of 20 cases, if sizes were independent. They share "
        f"parameters, so it takes more; so few sizes say little. {' and '.join(LOWER_IS_BETTER)} should be negative."
    )


if __name__ == "__main__":
    main()
