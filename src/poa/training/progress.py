"""What a user sees while waiting: a panel in a terminal, and plain lines where the output goes to a file."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from poa.text import one_line, tell

_START_UP_STEPS = 2
_RECENT_STEPS = 100


class StepReport(NamedTuple):
    """What is shown of a step. ``step`` and ``epoch`` count it; ``scores`` are the latest, by name."""

    step: int
    epoch: float
    losses: Mapping[str, float]
    """Loss by branch."""
    lr: float
    images_per_second: float
    data_wait: float
    """Share of the time spent waiting for data, 0 to 1."""
    memory_bytes: int
    size: str
    """The size or sizes trained in this step besides the intact one; empty where all steps train the same."""
    scores: Mapping[str, float]


class TrainingDisplay:
    """Shows the progress of a training: a live panel in a terminal, elsewhere a line every ``every_seconds``."""

    def __init__(
        self,
        total_steps: int,
        *,
        steps_per_epoch: int,
        start_step: int,
        console: Console,
        every_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._total_epochs = total_steps / steps_per_epoch
        self._first_mark = start_step + _START_UP_STEPS
        self._console = console
        self._every_seconds = every_seconds
        self._clock = clock
        self._marks: deque[tuple[int, float]] = deque(maxlen=_RECENT_STEPS)
        self._report: StepReport | None = None
        self._next_line = -float("inf")
        self._live = Live(console=console, get_renderable=self._panel) if _is_lively(console) else None

    def __enter__(self) -> "TrainingDisplay":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, report: StepReport) -> None:
        """Show a step; cheap enough to be called after each one."""
        now = self._clock()
        if report.step >= self._first_mark:
            self._marks.append((report.step, now))
        self._report = report
        if self._live is None and (now >= self._next_line or report.step >= self._total_steps):
            self._next_line = now + self._every_seconds
            self.message(self._line(report))

    def message(self, text: str) -> None:
        """Print a text that stays, above the panel if there is one."""
        tell(self._console, text, soft_wrap=self._live is None)

    def remaining_seconds(self) -> float | None:
        """Time to the end at the pace of the recent steps, or None before there are two after the start-up."""
        if not self._marks or self._marks[0][0] == self._marks[-1][0]:
            return None
        (first_step, first_time), (last_step, last_time) = self._marks[0], self._marks[-1]
        return (self._total_steps - last_step) * (last_time - first_time) / (last_step - first_step)

    def _counts(self, report: StepReport) -> tuple[str, str]:
        steps = f"step {report.step:,}/{self._total_steps:,}"
        return steps, f"epoch {report.epoch:.1f}/{self._total_epochs:.1f}"

    def _line(self, report: StepReport) -> str:
        parts = (*self._counts(report), *_parts(report), f"ETA {duration(self.remaining_seconds())}")
        return "  ".join(part for part in parts if part)

    def _panel(self) -> RenderableType:
        report = self._report
        if report is None:
            return self._boxed("waiting for the first step")
        steps, epochs = self._counts(report)
        losses, lr, size, speed, wait, memory, scores = _parts(report)
        top = Table.grid(padding=(0, 2), expand=True)
        for ratio in (None, 1, None, None):
            top.add_column(ratio=ratio, no_wrap=True)
        bar = ProgressBar(total=self._total_steps, completed=report.step)
        done = f"{report.step / self._total_steps:.0%}"
        top.add_row(steps, bar, done, f"ETA {duration(self.remaining_seconds())}")
        rows = [losses, *("   ".join(filter(None, row)) for row in ((epochs, lr, size), (speed, wait, memory))), scores]
        texts = [Text(row, no_wrap=True, overflow="ellipsis") for row in rows if row]
        return self._boxed(Group(top, *texts))

    def _boxed(self, content: RenderableType) -> Panel:
        """With room beside the box for the ``^C`` that a terminal shows, which would move the box on the next line."""
        return Panel(content, title="poa pretrain", title_align="left", width=self._console.width - len("^C^C"))


@runtime_checkable
class Advance(Protocol):
    """Counts finished items."""

    def __call__(self, num: int = 1, note: str = "") -> None:
        """Add ``num`` items; the note, such as a loss, is shown until the next call."""


class Bars:
    """Progress of one or more counts, by name: bars in a terminal, elsewhere a line of each every ``every_seconds``.

    It may be shown in the console of a ``TrainingDisplay`` that is entered. Counts that are finished within
    ``after_seconds`` are not shown.
    """

    def __init__(
        self,
        console: Console,
        *,
        every_seconds: float = 10.0,
        after_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self._has_lines = not _is_lively(console)
        self._progress = Progress(
            *columns,
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            get_time=clock,
            disable=self._has_lines,
        )
        self._console, self._every_seconds, self._clock = console, every_seconds, clock
        self._shown_from = clock() + after_seconds
        self._counts: dict[str, Task] = {}
        self._next_line: dict[str, float] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._progress.stop()
        for count in self._counts.values():
            if error is None and not count.finished:
                self._print_end(count)

    def __call__(self, name: str, done: int, total: int | None, note: str = "") -> None:
        """Show that ``done`` of ``total`` items are finished; None if it is not known how many there are."""
        if name not in self._counts:
            if self._clock() < self._shown_from:
                return
            self.add(name, total)
        count = self._counts[name]
        if done < count.completed:  # it starts again
            self._progress.reset(count.id)
        was_finished = count.finished
        self._progress.update(count.id, completed=done, total=total, note=note)
        if count.finished and not was_finished:
            self._print_end(count)
        elif self._has_lines and self._clock() >= self._next_line[name]:
            self._next_line[name] = self._clock() + self._every_seconds
            self._print(_count_line(count))

    def add(self, name: str, total: int | None) -> Advance:
        """Start a count, and return what adds to it."""
        self._progress.add_task(one_line(name), total=total, note="")
        count = self._counts[name] = self._progress.tasks[-1]
        self._next_line[name] = self._clock() + self._every_seconds
        return lambda num=1, note="": self(name, int(count.completed) + num, total, note)

    def _print_end(self, count: Task) -> None:
        self._print(f"{_counted(count)} in {duration(count.elapsed)}  {count.fields['note']}".rstrip())

    def _print(self, text: str) -> None:
        if self._has_lines:
            tell(self._console, text)


@contextmanager
def bar(description: str, *, total: int | None, console: Console, every_seconds: float = 10.0) -> Iterator[Advance]:
    """Show the progress of one count, such as images indexed or scored."""
    with Bars(console, every_seconds=every_seconds) as bars:
        yield bars.add(description, total)


def summary(
    title: str,
    *,
    seconds: Mapping[str, float],
    num_images: int,
    memory_bytes: int,
    scores: Mapping[str, float],
    files: Mapping[str, Path],
    said: Mapping[str, str],
) -> RenderableType:
    """What to know at the end of a run. Print it with ``soft_wrap=True``, so that paths can be copied whole.

    ``seconds`` is the time by activity, together the time of the run; ``files`` are those written, by what they are;
    ``said`` is what comes last, such as the command that follows. Without images there is no time and no speed.
    """
    total = sum(seconds.values())
    split = ", ".join(f"{name} {spent / max(total, 1e-9):.0%}" for name, spent in seconds.items())
    rows = {
        "time": f"{duration(total)} ({split})" if num_images else "",
        "speed": f"{num_images:,} images, {num_images / max(total, 1e-9):,.1f} images/s" if num_images else "",
        "memory": f"{gigabytes(memory_bytes)} at most",
        "scores": _named(scores, ".4g"),
        **{name: one_line(str(path)) for name, path in files.items()},
        **said,
    }
    width = max(map(len, rows))
    texts = [Text(f"{name:<{width}}  {value}") for name, value in rows.items() if value]
    return Group(Rule(title, align="left"), *texts)


def memory_in_use(device: torch.device) -> int:
    """The most memory used so far, in bytes: by tensors on a CUDA device, else by the process; 0 on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_memory(device: torch.device) -> None:
    """Let ``memory_in_use`` begin anew, on CUDA devices and on Linux; elsewhere it counts from the process's start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # another system has no such file
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def duration(seconds: float | None) -> str:
    """Seconds as ``m:ss``, ``h:mm:ss`` or ``2 d 03:04``; a question mark for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def gigabytes(num_bytes: int) -> str:
    """Bytes as GB, where 1 GB is a thousand million bytes."""
    return f"{num_bytes / 1e9:.1f} GB"


