"""What a run writes and shows while it trains: metrics, scores, unreadable images, times."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from rich.console import Console

from poa import distributed
from poa.config.pretraining import Config
from poa.data.index import ImageIndex
from poa.data.loader import why_bad
from poa.data.views import RawViews
from poa.errors import UserError, counted
from poa.models.run import Paths
from poa.pretraining.build import Parts
from poa.pretraining.monitor import Monitor
from poa.pretraining.step import StepResult
from poa.text import one_line
from poa.training.metrics import MetricsLog, tensorboard_writer
from poa.training.progress import StepReport, TrainingDisplay, memory_in_use, summary

RECENT_STEPS = 20
T = TypeVar("T")


class Logger:
    """Writes and shows what happens in a run, of which ``start`` steps were done before; only on the main process."""

    def __init__(
        self, config: Config, index: ImageIndex, parts: Parts, paths: Paths, *, start: int, console: Console
    ) -> None:
        self._config, self._index, self._parts, self._paths, self._console = config, index, parts, paths, console
        self._start, self._num_steps = start, config.epochs * parts.steps_per_epoch
        self._seconds: dict[str, float] = defaultdict(float)
        self._marks: deque[tuple[float, float]] = deque(maxlen=RECENT_STEPS)  # (time, seconds of waiting so far)
        self._scores: dict[str, float] = {}
        self._bad = self._listed()
        if config.monitor.tensorboard:
            tensorboard_writer()  # refuses here, before anything is written, where it is not installed
        self._monitor = Monitor(config, parts, console=console) if distributed.is_main() else None
        self._log: MetricsLog | None = None
        self._display = TrainingDisplay(
            self._num_steps, steps_per_epoch=parts.steps_per_epoch, start_step=start, console=console
        )
        self._stack = ExitStack()

    def __enter__(self) -> "Logger":
        if distributed.is_main():
            tensorboard = self._paths.folder / "tb" if self._config.monitor.tensorboard else None
            self._log = self._stack.enter_context(MetricsLog(self._paths.metrics, tensorboard=tensorboard))
            self._log.truncate_after(self._start + 1)
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
        if self._monitor is None:
            return {}
        self._scores, warnings = self._monitor.score(step, result.metrics)
        for sentence in warnings:
            self._display.message(f"WARNING: {sentence}")
        return self._scores

    def log(self, step: int, result: StepResult, batch: Sequence[RawViews], *, scores: Mapping[str, float]) -> None:
        """Write and show a step; scores are those made after it, if any.

        Raises:
            UserError: Too many images cannot be read.
        """
        self._note_bad({one_line(self._index.name(i)): i for raw in batch for i in raw.bad})
        sizes = " ".join(map(str, result.sizes))
        if self._log:
            self._log.write(step, {"size": sizes, "lr": result.lr, **result.metrics, **scores})
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

    def _listed(self) -> set[str]:
        file = self._paths.bad_images
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else ()
        return {line.partition("\t")[0] for line in lines}  # earlier runs gave no reasons

    def _note_bad(self, found: Mapping[str, int]) -> None:
        if found.keys() <= self._bad:
            return
        self._bad |= self._listed()  # other processes add to the list too
        new = sorted(found.keys() - self._bad)
        self._bad |= set(new)
        with self._paths.bad_images.open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\t{why_bad(self._index, found[name])}\n" for name in new)
        self._display.message(
            f"Images that cannot be read are skipped: {len(self._bad):,} so far, listed in {self._paths.bad_images}"
        )
        most = self._config.max_bad_share * len(self._index)
        if len(self._bad) > max(most, 1):
            raise UserError(
                f"{len(self._bad)} of {counted(len(self._index), 'image')} cannot be read, more than the allowed "
                f"share of {self._config.max_bad_share:.1%}; {self._paths.bad_images} lists them. Raise "
                "--max-bad-share and resume with --resume, or fix or remove them and start a new run."
            )

    def finish(self, step: int, *, resume_command: str, next_command: str) -> None:
        """Show a summary, and the command that resumes the run or that follows a finished one."""
        self._stack.close()
        finished = step == self._num_steps
        title = "run finished" if finished else f"stopped and saved at step {step:,} of {self._num_steps:,}"
        self._console.print(
            summary(
                title,
                seconds=self._seconds,
                num_images=(step - self._start) * self._config.batch_size,
                memory_bytes=memory_in_use(self._parts.device),
                scores=self._scores,
                files={"run": self._paths.folder, "metrics": self._paths.metrics},
                next_command=next_command if finished else resume_command,
            ),
            soft_wrap=True,
        )
