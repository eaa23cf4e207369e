"""Names of files, folders and classes in text of every kind, and consoles that print any text.

A name may hold bytes that are no UTF-8, control characters, and what Markdown, spreadsheets or shells take for theirs.
"""

import codecs
import io
import json
import logging
import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters, ends of lines, and characters that turn the direction of the text after them."""
_MARKDOWN = re.compile(r"[\\`*\[\]<>#|~$&]|(?<![^\W_])_|_(?![^\W_])")
_FORMULA = ("=", "+", "-", "@")
_SIMPLER = {"±": "+-", "↓": "v", "…": "...", "─": "-", "━": "-"}
_FALLBACK = "poa.fallback"


def unicode_text(name: str) -> str:
    r"""For files of UTF-8 that hold any text: bytes that are no UTF-8 are written as ``\xe9``."""
    return _encoded(name).decode("utf-8", "backslashreplace")


def _encoded(name: str) -> bytes:
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, as JSON and Windows may have it
        return name.encode("utf-8", "backslashreplace")


def one_line(name: str) -> str:
    r"""For lists, messages and terminals: as ``unicode_text``, in one line, ends of lines written as ``\n``."""
    return _CONTROLS.sub(lambda found: _escaped(found[0]), unicode_text(name))


def shortened(text: str, most: int = 16) -> str:
    """A name in one line of at most so many letters; the middle of longer ones is left out."""
    text = one_line(text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - 1 - most // 2) :]}"


def csv_cell(name: str) -> str:
    """For CSV: one line, after an apostrophe where a spreadsheet would take it for a formula."""
    text = one_line(name)
    return f"'{text}" if text.startswith(_FORMULA) else text


def markdown_text(name: str) -> str:
    """For Markdown, which shows the name as it is."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(name))


def python_literal(name: str) -> str:
    """For programs: a Python string with its quotes."""
    text = _encoded(name).decode("utf-8", "surrogateescape")
    quoted = json.dumps(text, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def shell_word(word: str) -> str:
    """For commands to copy: a word of a POSIX shell, or of bash where it holds what no line of text can."""
    if one_line(word) == word:
        return shlex.quote(word)
    quoted = {"'": r"\'", "\\": r"\\"}
    return "$'" + "".join(quoted.get(letter) or _escaped(letter) for letter in word) + "'"


def names_of(data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Sequence[str]:
    """The names of one source of images or of several."""
    return [os.fspath(name) for name in ([data] if isinstance(data, str | os.PathLike) else data)]


def system_path(path: str) -> str:
    """For calls of the system, where its encoding is not UTF-8: as Python itself would have read the name there."""
    if sys.getfilesystemencoding() == "utf-8":
        return path
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def normal_form(name: str) -> str:
    """For comparing names: macOS writes an accent as a character of its own, other systems do not."""
    return unicodedata.normalize("NFC", name)


def plain_console(*, stderr: bool = False, quiet: bool = False, width: int | None = None) -> Console:
    """A console on which text is text: square brackets and colons in names mean nothing."""
    return Console(stderr=stderr, quiet=quiet, width=width, markup=False, emoji=False, highlight=False)


def tell(console: Console, message: str, *, soft_wrap: bool = True) -> None:
    """Print a message as it is, in one line where ``soft_wrap`` leaves it to the terminal to wrap it."""
    console.print(Text(one_line(message)), soft_wrap=soft_wrap)


def note(console: Console, sentence: str) -> None:
    """Print what the user should know; in a terminal it is wrapped at words."""
    tell(console, f"Note: {sentence}", soft_wrap=not console.is_terminal)


class _Warnings(logging.Handler):
    """Writes what is logged to standard error: in a terminal wrapped at words, which Python and terminals break."""

    def emit(self, record: logging.LogRecord) -> None:
        """One record; above a bar of progress where there is one, since these stand in for standard error."""
        console, message = plain_console(stderr=True), one_line(record.getMessage())
        wrapped = Text(message).wrap(console, console.width) if console.is_terminal else [Text(message)]
        sys.stderr.write("".join(f"{line.plain.rstrip()}\n" for line in wrapped))


@contextmanager
def shown_warnings() -> Iterator[None]:
    """For commands: warnings that are logged are shown as ``note`` shows them; programs set up logging themselves."""
    log, handler = logging.getLogger("poa"), _Warnings(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def make_printable() -> None:
    """Let standard output and errors write what their encoding lacks in other words, such as +- for ±."""
    codecs.register_error(_FALLBACK, _fallback)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_FALLBACK)


def _fallback(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_SIMPLER.get(letter) or _escaped(letter) for letter in lacking), error.end


def _escaped(letter: str) -> str:
    r"""A character of no line of text as ``\n``, ``\x1b`` or ``\u2028``, and a byte that is no UTF-8 as ``\xe9``."""
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if 0x80 <= code <= 0xFF else letter.encode("unicode_escape").decode()
