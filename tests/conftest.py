"""Shapes are checked while the tests run, no other machine is asked, and only the tests' own folders are written to."""

import gc
import inspect
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype

SOURCES = Path(__file__).parents[1] / "src"
WITH_SHAPES = [path for path in sorted(SOURCES.rglob("*.py")) if "jaxtyping" in path.read_text()]
checked = jaxtyping.jaxtyped


def with_shapes(*, typechecker: Any) -> Callable[[Any], Any]:
    """Of all that the hook decorates, check functions with shapes in their signature, once a call, and data classes.

    Types without shapes are checked by mypy; checking them here as well would take a third of the time.
    """

    def decorate(made: Any) -> Any:
        if inspect.isclass(made):
            return checked(made, typechecker=typechecker)
        has_shapes = any("jaxtyping" in str(each) for each in made.__annotations__.values())
        return checked(beartype(made), typechecker=None) if has_shapes else made

    return decorate


jaxtyping.jaxtyped = with_shapes  # type: ignore[assignment]  # which the hook puts before all
jaxtyping.install_import_hook(
    [".".join(path.relative_to(SOURCES).with_suffix("").parts) for path in WITH_SHAPES], "beartype.beartype"
)
torch.set_num_threads(1)  # so that results do not depend on the machine


gc.disable()  # while all modules are imported; see below


def pytest_collection_finish() -> None:
    """Leave what was imported out of further collections, each of which would take a third of a second."""
    gc.freeze()
    gc.enable()


LOCAL = {"127.0.0.1", "::1", "localhost", "", None, socket.gethostname()}
"""Names and addresses of this machine."""


@pytest.fixture(autouse=True, scope="session")
def network() -> Iterator[None]:
    """Closed: a test that connects to another machine, or asks where it is, fails whatever is caught there."""

    def checked(ask: Any, place: Callable[..., Any]) -> Any:
        def guarded(*args: Any, **options: Any) -> Any:
            host = place(*args)
            if host not in LOCAL:
                pytest.fail(f"a connection to {host}")
            return ask(*args, **options)

        return guarded

    def host_of(_: socket.socket, address: Any) -> Any:
        return address[0] if isinstance(address, tuple) else None  # sockets in the file system have a path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", checked(socket.getaddrinfo, lambda host, *_: host))
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, checked(getattr(socket.socket, name), host_of))
        yield


@pytest.fixture(autouse=True, scope="session")
def index_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("index")
    old = os.environ.get("POA_CACHE")
    os.environ["POA_CACHE"] = str(folder)
    yield folder
    if old is None:
        del os.environ["POA_CACHE"]
    else:
        os.environ["POA_CACHE"] = old
