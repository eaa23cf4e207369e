"""What differs from step to step of a run: rates, momentum, temperature, sizes, and what is due after it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

from poa.config.pretraining import ELASTIC, SLIMMABLE, Config
from poa.elastic.sampling import Sandwich, Widening
from poa.elastic.space import Size, SubnetSchedule
from poa.errors import UserError
from poa.families.base import Family
from poa.training.schedules import Schedules, constant, cosine, linear_ramp, scaled_lr, switched

COOLDOWN_SHARE = 0.2
"""Of a run's epochs, by default (Hägele et al. 2024)."""
Subnets = Callable[..., tuple[Size, ...]]
"""Which sub-networks are trained at a step, called as ``subnets(step, rank=rank)``."""


def schedules_of(config: Config, *, steps_per_epoch: int) -> Schedules:
    """Learning rate, weight decay, momentum and temperature of the teacher at each step.

    Raises:
        UserError: A constant learning rate does not go together with other settings.
    """
    if wrong := next(_why_not_constant(config), None):
        raise UserError(wrong)
    settings, num_steps = config.optimizer, config.epochs * steps_per_epoch
    cooldown = num_steps - steps_before_cooldown(config, steps_per_epoch=steps_per_epoch)
    shape: Callable[..., float] = partial(constant, cooldown_steps=cooldown)
    if settings.schedule == "cosine":
        shape = partial(cosine, stretch=settings.cosine_stretch)

    def steps(epochs: float) -> int:
        return round(epochs * steps_per_epoch)

    def curve(base: float, final: float, *, warmup_epochs: float = 0.0) -> Callable[[int], float]:
        return partial(shape, base=base, final=final, num_steps=num_steps, warmup_steps=steps(warmup_epochs))

    taught = config.distill.weight
    start, end = config.losses.teacher_temperature
    ramp = steps(config.losses.teacher_temperature_epochs)
    peak = peak_lr(config)
    lr = curve(peak, settings.final_lr, warmup_epochs=settings.warmup_epochs)
    if settings.restart_lr is not None:
        restart = peak / settings.base_lr * settings.restart_lr  # whatever scales the peak scales it too
        after = curve(restart, settings.final_lr, warmup_epochs=settings.warmup_epochs)
        lr = partial(switched, before=lr, after=after, at=_slow_start(config, steps_per_epoch))
    return Schedules(
        lr=lr,
        weight_decay=curve(*settings.weight_decay),
        momentum=curve(*settings.teacher_momentum),
        temperature=partial(linear_ramp, start=start, end=end, num_steps=ramp),
        frozen_steps=steps(settings.freeze_last_layer_epochs),
        frozen=curve(*taught)
        if settings.schedule == "constant"
        else partial(linear_ramp, start=taught[0], end=taught[1], num_steps=num_steps),
        backbone=partial(linear_ramp, start=0.0, end=1.0, num_steps=steps(settings.backbone_warmup_epochs)),
    )


def peak_lr(config: Config) -> float:
    """The learning rate after the warm-up."""
    return config.lr or scaled_lr(config.optimizer.base_lr, batch_size=config.batch_size)


def steps_before_cooldown(config: Config, *, steps_per_epoch: int) -> int:
    """Steps of a run that do not depend on its length: with a cosine none, else those before the cool-down."""
    cooldown = config.optimizer.cooldown_epochs
    cooldown = COOLDOWN_SHARE * config.epochs if cooldown is None else cooldown
    is_constant = config.optimizer.schedule == "constant"
    return max(0, round((config.epochs - cooldown) * steps_per_epoch)) if is_constant else 0


@dataclass(frozen=True)
class Due:
    """After which steps of a run, counted from 1, its weights are looked at: scored or saved.

    Attributes:
        num_steps: Of the whole run; the last step is scored and saved.
        cooldown: Step before the cool-down, which is saved.
        scoring: Steps from one score to the next.
        saving: Steps from one checkpoint to the next.
    """

    num_steps: int
    cooldown: int
    scoring: int
    saving: int

    def scores(self, step: int) -> bool:
        """Whether sizes are scored."""
        return step == self.num_steps or step % self.scoring == 0

    def saves(self, step: int) -> bool:
        """Whether there is a checkpoint, whatever the scores."""
        return step in (self.cooldown, self.num_steps) or step % self.saving == 0

    def looks(self, step: int) -> bool:
        """Whether the next step may not change the weights yet."""
        return self.scores(step) or self.saves(step)


