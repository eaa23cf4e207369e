"""Who is told of a run while it trains: functions of the caller, and loggers of other packages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from poa.errors import UserError, first_line
from poa.training.trackers import Started, Tracker, tracker_of

Callback = Callable[[int, dict[str, Any]], object]
"""Takes the number of a step, counted from 1, and values by name; what it returns is not used."""
REMEDY = "Fix that, or leave it out, and resume with --resume (from Python: resume=True)."


class Callbacks(NamedTuple):
    """Functions of the caller.

    Attributes:
        on_step: Called after every step with its line of ``metrics.jsonl``.
        on_score: Called after every check with its scores.
    """

    on_step: Callback | None = None
    on_score: Callback | None = None


NO_CALLBACKS = Callbacks()


class Observers:
    """The trackers of a run, and the functions of its caller.

    Raises:
        UserError: The package of a tracker is not installed.
    """

    def __init__(self, trackers: Sequence[str], callbacks: Callbacks) -> None:
        self._starts = {name: tracker_of(name) for name in trackers}
        self._trackers: dict[str, Tracker] = {}
        self._callbacks = callbacks

    @contextmanager
    def opened(self, started: Started) -> Iterator[None]:
        """Start the trackers, and close them at the end."""
        with ExitStack() as stack:
            for name, start in self._starts.items():
                try:
                    self._trackers[name] = start(started)
                except Exception as error:  # of packages that know many
                    raise UserError(f"--log {name} cannot start: {first_line(error)}. {REMEDY}") from error
                stack.callback(self._trackers[name].close)
            yield

    def tell(self, step: int, values: Mapping[str, Any], scores: Mapping[str, float]) -> UserError | None:
        """Tell all of a step; returns the error to raise, once the step is saved, if one of them has failed."""
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        calls: dict[str, Callable[[], object]] = {
            f"--log {name}": partial(each.write, step, numbers) for name, each in self._trackers.items()
        }
        on_step, on_score = self._callbacks
        if on_step is not None:
            calls["on_step"] = partial(on_step, step, {"step": step, **values})
        if on_score is not None and scores:
            calls["on_score"] = partial(on_score, step, dict(scores))
        for name, call in calls.items():
            try:
                call()
            except Exception as error:
                failure = UserError(f"{name} failed at step {step:,}, which is saved: {first_line(error)}. {REMEDY}")
                failure.__cause__ = error
                return failure
        return None
