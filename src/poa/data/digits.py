"""The embedded set of images of digits."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from poa.data.entries import Entries, Entry
from poa.data.sources import Listing, Progress, Source


def list_digits(source: Source, progress: Progress) -> Listing:
    """List scikit-learn's ``load_digits``: 1,797 grey images of 8x8 pixels in 10 classes, sorted by class.

    Of each class, in the order of the set, every fourth image is in ``digits/test`` and the others are in
    ``digits/train``; ``digits`` is all of them. Each is a lossless PNG, the ink from 0 to 16 scaled to 0..255.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (CC BY 4.0), as in scikit-learn.
    """
    from sklearn.datasets import load_digits  # only here: importing it takes long and few runs need it

    digits = load_digits()
    ink = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    entries = Entries()
    blob = io.BytesIO()
    for digit in range(10):
        for number in _members(np.flatnonzero(digits.target == digit), source.inside):
            offset = blob.tell()
            Image.fromarray(ink[number]).save(blob, "PNG")
            entries.append(Entry(f"{digit}/{number:04d}.png", blob.tell() - offset, offset))
    progress(len(entries))
    return Listing(entries=entries, blob=blob.getvalue())


def _members(numbers: npt.NDArray[np.intp], part: str) -> list[int]:
    is_test = np.arange(len(numbers)) % 4 == 3
    chosen = {"": numbers, "train": numbers[~is_test], "test": numbers[is_test]}[part]
    return [int(number) for number in chosen]
