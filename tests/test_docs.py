"""What the documents name exists."""

import re
from pathlib import Path

import pytest

import poa
from poa.cli import inspect, pretrain
from poa.config.resolve import resolve
from poa.models.registry import family_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


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
