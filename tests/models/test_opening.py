"""How the folder of a run is begun."""

import errno
import os
from pathlib import Path

import pytest

import poa
import tiny
from poa.config import resolve
from poa.errors import UserError
from poa.models import opening


@pytest.mark.parametrize(
    "left", ["", "env.json", "env.json command.txt config.yaml", ".lock .config.yaml.0123abcd.tmp"]
)
def test_a_run_that_could_not_begin_is_started_again(tmp_path: Path, left: str) -> None:
    for name in left.split():
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"holds no run to resume\. Leave out --resume to start one"):
        opening.check(resolve.resolve({"out": str(tmp_path)}, resume=True), resume=True)
    config = tiny.config(out=str(tmp_path))
    with opening.writing(config):
        opening.create(config)
    assert poa.load(tmp_path).config == config
    with pytest.raises(UserError, match=r"already holds a run without a checkpoint.* adding --resume"):
        opening.check(config, resume=False)
    opening.check(resolve.resolve({"out": str(tmp_path)}, resume=True), resume=True)


def test_a_full_disk_leaves_no_half_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = tiny.config(out=str(tmp_path / "run"))
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(UserError, match=r"No space left on device\..* free some space there and run the same"),
        opening.writing(config),
    ):
        opening.create(config)
    monkeypatch.undo()
    assert not opening.is_begun(tmp_path / "run")
    with opening.writing(config):
        opening.create(config)
    assert opening.is_begun(tmp_path / "run")
