"""Notebooks of the documents: their calls are right, and what they printed is kept. `make notebooks` executes them."""

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import poa
from poa.config.pretraining import Config
from poa.report import write

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict[str, object]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def program(path: Path) -> ast.Module:
    """All cells, as one program."""
    lines = [line for cell in code_cells(path) for line in [*"".join(cell["source"]).splitlines(), ""]]  # type: ignore[arg-type]
    return ast.parse("\n".join(line for line in lines if not line.startswith("%")))


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls of functions of poa itself."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="poa"), attr=name)):
                yield name, node


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_calls_are_right(path: Path) -> None:
    found = list(calls(program(path)))
    assert found
    for name, call in found:
        given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        signature = inspect.signature(write.write_report if name == "write_report" else getattr(poa, name))
        bound = signature.bind(*(call.args if name != "write_report" else [call.args]), **given)
        if name == "pretrain":
            assert set(bound.arguments["given"]) <= set(Config.model_fields)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_were_executed_from_the_first_cell_to_the_last(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    text = path.read_text(encoding="utf-8")
    assert '"output_type": "error"' not in text
    assert "site-packages" not in text  # a warning, with a path of the machine that executed it
    assert len(text) < 300_000
