import functools
import inspect
import shutil
import subprocess
from pathlib import Path

import pytest
from cyclopts import App
from cyclopts.completion import ShellDetectionError

from command import poa
from poa.cli import completion


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_flags(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect, "getsource", functools.cache(inspect.getsource))  # read for each flag: three seconds
    start = home / ".bashrc"
    start.write_text("alias mine=ls\n")
    assert poa("--install-completion", "--shell", "bash") == 0
    script = home / ".local/share/bash-completion/completions/poa"
    assert capsys.readouterr().out.startswith(f"Wrote {script}. A line in ~/.bashrc loads it.\n")
    assert start.read_text().startswith("alias mine=ls\n")

    wanted = ["poa pretr", "poa evaluate kn", "poa pretrain --rec", "poa export --format on", "poa --inst"]
    lines = [f". {script}", "complete -p poa"]
    for words in wanted:
        lines.append(f'COMP_WORDS=({words}); COMP_CWORD={words.count(" ")}; _poa; echo "${{COMPREPLY[@]}}"')
    shown = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout
    whole, *found = shown.splitlines()
    assert whole == "complete -o default -F _poa poa"  # files, where there is nothing else
    assert found == ["pretrain", "knn", "--recipe", "onnx", "--install-completion"]


def test_zsh_completes_files_where_there_is_nothing_else() -> None:
    specs = {
        r"'1:A folder\: of images.'": r"'1:A folder\: of images.:_files'",
        r"'*:Folders of runs.'": r"'*:Folders of runs.:_files'",
        r"'*--data[Images\: a folder.]:data'": r"'*--data[Images\: a folder.]:data:_files'",
        r"'*--out[A run'\''s folder.]:out:_files'": r"'*--out[A run'\''s folder.]:out:_files'",
        r"'1: :->cmds'": r"'1: :->cmds'",
        r"'--help[Help.]'": r"'--help[Help.]'",
        r'"*--branch[A branch.]:branch:(teacher initial)"': r'"*--branch[A branch.]:branch:(teacher initial)"',
    }
    given, wanted = (
        " _arguments \\\n" + "".join(f"  {spec} \\\n" for spec in side) for side in (specs, specs.values())
    )
    assert completion.with_files(given, "zsh") == wanted


def test_start_file_gets_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(App, "generate_completion", lambda *_, **__: "")
    for _ in range(2):
        assert poa("--install-completion", "--shell", "zsh") == 0
    assert (home / ".zshrc").read_text().count("fpath=") == 1


def test_unknown_shell_is_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def detect() -> str:
        raise ShellDetectionError

    monkeypatch.setattr("cyclopts.completion.detect_shell", detect)
    assert poa("--install-completion") == 2
    told = capsys.readouterr().err
    assert told == "poa: The shell was not recognised. Name it with --shell: bash, zsh, fish, powershell.\n"
    assert list(home.iterdir()) == []


def test_home_that_cannot_be_written(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(App, "generate_completion", lambda *_, **__: "")
    (home / ".local").touch()
    assert poa("--install-completion", "--shell", "bash") == 2
    assert "Fix this and try again." in capsys.readouterr().err
