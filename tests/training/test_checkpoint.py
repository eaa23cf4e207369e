import errno
import io
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from poa.errors import UserError
from poa.training.checkpoint import (
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    restoring,
    save_checkpoint,
    saver,
    step_of,
)
from poa.training.health import NonFinite

CPU = torch.device("cpu")

SAVER = """
import os, sys, torch
from pathlib import Path
from poa.training.checkpoint import save_checkpoint

torch.set_num_threads(1)
for line in sys.stdin:
    step = int(line)
    child = os.fork()
    while child == 0:
        step += 1
        save_checkpoint(Path(sys.argv[1]), step, {"step": step, "weight": torch.full((1000, 100), float(step))})
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def state(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"weight": torch.full((3, 2), float(step))}, "name": "run", "sizes": [(64, 2)]}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Makes writes fail in the middle of a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    with pytest.raises(NonFinite, match=r"Not finite after the last step: model\.weight; no checkpoint of "):
        save_checkpoint(tmp_path, 2, state(2) | {"model": {"weight": torch.full((3, 2), torch.inf)}})
    assert names(tmp_path) == ["step-00000001.pt"]
    with pytest.raises(NonFinite, match=r"is written\. Try a lower --lr\.$"):
        saver(tmp_path, settings={}, every=1, last=9)(2, {"moment": torch.tensor(torch.nan)})


def test_checkpoints_of_other_programs(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"object": Path("a")})  # with the right checksum
    with pytest.raises(UserError, match=r"step-00000001\.pt cannot be read \(UnpicklingError: .*No intact earlier one"):
        load_checkpoint(path)
    for error in (KeyError("method"), RuntimeError("Error(s) in loading state_dict\n..."), ValueError("groups")):
        with (
            pytest.raises(UserError, match=r"a\.pt does not belong to this training \(\w+: .*\)\. Restore"),
            restoring(Path("a.pt"), {}),
        ):
            raise error
    with pytest.raises(UserError, match=r"a\.pt holds values that are not finite \(method\.a\), .*Delete it to resume"):
        restoring(Path("a.pt"), {"method": {"a": torch.tensor(torch.inf)}}).__enter__()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "run" / "checkpoints", 100, state(100))
    loaded = load_checkpoint(path)
    assert path.name == "step-00000100.pt"
    assert torch.equal(loaded["model"].pop("weight"), torch.full((3, 2), 100.0))
    assert loaded == {"step": 100, "model": {}, "name": "run", "sizes": [(64, 2)]}


def test_a_checkpoint_is_an_ordinary_torch_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state(1))
    assert torch.load(path, weights_only=True)["step"] == 1
    assert torch.load(path, weights_only=True, mmap=True)["model"]["weight"].sum() == 6


def test_latest_is_the_one_with_most_steps(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "missing") is None
    assert latest_checkpoint(tmp_path) is None
    for step in (99_999_999, 100_000_000):
        save_checkpoint(tmp_path, step, state(step))
    (tmp_path / "notes.txt").touch()
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert step_of(latest) == 100_000_000


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(2, None, [50, 60]), (1, None, [60]), (1, 20, [20, 40, 60]), (2, 30, [30, 50, 60])],
)
def test_old_checkpoints_are_deleted_by_rule(
    tmp_path: Path, keep_last: int, keep_every: int | None, kept: list[int]
) -> None:
    for step in range(10, 61, 10):
        save_checkpoint(tmp_path, step, state(step), keep_last=keep_last, keep_every=keep_every)
    assert [step_of(path) for path in checkpoints(tmp_path)] == kept


def test_saving_before_a_later_checkpoint_deletes_neither(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 90, state(90))
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, state(step), keep_last=1)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [30, 90]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 10, state(10))
    path = save_checkpoint(tmp_path, 10, {"again": True})
    assert names(tmp_path) == [path.name]
    assert load_checkpoint(path) == {"again": True}


def test_left_over_temporary_files_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".step-00000010.pt.tmp"
    leftover.write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 20, state(20))
    assert names(tmp_path) == ["step-00000020.pt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_earlier_checkpoints_outlive_a_save_that_is_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save_checkpoint(tmp_path, 10, state(10), keep_last=1)

    def broken_off(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", broken_off) if call == "fsync" else (Path, "replace", broken_off)))
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 20, state(20), keep_last=1)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [10]
    assert load_checkpoint(tmp_path / "step-00000010.pt")["step"] == 10
    save_checkpoint(tmp_path, 20, state(20), keep_last=1)
    assert names(tmp_path) == ["step-00000020.pt"]


@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_changed_byte_is_found(tmp_path: Path, where: float) -> None:
    path = save_checkpoint(tmp_path, 10, state(10))
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"step-00000010\.pt is damaged: its content does not fit its checksum"):
        load_checkpoint(path)


@pytest.mark.parametrize("num_bytes", [0, 1, 70, 1000, -1])
def test_a_cut_file_is_found(tmp_path: Path, num_bytes: int) -> None:
    path = save_checkpoint(tmp_path, 10, state(10))
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path)


def test_a_file_that_torch_wrote_alone_is_not_taken_for_whole(tmp_path: Path) -> None:
    path = tmp_path / "step-00000010.pt"
    torch.save(state(10), path)
    with pytest.raises(UserError, match="its end is missing"):
        load_checkpoint(path)


def test_the_advice_for_a_damaged_checkpoint_names_the_newest_intact_one(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save_checkpoint(tmp_path, step, state(step), keep_last=4)
    for step in (20, 30):
        (tmp_path / f"step-{step:08}.pt").write_bytes(b"damaged")
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / "step-00000030.pt")
    assert "before it is step-00000010.pt: delete" in str(error.value)
    assert str(error.value).endswith("step-00000030.pt and resume with --resume.")
    assert names(tmp_path)[2] == "step-00000030.pt"


def test_the_advice_says_when_no_intact_checkpoint_is_left(tmp_path: Path) -> None:
    (tmp_path / "step-00000010.pt").write_bytes(b"damaged")
    save_checkpoint(tmp_path, 20, state(20))
    with pytest.raises(UserError, match=r"No intact earlier one is left.*another --out"):
        load_checkpoint(tmp_path / "step-00000010.pt")


def test_a_missing_checkpoint_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no checkpoint at"):
        load_checkpoint(tmp_path / "step-00000010.pt")


def test_a_full_disk_keeps_the_last_checkpoint_and_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 10, state(10), keep_last=1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk is full: .*step-00000020.pt needs 4\.0 MB, [\d.]+ MB are free") as error:
        save_checkpoint(tmp_path, 20, {"weight": torch.zeros(1000, 1000)}, keep_last=1)
    assert "step-00000010.pt, is kept" in str(error.value)
    assert names(tmp_path) == ["step-00000010.pt"]
    assert load_checkpoint(tmp_path / "step-00000010.pt")["step"] == 10


def test_a_write_that_fails_halfway_is_told_with_its_cause(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 10, state(10), keep_last=1)
    with file_size_limit(100_000), pytest.raises(UserError, match=r"cannot be written: .*File too large"):
        save_checkpoint(tmp_path, 20, {"weight": torch.zeros(1000, 100)}, keep_last=1)
    assert names(tmp_path) == ["step-00000010.pt"]


def test_a_disk_that_was_full_for_a_moment_leaves_no_file_with_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullOnce(io.FileIO):
        num_writes = 0

        def write(self, chunk: Any) -> int:
            self.num_writes += 1
            if self.num_writes == 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(chunk)

    monkeypatch.setattr(Path, "open", lambda path, mode: FullOnce(path, mode))
    with pytest.raises(UserError, match=r"disk is full: .* There is no earlier checkpoint\."):
        save_checkpoint(tmp_path, 20, state(20))
    assert names(tmp_path) == []


def test_a_read_only_folder_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 10, state(10))

    def read_only(path: Path, *_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(UserError, match=r"Read-only file system\. The last .*10\.pt, is kept\. Make .* writable"):
        save_checkpoint(tmp_path, 20, state(20))


def test_a_file_in_the_place_of_the_folder_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_checkpoint(tmp_path / "checkpoints", 20, state(20))


def test_a_kill_at_any_moment_leaves_an_intact_checkpoint(tmp_path: Path) -> None:
    moments, deadline = random.Random(0), time.monotonic() + 120  # a busy machine needs more kills to hit a write
    num_half_written = step = 0
    save_checkpoint(tmp_path, step, {"step": 0, "weight": torch.zeros(1)})
    command = [sys.executable, "-c", SAVER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as saver:
        assert saver.stdin
        assert saver.stdout
        while (step <= 12 or not num_half_written) and time.monotonic() < deadline:
            saver.stdin.write(f"{step}\n")
            saver.stdin.flush()
            child = int(saver.stdout.readline())
            time.sleep(moments.uniform(0.02, 0.1))
            os.kill(child, signal.SIGKILL)
            assert saver.stdout.readline() == "dead\n"
            latest = latest_checkpoint(tmp_path)
            assert latest is not None
            loaded = load_checkpoint(latest)
            assert loaded["step"] == step_of(latest) >= step
            assert torch.all(loaded["weight"] == loaded["step"])
            num_half_written += bool(list(tmp_path.glob(".*.tmp")))
            step = loaded["step"]
        saver.stdin.close()
    assert step > 12, "too few checkpoints were written: the test shows nothing"
    assert num_half_written > 0, "no kill hit a write: the test shows nothing"