def due_steps(config: Config, *, steps_per_epoch: int) -> Due:
    """What is due after which steps of a run."""
    return Due(
        config.epochs * steps_per_epoch,
        steps_before_cooldown(config, steps_per_epoch=steps_per_epoch),
        scoring=max(1, round(config.monitor.every_epochs * steps_per_epoch)),
        saving=max(1, round(config.saving.every_epochs * steps_per_epoch)),
    )


def epochs_to_cool_down(config: Config, *, after: int, steps_per_epoch: int) -> int:
    """The fewest epochs of a run with a constant learning rate whose cool-down does not begin before so many steps."""
    lengths = (config.model_copy(update={"epochs": epochs}) for epochs in count(max(1, after // steps_per_epoch)))
    return next(
        each.epochs for each in lengths if steps_before_cooldown(each, steps_per_epoch=steps_per_epoch) >= after
    )


def _why_not_constant(config: Config) -> Iterator[str]:
    """What a constant learning rate does not go together with: above all what depends on the length of the run."""
    optimizer, epochs = config.optimizer, config.epochs
    cooldown = optimizer.cooldown_epochs
    if optimizer.schedule == "cosine":
        if cooldown is not None:
            yield (
                "--optimizer.cooldown-epochs has no effect on a cosine. Add --optimizer.schedule constant, or leave it "
                "out."
            )
        return
    why = "With --optimizer.schedule constant nothing before the cool-down may depend on the number of epochs"
    cooldown = COOLDOWN_SHARE * epochs if cooldown is None else cooldown
    if optimizer.warmup_epochs + cooldown > epochs:
        yield (
            f"Warm-up and cool-down, {optimizer.warmup_epochs:g} and {cooldown:g} epochs, are longer than the run of "
            f"{epochs}. Lower --optimizer.warmup-epochs or --optimizer.cooldown-epochs, or raise --epochs."
        )
    if config.sampling == "widening":
        yield f"{why}, and --sampling widening opens within half of them. Choose another --sampling, or the cosine."
    if config.method in SLIMMABLE and config.slim.slow_start_epochs is None:
        yield (
            f"{why}, and the slow start of {config.method} takes half of them by default. Set "
            "--slim.slow-start-epochs, or choose the cosine."
        )


def subnets_of(config: Config, family: Family, *, steps_per_epoch: int) -> Subnets:
    """Which sub-networks are trained at a step: none where a method trains one size."""
    if config.method in SLIMMABLE:
        narrower = family.space.sizes[-2::-1]  # descending
        return partial(_from_step, sizes=narrower, start=_slow_start(config, steps_per_epoch))
    is_alone = config.method == "distill" and len(family.space.sizes) == 1
    if config.method not in ELASTIC or is_alone:
        return partial(_from_step, sizes=(), start=0)
    return sampling_of(config, family, num_steps=config.epochs * steps_per_epoch)


def sampling_of(config: Config, family: Family, *, num_steps: int) -> SubnetSchedule | Sandwich | Widening:
    """How elastic students are drawn."""
    walk = SubnetSchedule(
        family.space, seed=config.seed, samples=config.elastic_samples, shared=config.same_sizes_on_all_ranks
    )
    if config.sampling == "widening":
        return Widening(walk, num_steps)
    return Sandwich(walk) if config.sampling == "sandwich" else walk


def _from_step(step: int, *, sizes: tuple[Size, ...], start: int, rank: int = 0) -> tuple[Size, ...]:  # noqa: ARG001
    """The same sizes at all steps from one on."""
    return sizes if step >= start else ()


def _slow_start(config: Config, steps_per_epoch: int) -> int:
    """Steps in which the full width of a slimmable network learns alone."""
    epochs = config.slim.slow_start_epochs
    return round((config.epochs / 2 if epochs is None else epochs) * steps_per_epoch)
