"""Files at servers and in buckets (HTTP, S3, GCS and others, by fsspec): asked for patiently, kept in blocks."""

import io
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from poa.data.blocks import Blocks, most_kept
from poa.data.cache import cache_folder
from poa.data.content import short_digest
from poa.data.entries import Entries, Entry
from poa.data.images import BadImage, check_bytes
from poa.data.sources import Listing, Progress, Source, Stamp, is_archive, is_remote, left_out, report, require_images
from poa.errors import UserError, first_line, installing

_LOG = logging.getLogger(__name__)
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0)
"""Seconds before each further attempt; five minutes in all."""
_MISSING, _REFUSED = {404, 410}, {400, 401, 402, 403, 405, 406, 407, 451}
"""States of HTTP that do not pass."""
_STATE = ("ETag", "Last-Modified", "LastModified", "mtime", "updated", "last_modified", "etag", "Content-MD5")
"""What file systems tell of a file that changes with its content."""
_THREADS = 16
"""That ask for sizes."""
T = TypeVar("T")


class RemoteFile(NamedTuple):
    """A file at a server.

    Attributes:
        address: Its address.
        size: In bytes.
        state: A number that changes with its content.
    """

    address: str
    size: int
    state: int

    def read(self, offset: int, length: int) -> bytes:
        """Read a part.

        Raises:
            BadImage: There is no such file any more, or it is shorter.
            UserError: The server stays away.
        """
        key = f"{self.address}\n{self.size}\n{self.state}"
        try:
            found = _blocks().read(offset, length, size=self.size, file=key, fetch=partial(_fetch, self.address))
        except OSError as error:
            raise BadImage(f"cannot be read: {first_line(error)}") from error
        if len(found) != length:
            raise BadImage(f"{self.address} has changed since it was indexed")
        return found


class RemoteIO(io.RawIOBase):
    """A file at a server as Python's files are; with a large buffer it is fetched in large parts."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._place = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read what fits into a buffer."""
        length = max(0, min(len(buffer), self._file.size - self._place))
        buffer[:length] = self._file.read(self._place, length) if length else b""
        self._place += length
        return length


class RemoteFiles:
    """Images that are files below an address; reads them."""

    def __init__(self, address: str) -> None:
        self._address = address

    def read(self, entry: Entry) -> bytes:
        """Read an image."""
        check_bytes(entry.size)
        return self.parts(entry)(0, entry.size)

    def parts(self, entry: Entry) -> Callable[[int, int], bytes]:
        """What reads ``(offset, length)`` of an image."""
        return RemoteFile(_below(self._address, entry.name), entry.size, entry.stored).read


def list_remote(source: Source, progress: Progress) -> Listing:
    """List the images below an address as those of a folder, by their endings."""
    found = _names_below(source.text)
    why = {name: left_out(name, bytes) for name in found}
    entries, ignored = Entries(), Counter(kind for kind in why.values() if kind is not None)
    images = sorted(name for name, kind in why.items() if kind is None)
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, file in zip(images, pool.map(partial(_described, source.text, found), images), strict=True):
            entries.append(Entry(name, file.size, stored=file.state))
            report(len(entries), progress)
    require_images(source, entries, ignored)
    return Listing(entries=entries, stamps={source.text: _stamp(found)}, place=source.text, ignored=ignored)


def stamp_of(place: str) -> Stamp:
    """The state of a file or folder here, or of a tar or a folder at a server.

    Of a folder of a web server it is that of the names alone, for it lists nothing else.
    """
    if not is_remote(place):
        return Stamp.of(Path(place))
    if is_archive(place):
        file = remote_file(place)
        return Stamp(file.size, file.state)
    return _stamp(_names_below(place))


def raw_file(place: str) -> io.RawIOBase:
    """A file here or at a server."""
    return RemoteIO(remote_file(place)) if is_remote(place) else Path(place).open("rb", buffering=0)


def remote_file(address: str) -> RemoteFile:
    """Ask for the size and the state of a file."""
    system, path = _system(address)
    try:
        return _told(address, patiently(address, lambda: system.info(path)))
    except OSError as error:
        raise UserError(f"{address} cannot be read ({error.strerror}). Check the address and your rights.") from error


def _stamp(found: Mapping[str, Any]) -> Stamp:
    states = repr([(name, info.get("size"), _state(info)) for name, info in sorted(found.items())])
    return Stamp(len(found), _number(states))


def _described(folder: str, found: Mapping[str, Any], name: str) -> RemoteFile:
    """An image by what is said of it; a web server is asked for each."""
    info, address = found[name], _below(folder, name)
    return remote_file(address) if info.get("size") is None else _told(address, info)


