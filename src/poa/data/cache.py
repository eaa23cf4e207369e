"""The folder that keeps what is known of images, and copies of some, for later runs and other processes."""

import atexit
import logging
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

_LOG = logging.getLogger(__name__)


def cache_folder(wanted: Path | None = None) -> Path:
    """The folder, made if it is missing: the one wanted, else $POA_CACHE or ~/.cache/poa/index.

    If it cannot be written, another one takes its place until this process ends.
    """
    try:
        folder = wanted or Path(os.environ.get("POA_CACHE") or Path.home() / ".cache/poa/index")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without home, as in containers
        folder = _of_this_process(str(error))
    return folder.resolve()


@cache
def _of_this_process(why: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="poa-index-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _LOG.warning("The list of images is not stored for later runs (%s): set POA_CACHE to a folder to store it.", why)
    return folder
