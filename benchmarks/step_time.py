"""Cost of a whole POA step against the sum of the networks in it, each run alone on the same crops.

The networks are the teacher's forward pass and the forward and backward passes of the intact and of one elastic
student: backbone, projection heads and prototype logits. What a step does beyond them (augmentation on the device,
targets, losses, clipping, optimizer, moving average) is listed apart. All pieces run in turns in one process.

    python benchmarks/step_time.py [--recipe vit-small-data] [--batch 64]
"""

import argparse
import statistics
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from measure import in_turns, machine, ratio
from poa.config import resolve
from poa.config.pretraining import Config
from poa.data.index import open_index
from poa.data.views import RawViews, Views
from poa.elastic.space import Size
from poa.losses.prototypes import prototype_logits
from poa.machine.precision import for_products
from poa.methods.poa import POA, BranchOutput
from poa.pretraining.build import Parts, assemble
from poa.pretraining.step import step_batches, train_step, views_of
from poa.training.optimizer import clip_gradients

TARGET = 1.25
NETWORKS = ("teacher", "intact", "elastic")


@dataclass(frozen=True)
class Pieces:
    """The pieces of a step, each to be run alone; round n takes the sizes of the n-th step after the first.

    Attributes:
        parts: Of a run.
        first: The first step.
        raw: The crops of a batch as the workers cut them.
        views: The same crops after augmentation.
        output: Of the teacher.
    """

    parts: Parts
    first: int
    raw: RawViews
    views: Views
    output: BranchOutput

    def step(self, number: int) -> None:
        """A whole step of training."""
        train_step(self.parts, self.first + number, [self.raw])

    def augment(self, _: int) -> None:
        """What the device does to the crops."""
        views_of(self.parts, self.raw)

    def teacher(self, _: int) -> None:
        """The teacher's forward pass."""
        with torch.no_grad(), autocast(self.parts):
            logits(poa_of(self.parts).teacher(self.views, teacher=True))

    def intact(self, _: int) -> None:
        """The intact student, there and back."""
        self._there_and_back(self.parts.method.student)

    def elastic(self, number: int) -> None:
        """The elastic student: cut, there and back."""
        method, dtype = poa_of(self.parts), self.parts.dtype
        (size,) = self.parts.subnets(self.first + number)
        parameters = dict(method.student.named_parameters())
        cast = None if dtype == torch.float32 else dtype
        self._there_and_back(method.sub_networks.bind(size, parameters, training=True, dtype=cast))

    def _there_and_back(self, network: Any) -> None:
        self.parts.optimizer.zero_grad(set_to_none=True)
        with autocast(self.parts):
            made = logits(network(self.views))
        torch.autograd.backward([rows.mean() for rows in made])

    def method(self, number: int) -> None:
        """All networks, targets and losses, there and back."""
        parts = self.parts
        parts.optimizer.zero_grad(set_to_none=True)
        with autocast(parts):
            losses = parts.wrapped(self.views, parts.subnets(self.first + number), temperature=self._temperature)
        weights = parts.method.weights((), num_locals=parts.views.num_locals)
        torch.autograd.backward([weights[name] * loss for name, loss in losses.items()])

    def targets(self, _: int) -> None:
        """Targets from the teacher's features: prototype logits and Sinkhorn-Knopp, where there are prototypes."""
        with autocast(self.parts):
            list(poa_of(self.parts).targets(self.output.heads, self._temperature))

    def target_logits(self, _: int) -> None:
        """The prototype logits in `targets`."""
        with torch.no_grad(), autocast(self.parts):
            logits(self.output)

    def clip(self, _: int) -> None:
        """Clip the gradients left by `method`."""
        student = self.parts.method.student
        clip_gradients([student.backbone, student.heads], max_norm=self.parts.clip)

    def optimizer(self, _: int) -> None:
        """AdamW."""
        self.parts.optimizer.step()

    def teacher_update(self, _: int) -> None:
        """Moving average."""
        self.parts.method.update_teacher(0.99)

    @property
    def _temperature(self) -> float:
        return self.parts.schedules.at(self.first).temperature


