"""From which checkpoint a run goes on, also where it is made longer, and what another number of processes changes."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from poa import distributed
from poa.config import resolve
from poa.config.pretraining import SELF_DISTILLED, SLIMMABLE, Config
from poa.config.resolve import learned
from poa.config.values import written
from poa.data.index import ImageIndex
from poa.errors import UserError, counted
from poa.files import whole_file
from poa.models import opening
from poa.models.registry import drop_path_of
from poa.models.run import Paths
from poa.pretraining.build import Parts
from poa.pretraining.schedule import steps_before_cooldown
from poa.text import note
from poa.training.checkpoint import check_settings, checkpoints, load_checkpoint, restoring, step_of
from poa.training.states import load

EARLIER = "earlier"
"""Folder in that of a run, for what was trained for another length."""


def identity(config: Config) -> dict[str, Any]:
    """What a checkpoint says about its training; those of older versions do not have it."""
    return {"settings": learned(config), "processes": distributed.world_size()}


def restore(parts: Parts, config: Config, index: ImageIndex, console: Console, *, processes: int) -> int:
    """Load the checkpoint from which a run goes on, on so many processes; returns the number of steps done.

    Raises:
        UserError: It is damaged, or was trained with other settings or images, or none fits the number of epochs.
    """
    paths = Paths(Path(config.out))
    file = _where_to_go_on(paths, config, steps_per_epoch=parts.steps_per_epoch)
    state = load_checkpoint(file)
    planned = resolve.of_plan(config, state.get("settings", {}))
    is_shared = step_of(file) <= shared_steps(planned, config, steps_per_epoch=parts.steps_per_epoch)
    check_settings(state, learned(planned if is_shared else config), file)
    if state.get("images") not in (index.fingerprint, index.listed):
        raise UserError(
            f"The images in {index.source} ({counted(len(index), 'image')}) are not those that {paths.folder} was "
            "trained on: some were added, removed or written again. Restore them, or start a new run in another --out."
        )
    with restoring(file, state):
        load(state, parts.method, parts.optimizer)
        parts.scaler.load_state_dict(state["scaler"])
    if sentence := changed_processes(state, config, now=processes):
        note(console, sentence)
    return int(state["step"])


def shared_steps(one: Config, other: Config, *, steps_per_epoch: int) -> int:
    """Steps that are the same in two runs which differ in their length only."""
    return min(steps_before_cooldown(each, steps_per_epoch=steps_per_epoch) for each in (one, other))


def _where_to_go_on(paths: Paths, config: Config, *, steps_per_epoch: int) -> Path:
    """The newest checkpoint; of a run whose length is changed, the newest that does not depend on it."""
    saved, stored = checkpoints(paths.checkpoints), resolve.of_run(paths.config)
    if not resolve.differences(stored, config):
        return saved[-1]
    shared = shared_steps(stored, config, steps_per_epoch=steps_per_epoch)
    fitting = [file for file in saved if step_of(file) <= shared]
    if not fitting:
        raise UserError(
            f"{paths.folder} cannot become a run of {counted(config.epochs, 'epoch')}: with this length it is another "
            f"one from step {shared:,} on, and its first checkpoint is of step {step_of(saved[0]):,}. Give more "
            "--epochs, or a shorter --optimizer.cooldown-epochs."
        )
    return fitting[-1]


def change_length(config: Config, *, done: int) -> str | None:
    """Give a run that goes on after so many steps its new length, if it has one; returns what is to be said of it.

    Checkpoints past that step, with the settings and metrics of the old length, become a run of their own.

    Raises:
        UserError: The folder cannot be written to. The run is as it was, or goes on from the same step.
    """
    paths = Paths(Path(config.out))
    stored = resolve.of_run(paths.config)
    changed = resolve.differences(stored, config)
    if not changed:
        return None
    new = ", ".join(f"{name} {written(now)} instead of {written(before)}" for name, (before, now) in changed.items())
    said = f"{paths.folder} now has {new}. It goes on from step {done:,}"
    try:
        kept = _set_aside(paths, stored, after=done)
    except OSError as error:
        raise opening.unwritable(paths.folder, error) from None
    opening.write_settings(config)
    if kept is None:
        return f"{said}, as if it had been planned so."
    return (
        f"{said}, the last kept one before a cool-down. What was trained past it is kept as a run of its own, {kept}."
    )


def _set_aside(paths: Paths, stored: Config, *, after: int) -> Path | None:
    """Make a run of its own of all checkpoints past a step; the newest is moved last, and marks that this is done."""
    past = [file for file in checkpoints(paths.checkpoints) if step_of(file) > after]
    if not past:
        return None
    name = f"{stored.epochs}-epochs"
    places = (paths.folder / EARLIER / each for each in (name, *(f"{name}-{number}" for number in range(2, 1000))))
    aside = next(each for each in map(Paths, places) if not checkpoints(each.checkpoints))
    aside.checkpoints.mkdir(parents=True, exist_ok=True)
    with whole_file(aside.metrics) as temporary:
        shutil.copyfile(paths.metrics, temporary)
    opening.write_settings(stored.model_copy(update={"out": str(aside.folder)}))
    for file in past:
        file.rename(aside.checkpoints / file.name)
    return aside.folder


def changed_processes(state: Mapping[str, Any], config: Config, *, now: int) -> str | None:
    """A sentence on what changes where a run is resumed on another number of processes than it was trained on so far.

    Images, crops, masks, learning rates and targets depend on the global batch alone.
    """
    before: int = state.get("processes", now)
    effects = [] if before == now else list(_effects(config, before, now))
    if not effects:
        return None
    were, are = (f"{number} process{'es' if number > 1 else ''}" for number in (before, now))
    return (
        f"So far this run was trained with {were}, now it is resumed with {are}. This changes what is learned from now "
        f"on: {'; '.join(effects)}. Resume with {were} (--devices, --num-nodes) to avoid this."
    )


def _effects(config: Config, before: int, now: int) -> Iterator[str]:
    images, others = (config.batch_size // (config.accumulate * number) for number in (before, now))
    if config.method in ("poa", "distill") and not config.same_sizes_on_all_ranks:
        samples = config.elastic_samples
        yield f"each step trains {samples * now} of the sizes instead of {samples * before}, in another order"
    if config.method in SELF_DISTILLED and config.losses.koleo and not config.losses.koleo_over_ranks:
        yield f"KoLeo looks for nearest neighbours among {others} images instead of {images}"
    if config.method == "slimclr-mocov2":
        yield f"BatchNorm takes its statistics over {others} images instead of {images}"
    if config.method not in SLIMMABLE and drop_path_of(config.model):
        yield "drop path leaves out blocks of other images"
