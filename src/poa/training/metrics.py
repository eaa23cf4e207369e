"""The metrics of a run, one line a step: written, cut where a run is resumed, and read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poa.errors import UserError
from poa.files import whole_file


class MetricsLog:
    """Appends to ``metrics.jsonl``, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

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

    def truncate_after(self, step: int) -> None:
        """Drop what a resumed run will write again: lines whose step is ``step`` or later, and a half-written one."""
        if self._path.exists():
            kept = [line for line in _lines(self._path) if _row(line, path=self._path)["step"] < step]
            with whole_file(self._path, durable=True) as temporary, temporary.open("wb") as file:
                file.writelines(kept)


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
