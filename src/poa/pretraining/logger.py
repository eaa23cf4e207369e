"""What a run leaves behind and shows while it goes on: metrics, scores, unreadable images, times."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from poa import distributed
from poa.config.pretraining import Config
from poa.data.index import ImageIndex
from poa.data.views import RawViews
from poa.errors import UserError
from poa.models.run import Paths
from poa.pretraining.metrics import MetricsLog, tensorboard_writer
from poa.pretraining.monitor import Monitor
from poa.pretraining.step import Parts
from poa.training.progress import StepReport, TrainingDisplay, memory_in_use, summary

RECENT_STEPS = 20
T = TypeVar("T")


class Journal:
    """Keeps and shows what happens. On other processes than the main one it only keeps the time.

    Args:
        config: Settings.
        index: The images.
        parts: Of the run.
        paths: The folder of the run.
        start: Steps done before.
        console: Where to show it.
    """

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
        self._monitor = Monitor(config, parts) if distributed.is_main() else None
        self._log: MetricsLog | None = None
        self._display = TrainingDisplay(
            self._num_steps, steps_per_epoch=parts.steps_per_epoch, start_step=start, console=console
        )
        self._stack = ExitStack()

    def __enter__(self) -> "Journal":
        if distributed.is_main():
            tensorboard = self._paths.folder / "tb" if self._config.monitor.tensorboard else None
            self._log = self._stack.enter_context(MetricsLog(self._paths.metrics, tensorboard=tensorboard))
            self._log.truncate_after(self._start + 1)
        self._stack.enter_context(self._display)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def waiting(self, loader: Iterator[T]) -> Iterator[T]:
        """The batches, the time spent waiting for them on record."""
        while True:
            with self.timed("data"):
                batch = next(loader, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Put the time that something takes on record."""
        began = time.monotonic()
        yield
        self._seconds[activity] += time.monotonic() - began

    def look(self, step: int, measured: dict[str, float]) -> dict[str, float]:
        """Score the teacher and warn of collapse.

        Args:
            step: Steps done.
            measured: Losses of the last step.

        Returns:
            The scores.
        """
        if self._monitor is None:
            return {}
        self._scores, sentences = self._monitor.look(step, measured)
        for sentence in sentences:
            self._display.message(f"WARNING: {sentence}")
        return self._scores

    def write(self, step: int, measured: dict[str, float], batch: Sequence[RawViews]) -> None:
        """Note a step.

        Args:
            step: Steps done.
            measured: Losses, and scores if there are new ones.
            batch: The images of the step.

        Raises:
            UserError: Too many images cannot be read.
        """
        self._note_bad({self._index.name(i) for raw in batch for i in raw.bad})
        values = self._parts.schedules.at(step - 1)
        sizes = " ".join(map(str, self._parts.subnets(step - 1, rank=distributed.rank())))
        if self._log:
            self._log.write(step, {"size": sizes, "lr": values.lr, **measured})
        self._marks.append((time.monotonic(), self._seconds["data"]))
        elapsed, waited = (last - first for first, last in zip(self._marks[0], self._marks[-1], strict=True))
        images = (len(self._marks) - 1) * self._config.batch_size
        branches = {"total": measured["loss"]} | self._parts.method.headlines(measured)
        self._display.update(
            StepReport(
                step=step,
                epoch=step / self._parts.steps_per_epoch,
                losses=branches,
                lr=values.lr,
                images_per_second=images / elapsed if elapsed else 0.0,
                data_wait=waited / elapsed if elapsed else 0.0,
                memory_bytes=memory_in_use(self._parts.device),
                size=sizes,
                scores=self._scores,
            )
        )

    def _listed(self) -> set[str]:
        file = self._paths.bad_images
        return set(file.read_text().splitlines()) if file.exists() else set()

    def _note_bad(self, names: set[str]) -> None:
        if names <= self._bad:
            return
        self._bad |= self._listed()  # other processes add to the list too
        new = names - self._bad
        self._bad |= new
        with self._paths.bad_images.open("a") as file:
            file.writelines(f"{name}\n" for name in sorted(new))
        self._display.message(f"{len(self._bad)} images cannot be read and are skipped; see {self._paths.bad_images}")
        most = self._config.max_bad_share * len(self._index)
        if len(self._bad) > max(most, 1):
            raise UserError(
                f"{len(self._bad)} of {len(self._index)} images cannot be read, more than the share of "
                f"{self._config.max_bad_share:.1%} that is let pass; {self._paths.bad_images} lists them. "
                "Raise --max-bad-share and go on with --resume, or mend or remove them and start a new run."
            )

    def close(self, step: int, *, how_on: str, how_next: str) -> None:
        """Show what the run came to.

        Args:
            step: Steps done.
            how_on: Command to go on with, if the run is not at its end.
            how_next: Command to type after a whole run.
        """
        self._stack.close()
        finished = step == self._num_steps
        title = "run finished" if finished else f"stopped and saved at step {step:,} of {self._num_steps:,}"
        files: dict[str, Path] = {"run": self._paths.folder, "metrics": self._paths.metrics}
        self._console.print(
            summary(
                title,
                seconds=self._seconds,
                num_images=(step - self._start) * self._config.batch_size,
                memory_bytes=memory_in_use(self._parts.device),
                scores=self._scores,
                files=files,
                next_command=how_next if finished else how_on,
            ),
            soft_wrap=True,
        )
