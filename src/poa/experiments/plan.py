"""What to train so that sizes of one elastic run can be compared with rivals on equal terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from poa.config.pretraining import Config
from poa.data.sampler import steps_per_epoch
from poa.elastic.space import Size
from poa.experiments.compute import training_flops
from poa.models.registry import only

Way = Literal["poa", "single", "seed"]
Budget = Literal["images", "compute"]
LONGEST_QUEUE = 65536


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        config: Settings, with the folder.
        num_steps: Steps in all.
        flops: Operations for all of them.
    """

    config: Config
    num_steps: int
    flops: float


@dataclass(frozen=True)
class Contender:
    """A way to get all sizes, with one seed.

    Attributes:
        way: The elastic run; each size trained alone; or each distilled from the largest one, trained alone.
        budget: What it has as much of as the elastic run: images seen by each network, or compute of all together.
        seed: Of all its trainings.
        runs: Folder of the run that each size is taken from.
    """

    way: Way
    budget: Budget
    seed: int
    runs: Mapping[Size, Path]


@dataclass(frozen=True)
class Plan:
    """All of a comparison.

    Attributes:
        trainings: By folder; those that teach come before those that are taught.
        contenders: What is compared.
    """

    trainings: Mapping[Path, Training]
    contenders: tuple[Contender, ...]

    def flops(self, contender: Contender) -> float:
        """Operations to get all sizes. The teacher of a distillation is among them: it is the largest size."""
        return sum(self.trainings[folder].flops for folder in set(contender.runs.values()))

    def share(self, contender: Contender) -> float:
        """The same over that of the elastic run with the same seed."""
        elastic = next(each for each in self.contenders if each.way == "poa" and each.seed == contender.seed)
        return self.flops(contender) / self.flops(elastic)


def plan(config: Config, *, sizes: Sequence[Size], seeds: Sequence[int], num_images: int) -> Plan:
    """What to train, and what to compare.

    The rivals are trained twice: for as many epochs as the elastic run, and for so many that all their networks
    together, the teacher included, take its compute as nearly as whole epochs allow.

    Args:
        config: Settings of the elastic run; ``out`` is the folder of the comparison.
        sizes: Which sizes to compare, ascending; the last is the intact network.
        seeds: One elastic run each.
        num_images: Images in the data set.
    """
    trainings: dict[Path, Training] = {}
    contenders: list[Contender] = []
    rates = _rates(config, sizes, num_images=num_images)
    for seed in seeds:
        made = _of_seed(config.model_copy(update={"seed": seed}), sizes, rates, num_images=num_images)
        trainings |= made.trainings
        contenders += made.contenders
    return Plan(trainings, tuple(contenders))


def _of_seed(
    config: Config, sizes: Sequence[Size], rates: Mapping[tuple[Way, Size], float], *, num_images: int
) -> Plan:
    epoch = steps_per_epoch(num_images, config.batch_size)
    folder = Path(config.out) / f"seed{config.seed}"
    trainings: dict[Path, Training] = {}

    def add(settings: Config, way: Way, size: Size) -> Path:
        name = "poa" if way == "poa" else f"{way}-{size}-{settings.epochs}-epochs"
        path = folder / name
        trainings[path] = Training(
            settings.model_copy(update={"out": str(path), "method": way}),
            settings.epochs * epoch,
            settings.epochs * epoch * config.batch_size * rates[way, size],
        )
        return path

    elastic = dict.fromkeys(sizes, add(config, "poa", sizes[-1]))
    budgets: tuple[Budget, ...] = ("images", "compute")
    contenders = [Contender("poa", budget, config.seed, elastic) for budget in budgets]
    ways: tuple[Way, ...] = ("single", "seed")
    for way in ways:
        lengths: dict[Budget, int] = {
            "images": config.epochs,
            "compute": _equal_epochs(config.epochs, way, sizes, rates),
        }
        for budget, epochs in lengths.items():
            lasting = config.model_copy(update={"epochs": epochs})
            largest = add(only(lasting, sizes[-1]), "single", sizes[-1])
            taught = lasting if way == "single" else _taught(lasting, largest, num_images=num_images)
            runs = {size: add(only(taught, size), way, size) for size in sizes[:-1]}
            contenders.append(Contender(way, budget, config.seed, runs | {sizes[-1]: largest}))
    return Plan(trainings, tuple(contenders))


def _taught(config: Config, teacher: Path, *, num_images: int) -> Config:
    """Settings of a distillation, with a queue of the order of the data set."""
    at_once = config.batch_size // config.accumulate
    queue = max(1, min(LONGEST_QUEUE, num_images) // at_once) * at_once
    return config.model_copy(
        update={"distill": config.distill.model_copy(update={"teacher": str(teacher), "queue": queue})}
    )


def _rates(config: Config, sizes: Sequence[Size], *, num_images: int) -> dict[tuple[Way, Size], float]:
    """Operations for each image seen, by method and size."""
    alone = {size: only(config, size).model_copy(update={"method": "single"}) for size in sizes}
    taught = _taught(config, Path(), num_images=num_images).model_copy(update={"method": "seed"})
    rates: dict[tuple[Way, Size], float] = {("poa", sizes[-1]): training_flops(config)}
    for size in sizes:
        rates["single", size] = training_flops(alone[size])
        rates["seed", size] = training_flops(only(taught, size), teacher=alone[sizes[-1]])
    return rates


def _equal_epochs(epochs: int, way: Way, sizes: Sequence[Size], rates: Mapping[tuple[Way, Size], float]) -> int:
    all_sizes = sum(rates[way, size] for size in sizes[:-1]) + rates["single", sizes[-1]]
    return max(1, round(epochs * rates["poa", sizes[-1]] / all_sizes))
