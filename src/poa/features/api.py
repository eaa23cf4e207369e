"""The function of the Python API that saves images of a program. Imports torch when it is called."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poa.data.held import Items


def save_images(images: "Items", out: str | PathLike[str]) -> Path:
    """Save the images of a data set to a zip file, without loss, as data for all functions and commands.

    Functions that take ``data``, ``train``, ``test`` or ``images`` take a data set too, and save it in the cache each
    time they are called. A large one is better saved once.

    Args:
        images: A map-style data set such as torchvision's, or a list: of images (PIL, arrays of height x width x
            channels, tensors of channels x height x width), pairs of image and label, or dicts of ``image`` and
            ``label``. Labels are texts, or numbers, with names in the data set's ``classes`` if it has them; -1 and
            None stand for no label. Images other than grey or RGB of 8 bits are saved as NumPy files; see ``channels``.
        out: A new file that ends in .zip.

    Returns:
        The file.

    Raises:
        UserError: The file exists, an item is no image, or a label cannot be the name of a folder.
    """
    from poa.features.images import saved

    return saved(images, Path(out))
