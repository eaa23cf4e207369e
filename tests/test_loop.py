"""A run that was stopped, killed or resumed ends as if nothing had happened."""

import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import poa
import tiny
from poa.errors import UserError
from poa.training.checkpoint import checkpoints, latest_checkpoint, load_checkpoint, step_of
from poa.training.metrics import read_metrics

EPOCHS, STEPS = 3, 12
# All that is random takes part: drop path, masks, several sizes a step. A checkpoint every other step.
GIVEN: dict[str, Any] = {
    "epochs": EPOCHS,
    "elastic_samples": 2,
    "model": {"drop_path": 0.3},
    "saving": {"every_epochs": 0.5},
}

# Has another process send it a signal before a step, or send it to all of its process group, and goes on.
PROGRAM = """
import json, os, subprocess, sys, torch
torch.set_num_threads(1)
import poa, poa.loop

settings, number, at, whom = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
train_step = poa.loop.train_step

def interrupted(parts, step, batch, **options):
    if step == at:
        send = f"os.killpg({os.getpgid(0)}, {number})" if whom == "group" else f"os.kill({os.getpid()}, {number})"
        subprocess.run([sys.executable, "-S", "-c", f"import os; {send}"])
    return train_step(parts, step, batch, **options)

if __name__ == "__main__":
    poa.loop.train_step = interrupted
    poa.pretrain(**settings)
"""


def settings(out: Path, **over: Any) -> dict[str, Any]:
    return tiny.merged(tiny.settings(**GIVEN), {"out": str(out), **over})


