"""What a run writes and shows while it trains: metrics, scores, unreadable images, times."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from rich.console import Console

from poa import distributed
from poa.config.pretraining import Config
from poa.data.index import ImageIndex
from poa.data.views import RawViews
from poa.elastic.network import state
from poa.errors import UserError, counted
from poa.models.run import Paths
from poa.pretraining.bad import BadImages
from poa.pretraining.build import Parts
from poa.pretraining.monitor import Monitor
from poa.pretraining.observers import Callbacks, Observers
from poa.pretraining.schedule import epochs_to_cool_down, steps_before_cooldown
from poa.pretraining.step import StepResult
from poa.text import shell_word
from poa.training.best import best_step, checks_since_best, num_scored, score_of, scores_of
from poa.training.checkpoint import saved_steps
from poa.training.metrics import MetricsLog, read_metrics
from poa.training.progress import StepReport, TrainingDisplay, memory_in_use, summary
from poa.training.trackers import Started

RECENT_STEPS = 20
T = TypeVar("T")


class Verdict(NamedTuple):
    """What the scores so far say of a step."""

    is_best: bool
    """No kept checkpoint has as high a score."""
    is_plateau: bool
    """The score has not risen for as long as is waited for."""


NOT_SCORED = Verdict(is_best=False, is_plateau=False)


class Logger:
    """Writes and shows what happens in a run, of which ``start`` steps were done before; only on the main process."""

    def __init__(
        self,
        config: Config,
        index: ImageIndex,
        parts: Parts,
        paths: Paths,
        *,
        start: int,
        console: Console,
        callbacks: Callbacks,
    ) -> None:
        self._config, self._index, self._parts, self._paths, self._console = config, index, parts, paths, console
        self._start, self._num_steps = start, config.epochs * parts.steps_per_epoch
        self._seconds: dict[str, float] = defaultdict(float)
        self._marks: deque[tuple[float, float]] = deque(maxlen=RECENT_STEPS)  # (time, seconds of waiting so far)
        self._scores: dict[str, float] = {}
        self._scored: list[Mapping[str, Any]] = []  # rows of the metrics
        self._before_cooldown = steps_before_cooldown(config, steps_per_epoch=parts.steps_per_epoch)
        self._bad = BadImages(index, paths.bad_images, share=config.max_bad_share)
        self._observers = Observers(config.trackers, callbacks)  # refuses here, before anything is written
        self._monitor = Monitor(config, parts, console=console) if distributed.is_main() else None
        self._log: MetricsLog | None = None
        self._display = TrainingDisplay(
            self._num_steps, steps_per_epoch=parts.steps_per_epoch, start_step=start, console=console
        )
        self._stack = ExitStack()

    def __enter__(self) -> "Logger":
        if distributed.is_main():
            self._log = MetricsLog(self._paths.metrics)
            self._log.truncate_after(self._start + 1)
            if self._paths.metrics.exists():
                self._scored = [row for row in read_metrics(self._paths.metrics) if score_of(row) is not None]
            started = Started(self._paths.folder, self._start, self._config.model_dump(mode="json"))
            self._stack.enter_context(self._observers.opened(started))
        self._stack.enter_context(self._display)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def waiting(self, loader: Iterator[T]) -> Iterator[T]:
        """The batches; the time spent waiting for them is recorded."""
        while True:
            with self.timed("data"):
                batch = next(loader, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Record the time that something takes."""
        began = time.monotonic()
        yield
        self._seconds[activity] += time.monotonic() - began

    def score(self, step: int, result: StepResult) -> dict[str, float]:
        """Score the exported branch after so many steps, and warn of collapse."""
        backbone = state(self._parts.method.exported.backbone)
        weights = {name: distributed.whole(value) for name, value in backbone.items()}
        if self._monitor is None:
            return {}
        self._scores, warnings = self._monitor.score(step, result.metrics, weights)
        for sentence in warnings:
            self._display.message(f"WARNING: {sentence}")
        return self._scores

    def log(
        self, step: int, result: StepResult, batch: Sequence[RawViews], *, scores: Mapping[str, float]
    ) -> UserError | None:
        """Write and show a step; scores are those made after it, if any.

        Returns:
            The error to raise once the step is saved, where a callback or another package's logger has failed.

        Raises:
            UserError: Too many images cannot be read.
        """
        if told := self._bad.add({i for raw in batch for i in raw.bad}):
            self._display.message(told)
        self._scored += [{"step": step, **scores}] if scores else []
        sizes = " ".join(map(str, result.sizes))
        values: dict[str, float | int | str] = {"size": sizes, "lr": result.lr, **result.metrics, **scores}
        if self._log:
            self._log.write(step, values)
        self._marks.append((time.monotonic(), self._seconds["data"]))
        elapsed, waited = (last - first for first, last in zip(self._marks[0], self._marks[-1], strict=True))
        images = (len(self._marks) - 1) * self._config.batch_size
        self._display.update(
            StepReport(
                step=step,
                epoch=step / self._parts.steps_per_epoch,
                losses={"total": result.metrics["loss"]} | self._parts.method.headlines(result.metrics),
                lr=result.lr,
                images_per_second=images / elapsed if elapsed else 0.0,
                data_wait=waited / elapsed if elapsed else 0.0,
                memory_bytes=memory_in_use(self._parts.device),
                size=sizes,
                scores=self._scores,
            )
        )
        return self._observers.tell(step, values, scores) if self._log else None

    def judged(self, step: int) -> Verdict:
        """What the scores so far say of a step, the same on all processes."""
        own = torch.tensor([float(each) for each in self._judge(step)], device=self._parts.device)
        return Verdict(*(bool(each) for each in distributed.sum_over_ranks(own).tolist()))

    def _judge(self, step: int) -> Verdict:
        scores, patience = scores_of(self._scored), self._config.monitor.patience
        is_best = best_step(scores, among={*saved_steps(self._paths.checkpoints), step}) == step
        is_constant = self._config.optimizer.schedule == "constant"  # its cool-down is not cut short
        waits = patience is not None and step < (self._before_cooldown if is_constant else self._num_steps)
        return Verdict(is_best, waits and checks_since_best(scores) >= (patience or 0))

    def steps_to_keep(self, step: int) -> set[int]:
        """Checkpoints that are never deleted once ``step`` is saved: the best, and the last before a cool-down."""
        saved = {*saved_steps(self._paths.checkpoints), step}
        best = best_step(scores_of(self._scored), among=saved)
        fork = max((each for each in saved if each <= self._before_cooldown), default=None)
        return {each for each in (best, fork) if each is not None}

    def finish(self, step: int) -> None:
        """Show a summary: why the run ended, its best checkpoint, and the command that resumes it or follows."""
        self._stack.close()
        of_all = f"at step {step:,} of {self._num_steps:,}"
        title, said = f"stopped and saved {of_all}", {"next": self._resume()}
        if step == self._num_steps:
            title = "run finished" if self._start < step else "run was finished before: nothing is left to train"
            said = {"next": f"poa sizes {shell_word(self._config.out)}"}
        elif self._judge(step).is_plateau:
            title, said = f"stopped early {of_all}", self._after_plateau(step)
        self._console.print(
            summary(
                title,
                seconds=self._seconds,
                num_images=(step - self._start) * self._config.batch_size,
                memory_bytes=memory_in_use(self._parts.device),
                scores=self._scores,
                files={"run": self._paths.folder, "metrics": self._paths.metrics},
                said=self._best() | said,
            ),
            soft_wrap=True,
        )

    def _resume(self, more: str = "") -> str:
        return f"poa pretrain --out {shell_word(self._config.out)} --resume{more}"

    def _best(self) -> dict[str, str]:
        scores = scores_of(self._scored)
        best = best_step(scores, among=saved_steps(self._paths.checkpoints))
        if best is None:
            return {}
        sizes = num_scored(next(row for row in self._scored if row["step"] == best))
        mean = f", mean of {sizes} sizes," if sizes > 1 else ""
        return {"best": f"k-NN {scores[best]:.4g}{mean} at step {best:,} (--checkpoint best)"}

    def _after_plateau(self, step: int) -> dict[str, str]:
        """Why a run has stopped early, and how it goes on."""
        checks = counted(self._config.monitor.patience or 0, "check")
        why = f"k-NN has not risen for {checks} (--monitor.patience)"
        more = " --monitor.patience none"
        if self._config.optimizer.schedule == "cosine":
            following = f"poa sizes {shell_word(self._config.out)} --checkpoint best"
            return {"why": why, "next": following, "or go on": self._resume(more)}
        epochs = epochs_to_cool_down(self._config, after=step, steps_per_epoch=self._parts.steps_per_epoch)
        return {"why": why, "cool down": self._resume(f" --epochs {epochs}{more}"), "or go on": self._resume(more)}
