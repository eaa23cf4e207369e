"""Names of every kind in text of every kind; each target is read back by what reads it."""

import ast
import csv
import io
import logging
import os
import subprocess
import sys

import pytest

from poa.text import (
    csv_cell,
    make_printable,
    markdown_text,
    normal_form,
    one_line,
    plain_console,
    python_literal,
    shell_word,
    shown_warnings,
    system_path,
    unicode_text,
)

SENTENCE = "Note: Recipe vit-96 is made for 100 epochs, losses.teacher_temperature_epochs from 30 to 3 is shortened."
BYTES = os.fsdecode(b"caf\xe9.png")
NAMES = (
    "plain",
    "a b",
    "a[/b]c",
    ":car:",
    "$x_1^2$",
    "<i>&amp;",
    "=1+1",
    "it's",
    "a\nb",
    "\x1b[31mred",
    "\u202egnp",
    BYTES,
)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [60, 80, 120])
def test_what_is_logged_is_wrapped_at_words(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    for stream in (Screen(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with shown_warnings():
            logging.getLogger("poa.config.resolve").warning("%s", SENTENCE)
            logging.getLogger("poa.config.resolve").info("only where logging is set up")
        logging.getLogger("poa.config.resolve").warning("not in a command")
        lines = stream.getvalue().splitlines()
        assert " ".join(lines) == SENTENCE
        assert len(lines) == 1 or stream.isatty()
        assert max(map(len, lines)) <= width or not stream.isatty()


@pytest.mark.parametrize("name", [*NAMES, "half \ud800 letter"])
def test_all_text_can_be_written_in_one_line(name: str) -> None:
    for write in (one_line, csv_cell, markdown_text, shell_word, python_literal):
        text = write(name)
        assert text.encode().decode() == text
        assert len(text.splitlines()) == 1
        assert text.isprintable()
    assert unicode_text(name).encode()


def test_usual_names_stay_as_they_are() -> None:
    for name in ("384x12", "vit_small_patch16_224.dino", "Fußgänger", "猫 2.png", "e\u0301"):
        assert one_line(name) == csv_cell(name) == markdown_text(name) == unicode_text(name) == name


def test_bytes_and_ends_of_lines_are_escaped() -> None:
    assert one_line(BYTES) == unicode_text(BYTES) == r"caf\xe9.png"
    assert one_line("a\nb\x85") == r"a\nb\u0085"
    assert unicode_text("a\nb") == "a\nb"
    spelt = os.fsencode("é").decode("ascii", "surrogateescape")  # as Python has it where the system's encoding is ASCII
    assert unicode_text(spelt) == "é"


@pytest.mark.parametrize("name", NAMES)
def test_programs_read_the_name_back(name: str) -> None:
    assert ast.literal_eval(python_literal(name)) == name


def test_a_shell_reads_all_names_back() -> None:
    found = subprocess.run(["bash", "-c", f"printf '%s\\0' {' '.join(map(shell_word, NAMES))}"], stdout=-1, check=True)
    assert os.fsdecode(found.stdout).split("\0")[:-1] == list(NAMES)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x"])
def test_a_spreadsheet_finds_no_formula(name: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell(name), csv_cell('a,"b"')])
    assert next(csv.reader([file.getvalue()])) == [f"'{name}", 'a,"b"']


def test_markdown_shows_the_name() -> None:
    assert markdown_text("a_b <i> *x* [y](z) `q` _e_ # $1") == r"a_b \<i\> \*x\* \[y\](z) \`q\` \_e\_ \# \$1"


def test_paths_where_the_encoding_of_the_system_is_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    assert system_path("caf\u00e9") == "caf\u00e9"
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    monkeypatch.setattr(os, "fsdecode", lambda encoded: encoded.decode("ascii", "surrogateescape"))
    assert system_path("caf\u00e9/\udce9") == "caf\udcc3\udca9/\udce9"
    assert python_literal("caf\udcc3\udca9") == '"caf\u00e9"'


def test_forms_of_accents_are_one_name() -> None:
    assert normal_form("cafe\u0301") == normal_form("café")
    assert normal_form(BYTES) == BYTES


def test_brackets_and_colons_mean_nothing_on_a_console() -> None:
    console = plain_console()
    with console.capture() as shown:
        console.print("a[/b]c :car: [red]1[/red]")
    assert shown.get() == "a[/b]c :car: [red]1[/red]\n"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", r"70.0 +-1.2 v caf\u00e9 \xe9 \U0001f600"), ("latin-1", r"70.0 ±1.2 v café \xe9 \U0001f600")],
)
def test_streams_say_in_other_words_what_they_cannot_write(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    make_printable()
    sys.stdout.write("70.0 ±1.2 ↓ café \udce9 \U0001f600")
    sys.stdout.flush()
    assert written.getvalue().decode(encoding) == shown
