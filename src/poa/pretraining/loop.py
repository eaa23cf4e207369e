"""The loop of pre-training: steps, and what is due after some of them."""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from poa import distributed
from poa.config.pretraining import Config
from poa.data.index import ImageIndex
from poa.data.views import RawViews
from poa.errors import UserError
from poa.models.run import Paths
from poa.pretraining.build import Parts
from poa.pretraining.logger import NOT_SCORED, Logger
from poa.pretraining.resume import identity
from poa.pretraining.schedule import Due, due_steps
from poa.pretraining.step import StepResult, begin_step, train_step
from poa.training.background import Background
from poa.training.checkpoint import write_checkpoint
from poa.training.health import check_state
from poa.training.interrupt import StopSignal
from poa.training.states import state_of

AHEAD: Collection[str] = ("cuda",)
"""Devices that get a step while they are at the one before it, so that they never stand still in between."""


def train_steps(
    parts: Parts,
    config: Config,
    index: ImageIndex,
    batches: Iterator[list[RawViews]],
    logger: Logger,
    *,
    start: int,
    asked: StopSignal,
) -> int:
    """Train from a step to the end, or until asked to stop; returns the number of steps done.

    Checkpoints are written in the background; what depends on which there are waits for the newest.
    """
    if logger.judged(start).is_plateau:
        return start
    due, ending, done = due_steps(config, steps_per_epoch=parts.steps_per_epoch), _Ending(asked), start
    with Background() as background:
        for done, batch, result, is_settled in _steps(parts, logger, logger.waiting(batches), due, ending, start=start):
            is_scored = due.scores(done)
            with logger.timed("saving"):
                background.wait() if is_scored else background.check()
            with logger.timed("scoring"):
                scores = logger.score(done, result) if is_scored else {}
            ending.learn(result, logger.log(done, result, batch, scores=scores))
            if not is_settled:
                continue
            verdict = logger.judged(done) if is_scored else NOT_SCORED
            ends = done == due.num_steps or verdict.is_plateau
            if ends or ending.is_agreed or verdict.is_best or due.saves(done):
                with logger.timed("saving"):
                    background.wait()
                    distributed.barrier()  # not if another process has ended over this step's images
                    _save(parts, config, index, background, done, keep=logger.steps_to_keep(done))
            if ends or ending.is_agreed:
                ending.stop(is_end=ends)
                break
    return done


class _Ending:
    """Whether a run ends before its last step: it is asked to, or a caller's function has failed."""

    def __init__(self, asked: StopSignal) -> None:
        self._asked = asked
        self._failure: UserError | None = None
        self.is_agreed = False

    @property
    def is_wanted(self) -> bool:
        """Whether this process has a reason to; the others learn of it with the numbers of the next step."""
        return self._asked.requested or self._failure is not None

    def learn(self, result: StepResult, failure: UserError | None) -> None:
        """Of a step: whether some process has wanted to end, and whether something of this one has failed."""
        self._failure = failure or self._failure
        fails_alone = self._failure is not None and distributed.world_size() == 1
        self.is_agreed = self.is_agreed or result.stop or fails_alone

    def stop(self, *, is_end: bool) -> None:
        """Say that the run was stopped, if this is not its end.

        Raises:
            UserError: What has failed.
        """
        if self._failure is not None:
            raise self._failure
        self._asked.stopped = not is_end


class _Trained(NamedTuple):
    """A step that was trained and measured."""

    number: int
    batch: list[RawViews]
    result: StepResult
    is_settled: bool
    """Whether the weights are those after it: no further one was begun."""


def _steps(
    parts: Parts,
    logger: Logger,
    batches: Iterator[list[RawViews]],
    due: Due,
    ending: _Ending,
    *,
    start: int,
) -> Iterator[_Trained]:
    """Train step by step; some devices get the next one before they are asked what the last has measured.

    None is begun while the weights are looked at.
    """
    begun: deque[tuple[int, list[RawViews], Callable[[], StepResult]]] = deque()
    most, begin = (1, _begun) if parts.device.type in AHEAD else (0, _done)
    for step, batch in enumerate(batches, start):
        with logger.timed("training"):
            begun.append((step + 1, batch, begin(parts, step, batch, stop=ending.is_wanted)))
        while len(begun) > most or (begun and (due.looks(step + 1) or ending.is_agreed)):
            number, of_it, read = begun.popleft()
            with logger.timed("training"):
                result = read()
            yield _Trained(number, of_it, result, is_settled=not begun)


def _done(parts: Parts, step: int, batch: list[RawViews], *, stop: bool) -> Callable[[], StepResult]:
    result = train_step(parts, step, batch, stop=stop)
    return lambda: result


def _begun(parts: Parts, step: int, batch: list[RawViews], *, stop: bool) -> Callable[[], StepResult]:
    return partial(begin_step(parts, step, batch, stop=stop).read, parts, is_updated=True)


def _save(
    parts: Parts, config: Config, index: ImageIndex, background: Background, step: int, *, keep: Collection[int]
) -> None:
    """Write a checkpoint of a step in the background, of a copy of what there is now."""
    networks = state_of(parts.method, parts.optimizer)
    check_state(networks)  # all processes stop where the main one does
    if not distributed.is_main():
        return
    of_run = {"images": index.fingerprint, "num_images": len(index), **identity(config)}
    every, scaler = config.saving.keep_every_epochs, parts.scaler.state_dict()
    background.begin(
        partial(
            write_checkpoint,
            Paths(Path(config.out)).checkpoints,
            step,
            {"step": step, **networks, "scaler": scaler, **of_run},
            keep_last=config.saving.keep_last,
            keep_every=None if every is None else max(1, round(every * parts.steps_per_epoch)),
            keep=keep,
        )
    )