def _is_lively(console: Console) -> bool:
    """Whether it is a terminal that can redraw lines and show the characters of bars and boxes."""
    return console.is_interactive and not console.options.ascii_only


def _named(values: Mapping[str, float], form: str) -> str:
    return "  ".join(f"{name} {value:{form}}" for name, value in values.items())


def _parts(report: StepReport) -> tuple[str, ...]:
    """Losses, learning rate, size, speed, waiting, memory and scores, in words."""
    return (
        f"loss {_named(report.losses, '.3f')}",
        f"lr {report.lr:.2e}",
        f"size {report.size}" if report.size else "",
        f"{report.images_per_second:,.1f} images/s" if report.images_per_second else "",  # not known yet
        f"data-wait {report.data_wait:.0%}" if report.images_per_second else "",
        f"memory {gigabytes(report.memory_bytes)}",
        f"scores {_named(report.scores, '.4g')}" if report.scores else "",
    )


def _counted(count: Task) -> str:
    whole = "" if count.total is None else f"/{count.total:,.0f}"
    return f"{count.description}: {count.completed:,.0f}{whole}"


def _count_line(count: Task) -> str:
    rate = f"{count.speed:,.1f}/s" if count.speed else ""
    left = "" if count.time_remaining is None else f"ETA {duration(float(count.time_remaining))}"
    return "  ".join(part for part in (_counted(count), rate, left, count.fields["note"]) if part)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "")
