"""The examples for clusters: scripts that a shell reads, and commands that ours understands."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from poa import cli

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".sh", ".sbatch"))
JOB = yaml.safe_load((ROOT / "examples/kubernetes.yaml").read_text(encoding="utf-8"))["spec"]
CLUSTERS = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")


def commands(text: str) -> Iterator[list[str]]:
    """The words after ``poa`` of all commands in a script, or in a comment of it."""
    for line in text.replace("\\\n", " ").splitlines():
        if found := re.search(r"\bpoa ((?:pretrain|sizes) --.*)", line.replace('"', "")):
            yield shlex.split(found[1])


def understood(words: list[str]) -> None:
    command, bound, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
    assert command is cli.pretrain.pretrain
    assert bound.arguments["recipe"] in cli.pretrain.resolve.recipes()


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / "examples/Dockerfile"], ids=lambda path: path.name)
def test_commands_of_files(path: Path) -> None:
    found = list(commands(path.read_text(encoding="utf-8")))
    assert len(found) == 1
    understood(found[0])


def test_commands_of_the_job_and_of_the_page() -> None:
    container = JOB["template"]["spec"]["containers"][0]
    understood(container["args"])
    of_page = list(commands(CLUSTERS))
    assert len(of_page) == 4
    for words in of_page:
        understood(words)
    [listed] = re.findall(r"command: \[poa, (.*)\]", CLUSTERS)
    understood(listed.split(", "))


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_shell_reads_the_scripts(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_status_of_stopped_runs() -> None:
    from poa.machine.launchers import STOPPED

    rules = JOB["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [STOPPED]
    assert f"exits with status {STOPPED}" in CLUSTERS


def test_the_page_shows_the_script() -> None:
    script = (ROOT / "examples/slurm.sbatch").read_text(encoding="utf-8")
    options = re.findall(r"#SBATCH (--\S+)", CLUSTERS)
    assert len(options) == 8
    assert set(options) <= set(re.findall(r"#SBATCH (--\S+)", script))
