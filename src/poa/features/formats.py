"""Files of features with the names and labels of the images: Parquet, NumPy or safetensors, written part by part."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from poa.errors import UserError, installing
from poa.features.whitening import whitening_file

AT_ONCE = 2**26
"""Bytes of features that are in memory at a time."""
_MOST_TEXT = 100_000_000  # of a safetensors header; its readers refuse more
_NUMBERS = {"float32": "F32", "int64": "I64"}


@dataclass(frozen=True, eq=False)
class Table:
    """Features of images from one network; arrays may be mapped from disk.

    Attributes:
        names: Of the images, as in their source.
        labels: Class of each image, -1 where it has none; None if no image has one.
        classes: Names of the classes.
        indices: Numbers of the images in their source.
        features: One row an image.
        patches: One row a patch of an image, if asked for.
        about: What the features are; anything that JSON can hold.
    """

    names: tuple[str, ...]
    labels: npt.NDArray[np.int64] | None
    classes: tuple[str, ...]
    indices: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]
    patches: npt.NDArray[np.float32] | None
    about: Mapping[str, Any]

    def parts(self) -> Iterator[slice]:
        """Ranges of images whose features fit in memory together."""
        values = self.features[0].size + (0 if self.patches is None else self.patches[0].size)
        length = max(1, AT_ONCE // (4 * values))
        return (slice(start, start + length) for start in range(0, len(self.indices), length))


def check_parquet() -> None:
    """See that the library for Parquet files is installed."""
    if find_spec("pyarrow") is None:
        raise UserError(
            f"Parquet files need pyarrow, which is not installed. {installing('parquet')}. "
            "Or choose an --out that ends in .npy or .safetensors."
        )


def write_parquet(table: Table, path: Path) -> None:
    """Columns ``name``, ``label`` (where there are labels; null without one), ``feature`` and perhaps ``patches``."""
    import pyarrow as arrow
    from pyarrow import parquet

    feature = arrow.list_(arrow.float32(), table.features.shape[1])
    fields = [("name", arrow.string()), ("label", arrow.string()), ("feature", feature)]
    if table.patches is not None:
        fields.append(("patches", arrow.list_(feature, table.patches.shape[1])))
    schema = arrow.schema([field for field in fields if table.labels is not None or field[0] != "label"])
    schema = schema.with_metadata({"poa": json.dumps({**table.about, "classes": table.classes})})

    def lists(rows: npt.NDArray[np.float32]) -> Any:
        flat = arrow.array(rows.reshape(-1))
        for length in reversed(rows.shape[1:]):
            flat = arrow.FixedSizeListArray.from_arrays(flat, length)
        return flat

    with parquet.ParquetWriter(path, schema, use_dictionary=["label"]) as writer:
        for part in table.parts():
            columns: dict[str, Any] = {"name": table.names[part], "feature": lists(table.features[part])}
            if table.labels is not None:
                columns["label"] = [None if label < 0 else table.classes[label] for label in table.labels[part]]
            if table.patches is not None:
                columns["patches"] = lists(table.patches[part])
            writer.write_table(arrow.table(columns, schema=schema))


def write_npy(table: Table, path: Path) -> None:
    """The array of features, beside it ``.json`` with names and labels, and perhaps ``-patches.npy``."""
    arrays = {path: table.features} | ({} if table.patches is None else {patches_file(path): table.patches})
    for file, rows in arrays.items():
        array = open_memmap(file, mode="w+", dtype=np.float32, shape=rows.shape)
        for part in table.parts():
            array[part] = rows[part]
        array.flush()
    content = {
        **table.about,
        "classes": table.classes,
        "names": table.names,
        "labels": None if table.labels is None else table.labels.tolist(),
        "indices": table.indices.tolist(),
    }
    path.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")


def patches_file(path: Path) -> Path:
    """Where NumPy's format has the features of patches."""
    return path.with_name(f"{path.stem}-patches.npy")


def write_safetensors(table: Table, path: Path) -> None:
    """Tensors ``features``, ``indices``, perhaps ``labels`` and ``patches``; the rest as JSON texts in the metadata.

    Written here, since safetensors' own function wants all of it in memory. The format: length of the header (8 bytes,
    little-endian), the header as JSON, padded to a multiple of 8 bytes, then the values.
    """
    # whole numbers first: then the values of every tensor lie at multiples of their length
    arrays: dict[str, npt.NDArray[Any]] = {"indices": table.indices, "features": table.features}
    if table.labels is not None:
        arrays = {"labels": table.labels, **arrays}
    if table.patches is not None:
        arrays["patches"] = table.patches
    texts = {**table.about, "classes": table.classes, "names": table.names}
    header: dict[str, Any] = {"__metadata__": {key: json.dumps(value) for key, value in texts.items()}}
    end = 0
    for key, rows in arrays.items():
        start, end = end, end + rows.size * rows.itemsize
        header[key] = {"dtype": _NUMBERS[rows.dtype.name], "shape": rows.shape, "data_offsets": (start, end)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _MOST_TEXT:
        raise UserError(
            f"The names of {len(table.names):,} images do not fit into a safetensors file. Choose an --out that "
            "ends in .parquet or .npy."
        )
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for rows in arrays.values():
            for part in table.parts():
                file.write(np.ascontiguousarray(rows[part]).astype(rows.dtype.newbyteorder("<"), copy=False).tobytes())


FORMATS: Mapping[str, Callable[[Table, Path], None]] = {
    ".parquet": write_parquet,
    ".npy": write_npy,
    ".safetensors": write_safetensors,
}
"""How features are written, by the ending of the file."""


def files(path: Path) -> tuple[Path, ...]:
    """All files that may belong to one network, ``path`` itself last."""
    beside = (patches_file(path), path.with_suffix(".json")) if path.suffix == ".npy" else ()
    return (*beside, whitening_file(path), path)