def _told(address: str, info: Mapping[str, Any]) -> RemoteFile:
    """A file by what its server tells of it."""
    if info.get("size") is None:
        raise UserError(f"The server does not say how large {address} is. Copy the images here and give their folder.")
    return RemoteFile(address, int(info["size"]), _number(_state(info)))


def _state(info: Mapping[str, Any]) -> str:
    return repr([str(info[key]) for key in _STATE if key in info])


def _number(text: str) -> int:
    return int(short_digest(text.encode("utf-8", "surrogateescape")), 16) >> 1


def _names_below(address: str) -> dict[str, Any]:
    """All files below an address, by their path from there, with what is said of each."""
    system, path = _system(address)
    start = f"{path.rstrip('/')}/"
    try:
        found = (
            _walked(start, system)
            if _is_http(address)
            else patiently(address, partial(system.find, start, detail=True))
        )
    except OSError as error:
        raise UserError(
            f"{address} cannot be listed ({error.filename}: {error.strerror}). Check the address and your rights; "
            "a web server must show lists of its files."
        ) from error
    names = {name.removeprefix(start): info for name, info in found.items()}
    return {unquote(name): info for name, info in names.items()} if _is_http(address) else names


def _walked(start: str, system: Any) -> dict[str, Any]:
    """All files below a folder of a web server; fsspec's own walk leaves out folders that fail."""
    found, pending, visited = {}, [start], set()
    while pending:
        folder = pending.pop()
        visited.add(folder)
        for info in patiently(folder, partial(system.ls, folder, detail=True)):
            name = info["name"]
            if not name.startswith(folder) or "?" in name:  # links to elsewhere, or to the same list in another order
                continue
            if info["type"] != "directory":
                found[name] = info
            elif name not in visited:
                pending.append(name)
    return found


def _below(folder: str, name: str) -> str:
    """The address of a file below another one."""
    return f"{folder.rstrip('/')}/{quote(name) if _is_http(folder) else name}"


def patiently(address: str, ask: Callable[[], T]) -> T:
    """Ask again while a server is away for a while, and say so.

    Raises:
        OSError: There is no such file, or it must not be read.
        UserError: The server stays away.
    """
    for wait in (*WAITS, None):
        try:
            return ask()
        except Exception as error:  # each file system has errors of its own
            cause = error.__cause__ if isinstance(error, FileNotFoundError) else None  # it may be a connection lost
            reason = cause if isinstance(cause, Exception) else error
            _refuse(address, reason)
            if wait is None:
                raise UserError(
                    f"{address} cannot be reached ({first_line(reason)}), and {len(WAITS)} further attempts failed. "
                    "Run the same command again once it can (a pre-training with --resume); what is done is kept."
                ) from error
            _LOG.warning("Note: %s cannot be reached (%s). Trying again in %g s.", address, first_line(reason), wait)
            time.sleep(wait)
    raise AssertionError


def _refuse(address: str, error: Exception) -> None:
    """Raise what will not pass."""
    status = getattr(error, "status", None)  # of HTTP
    if isinstance(error, FileNotFoundError) or status in _MISSING:
        raise FileNotFoundError(2, "There is no such file", address) from error
    if isinstance(error, PermissionError) or status in _REFUSED:
        raise PermissionError(13, f"The server refuses it ({first_line(error)})", address) from error
    if isinstance(error, TypeError | AttributeError | ImportError):
        raise error


def _fetch(address: str, offset: int, length: int) -> bytes:
    system, path = _system(address)
    return bytes(patiently(address, lambda: system.cat_file(path, start=offset, end=offset + length)))


def _is_http(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _system(address: str) -> tuple[Any, str]:
    """The file system of an address, and its name there."""
    protocol, _, path = address.partition("://")
    return _opened(protocol, os.getpid()), address if _is_http(address) else path


@cache
def _opened(protocol: str, _process: int) -> Any:
    """A file system of this process, for none is of use in a forked one."""
    import fsspec  # only here: few runs need it

    try:
        limits: dict[str, Any] = {}
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            limits = {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=15, sock_read=30)}}
        return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True, **limits)
    except ValueError:
        raise UserError(
            f"There is no way to read {protocol}:// addresses. Use http://, https://, s3:// or gs://, or copy the set "
            "here."
        ) from None
    except ImportError as error:
        advice = "Install it with: pip install gcsfs" if protocol in ("gs", "gcs") else installing("remote")
        raise UserError(
            f"{protocol}:// needs a package that is not installed ({first_line(error)}). {advice}."
        ) from None


def _blocks() -> Blocks:
    """Where blocks are kept: beside the tables of images."""
    return _blocks_in(os.environ.get("POA_CACHE", ""), most_kept())


@cache
def _blocks_in(_wanted: str, most: int) -> Blocks:
    """One for each value of $POA_CACHE: this is asked for at every read."""
    return Blocks(cache_folder() / "blocks", most)
