"""Work that is done in a thread while a training goes on, such as writing a checkpoint."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from poa.errors import UserError


class Background:
    """Does one piece of work at a time. What goes wrong is raised where it is waited for, at the latest on exit."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="background")
        self._work: Future[object] | None = None

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        try:
            self.wait()
        except UserError as failed:
            if isinstance(error, UserError):  # both are told
                raise type(error)(f"{error} {failed}") from failed
            raise
        finally:
            self._thread.shutdown()

    def begin(self, work: Callable[[], object]) -> None:
        """Begin a piece of work once the one before it is done."""
        self.wait()
        self._work = self._thread.submit(work)

    def wait(self) -> None:
        """Wait for what was begun."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def check(self) -> None:
        """Raise what has gone wrong so far, without waiting."""
        if self._work is not None and self._work.done():
            self.wait()
