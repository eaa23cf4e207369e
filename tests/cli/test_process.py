"""The command as a process of its own: how it starts, what it waits for, how it ends."""

import atexit
import gc
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from command import one_thread, poa
from poa.cli import main


def test_help_fits_a_terminal_and_waits_for_no_torch() -> None:
    code = """
import sys
from poa.cli import main
for words in ([], ["--help"], ["recipes"], *([*command, "--help"] for command in (
    ["pretrain"], ["sizes"], ["evaluate"], ["evaluate", "knn"], ["evaluate", "linear"], ["evaluate", "few-shot"],
    ["evaluate", "cluster"], ["evaluate", "retrieval"], ["evaluate", "probe"],
    ["evaluate", "finetune"], ["evaluate", "transfer"], ["evaluate", "quality"], ["compare"],
    ["evaluate", "segmentation"], ["evaluate", "detection"], ["evaluate", "robustness"],
    ["evaluate", "disturbances"], ["pictures"],
    ["measure"], ["choose"], ["embed"], ["extract"], ["demo"], ["recipes"]))):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, (words, end.code)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=one_thread(), check=False)
    assert done.returncode == 0, done.stderr
    for heading in ("Parameters", "Model", "Heads", "Views", "Losses", "Optimizer", "Saving", "Monitor", "Evaluation"):
        assert f"╭─ {heading} ─" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("words", [["-m", "poa"], ["-c", "from poa.cli import main; main()"]])
def test_exit_status_of_the_process(words: list[str], tmp_path: Path) -> None:
    def status(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words, *more]
        return subprocess.run(command, capture_output=True, text=True, env=one_thread(), cwd=tmp_path, check=False)

    recipes = status("recipes")
    assert recipes.returncode == 0
    assert "demo" in recipes.stdout.split()
    assert re.search(r"^vit-96 +Photographs of all sizes seen at 96 pixels", recipes.stdout, re.MULTILINE)
    wrong = status("pretrain", "--epoch", "3")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "poa: Unknown option: --epoch. Did you mean --epochs? See --help.\n"


def test_only_a_process_of_its_own_collects_garbage_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    before, at_the_end = gc.get_threshold(), Mock()
    monkeypatch.setattr(atexit, "register", at_the_end)
    monkeypatch.setattr(sys, "argv", ["poa", "recipes"])
    try:
        assert poa("recipes") == 0
        assert gc.get_threshold() == before
        with pytest.raises(SystemExit, match="0"):
            main()
        assert gc.get_threshold()[:2] == before[:2]
        assert gc.get_threshold()[2] in (0, 1000)  # 0: of a Python that has two generations
    finally:
        gc.set_threshold(*before)
    at_the_end.assert_called_once_with(gc.freeze)