def main() -> None:
    """Measure and print."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = configure(arguments)
    pieces = prepare(config, torch.device(arguments.device))
    names = ("step", *NETWORKS, "augment", "targets", "target_logits", "method", "clip", "optimizer", "teacher_update")
    works = {name: getattr(pieces, name) for name in names}
    seconds = in_turns(works, rounds=arguments.rounds, device=pieces.parts.device)
    report(arguments, config, pieces, seconds)


def parse() -> argparse.Namespace:
    """What to time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="vit-small-data")
    parser.add_argument("--config", help="YAML file of settings instead of a recipe")
    parser.add_argument("--intact", help="size of the intact network, such as 256x12, instead of the recipe's")
    parser.add_argument("--prototypes", type=int, nargs="+", help="of each head, instead of the recipe's")
    parser.add_argument("--batch", type=int, help="images a step, instead of the recipe's")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; torch's own choice by default")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def configure(arguments: argparse.Namespace) -> Config:
    """The recipe, and what is to be different."""
    given: dict[str, Any] = {"data": "digits", "epochs": 10_000, "elastic_samples": 1, "accumulate": 1}
    if arguments.intact:
        intact = Size.parse(arguments.intact)
        given["model"] = {"width_max": intact.width, "depth_max": intact.depths[0]}
    if arguments.prototypes:
        given |= {"heads": {"prototypes": arguments.prototypes, "layers": 3}, "losses": {"kind": "prototypes"}}
    if arguments.batch:
        given["batch_size"] = arguments.batch
    if arguments.precision:
        given["precision"] = arguments.precision
    return resolve.resolve(given, recipe=None if arguments.config else arguments.recipe, file=arguments.config)


def prepare(config: Config, device: torch.device) -> Pieces:
    """Build what a run would, and one batch."""
    index = open_index(config.data)
    parts = assemble(config, index, device=device)
    loader = step_batches(
        parts,
        index,
        batch_size=config.batch_size,
        start_step=parts.ibot_start,  # with masks, as most of a run
        num_steps=1,
    )
    (raw,) = next(loader)
    views = views_of(parts, raw)
    with torch.no_grad(), autocast(parts):
        output = poa_of(parts).teacher(views, teacher=True)
    return Pieces(parts, parts.ibot_start, raw, views, output)


def poa_of(parts: Parts) -> POA:
    """The method, known to have three branches."""
    assert isinstance(parts.method, POA)
    return parts.method


def autocast(parts: Parts) -> AbstractContextManager[object]:
    """As in a training step."""
    return torch.autocast(parts.device.type, dtype=parts.dtype, enabled=parts.dtype != torch.float32)


def logits(output: BranchOutput) -> list[Tensor]:
    """What the last layer of each head makes of all rows, in the precision of a step; the rows, without prototypes."""
    found = []
    for head in output.heads:
        rows, prototypes = torch.cat([head.globals, head.locals, head.patches]), for_products(head.prototypes)
        found.append(prototype_logits(rows, prototypes, temperature=0.1) if len(prototypes) else rows)
    return found


def losses_of(config: Config) -> str:
    """What outputs are compared by."""
    return f"prototypes {config.heads.prototypes}" if config.losses.kind == "prototypes" else config.losses.kind


def report(arguments: argparse.Namespace, config: Config, pieces: Pieces, seconds: dict[str, list[float]]) -> None:
    """Print the step, its networks, and the rest; what is not timed by itself is a difference within each round."""
    rounds = [dict(zip(seconds, row, strict=True)) for row in zip(*seconds.values(), strict=True)]
    networks = [sum(row[name] for name in NETWORKS) for row in rounds]
    targets_alone = [row["targets"] - row["target_logits"] for row in rounds]
    beyond = zip(rounds, networks, targets_alone, strict=True)
    losses = [row["method"] - passes - targets for row, passes, targets in beyond]
    beside = ("augment", "method", "clip", "optimizer", "teacher_update")
    table = {
        "whole step": seconds["step"],
        **{f"  {name}": seconds[name] for name in NETWORKS},
        "  targets": targets_alone,
        "  losses": losses,
        "  augmentation on the device": seconds["augment"],
        "  clipping": seconds["clip"],
        "  optimizer": seconds["optimizer"],
        "  moving average": seconds["teacher_update"],
        "  other, and noise": [row["step"] - sum(row[name] for name in beside) for row in rounds],
    }
    space, views = pieces.parts.family.space, config.views
    print(machine(pieces.parts.device))
    print(
        f"{arguments.config or arguments.recipe}: {space.sizes[0]} ... {space.intact}, batch {config.batch_size}, "
        f"2x{views.global_size} + {views.num_locals}x{views.local_size} px, {losses_of(config)}, "
        f"{str(pieces.parts.dtype).removeprefix('torch.')}, {pieces.parts.device}; median of {arguments.rounds} rounds"
    )
    for name, values in table.items():
        print(f"{name:30} {1000 * statistics.median(values):9.1f} ms   {ratio(values, seconds['step']):6.1%}")
    without = [row["step"] - row["augment"] for row in rounds]
    print(f"{'step / networks':30} {ratio(seconds['step'], networks):9.3f}      (target: at most {TARGET})")
    print(f"{'without augmentation':30} {ratio(without, networks):9.3f}")


if __name__ == "__main__":
    main()
