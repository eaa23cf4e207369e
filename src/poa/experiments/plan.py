"""What to train to compare the sizes of one elastic run with baselines on equal terms, and what that costs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from poa.config.pretraining import Config
from poa.config.resolve import of_length
from poa.data.sampler import steps_per_epoch
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation.cost import costs_of
from poa.models.registry import family_of, only
from poa.pretraining.schedule import sampling_of

Way = Literal["poa", "single", "seed"]
"""How all sizes are trained: one elastic run; each size alone; or each distilled from the largest, trained alone."""
Budget = Literal["images", "compute"]
"""What is equal to that of the elastic run: images seen by each network, or the compute of all together."""
BASELINES: tuple[Way, ...] = ("single", "seed")
"""What one elastic run is compared with."""
BUDGETS: tuple[Budget, ...] = ("images", "compute")
LONGEST_QUEUE = 65536
BACKWARD = 2.0
"""A backward pass costs about two forward passes."""
PROBED_STEPS = 1000
"""Of a run, over which costs of elastic students are averaged where they change in its course."""
GLOBALS = 2
"""Global crops an image."""


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
    """A way to train all sizes, with one seed and one budget; ``runs`` are the folders that sizes are taken from."""

    way: Way
    budget: Budget
    seed: int
    runs: Mapping[Size, Path]


@dataclass(frozen=True)
class Plan:
    """All of a comparison: trainings by folder, teachers before their students, and the approaches compared."""

    trainings: Mapping[Path, Training]
    approaches: tuple[Approach, ...]

    def flops(self, approach: Approach) -> float:
        """Operations to train all sizes. The teacher of a distillation is among them: it is the largest size."""
        return sum(self.trainings[folder].flops for folder in set(approach.runs.values()))

    def share(self, approach: Approach) -> float:
        """The same divided by that of the elastic run with the same seed."""
        elastic = next(each for each in self.approaches if each.way == "poa" and each.seed == approach.seed)
        return self.flops(approach) / self.flops(elastic)


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
        intact = family_of(config).space.intact
        return cls(config, intact, _rates(config, sizes, intact, num_images=num_images), num_images)

    def with_seed(self, seed: int) -> "Terms":
        """The same for another seed."""
        return replace(self, config=self.config.model_copy(update={"seed": seed}))

    def elastic(self, sizes: Sequence[Size]) -> Networks:
        """The elastic run, from which these sizes are taken."""
        path = Path(self.config.out, elastic_run(self.config.seed))
        return Networks(dict.fromkeys(sizes, path), {path: self._training(self.config, "poa", self.intact, path)})

    def networks(self, way: Way, sizes: Collection[Size], epochs: int) -> Networks:
        """These sizes, each trained for so many epochs, with what is counted in epochs in proportion."""
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
        approaches += [Approach("poa", budget, seed, elastic.runs) for budget in BUDGETS]
        for way in BASELINES:
            lengths: Mapping[Budget, int] = {
                "images": config.epochs,
                "compute": terms.equal_epochs(way, sizes),
            }
            for budget, epochs in lengths.items():
                made = of_seed.networks(way, sizes, epochs)
                trainings |= made.trainings
                approaches.append(Approach(way, budget, seed, made.runs))
    return Plan(trainings, tuple(approaches))


def _distilled(config: Config, teacher: Path, *, num_images: int) -> Config:
    """Settings of a distillation, with a queue of the order of the data set."""
    at_once = config.batch_size // config.accumulate
    queue = max(1, min(LONGEST_QUEUE, num_images) // at_once) * at_once
    return config.model_copy(
        update={"distill": config.distill.model_copy(update={"teacher": str(teacher), "queue": queue})}
    )


def _rates(config: Config, sizes: Sequence[Size], intact: Size, *, num_images: int) -> dict[tuple[Way, Size], float]:
    """Operations for each image seen, by method and size."""
    alone = {size: only(config, size).model_copy(update={"method": "single"}) for size in (*sizes, intact)}
    distilled = _distilled(config, Path(), num_images=num_images).model_copy(update={"method": "seed"})
    rates: dict[tuple[Way, Size], float] = {("poa", intact): training_flops(config)}
    for size, settings in alone.items():
        rates["single", size] = training_flops(settings)
        rates["seed", size] = training_flops(only(distilled, size), teacher=alone[intact])
    return rates


def training_flops(config: Config, *, teacher: Config | None = None) -> float:
    """Floating-point operations for one image in one step: matrix products of all networks, both ways.

    Elastic students count with the mean over the sizes that are drawn. Sinkhorn-Knopp, the optimiser, augmentation and
    decoding are left out: they cost the same whatever the size.

    Args:
        config: Settings of the run.
        teacher: Settings of the run whose intact network is distilled, for method ``seed``.
    """
    if config.method == "seed":
        assert teacher is not None
        return _distillation_flops(config, teacher)
    passes, family = _student_passes(config), family_of(config)
    intact = passes[family.space.intact]
    total = _teacher_pass(config) + (1 + BACKWARD) * intact
    if config.method == "poa":
        total += (1 + BACKWARD) * sampling_of(config, family, num_steps=PROBED_STEPS).mean(passes)
    return total


def _crops(config: Config) -> Mapping[Size, tuple[int, int]]:
    """Of the backbone of each size: operations for all global, and for all local crops of an image."""
    family, views = family_of(config), config.views
    large = costs_of(family, views.global_size)
    small = costs_of(family, views.local_size) if views.num_locals else {}
    return {
        size: (GLOBALS * cost.flops, views.num_locals * small[size].flops if small else 0)
        for size, cost in large.items()
    }


def _student_passes(config: Config) -> Mapping[Size, float]:
    """Forward pass of a student of each size for one image: backbone, and heads on crops and masked patches."""
    rows = GLOBALS + config.views.num_locals + _masked(config)
    return {size: sum(crops) + _heads(config, size, rows) for size, crops in _crops(config).items()}


def _teacher_pass(config: Config) -> float:
    """Forward pass of the teacher, which sees global crops alone."""
    intact = family_of(config).space.intact
    return _crops(config)[intact][0] + _heads(config, intact, GLOBALS + _masked(config))


def _masked(config: Config) -> float:
    """Masked patches an image, on average."""
    views, grid = config.views, family_of(config).mask_grid(config.views.global_size)
    return GLOBALS * grid**2 * views.mask_share * sum(views.mask_ratio) / 2


def _heads(config: Config, size: Size, rows: float) -> float:
    return 2.0 * rows * config.head_weights(_width(config, size))


def _width(config: Config, size: Size) -> int:
    with torch.device("meta"):
        return family_of(config).build(size).num_features


def _distillation_flops(config: Config, teacher: Config) -> float:
    """The teacher sees all crops; the student's MLP maps into the teacher's space, where queues are compared."""
    size, largest = family_of(config).space.intact, family_of(teacher).space.intact
    own, wide = _width(config, size), _width(teacher, largest)
    rows = GLOBALS + config.views.num_locals
    student = sum(_crops(config)[size]) + 2.0 * rows * (own * own + own * wide + wide * config.distill.queue)
    teaching = sum(_crops(teacher)[largest]) + 2.0 * rows * wide * config.distill.queue
    return teaching + (1 + BACKWARD) * student
