"""What the documents name exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from string import Template

import pytest

import poa
from poa import cli
from poa.cli import inspect, pretrain
from poa.config.resolve import resolve
from poa.models.registry import family_of

ROOT = Path(__file__).parents[1]
WRITTEN = [path for path in (ROOT / "docs").rglob("*.md") if "reference" not in path.parts]  # `make docs` writes those
DOCUMENTS = sorted([*ROOT.glob("*.md"), *WRITTEN, *(ROOT / "benchmarks").glob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_faithfulness_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "faithfulness.md").read_text()
    named, file = [], ""
    for found in re.finditer(r"`((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?`", text):
        file = found[1] or file  # `::test_name` alone is in the file named before
        named.append((file, found[2]))
    assert len(named) > 10
    assert len(named) == len(re.findall(r"`[\w/.:]*test_\w+[\w/.:]*`", text))
    for file, name in named:
        path = ROOT / "tests" / file
        assert path.is_file(), file
        assert name is None or f"def {name}(" in path.read_text(), f"{file}::{name}"


def test_examples_name_sizes_that_their_recipe_has() -> None:
    commands = (poa, pretrain.pretrain, pretrain.compare, inspect.embed, inspect.pictures)
    documents = [document.read_text(encoding="utf-8") for document in DOCUMENTS]
    text = "\n".join([*documents, *(str(command.__doc__) for command in commands)])
    recipes = set(re.findall(r"--out runs/mine --recipe ([\w-]+)", text)) - {"poa-vit-l"}
    assert recipes == {"vit-96"}
    words = re.findall(r"runs/mine\b.*--sizes?((?: \d+x\d+)+)|run\.\w+\(.*\"(\d+x\d+)\"", text)
    sizes = [size for pair in words for word in pair for size in word.split()]
    assert len(sizes) > 10
    assert set(sizes) <= set(map(str, family_of(resolve(recipe="vit-96")).space.sizes))


def test_every_command_has_an_example() -> None:
    for name in cli.app:
        if not name.startswith("-"):
            command = cli.app[name]
            text = command.help or str(command.default_command.__doc__)
            assert f"Example: poa {name} " in text, name


def test_commands_in_documents_are_valid() -> None:
    """Parsed, not run: the README's are run by a test of their own."""
    commands = {line for document in DOCUMENTS for line in commands_in(document.read_text(encoding="utf-8"))}
    assert len(commands) > 100
    for line in sorted(commands):
        words = shlex.split(line, comments=True)[1:]
        try:
            cli.app.parse_args(cli.in_full(words), exit_on_error=False, print_error=False)
        except Exception as error:
            pytest.fail(f"{line}: {error}")


def commands_in(text: str) -> Iterator[str]:
    """Commands of a document's blocks of code, with the variables that a block sets."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        variables = dict(found.groups() for line in lines if (found := re.fullmatch(r'(\w+)="(.*)"', line)))
        for line in lines:
            if line.startswith("poa "):
                yield Template(line).substitute(variables)
