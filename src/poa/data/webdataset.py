"""Labels that lie beside the images of a tar, in the layout of WebDataset."""

import json
from contextlib import suppress
from typing import Any

from poa.data.entries import NOWHERE, Entries
from poa.data.images import BadImage
from poa.data.lists import LABEL_NAMES
from poa.data.reading import Reader

LABEL_ENDINGS = (".cls", ".json")
"""Of files that may hold the label of an image; the first counts if both are there."""


def key_of(name: str) -> str:
    """What the files of one image have in common in that layout: the path up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def labels_beside(files: Entries, reader: Reader) -> dict[str, str]:
    """Labels in ``KEY.cls``, else in ``KEY.json`` under a name that a column of labels may have, by key."""
    labels: dict[str, str] = {}
    for ending in reversed(LABEL_ENDINGS):
        for row, name in enumerate(files.names):
            if name.lower().endswith(ending) and files[row].offset != NOWHERE:
                with suppress(BadImage, UnicodeDecodeError, json.JSONDecodeError):
                    text = reader.read(files[row]).decode()
                    label = text.strip() if ending == LABEL_ENDINGS[0] else _in_record(json.loads(text))
                    if label:
                        labels[key_of(name)] = label
    return labels


def _in_record(record: Any) -> str:
    fields = {str(name).lower(): value for name, value in record.items()} if isinstance(record, dict) else {}
    values = [fields[name] for name in LABEL_NAMES.split() if isinstance(fields.get(name), str | int)]
    return str(values[0]).strip() if values else ""
