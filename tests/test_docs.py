"""What the documents name exists."""

import re
from pathlib import Path

import pytest

import poa
from blocks import DOCUMENTS, PROGRAMS, ROOT, blocks_of
from poa import cli
from poa.cli import compare, inspect, pretrain
from poa.config.resolve import resolve
from poa.models.registry import family_of

WITHOUT_EXAMPLE = {"architecture", "faithfulness", "notebooks"}
"""Pages that show nothing to be typed: the second names a test for each claim."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", document.read_text())
    assert [link for link, _ in links if not (document.parent / link).exists()] == []
    targets = [(document.parent / link if link else document, anchor) for link, anchor in links if anchor]
    assert [anchor for page, anchor in targets if page.suffix == ".md" and anchor not in anchors(page)] == []


def anchors(page: Path) -> set[str]:
    """What GitHub and the site name its headings by."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    words = [re.sub(r"\]\([^)]*\)", "", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", each).replace(" ", "-") for each in words}


def test_each_page_has_an_example() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
    without = {page for page, text in pages.items() if not any(block.language in PROGRAMS for block in blocks_of(text))}
    assert without == WITHOUT_EXAMPLE


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
    commands = (poa, pretrain.pretrain, compare.compare, inspect.embed, inspect.pictures)
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
