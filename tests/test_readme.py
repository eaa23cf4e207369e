"""The commands of the README do what it says."""

import re
import shlex
from pathlib import Path

import pytest
from sklearn import datasets

from command import poa

ROOT = Path(__file__).parents[1]
NUM_DIGITS = 400  # of which 300 are for training; the commands ask for 256
BLOCK = re.compile(r"<!-- test -->\s*```(bash|python)\n(.*?)```", re.DOTALL)


def test_marked_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, as each command would wait for torch to be imported anew; on some of the digits."""
    digits = datasets.load_digits()
    some = type(digits)(images=digits.images[:NUM_DIGITS], target=digits.target[:NUM_DIGITS])
    monkeypatch.setattr(datasets, "load_digits", lambda: some)
    monkeypatch.setenv("POA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    assert len(blocks) >= 3
    for language, text in blocks:
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})
            continue
        for line in text.splitlines():
            program, *words = shlex.split(line, comments=True)
            assert program == "poa"
            assert poa(*words) == 0, line
