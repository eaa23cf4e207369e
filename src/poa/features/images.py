"""The images of a command: indexed, with progress where that takes long, and looked at before hours are spent."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console

from poa import distributed
from poa.config.values import without_paths
from poa.data import held
from poa.data.index import ImageIndex, open_index
from poa.data.loader import read_or_none
from poa.data.sources import Data
from poa.errors import counted
from poa.text import note, plain_console
from poa.training.progress import Bars

TRIED = 32
"""Images that are looked at, evenly spread over all."""
DARK = 128
"""If all of these are darker than this, the user is told."""
PATIENCE_SECONDS = 1.0
"""How long indexing may take without progress."""


def open_images(data: Data, *, limit: int | None = None, console: Console | None = None) -> ImageIndex:
    """Index images as ``open_index`` does, with progress on standard error unless another console is given."""
    with Bars(_console(console), after_seconds=PATIENCE_SECONDS) as progress:
        return open_index(data, limit=limit, progress=progress)


def named(data: Any) -> Any:
    """What ``--data`` takes in place of images that a program names or holds, with progress; None for None."""
    if data is None:
        return None
    with Bars(_console(None), after_seconds=PATIENCE_SECONDS) as progress:
        return held.named(data, progress)


def with_named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a pre-training with paths and images as text."""
    given = dict(settings)
    if "data" in given:
        given["data"] = named(given["data"])
    monitor = given.get("monitor")
    if isinstance(monitor, Mapping) and "data" in monitor:
        given["monitor"] = {**monitor, "data": named(monitor["data"])}
    return {name: without_paths(value) for name, value in given.items()}


def saved(data: held.Items, out: Path) -> Path:
    """Save images that a program holds, with progress."""
    with Bars(_console(None), after_seconds=PATIENCE_SECONDS) as progress:
        return held.save(data, out, progress)


def tried(index: ImageIndex) -> range:
    """Numbers of the images that are looked at before all are used."""
    return range(0, len(index), max(1, len(index) // TRIED))


def note_darkness(*indexes: ImageIndex, console: Console | None = None) -> None:
    """Tell of the first index whose images are so dark that their values fill only a part of their range, if any."""
    sentence = next(filter(None, map(_darkness, indexes)), None)
    if sentence is not None and distributed.is_main():
        _tell_once(_console(console), sentence)


def _darkness(index: ImageIndex) -> str | None:
    num_images = brightest = 0
    for i in tried(index):
        pixels = read_or_none(index, i)
        if pixels is None:
            continue
        brightest = max(brightest, int(pixels.max()))
        if brightest >= DARK:
            return None
        num_images += 1
    if num_images == 0:  # which is told where they are used
        return None
    return (
        f"No pixel is brighter than {brightest} of 255 in {counted(num_images, 'image')} tried in {index.source}. If "
        "their values fill only a part of their range, such as 14 bits stored in 16, multiply the values of all images "
        "by one number."
    )


def _console(given: Console | None) -> Console:
    return given or plain_console(stderr=True, quiet=not distributed.is_main())


@lru_cache(maxsize=8)
def _tell_once(console: Console, sentence: str) -> None:
    """A command that trains and scores several times, with one console, tells it once."""
    note(console, sentence)
