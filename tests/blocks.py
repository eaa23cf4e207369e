"""Blocks of code of the documents, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
WRITTEN = [path for path in (ROOT / "docs").rglob("*.md") if "reference" not in path.parts]  # `make docs` writes those
DOCUMENTS = sorted([*ROOT.glob("*.md"), *WRITTEN, *(ROOT / "benchmarks").glob("*.md")])
PROGRAMS = ("bash", "console", "python", "yaml")
"""Languages of blocks that are executed, or say why not. Others show what is printed, or lay out the site."""
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r" *<!-- not executed: ?(.*?) ?-->")


class Block(NamedTuple):
    """A block of code, where it is, and why it is not executed, if the line before says so."""

    document: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


class Command(NamedTuple):
    """The words of a command after ``poa``, and the line that it stands in."""

    line: str
    words: list[str]


def blocks_of(text: str, document: str = "") -> Iterator[Block]:
    for found in FENCE.finditer(text):
        indent, language, code = found.groups()
        before = text[: found.start()].splitlines()
        mark = MARK.fullmatch(before[-1]) if before else None
        lines = "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
        yield Block(document, len(before) + 1, language, lines, None if mark is None else mark[1])


def all_blocks() -> list[Block]:
    read = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
    return [block for document, text in read.items() for block in blocks_of(text, document)]


def lines_of(block: Block) -> list[str]:
    """Commands of a shell, each in one line, with the variables that the block sets."""
    lines = [line for line in block.text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    set_to = dict(found.groups() for line in lines if (found := re.fullmatch(r'(\w+)="(.*)"', line)))
    return [Template(line).safe_substitute(set_to) for line in lines if line and not re.fullmatch(r'\w+=".*"', line)]


def commands_of(block: Block) -> list[Command]:
    """Those of ``poa``, also after settings of the environment and launchers."""
    found = []
    for line in lines_of(block) if block.language in ("bash", "console") else ():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            launched = words[:1] == ["torchrun"] or words[:1] == ["srun"]
            at = next((n for n, word in enumerate(words) if re.fullmatch(r"(\S*/)?poa", word)), None)
            if at is not None and (launched or all("=" in word for word in words[:at])):
                found.append(Command(line, words[at + 1 :]))
    return found
