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
    named = re.findall(r"\b(test_\w+)", (ROOT / "docs" / "faithfulness.md").read_text())
    paths = list((ROOT / "tests").rglob("test_*.py"))
    known = {path.stem for path in paths} | set(re.findall(r"def (test_\w+)", "".join(p.read_text() for p in paths)))
    assert len(named) > 10
    assert set(named) - known == set()
