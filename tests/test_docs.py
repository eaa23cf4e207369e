"""What the documents name exists."""

import re
from pathlib import Path

import pytest

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
