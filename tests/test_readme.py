"""The commands of the README do what it says."""

import re
import shlex
from pathlib import Path

import pytest

from command import poa

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- test -->\s*```(bash|python)\n(.*?)```", re.DOTALL)


def test_marked_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: each command would wait for torch to be imported anew."""
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
