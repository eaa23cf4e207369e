"""Seconds that a step waits for a checkpoint: until it is on the disk, or until there is a copy to write from.

    python benchmarks/checkpoints.py [--recipe vit-small-data] [--out runs]

Both in turns, of a run that has done a step.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch

from measure import in_turns, machine, ratio
from poa.config import resolve
from poa.data.index import open_index
from poa.distributed import this_device
from poa.pretraining.build import assemble
from poa.pretraining.step import step_batches, train_step
from poa.training.background import Background
from poa.training.checkpoint import save_checkpoint, write_checkpoint
from poa.training.health import check_state
from poa.training.states import state_of


def main() -> None:
    """Measure both in turns, and how long the writing takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="vit-small-data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="on the disk that is measured; by default where temporary files are")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = resolve.resolve({"data": "digits", "batch_size": 8, "out": "unused"}, recipe=arguments.recipe)
    device, index = this_device(config.device, float64=False), open_index("digits", limit=64)
    parts = assemble(config, index, device=device)
    [batch] = step_batches(parts, index, batch_size=8, start_step=0, num_steps=1)
    train_step(parts, 0, batch)  # from here on the optimizer has a state
    with tempfile.TemporaryDirectory(dir=arguments.out) as folder, Background() as background:

        def waited(number: int) -> None:
            live = {"method": parts.method.state_dict(), "optimizer": parts.optimizer.state_dict()}
            save_checkpoint(Path(folder), number, live, keep_last=1)

        def beside(number: int) -> None:
            state = state_of(parts.method, parts.optimizer)
            check_state(state)
            write = partial(write_checkpoint, Path(folder), number, state, keep_last=1, keep_every=None, keep=())
            background.begin(write)

        works = {"written": waited, "copied": beside}
        seconds = in_turns(works, rounds=arguments.rounds, device=device, between=background.wait)
        background.wait()
        [file] = Path(folder).glob("step-*.pt")
        size = file.stat().st_size / 1e6
    print(machine(device))
    print(f"{arguments.recipe}: a checkpoint of {size:,.0f} MB, and as much memory for a copy while it is written")
    for name, taken in seconds.items():
        print(f"  until it is {name:8} {statistics.median(taken):7.2f} s  ({min(taken):.2f} to {max(taken):.2f})")
    print(f"  ratio {ratio(seconds['copied'], seconds['written']):.2f}")


if __name__ == "__main__":
    main()
