"""Cost of scoring: k-NN of all sizes of the demo's run by the sweep, over the bare forward passes of the same networks.

Bare are the passes of all sizes, cut beforehand, over all images, decoded and normalised beforehand, in batches of the
same size. The sweep reads and decodes images, cuts sizes out, keeps features on disk, and classifies. Both in turns in
one process; both times are measured, of the clock and of the processor (all threads), since other work on the machine
lengthens the first.

    python benchmarks/sweep_cost.py [--rounds 5] [--threads 1] [--profile]
"""

import argparse
import cProfile
import io
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from measure import in_turns, machine, ratio
from poa import distributed
from poa.config import resolve
from poa.data.augment import normalise
from poa.data.index import open_index
from poa.data.loader import images_for_scoring
from poa.evaluation import evaluate
from poa.evaluation.evaluate import BATCH
from poa.evaluation.knn import Knn
from poa.evaluation.sweep import SweepOptions
from poa.experiments.demo import TEST, TRAIN
from poa.models.run import Paths
from poa.models.source import ModelSource, model_source
from poa.pretraining.process import train

TARGET = 1.3
QUIET = Console(quiet=True)


def main() -> None:
    """Train for an epoch if there is no run, measure and print."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(arguments.run or Path(folder, "run"))
        if not Paths(run).config.exists():
            train(resolve.resolve({"out": str(run), "epochs": 1}, recipe="demo"), console=QUIET)
        compare(model_source(str(run), out=Path(folder, "eval")), arguments)


def parse() -> argparse.Namespace:
    """What to compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a run on the digits; trained for one epoch if it is not there")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; torch's own choice by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="also show where the sweep's time goes")
    return parser.parse_args()


def compare(source: ModelSource, arguments: argparse.Namespace) -> None:
    """Time both in turns."""
    device = distributed.this_device()
    networks = [source.network(name).to(device).eval() for name in source.names]
    batches = prepared(source, device)
    processor: dict[str, list[float]] = {"sweep": [], "bare": []}

    def sweep() -> None:
        evaluate.evaluate(source, Knn(), train=TRAIN, test=TEST, options=SweepOptions(overwrite=True, console=QUIET))

    def timed(name: str, work: Callable[[], None]) -> Callable[[int], None]:
        def run(_: int) -> None:
            began = time.process_time()
            work()
            processor[name].append(time.process_time() - began)

        return run

    clock = in_turns(
        {"sweep": timed("sweep", sweep), "bare": timed("bare", lambda: bare(networks, batches))},
        rounds=arguments.rounds,
        device=device,
    )
    processor = {name: values[1:] for name, values in processor.items()}  # the first round warms up
    images = sum(len(batch) for batch in batches)
    print(machine(device))
    side = source.preprocessing.image_size
    print(f"{len(networks)} sizes, {images} images of {side} px, batches of {len(batches[0])}, {device}")
    for what, seconds in (("clock", clock), ("processor", processor)):
        for name, values in seconds.items():
            print(f"{what:9} {name:6} {statistics.median(values):8.2f} s   (least {min(values):.2f})")
        print(f"{what:9} ratio  {ratio(seconds['sweep'], seconds['bare']):8.3f}     (target: at most {TARGET})")
    if arguments.profile:
        print(profile(sweep))


def prepared(source: ModelSource, device: torch.device) -> list[Tensor]:
    """All images as the sweep batches them, ready for the networks."""
    seen = source.preprocessing
    return [
        normalise(batch.images.to(device), mean=seen.mean, std=seen.std)
        for data in (TRAIN, TEST)
        for batch in images_for_scoring(open_index(data), size=seen.image_size, resize=seen.resize, batch_size=BATCH)
    ]


@torch.inference_mode()
def bare(networks: Sequence[nn.Module], batches: Sequence[Tensor]) -> None:
    """Forward passes and nothing else."""
    for network in networks:
        for batch in batches:
            network(batch)


def profile(work: Callable[[], None], *, lines: int = 40) -> str:
    """Where the time goes: functions by the time spent in them and all that they call."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("cumulative").print_stats(lines)
    return text.getvalue()


if __name__ == "__main__":
    main()
