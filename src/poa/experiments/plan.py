"""What to train to compare the sizes of one elastic run with baselines on equal terms, and what that costs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from poa.config.pretraining import Config
from poa.config.resolve import of_length
from poa.data.sampler import steps_per_epoch
from poa.elastic.space import Size
from poa.errors import UserError
from poa.experiments.operations import Way, training_flops
from poa.models.registry import family_of, only

Budget = Literal["images", "compute"]
"""What is equal to that of the elastic run: images seen by each network, or the compute of all together."""
BASELINES: tuple[Way, ...] = ("single", "seed")
"""What one elastic run is compared with."""
BUDGETS: tuple[Budget, ...] = ("images", "compute")
LONGEST_QUEUE = 65536


def stopped(folder: Path) -> UserError:
    """What to say of a run that was asked to stop: its sizes are not those of a whole training."""
    return UserError(f"{folder} was stopped before its end. Resume with the same command.")


def elastic_run(seed: int) -> str:
    """Where the elastic run of a seed is in the folder of a comparison."""
    return f"seed{seed}/poa"


@dataclass(frozen=True)
class Training:
    """One training, and its floating-point operations in all."""

    config: Config
    num_steps: int
    flops: float


@dataclass(frozen=True)
class Approach:
    """A way to train all sizes, with one seed and one budget.

    Attributes:
        runs: The folders that sizes are taken from.
        compute: Operations to train all sizes, the teacher included, divided by those of the elastic run.
    """

    way: Way
    budget: Budget
    seed: int
    runs: Mapping[Size, Path]
    compute: float


@dataclass(frozen=True)
class Plan:
    """All of a comparison: trainings by folder, teachers before their students, and the approaches compared."""

    trainings: Mapping[Path, Training]
    approaches: tuple[Approach, ...]


@dataclass(frozen=True)
class Networks:
    """Networks of some sizes: the folders that they are taken from, and all trainings, teachers first."""

    runs: Mapping[Size, Path]
    trainings: Mapping[Path, Training]


@dataclass(frozen=True)
class Terms:
    """What all trainings of one seed have in common.

    Attributes:
        config: Settings of the elastic run; ``out`` is the folder of the comparison.
        intact: Its largest size, which is the teacher of the others.
        rates: Operations for each image seen, by method and size.
        num_images: Images in the data set.
    """

    config: Config
    intact: Size
    rates: Mapping[tuple[Way, Size], float]
    num_images: int

    @classmethod
    def of(cls, config: Config, sizes: Sequence[Size], *, num_images: int) -> "Terms":
        """Of the seed in the settings; operations are counted for these sizes."""
        intact, queued = family_of(config).space.intact, _distilled(config, Path(), num_images=num_images)
        rates = {(way, size): training_flops(queued, way, size) for way in BASELINES for size in {*sizes, intact}}
        rates["poa", intact] = training_flops(config, "poa", intact)
        return cls(config, intact, rates, num_images)

    def with_seed(self, seed: int) -> "Terms":
        """The same for another seed."""
        return replace(self, config=self.config.model_copy(update={"seed": seed}))

    def elastic(self, sizes: Sequence[Size]) -> Networks:
        """The elastic run, from which these sizes are taken."""
        path = Path(self.config.out, elastic_run(self.config.seed))
        return Networks(dict.fromkeys(sizes, path), {path: self._training(self.config, "poa", self.intact, path)})

    def networks(self, way: Way, sizes: Collection[Size], epochs: int) -> Networks:
        """These sizes, each trained for so many epochs, with what is counted in epochs as suits them."""
        lasting = of_length(self.config, epochs)
        runs = {size: self._folder("single" if size == self.intact else way, size, epochs) for size in sizes}
        teacher = self._folder("single", self.intact, epochs)
        made: dict[Path, Training] = {}
        if way == "seed" or self.intact in runs:
            made[teacher] = self._training(only(lasting, self.intact), "single", self.intact, teacher)
        students = lasting if way == "single" else _distilled(lasting, teacher, num_images=self.num_images)
        for size, path in runs.items():
            if size != self.intact:
                made[path] = self._training(only(students, size), way, size, path)
        return Networks(runs, made)

    def equal_epochs(self, way: Way, sizes: Collection[Size]) -> int:
        """As many for each size as take the compute of the elastic run altogether, as nearly as whole epochs allow."""
        return max(1, round(self.config.epochs / self._share_of_epoch(way, sizes)))

    def share(self, way: Way, sizes: Collection[Size], epochs: int) -> float:
        """Operations to train these sizes, teacher included, divided by those of the elastic run."""
        return epochs / self.config.epochs * self._share_of_epoch(way, sizes)

    def _share_of_epoch(self, way: Way, sizes: Collection[Size]) -> float:
        """Operations of an epoch of all these networks, divided by those of an epoch of the elastic run."""
        students = sum(self.rates[way, size] for size in sizes if size != self.intact)
        largest = self.rates["single", self.intact] if way == "seed" or self.intact in sizes else 0.0
        return (students + largest) / self.rates["poa", self.intact]

    def _folder(self, way: Way, size: Size, epochs: int) -> Path:
        return Path(self.config.out, elastic_run(self.config.seed)).with_name(f"{way}-{size}-{epochs}-epochs")

    def _training(self, settings: Config, way: Way, size: Size, path: Path) -> Training:
        steps = settings.epochs * steps_per_epoch(self.num_images, settings.batch_size)
        settings = settings.model_copy(update={"out": str(path), "method": way})
        return Training(settings, steps, steps * settings.batch_size * self.rates[way, size])


def plan(config: Config, *, sizes: Sequence[Size], seeds: Sequence[int], num_images: int) -> Plan:
    """What to train, and what to compare.

    The baselines are trained twice: for as many epochs as the elastic run, and for so many that all their networks
    together, the teacher included, take its compute as nearly as whole epochs allow. What is counted in epochs, such as
    warm-up, is as long a part of the training in both.

    Args:
        config: Settings of the elastic run; ``out`` is the folder of the comparison.
        sizes: Which sizes to compare, ascending; the last is the intact network.
        seeds: One elastic run each.
        num_images: Images in the data set.
    """
    trainings: dict[Path, Training] = {}
    approaches: list[Approach] = []
    terms = Terms.of(config, sizes, num_images=num_images)
    for seed in seeds:
        of_seed = terms.with_seed(seed)
        elastic = of_seed.elastic(sizes)
        trainings |= elastic.trainings
        approaches += [Approach("poa", budget, seed, elastic.runs, 1.0) for budget in BUDGETS]
        for way in BASELINES:
            lengths: Mapping[Budget, int] = {
                "images": config.epochs,
                "compute": terms.equal_epochs(way, sizes),
            }
            for budget, epochs in lengths.items():
                made = of_seed.networks(way, sizes, epochs)
                trainings |= made.trainings
                approaches.append(Approach(way, budget, seed, made.runs, terms.share(way, sizes, epochs)))
    return Plan(trainings, tuple(approaches))


def _distilled(config: Config, teacher: Path, *, num_images: int) -> Config:
    """Settings of a distillation, with a queue of the order of the data set."""
    at_once = config.batch_size // config.accumulate
    queue = max(1, min(LONGEST_QUEUE, num_images) // at_once) * at_once
    return config.model_copy(
        update={"distill": config.distill.model_copy(update={"teacher": str(teacher), "queue": queue})}
    )
