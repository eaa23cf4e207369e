"""Blocks of code of README and pages do what they say, or the line before says why they are not executed.

``<!-- not executed: takes 35 minutes -->``: such commands are parsed. All others run in this process, in a folder with
stand-ins of what they name: tiny images, and one run of a few steps in place of all runs.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import poa as library
import stand_ins
from blocks import PROGRAMS, ROOT, Block, Command, all_blocks, blocks_of, commands_of, lines_of
from command import poa
from poa import cli

BLOCKS = all_blocks()
EXECUTED = [block for block in BLOCKS if block.language in PROGRAMS and block.reason is None]
PAGES = tuple(dict.fromkeys(block.document for block in EXECUTED))


def faults(blocks: list[Block], text: str) -> Iterator[str]:
    """What is wrong with blocks and their marks, in the documents' text."""
    executed = {line for block in blocks if block.reason is None for line in lines_of(block)}
    for block in blocks:
        program, commands = block.language in PROGRAMS, commands_of(block)
        if block.reason is None and block.language in ("bash", "console") and len(commands) < len(lines_of(block)):
            yield f"{block.place}: commands of others are not executed. Say so in the line before."
        if block.reason is not None and not program:
            yield f"{block.place}: a block of {block.language or 'no language'} needs no reason."
        if block.reason is not None and len(block.reason.split()) < 2:
            yield f"{block.place}: there is no reason."
        if block.reason is not None and program and {*lines_of(block)} <= executed:
            yield f"{block.place}: another block executes all of it."
    if len(re.findall(r"^ *<!-- not executed", text, re.MULTILINE)) != sum(
        block.reason is not None for block in blocks
    ):
        yield "A mark is not in the line before a block of code."


def test_each_block_is_executed_or_says_why_not() -> None:
    assert len(BLOCKS) > 150
    documents = {block.document for block in BLOCKS}
    text = "".join((ROOT / document).read_text(encoding="utf-8") for document in documents)
    assert list(faults(BLOCKS, text)) == []
    assert len(EXECUTED) > 60


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```bash\nmake demo\n```\n", "commands of others"),
        ("<!-- not executed: -->\n```bash\nmake demo\n```\n", "no reason"),
        ("<!-- not executed: takes long -->\n```text\nPage: 1\n```\n", "needs no reason"),
        ("<!-- not executed: takes long -->\n\n```bash\npoa recipes\n```\n", "not in the line before"),
        (
            "```bash\npoa recipes\n```\n<!-- not executed: takes long -->\n```bash\npoa recipes\n```\n",
            "another block executes",
        ),
    ],
)
def test_faults_are_noticed(text: str, fault: str) -> None:
    [found] = faults(list(blocks_of(text)), text)
    assert fault in found


def test_commands_that_are_not_executed_are_understood() -> None:
    executed = {command.line for block in EXECUTED for command in commands_of(block)}
    marked = {command.line: command for block in BLOCKS if block.reason for command in commands_of(block)}
    assert len(marked) > 40
    for line in sorted(marked.keys() - executed):
        try:
            cli.app.parse_args(cli.in_full(marked[line].words), exit_on_error=False, print_error=False)
        except Exception as error:
            pytest.fail(f"{line}: {error}")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[tuple[str, ...]]]:
    """In a folder with all that commands name: those that no page goes on from, and that have run."""
    folder, before = tmp_path_factory.mktemp("pages"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        os.chdir(folder)
        stand_ins.replace(patch)
        stand_ins.write()
        yield set()
        os.chdir(before)


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, done: set[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    there, names = {*Path().iterdir()}, dict[str, Any]()
    monkeypatch.setattr(library, "pretrain", stand_ins.pretrain(library.pretrain))
    for block in EXECUTED:
        if block.document == page and block.language == "yaml":
            Path("mine.yaml").write_text(block.text, encoding="utf-8")
        elif block.document == page and block.language == "python":
            stand_ins.provide(block.text)
            lines = "\n" * block.line + block.text  # so that an error names the line of the page
            exec(compile(lines, ROOT / page, "exec"), names)
        elif block.document == page:
            for command in commands_of(block):
                run(command, done)
    stand_ins.tidy(there)


def run(command: Command, done: set[tuple[str, ...]]) -> None:
    words = stand_ins.shortened(command.words)
    if tuple(words) not in done:
        stand_ins.provide(command.line)
        assert poa(*words) == 0, command.line
    if words[-1] == "--dry-run" or words[0] in ("choose", "export"):
        done.add(tuple(words))
