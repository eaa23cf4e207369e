"""Works in stages, each stage within its share of the time, with every figure on the disk as soon as it is known."""

import gc
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from poa.files import whole_file

Row = dict[str, Any]
Figures = Mapping[str, Any]
"""By name. A figure ``holds`` says whether a check was passed."""
OVER = ("done", "failed", "skipped")
"""States in which a work is left alone by a second start."""


class TimeIsUpError(Exception):
    """The time of a work has ended."""


class DeviceLostError(Exception):
    """The device answers nothing any more in this process; a new process may go on."""


@dataclass(frozen=True)
class Work:
    """One work of a stage.

    Attributes:
        run: Called with the time by ``time.monotonic`` at which it has to end; its figures are written one by one.
        needs_cuda: Why it cannot run on a CPU, if it cannot.
        resumes: Whether it goes on where an interrupted process was; else a second start leaves it out.
    """

    name: str
    run: Callable[[float], Iterator[Figures]]
    needs_cuda: str = ""
    resumes: bool = False


@dataclass(frozen=True)
class Stage:
    """Works that share a part of the time; what they leave goes to the next stage."""

    name: str
    share: float
    works: Sequence[Work]


class Record:
    """What is known so far: ``figures.jsonl``, and ``summary.md`` made from it.

    Args:
        folder: Of both files; made if it is missing.
        title: First line of the summary.
    """

    def __init__(self, folder: Path, *, title: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines, self._summary, self._title = folder / "figures.jsonl", folder / "summary.md", title
        text = self._lines.read_text(encoding="utf-8") if self._lines.exists() else ""
        self.rows: list[Row] = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if text and not text.endswith("\n"):  # cut off while it was written
            with whole_file(self._lines) as temporary:
                temporary.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")

    def add(self, stage: str, work: str, state: str, **figures: Any) -> None:
        """Write a row, print it, and write the summary anew."""
        row = {"stage": stage, "work": work, "state": state, **figures}
        self.rows.append(row)
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with whole_file(self._summary) as temporary:
            temporary.write_text(summary(self.rows, title=self._title), encoding="utf-8")
        shown = {name: value for name, value in row.items() if name not in ("stage", "work", "state", "traceback")}
        print(f"{stage} | {work} | {state} {'  '.join(f'{n} {cell(v)}' for n, v in shown.items())}", flush=True)

    def is_over(self, stage: str, work: Work, *, again: bool = False) -> bool:
        """Whether a work need not run; with ``again`` those that failed or were interrupted have to."""
        state = latest(self.rows).get((stage, work.name), "")
        if state == "failed":
            return not again
        return state in OVER or (state == "begun" and not work.resumes and not again)

    def figures(self, stage: str) -> list[Row]:
        """The rows of figures of a stage."""
        return [row for row in self.rows if row["stage"] == stage and row["state"] == "figures"]

    @property
    def failures(self) -> int:
        """Works that failed, and checks that do not hold."""
        refuted = sum(row.get("holds") is False for row in self.rows)
        return refuted + sum(state == "failed" for state in latest(self.rows).values())


def latest(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """The last state of each work, by stage and name."""
    return {(row["stage"], row["work"]): row["state"] for row in rows if row["state"] != "figures"}


def run_stages(
    stages: Sequence[Stage], record: Record, *, seconds: float, device: torch.device, again: bool = False
) -> None:
    """Run what is not over, each stage up to its share of the seconds.

    Raises:
        DeviceLostError: The rest needs a new process.
    """
    left = [
        (stage, [each for each in stage.works if not record.is_over(stage.name, each, again=again)]) for stage in stages
    ]
    left = [(stage, works) for stage, works in left if works]
    began, total, passed = time.monotonic(), sum(stage.share for stage, _ in left), 0.0
    for stage, works in left:
        passed += stage.share
        for work in works:
            run_work(work, stage.name, record, deadline=began + seconds * passed / total, device=device)


def run_work(work: Work, stage: str, record: Record, *, deadline: float, device: torch.device) -> None:
    """Run one work; what goes wrong in it is written down and not passed on, unless the device is lost."""
    if work.needs_cuda and device.type != "cuda":
        record.add(stage, work.name, "skipped", why=f"needs CUDA: {work.needs_cuda}")
        return
    began = time.monotonic()
    if began >= deadline:
        record.add(stage, work.name, "no time")
        return
    record.add(stage, work.name, "begun")
    lost = False
    try:
        with at_most(deadline - began):
            for figures in work.run(deadline):
                record.add(stage, work.name, "figures", **figures)
    except TimeIsUpError:
        record.add(stage, work.name, "no time", seconds=time.monotonic() - began)
    except Exception as error:
        lost = "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError)
        why = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        record.add(stage, work.name, "failed", why=why, traceback=traceback.format_exc())
    else:
        record.add(stage, work.name, "done", seconds=time.monotonic() - began)
    if lost:
        raise DeviceLostError
    free(device)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeIsUpError inside after so many seconds; one may be inside another."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise TimeIsUpError

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, end)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - began), 1e-3))


def free(device: torch.device) -> None:
    """Give back memory that nothing refers to."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


# ---- the summary -----------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row], *, title: str) -> str:
    """All figures in Markdown, a table for each stage, and what has none."""
    states = latest(rows)
    parts = [f"# {title}"]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        parts.append(f"## {stage}")
        found = [row for row in rows if row["stage"] == stage and row["state"] == "figures"]
        for columns in dict.fromkeys(tuple(row) for row in found):
            parts.append(table([row for row in found if tuple(row) == columns]))
        others = {work: state for (name, work), state in states.items() if name == stage and state != "done"}
        reasons = {row["work"]: row["why"] for row in rows if row["stage"] == stage and "why" in row}
        parts += [f"- {work}: {state}. {reasons.get(work, '')}".rstrip() for work, state in others.items()]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> str:
    """Rows that have the same figures."""
    names = [name for name in rows[0] if name not in ("stage", "state")]
    lines = [names, ["---"] * len(names), *([cell(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """A value in a table."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "/").replace("\n", " ")