def run_and_signal(
    folder: Path, number: signal.Signals, *, step: int, whom: str = "process", **over: Any
) -> subprocess.CompletedProcess[str]:
    """Pre-train in a process and a process group of its own."""
    program = folder.with_suffix(".py")
    program.write_text(PROGRAM)
    words = [json.dumps(settings(folder, **over)), str(int(number)), str(step), whom]
    return subprocess.run(
        [sys.executable, str(program), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def assert_same_state(found: Any, expected: Any) -> None:
    """Bit for bit."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same_state(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same_state(ours, theirs)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def assert_same_run(folder: Path, expected: Path) -> None:
    first, second = read_metrics(folder / "metrics.jsonl"), read_metrics(expected / "metrics.jsonl")
    assert [row["step"] for row in first] == list(range(1, STEPS + 1))
    assert first == second
    ends = [latest_checkpoint(each / "checkpoints") for each in (folder, expected)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].name == ends[1].name == f"step-{STEPS:08d}.pt"
    assert_same_state(load_checkpoint(ends[0]), load_checkpoint(ends[1]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    poa.pretrain(**settings(folder))
    return folder


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {"config.yaml", "command.txt", "env.json", "checkpoints", "metrics.jsonl"} <= names
    assert [step_of(path) for path in checkpoints(whole / "checkpoints")] == [STEPS - 2, STEPS]
    rows = read_metrics(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "rankme" in row] == [4, 8, 12]
    assert all(len(row["size"].split()) == 2 for row in rows)


def test_the_same_settings_give_the_same_run_also_with_workers(whole: Path, tmp_path: Path) -> None:
    poa.pretrain(**settings(tmp_path / "run", workers=2))
    assert_same_run(tmp_path / "run", whole)


def test_a_run_that_was_asked_to_stop_goes_on_as_if_it_had_not(whole: Path, tmp_path: Path) -> None:
    """The signal reaches the workers too, as that of a terminal or a scheduler does."""
    folder = tmp_path / "run"
    done = run_and_signal(folder, signal.SIGTERM, step=4, whom="group", workers=2)
    assert done.returncode == 0, done.stderr
    stopped = poa.load(folder).step
    assert stopped == len(read_metrics(folder / "metrics.jsonl")) == 6
    assert "stopped and saved at step 6 of 12" in done.stderr
    assert "--resume" in done.stderr
    poa.pretrain(out=folder, resume=True, workers=0)
    assert_same_run(folder, whole)


def test_a_killed_run_goes_on_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    """Its workers end too: as long as one lives, it holds on to the output that is waited for here."""
    folder, step = tmp_path / "run", random.Random().randrange(2, STEPS)
    done = run_and_signal(folder, signal.SIGKILL, step=step, workers=2)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(read_metrics(folder / "metrics.jsonl")) == step
    assert poa.load(folder).step == step // 2 * 2
    poa.pretrain(out=folder, resume=True, workers=0)
    assert_same_run(folder, whole)


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    _stop_at(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        poa.pretrain(**settings(folder))
    monkeypatch.undo()
    with pytest.raises(UserError, match="no checkpoint"):
        _ = poa.load(folder).step
    poa.pretrain(out=folder, resume=True)
    assert_same_run(folder, whole)


def _stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from poa import loop

    train_step = loop.train_step

    def stopping(parts: Any, now: int, batch: Any, **options: Any) -> Any:
        if now == step:
            raise KeyboardInterrupt
        return train_step(parts, now, batch, **options)

    monkeypatch.setattr(loop, "train_step", stopping)


def test_a_finished_run_has_nothing_to_go_on_with(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    run = poa.pretrain(out=whole, resume=True)
    assert run.step == STEPS
    assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("over", "named"),
    [
        ({"batch_size": 32}, r"batch_size \(16 in the run, 32 now\)"),
        ({"seed": 1}, r"seed \(0 in the run, 1 now\)"),
        ({"model": {"drop_path": 0.1}}, r"model\.drop_path \(0\.3 in the run, 0\.1 now\)"),
        ({"epochs": EPOCHS + 1}, r"epochs \(3 in the run, 4 now\)"),
    ],
)
def test_other_settings_are_no_way_to_go_on(whole: Path, over: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=rf"was started with other settings: {named}"):
        poa.pretrain(out=whole, resume=True, **over)


def test_a_folder_in_use_is_left_alone(whole: Path) -> None:
    before = sorted(path.name for path in whole.rglob("*"))
    with pytest.raises(UserError, match="already holds a run"):
        poa.pretrain(**settings(whole))
    assert sorted(path.name for path in whole.rglob("*")) == before


def test_there_must_be_a_run_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run to go on with"):
        poa.pretrain(**settings(tmp_path / "none"), resume=True)
    assert not (tmp_path / "none").exists()


# ---- images ----------------------------------------------------------------------------------------------------------


def write_images(folder: Path, *, num_good: int, num_bad: int = 0) -> Path:
    """PNG files of noise, and among them files that are none."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (num_good, 12, 12, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{number:03d}.png")
    half = io.BytesIO()
    Image.fromarray(pixels[0]).save(half, "PNG")
    for number in range(num_bad):
        (folder / f"{10 * number + 5:03d}-bad.png").write_bytes(half.getvalue()[: len(half.getvalue()) // 2])
    return folder


def image_settings(images: Path, out: Path, **over: Any) -> dict[str, Any]:
    return settings(out, data=str(images), limit=None, epochs=2, **over)


def test_bad_images_are_skipped_and_listed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", num_good=45, num_bad=3)
    run = poa.pretrain(**image_settings(images, tmp_path / "run", max_bad_share=0.1))
    listed = (tmp_path / "run/bad_images.txt").read_text().splitlines()
    assert sorted(listed) == ["005-bad.png", "015-bad.png", "025-bad.png"]
    assert run.step == 6
    assert all(row["loss"] is not None for row in read_metrics(tmp_path / "run/metrics.jsonl"))
    assert "3 images cannot be read and are skipped" in capsys.readouterr().err


def test_too_many_bad_images_stop_the_run(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", num_good=45, num_bad=3)
    with pytest.raises(UserError, match=r"[23] of 48 images cannot be read, more than the share of 3\.0%"):
        poa.pretrain(**image_settings(images, tmp_path / "run", max_bad_share=0.03))
    listed = (tmp_path / "run/bad_images.txt").read_text().splitlines()
    assert 2 <= len(listed) <= 3


def test_images_that_are_mostly_bad_are_found_before_the_run(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", num_good=12, num_bad=20)
    with pytest.raises(UserError, match=r"of 32 images looked at in .* cannot be read"):
        poa.pretrain(**image_settings(images, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_other_images_are_no_way_to_go_on_but_moved_ones_are(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", num_good=32)
    poa.pretrain(**image_settings(images, tmp_path / "run"))
    moved = images.rename(tmp_path / "moved")
    assert poa.pretrain(out=tmp_path / "run", data=moved, resume=True).step == 4
    Image.new("RGB", (12, 12)).save(moved / "one-more.png")
    with pytest.raises(UserError, match=r"are not those .* was trained on \(33 images now\)"):
        poa.pretrain(out=tmp_path / "run", data=moved, resume=True)
