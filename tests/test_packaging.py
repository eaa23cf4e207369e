"""What is installed, under which name, and what documents and messages say of it."""

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import poa as library
from command import poa
from poa.errors import DISTRIBUTION, installing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
TEXTS = [
    *ROOT.glob("*.md"),
    *(
        path
        for folder in ("src", "benchmarks", "docs")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".py", ".md")
    ),
]


def test_distribution_has_a_name_of_its_own_and_the_command_keeps_its() -> None:
    assert PROJECT["name"] == DISTRIBUTION == "poa-ssl"
    assert PROJECT["scripts"] == {"poa": "poa.cli:main"}
    assert installing("export") == "Install it with: pip install 'poa-ssl[export]'"


def test_version_is_ours_though_another_poa_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "99")
    assert poa("--version") == 0
    words = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert words["poa"] == library.__version__ == CITATION["version"]
    assert words["torch"] == torch.__version__
    assert words["timm"] == "99"
    assert words["device"].split()[0] in ("cpu", "cuda", "mps")


def test_a_version_has_its_section_and_date_and_the_changelog_goes_on_above_it() -> None:
    sections = re.findall(r"^## \[(.+)\](?: - ([\d-]+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == ("Unreleased", "")
    if ".dev" not in library.__version__:
        assert sections[1] == (library.__version__, str(CITATION["date-released"]))


def test_extras_that_are_named_are_ours() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in TEXTS)
    commands = re.findall(r"pip install [^`\n]*?([\w.-]+)\[([\w,]+)\]", text)
    within = re.findall(rf"^({DISTRIBUTION})\[([\w,]+)\]$", "\n".join(map("\n".join, EXTRAS.values())), re.MULTILINE)
    assert len(commands) >= 5
    assert within
    assert {distribution for distribution, _ in [*commands, *within]} == {DISTRIBUTION}
    asked = re.findall(r"(?:installing\(|extra=)['\"](\w+)['\"]\)", text)
    assert len(asked) >= 7
    assert {
        name for names in [*asked, *(names for _, names in [*commands, *within])] for name in names.split(",")
    } <= set(EXTRAS)


def test_packages_have_an_oldest_version() -> None:
    """Which `make test-minimum` takes."""
    names = [*PROJECT["dependencies"], *(name for extra in EXTRAS.values() for name in extra)]
    assert [name for name in names if ">=" not in name and not name.startswith(DISTRIBUTION)] == []


def test_addresses_are_those_of_the_papers_that_are_implemented() -> None:
    papers = {reference["url"] for reference in CITATION["references"]}
    assert set(PROJECT["urls"].values()) <= papers
    implemented = (ROOT / "README.md").read_text().partition("## Install")[0]
    assert set(re.findall(r"https://arxiv\.org/abs/[\d.]+", implemented)) == set(PROJECT["urls"].values())


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_demo_installs_the_library_alone_and_test_the_tools(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)

    def installed(target: str) -> list[str]:
        planned = subprocess.run(
            ["make", "--dry-run", target, "PIP_ARGS=--index-url HERE"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.partition(" install ")[2] for line in planned.stdout.splitlines() if "pip install" in line]

    first, library_alone = installed("demo")
    assert library_alone == "--quiet --index-url HERE --editable ."
    assert installed("test") == [first, '--quiet --index-url HERE --editable ".[dev]"']
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", ".installed"):
        (tmp_path / ".venv" / name).touch()
    assert installed("demo") == []
    assert len(installed("test")) == 1
