"""Files of settings: whole ones, ones that were cut off, and ones that no settings are."""

import os
from pathlib import Path

import pytest

import tiny
from poa.config import resolve
from poa.config.pretraining import Config
from poa.errors import UserError

FORMATS = {"now": "", "of earlier commits": resolve.END}
"""What is taken off the end of a file."""


@pytest.mark.parametrize("end", FORMATS.values(), ids=FORMATS)
def test_a_file_of_a_run_is_whole_or_refused(end: str, tmp_path: Path) -> None:
    file, config = tmp_path / "config.yaml", tiny.config(epochs=7)
    text = resolve.to_yaml(config).removesuffix(end)
    whole, complaints = [], set()
    for length in (*range(1, len(text) - 6, 7), *range(len(text) - 6, len(text) + 1)):
        file.write_text(text[:length])
        try:
            found = resolve.of_run(file)
        except UserError as error:
            complaints.add(str(error).removeprefix(str(file))[:12])
        else:
            assert found == config
            whole.append(len(text) - length)
    assert complaints == {" is cut off:", " is not vali"}
    assert whole == ([len(resolve.END), 0] if not end else [0])
    assert resolve.resolve({"out": str(tmp_path)}, resume=True).epochs == 7


def test_resuming_reads_no_file_that_was_cut_off(tmp_path: Path) -> None:
    text = resolve.to_yaml(tiny.config(epochs=7))
    (tmp_path / "config.yaml").write_text(text[: text.index("\nheads")] + "\n")
    with pytest.raises(UserError, match=r"config\.yaml is cut off: its end is missing, and with it "):
        resolve.resolve({"out": str(tmp_path)}, resume=True)


NO_SETTINGS = {
    "a list in itself": ("a: &a [*a]", r"has too many, or too deeply nested, values .*\. Remove references"),
    "settings in themselves": ("&a\nmodel: *a", r"has too many, or too deeply nested"),
    "a few lines for many values": (
        "a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(9)),
        r"has too many, or too deeply nested",
    ),
    "deep lists": ("a: " + "[" * 1500, r"is not valid YAML: "),
    "a long number": ("epochs: " + "9" * 5000, r"is not valid YAML: "),
    "no date": ("data: 2020-13-45", r"is not valid YAML: month must be in 1..12"),
    "a long text": ("epochs: " + "x" * 500, r"epochs cannot be 'x{99}\.\.\.: "),
    "much": ("#" * resolve.MOST_BYTES + "\n", r"is too large for a file of settings \(more than 1,048,576 bytes\)"),
    "recipes": ("recipe: [a]", r"There is no recipe \['a'\]"),
}


@pytest.mark.parametrize("case", NO_SETTINGS)
def test_files_that_are_no_settings(case: str, tmp_path: Path) -> None:
    text, told = NO_SETTINGS[case]
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=told) as error:
        resolve.resolve(file=tmp_path / "a.yaml")
    assert len(str(error.value)) < 500


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_pipes_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"a\.yaml is not a file\. Give a YAML file of settings as --config\."):
        resolve.resolve(file=tmp_path / "a.yaml")


def test_references_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("heads:\n  prototypes: &few [8, 8]\nlosses: {ibot: &one 1.0, koleo: *one}\n")
    found = resolve.resolve(file=tmp_path / "a.yaml")
    assert (found.heads.prototypes, found.losses.koleo) == ((8, 8), 1.0)
    assert isinstance(found, Config)
