"""The kinds of sources: how the images of each are listed, and how one of them is read."""

from collections.abc import Callable, Mapping
from typing import Any

from poa.data.archives import list_tar, list_zip
from poa.data.digits import list_digits
from poa.data.hub import list_hub
from poa.data.lists import list_paths
from poa.data.parquet import list_rows
from poa.data.reading import Files, Members, Reader, Zipped
from poa.data.remote import RemoteFiles, list_remote
from poa.data.rows import RowFiles, Rows
from poa.data.sources import Kind, Listing, Progress, Source, list_folder

LISTERS: Mapping[Kind, Callable[[Source, Progress], Listing]] = {
    "folder": list_folder,
    "list": list_paths,
    "zip": list_zip,
    "tar": list_tar,
    "rows": list_rows,
    "hub": list_hub,
    "remote": list_remote,
    "digits": list_digits,
}
READERS: Mapping[Kind, Callable[[Any], Reader]] = {
    "folder": Files,
    "list": Files,
    "zip": Zipped,
    "tar": Members,
    "rows": lambda place: Rows(RowFiles(*place)),
    "hub": lambda place: Rows(RowFiles(*place)),
    "remote": RemoteFiles,
    "digits": Members,
}
"""Each is made of ``Listing.place``."""
