"""Commands and programs of README and pages that are marked with `<!-- test -->` do what they say."""

import re
import shlex
from pathlib import Path

import pytest
from sklearn import datasets

from command import poa

ROOT = Path(__file__).parents[1]
NUM_DIGITS = 400  # of which 300 are for training; the commands ask for 256
PAGES = ("quickstart", "judge", "ship", "api", "photographs", "channels")
DOCUMENTS = ("README.md", *(f"docs/{name}.md" for name in PAGES))
"""In the order in which one goes on where another ended."""
SHORTER = {
    "pretrain": "--epochs 1 --limit 256",
    "evaluate knn": "--sizes 64x3 128x6",
    "evaluate linear": "--sizes 64x3 128x6",
    "finetune": "--epochs 1 --limit 128",
    "predict": "--limit 50",
}
"""What is added to a command here, so that it takes seconds."""
BLOCK = re.compile(r"<!-- test -->\s*```(bash|python)\n(.*?)```", re.DOTALL)


def test_marked_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, as each command would wait for torch to be imported anew; on some of the digits."""
    digits = datasets.load_digits()
    some = type(digits)(images=digits.images[:NUM_DIGITS], target=digits.target[:NUM_DIGITS])
    monkeypatch.setattr(datasets, "load_digits", lambda: some)
    monkeypatch.setenv("POA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for document in DOCUMENTS:
        blocks = BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))
        assert blocks, document
        for language, text in blocks:
            if language == "python":
                exec(compile(text, document, "exec"), {})
                continue
            for line in text.splitlines():
                assert poa(*shorter(line)) == 0, line


def shorter(line: str) -> list[str]:
    program, *words = shlex.split(line, comments=True)
    assert program == "poa"
    found = next((more for command, more in SHORTER.items() if words[: command.count(" ") + 1] == command.split()), "")
    return [*words, *(found.split() if "--print-config" not in words else ())]
