"""The plan of a run: made of images, machine and wishes, and measured by some of its steps."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from poa import distributed
from poa.config.nested import flat, nested
from poa.config.pretraining import SLIMMABLE, Config
from poa.config.resolve import read_recipe, resolve
from poa.errors import UserError
from poa.features.images import open_images
from poa.machine import devices, launchers
from poa.models import opening
from poa.models.registry import describe, family_name, family_of
from poa.models.run import Run
from poa.models.weights import with_network
from poa.planning.decisions import Decision, Start, crops_for, decide, length, of_length, start_of
from poa.planning.expectation import expectation
from poa.planning.facts import ImageFacts, MachineFacts, images_of, machine_of
from poa.planning.notes import notes_of
from poa.pretraining import launch
from poa.pretraining.dry_run import Forecast, Measured, forecast, measure
from poa.pretraining.process import require_data
from poa.text import plain_console, tell
from poa.training.health import MemoryRanOut

MEASURED_STEPS = 7
"""The first does not count; the others are of several sizes, as in the run."""
OF_TIME, OF_MEMORY = 0.9, 0.8
"""Share of the hours for steps (scores, checkpoints and the start take the rest), and of the memory that is used."""
STEPS_IN_HOURS = 600
"""Crops become smaller until so many steps fit into the hours that were asked for."""
SMALLEST_SHRUNK = 32
"""Crops do not become smaller than that, in pixels."""
CROP = "views.global_size"
FEWEST_A_PASS = 16
"""Images; batches are not split further for lack of memory."""


@dataclass(frozen=True)
class RunPlan:
    """Settings of a run with the reason of each, and what the run will take.

    Attributes:
        images: What the images are like.
        machine: What there is to train on.
        start: The recipe that was chosen; None where the user named a recipe or a file.
        decisions: What differs from it, beside what the user gave.
        config: All settings.
        forecast: Speed, time, memory and disk, as measured by some steps.
        expected: What a run of ours came to that is like this one.
        gave_crops: Whether the user has given their side.
    """

    images: ImageFacts
    machine: MachineFacts
    start: Start | None
    decisions: tuple[Decision, ...]
    config: Config
    forecast: Forecast
    expected: str
    gave_crops: bool

    def choices(self) -> list[tuple[str, str]]:
        """What was chosen, and why."""
        recipe = [] if self.start is None else [("recipe", f"{self.start.recipe}: {self.start.reason}")]
        return [
            ("images", self.images.line()),
            ("machine", self.machine.line()),
            *recipe,
            *(("\n".join(each.words for each in same), reason) for reason, same in self._by_reason().items()),
        ]

    def _by_reason(self) -> dict[str, list[Decision]]:
        found: dict[str, list[Decision]] = {}
        for decision in self.decisions:
            found.setdefault(decision.reason, []).append(decision)
        return found

    def rows(self) -> list[tuple[str, str]]:
        """What was chosen, what the run will take, and what to expect; each line with its name."""
        known = {name for name, _ in self.choices()}
        chosen = self.start is not None and not self.gave_crops
        notes = notes_of(self.config, self.images, num_steps=self.forecast.num_steps, chosen_crops=chosen)
        return [
            *self.choices(),
            *((name, what) for name, what in self.forecast.rows() if name not in known),
            ("expected", self.expected),
            *(("note", sentence) for sentence in notes),
        ]

    def text(self) -> str:
        """The same for a file."""
        return "".join(f"{' '.join(name.split())}: {what}\n" for name, what in self.rows())

    def train(self) -> Run:
        """Pre-train as planned; the plan is written to the run."""
        return launch.train(self.config, plan=self.text())


class _Draft(NamedTuple):
    """A plan before its length is known."""

    start: Start | None
    decisions: tuple[Decision, ...]
    config: Config


@dataclass(frozen=True)
class _Wishes:
    """What the user gave."""

    given: Mapping[str, Any]
    recipe: str | None
    file: str | Path | None
    hours: float | None
    steps: int | None

    def settings(self, start: Start | None = None, decisions: Sequence[Decision] = ()) -> Config:
        """With them over those of a recipe and what is changed of it."""
        planned = nested({each.setting: each.value for each in decisions})
        if start is None:  # what was decided is the length alone
            return resolve({**self.given, **planned}, recipe=self.recipe, file=self.file)
        return resolve(self.given, recipe=start.recipe, planned=planned)

    def draft(self, start: Start, decisions: Sequence[Decision]) -> _Draft:
        """The same, as long as the recipe: what it counts in epochs is only decided with their number."""
        given = {name: value for name, value in self.given.items() if name != "epochs"}
        planned = nested({each.setting: each.value for each in decisions})
        return _Draft(start, tuple(decisions), resolve(given, recipe=start.recipe, planned=planned))


def make_plan(
    given: Mapping[str, Any],
    *,
    recipe: str | None = None,
    file: str | Path | None = None,
    hours: float | None = None,
    steps: int | None = None,
    console: Console | None = None,
) -> RunPlan:
    """Plan a run; nothing is written. Of several processes the main one plans, and the others get its plan.

    Args:
        given: Nested settings by name, which are kept as they are.
        recipe: Name of a recipe, to plan no more than the length; so does a file.
        file: A YAML file of settings.
        hours: How long the run shall take.
        steps: How many steps it shall have.
        console: Where progress is shown; on standard error by default.

    Raises:
        UserError: An argument, the images, the folder or the device are invalid, or nothing fits into memory.
    """
    wishes = _Wishes(with_network(given, recipe=recipe, file=file), recipe, file, hours, steps)
    _check(wishes)
    console = console or plain_console(stderr=True, quiet=not distributed.is_main())
    return distributed.from_main(lambda: _plan(wishes, console))


def _check(wishes: _Wishes) -> None:
    if wishes.hours is not None and not (math.isfinite(wishes.hours) and wishes.hours > 0):
        raise UserError(f"--hours must be above 0, got {wishes.hours:g}. Give hours such as 0.5 or 24.")
    if wishes.steps is not None and wishes.steps < 1:
        raise UserError(f"--steps must be at least 1, got {wishes.steps}.")
    lengths = {"--hours": wishes.hours, "--steps": wishes.steps, "--epochs": wishes.given.get("epochs")}
    if len(found := [name for name, value in lengths.items() if value is not None]) > 1:
        raise UserError(f"{' and '.join(found)} say how long the run is. Give one of them.")


def _plan(wishes: _Wishes, console: Console) -> RunPlan:
    first = wishes.settings()
    require_data(first)
    if first.out:
        opening.check(first, resume=False)
    images = images_of(open_images(first.data, limit=first.limit, console=console), first.values)
    machine = _machine(first)
    if wishes.recipe is None and wishes.file is None:
        draft, measured = _started(wishes, images, machine, console)
    else:
        draft = _Draft(None, (), first)
        measured = _measured(draft.config, console)
    decisions = (*draft.decisions, *_of_length(draft, wishes, images, machine, measured))
    config = wishes.settings(draft.start, decisions)
    if config.limit is not None:
        an_epoch = config.limit // config.batch_size
        measured = replace(measured, num_images=config.limit, steps_per_epoch=an_epoch)
    found = forecast(config, measured)
    family = family_name(describe(config.model.name)[0])
    seen = found.num_steps * config.batch_size
    expected = expectation(family=family, number=images.number, side=images.side, images_seen=seen)
    return RunPlan(images, machine, draft.start, decisions, config, found, expected, CROP in flat(wishes.given))


def _machine(config: Config) -> MachineFacts:
    device, place = distributed.this_device(config.device, float64=False), launchers.place()
    if place is not None:
        return machine_of(device, local=place.local_processes, processes=place.num_processes)
    local = config.devices or (devices.found().gpus if device.type == "cuda" else 1)
    return machine_of(device, local=local, processes=local * config.num_nodes)


def _started(wishes: _Wishes, images: ImageFacts, machine: MachineFacts, console: Console) -> tuple[_Draft, Measured]:
    """The draft that suits, and what its steps take."""
    given = flat(wishes.given)
    family = family_name(describe(given["model.name"])[0]) if "model.name" in given else None
    start = start_of(images, machine, given, family=family)
    return _suited(_drafts(wishes, images, machine, start), wishes, machine, console)


def _drafts(wishes: _Wishes, images: ImageFacts, machine: MachineFacts, start: Start) -> Iterator[_Draft]:
    """For each side of crops that the network can take, the best first.

    Raises:
        UserError: It can take none.
    """
    given = flat(wishes.given)
    crops = [given[CROP]] if CROP in given else crops_for(images, machine)
    model = wishes.draft(start, ()).config.model
    patch = model.patch_size or describe(model.name)[1].get("patch_size", 4)
    refusal, number = UserError("There are no crops."), 0
    for crop in crops:
        draft = wishes.draft(start, decide(images, machine, given, recipe=start.recipe, crop=crop, patch=patch))
        try:
            grid = family_of(draft.config).mask_grid(crop)
            draft.config.views.check()
        except UserError as error:
            refusal = error if number == 0 else refusal
            continue
        if grid == 1 and CROP not in given:  # a single patch has no neighbours to learn from
            continue
        number += 1
        yield draft
    if not number:
        raise refusal


def _suited(
    drafts: Iterator[_Draft], wishes: _Wishes, machine: MachineFacts, console: Console
) -> tuple[_Draft, Measured]:
    """The draft with the largest crops that leave enough steps, and what its steps take."""
    draft, measured = _fitted(next(drafts), machine, console)
    if wishes.hours is None:
        return draft, measured
    possible = _possible(wishes.hours, measured)
    if possible >= STEPS_IN_HOURS:
        return draft, measured
    smaller = [each for each in drafts if SMALLEST_SHRUNK <= _side(each) < _side(draft)]
    if not smaller:
        return draft, measured
    enough = [each for each in smaller if possible * (_side(draft) / _side(each)) ** 2 >= STEPS_IN_HOURS]
    chosen = enough[0] if enough else smaller[-1]
    why = f"in {_in_hours(wishes.hours)} there is time for only {possible} steps on crops of {_side(draft)} pixels"
    others = [each for each in chosen.decisions if each.setting != CROP]
    return _fitted(chosen._replace(decisions=(Decision(CROP, _side(chosen), why), *others)), machine, console)


def _side(draft: _Draft) -> int:
    return draft.config.views.global_size


def _possible(hours: float, measured: Measured) -> int:
    return int(OF_TIME * hours * 3600 / measured.seconds_per_step)


def _measured(config: Config, console: Console) -> Measured:
    """What some steps take; what the run itself will say is left to it."""
    sides = sorted({config.views.first_size, config.views.global_size})
    steps = f"{MEASURED_STEPS} steps{' each' if len(sides) > 1 else ''}"
    tell(console, f"Training {steps} on crops of {' and '.join(map(str, sides))} pixels to measure them ...")
    config = launch.placed(config).model_copy(update={"out": ""})
    return measure(config, console=plain_console(quiet=True), num_steps=MEASURED_STEPS)


def _fitted(draft: _Draft, machine: MachineFacts, console: Console) -> tuple[_Draft, Measured]:
    """The draft, its batch split so often that it fits into memory, and what its steps take.

    Raises:
        MemoryRanOut: It does not fit however often it is split.
    """
    config, measured, problem = draft.config, None, None
    at_once = machine.processes if machine.device == "cpu" else 1
    try:
        measured = _measured(config, console)
        if machine.memory is None or at_once * measured.memory_bytes <= OF_MEMORY * machine.memory:
            return draft, measured
    except MemoryRanOut as error:
        problem = error
    parts = 2 * config.accumulate
    if config.method not in SLIMMABLE and config.batch_size // (parts * machine.processes) >= FEWEST_A_PASS:
        why = f"passes of {config.batch_size // config.accumulate} images need more than {OF_MEMORY:.0%} of the memory"
        kept = [each for each in draft.decisions if each.setting != "accumulate"]
        smaller = config.model_copy(update={"accumulate": parts})
        return _fitted(_Draft(draft.start, (*kept, Decision("accumulate", parts, why)), smaller), machine, console)
    if measured is None:
        assert problem is not None
        raise problem
    return draft, measured


def _of_length(
    draft: _Draft, wishes: _Wishes, images: ImageFacts, machine: MachineFacts, measured: Measured
) -> list[Decision]:
    """Epochs and all that follows from their number."""
    given, config, an_epoch = flat(wishes.given), draft.config, measured.steps_per_epoch
    steps = wishes.steps if wishes.hours is None else _possible(wishes.hours, measured)
    if draft.start is None:
        if steps is None:
            return []
        return [Decision("epochs", max(1, steps // an_epoch), _why(wishes, measured)), *_part(config, steps, an_epoch)]
    base = flat(Config.model_validate(read_recipe(draft.start.recipe)).model_dump())
    per_hour = 3600 / (measured.seconds_per_step * an_epoch)
    if "epochs" in given:
        return of_length(base, given, epochs=given["epochs"], per_hour=per_hour)
    epochs, why = length(images, machine, epochs=config.epochs, an_epoch=an_epoch, steps=steps)
    decided = [] if epochs == base["epochs"] else [Decision("epochs", epochs, why or _why(wishes, measured))]
    return [*decided, *_part(config, steps, an_epoch), *of_length(base, given, epochs=epochs, per_hour=per_hour)]


def _part(config: Config, steps: int | None, an_epoch: int) -> list[Decision]:
    """Fewer images, where there is no time for all."""
    if steps is None or steps >= an_epoch or config.limit is not None:
        return []
    why = f"there is time for {max(1, steps)} steps, and {an_epoch} would be needed to see all images once"
    return [Decision("limit", max(1, steps) * config.batch_size, why)]


def _why(wishes: _Wishes, measured: Measured) -> str:
    if wishes.hours is None:
        return f"so that the run has about {wishes.steps:,} steps, {measured.steps_per_epoch:,} an epoch"
    return f"so that the run takes about {_in_hours(wishes.hours)}, by the time of some steps"


def _in_hours(hours: float) -> str:
    return "1 hour" if hours == 1 else f"{hours:g} hours"
