"""The images of a run that could not be read: listed for the user, and too many at some point."""

from collections.abc import Collection
from pathlib import Path

from poa.data.index import ImageIndex
from poa.data.loader import why_bad
from poa.errors import UserError, counted
from poa.text import one_line


def most_bad(num_images: int, *, share: float) -> float:
    """How many of so many images may be bad: one at least, unless none may be."""
    return max(share * num_images, 1) if share else 0


class BadImages:
    """Bad images since the start or resume of a run: those of before may have been restored, or still be bad.

    Args:
        index: All images.
        file: The list, to which every process adds what it finds, with the reason.
        share: A larger share of all is too many; one image is not, unless none may be bad.
    """

    def __init__(self, index: ImageIndex, file: Path, *, share: float) -> None:
        self._index, self._file, self._share = index, file, share
        self._found = set[str]()
        self._before = self._listed()

    def add(self, numbers: Collection[int]) -> str | None:
        """Note images that are bad; returns what to tell the user if there are new ones.

        Raises:
            UserError: Now there are too many.
        """
        found = {one_line(self._index.name(number)): number for number in numbers}
        if found.keys() <= self._found:
            return None
        listed = self._listed()
        self._found |= found.keys() | (listed - self._before)
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\t{why_bad(self._index, found[name])}\n" for name in sorted(found.keys() - listed))
        if len(self._found) > most_bad(len(self._index), share=self._share):
            raise UserError(
                f"{len(self._found)} of {counted(len(self._index), 'image')} cannot be read, more than the allowed "
                f"share of {self._share:.1%}; {self._file} lists them. Restore them, or raise "
                "--max-bad-share, and resume with --resume; or remove them and start a new run."
            )
        return f"Images that cannot be read are skipped: {len(self._found):,} so far, listed in {self._file}"

    def _listed(self) -> set[str]:
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else ()
        return {line.partition("\t")[0] for line in lines}  # earlier runs gave no reasons
