"""What a run writes and shows while it trains: metrics, scores, unreadable images, times."""

import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from poa import distributed
from poa.config.pretraining import Config
from poa.data.index import ImageIndex
from poa.data.loader import why_bad
from poa.data.views import RawViews
from poa.errors import UserError, counted, installing
from poa.files import whole_file
from poa.models.run import Paths
from poa.pretraining.build import Parts
from poa.pretraining.monitor import Monitor
from poa.pretraining.step import StepResult
from poa.text import one_line
from poa.training.progress import StepReport, TrainingDisplay, memory_in_use, summary

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Appends to ``metrics.jsonl``, one JSON object a line, and to TensorBoard if a folder for it is given.

    Raises:
        UserError: TensorBoard is asked for but not installed.
    """

    def __init__(self, path: Path, *, tensorboard: Path | None = None) -> None:
        self._path = path
        self._tensorboard = tensorboard
        self._writer = _summary_writer(tensorboard) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Add one line; numbers that are not finite become null. On return the operating system has it.

        Raises:
            UserError: The disk is full, or the file cannot be written for another reason.
        """
        row = {"step": step, **{name: _json_value(value) for name, value in values.items()}}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written: {error.strerror}. Fix this and resume with --resume."
            ) from error
        if self._writer:
            for name, value in values.items():
                if not isinstance(value, str):
                    self._writer.add_scalar(name, value, step)

    def truncate_after(self, step: int) -> None:
        """Drop what a resumed run will write again: lines whose step is ``step`` or later, and a half-written one."""
        if self._path.exists():
            kept = [line for line in _lines(self._path) if _row(line, path=self._path)["step"] < step]
            with whole_file(self._path, durable=True) as temporary, temporary.open("wb") as file:
                file.writelines(kept)
        if self._tensorboard and self._writer:
            self._writer.close()
            self._writer = _summary_writer(self._tensorboard, purge_step=step)

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` in the order of writing, without a last one that is half written.

    Raises:
        UserError: There is no such file, or a line in it is not a JSON object with a step.
    """
    if not path.is_file():
        raise UserError(f"There are no metrics at {path}. Give the folder of a run that has completed a step.")
    return [_row(line, path=path) for line in _lines(path)]


def _lines(path: Path) -> list[bytes]:
    """Whole lines. Bytes, so that kept lines stay as they were written."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _row(line: bytes, *, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        shown = line[:60].decode(errors="replace").strip()
        raise UserError(f"{path} has a line that is not a JSON object with a step: {shown!r}. Delete that line.")
    return row


def _json_value(value: float | int | str) -> float | int | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tensorboard_writer() -> type["SummaryWriter"]:
    """What writes TensorBoard's files; a UserError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"TensorBoard is requested but not installed. {installing('track')}, or turn TensorBoard off."
        ) from error
    return SummaryWriter


def _summary_writer(folder: Path, *, purge_step: int | None = None) -> "SummaryWriter":
    return tensorboard_writer()(folder, purge_step=purge_step)
