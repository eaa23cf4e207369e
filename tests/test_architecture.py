"""Rules of structure that a machine keeps; see docs/architecture.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "poa"
FILES = sorted(ROOT.rglob("*.py"))
EVERYWHERE = {"errors", "distributed"}
MAY_IMPORT = {
    "elastic": set[str](),
    "losses": set[str](),
    "data": set[str](),
    "training": set[str](),
    "families": {"elastic"},
    "heads": set[str](),
    "methods": {"elastic", "families", "heads", "losses", "data.views", "training.ema"},
    "export": {"elastic", "families"},
    "evaluation": {"data", "elastic"},
    "report": {"elastic"},
    "dense": {"data", "elastic", "evaluation", "training"},
    "pictures": {"data", "elastic", "evaluation", "report"},
    "config": set[str](),
    "errors": set[str](),
    "distributed": set[str](),
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_test_files_have_one_subject(path: Path) -> None:
    assert path.read_text().count("\n") <= 400


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_structure(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    part = part_of(path)
    modules = set(imported(tree))
    if part != "distributed":
        allowed = {"torch.nn.parallel.DistributedDataParallel", "torch.nn.parallel"}
        assert not {m for m in modules if m.startswith("torch.distributed")} - allowed
    if part == "config":
        assert not any(module.split(".")[0] == "torch" for module in modules)
    if part not in ("cli", "commands"):
        assert not any(module.startswith("poa.commands") for module in modules)
    if part in MAY_IMPORT:
        allowed = MAY_IMPORT[part] | EVERYWHERE | {part}
        ours = {module.removeprefix("poa.") for module in modules if module.startswith("poa.")}
        assert not {module for module in ours if not any(module == a or module.startswith(f"{a}.") for a in allowed)}
    assert source.count("\n") <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [argument.arg for argument in arguments if argument.annotation is None]
            assert not set(bare) - {"self", "cls"}, node.name
            assert node.returns is not None, node.name
