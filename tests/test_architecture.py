"""Rules of structure that a machine keeps; see docs/architecture.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "poa"
FILES = sorted(ROOT.rglob("*.py"))
MAY_IMPORT = {
    "errors": set[str](),
    "text": set[str](),
    "files": {"errors", "text"},
    "machine": {"errors"},
    "distributed": {"errors", "machine"},
    "config": {"errors", "machine"},
    "elastic": {"errors", "distributed"},
    "losses": {"errors", "machine", "distributed"},
    "data": {
        "errors",
        "text",
        "files",
        "distributed",
        "config",
    },  # crops are made as their section of the settings says
    "training": {"errors", "text", "files", "machine", "distributed"},
    "plots": {"errors", "text", "files", "elastic"},
    "families": {"errors", "elastic"},
    "export": {"errors", "text", "files", "config", "elastic", "data", "families"},
}
"""What each folder and file of the root may import. Those of FLOORS may also import all that stands before them."""
FLOORS = (
    {"methods"},
    {"models"},
    {"features"},
    {"evaluation"},
    {"robustness", "tasks", "pictures", "pretraining", "choice"},
    {"shipping", "examination"},
    {"experiments", "report", "planning"},
    {"cli"},
    {"__init__", "__main__"},
)


def _may_import() -> dict[str, set[str]]:
    below, rules = set(MAY_IMPORT), dict(MAY_IMPORT)
    for floor in FLOORS:
        rules |= {part: set(below) for part in floor}
        below |= floor
    rules["models"] -= {"methods"}  # a run on disk needs nothing of how it was trained
    rules["tasks"] -= {"methods"}
    return rules


RULES = _may_import()


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    names = {module.split(".")[1] for module in imported(ast.parse(path.read_text())) if module.startswith("poa.")}
    return {name for name in names if (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()} - {part_of(path)}


def test_every_folder_and_file_of_the_root_has_a_rule() -> None:
    found = {part_of(path) for path in FILES}
    assert found == set(RULES)
    assert len(list(ROOT.glob("*.py"))) <= 6


@pytest.mark.parametrize("part", sorted(RULES))
def test_imports_go_one_way(part: str) -> None:
    found = {name for path in FILES if part_of(path) == part for name in parts_imported(path)}
    assert not found - RULES[part]


@pytest.mark.parametrize("task", sorted(path.name for path in (ROOT / "tasks").iterdir() if path.is_dir()))
def test_tasks_do_not_know_each_other(task: str) -> None:
    others = {path.name for path in (ROOT / "tasks").iterdir() if path.is_dir()} - {task, "__pycache__"}
    modules = {
        module for path in (ROOT / "tasks" / task).glob("*.py") for module in imported(ast.parse(path.read_text()))
    }
    assert not {module for module in modules for other in others if module.startswith(f"poa.tasks.{other}")}


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
    assert source.count("\n") <= 400
    first = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert not first & {"fcntl", "resource", "pwd", "grp", "termios"}, "Windows has no such module"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [argument.arg for argument in arguments if argument.annotation is None]
            assert not set(bare) - {"self", "cls"}, node.name
            assert node.returns is not None, node.name
        elif isinstance(node, ast.Call):
            check_call(node, part)


def check_call(node: ast.Call, part: str) -> None:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    modes = [each.value for each in node.args if isinstance(each, ast.Constant)]
    if called in {"read_text", "write_text"} or (called == "open" and modes in (["r"], ["w"], ["a"])):
        assert any(keyword.arg == "encoding" for keyword in node.keywords), "the system's encoding may be another"
    assert called != "Console" or part == "text", "a plain_console takes no name for markup"
