"""What goes wrong on the machine or while a run is under way, and what is told and kept."""

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from command import STEPS, poa, tiny_file
from poa.errors import UserError
from poa.pretraining import loop
from poa.training import checkpoint
from poa.training.metrics import MetricsLog
from refusals import TRAIN, picture, refused, truncate


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_file(tmp_path)
    return tmp_path


def test_no_gpu(at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = refused(capsys, *TRAIN.split(), "--device", "cuda")
    assert "finds no GPU" in told
    assert "Use --device cpu" in told


@pytest.mark.parametrize("flag", ["--monitor.tensorboard", "--log tensorboard"])
def test_no_tensorboard(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    told = refused(capsys, *TRAIN.split(), *flag.split())
    assert "pip install 'poa-ssl[track]'" in told
    assert not (at / "new").exists()


def test_fewer_gpus_than_devices(at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    told = refused(capsys, *TRAIN.split(), "--device", "auto", "--devices", "3")
    assert told == "--devices 3 is more than the number of GPUs here, 2. Lower it to 2."
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    told = refused(capsys, *TRAIN.split(), "--device", "auto")
    assert told == "There are more processes than GPUs (2). Start at most 2 on this machine."


def test_bad_images_among_good_ones(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(16):
        picture(at / f"images/{number:02}.jpg", number=number)
    odd = Path(os.fsdecode(b"images/caf\xe9\n.jpg"))
    (at / "images/05.jpg").rename(odd)
    truncate(odd)
    (at / "images/11.jpg").write_text("not a picture")
    words = (*TRAIN.split(), "--data", "images", "--limit", "none")
    for dry in ((), ("--dry-run",)):
        told = refused(capsys, *words, *dry)
        tried = f"2 of 16 images tried in {at.resolve() / 'images'} cannot be read, such as 11.jpg (not supported: "
        assert told.startswith(tried)
        assert "more than the allowed share of 1.0%" in told
        assert "raise --max-bad-share" in told
        assert not (at / "new").exists()
    assert poa(*words, "--max-bad-share", "0.2") == 0
    lines = (at / "new/bad_images.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["11.jpg\tnot supported", "caf\\xe9\\n.jpg\tdamaged"]
    shutil.rmtree(at / "new")
    (at / "images/11.jpg").unlink()
    picture(at / "images/11.jpg", number=11)
    assert "more than the allowed share of 0.0%" in refused(capsys, *words, "--max-bad-share", "0")
    assert poa(*words) == 0, "a single bad image is accepted"
    assert "Images that cannot be read are skipped: 1 so far, listed in new/bad_images.txt" in capsys.readouterr().err


def test_images_of_one_pixel(at: Path) -> None:
    for number in range(16):
        picture(at / f"images/{number}.png", number=number, side=1)
    assert poa(*TRAIN.split(), "--data", "images", "--limit", "none") == 0


def test_settings_that_are_rarely_right(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert poa(*TRAIN.split(), "--heads.prototypes", "256", "--losses.koleo", "0", "--epochs", "1") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Note: ")]
    assert len(notes) == 4
    assert "With --epochs 1 the learning rate rises to the end (--optimizer.warmup-epochs 1)" in notes.pop(0)
    assert "256 prototypes are too many for 64 images" in notes[0]
    assert "--heads.prototypes to at most 64" in notes[0]
    assert "sees only 16 images at a time" in notes[1]
    assert "collapse" in notes[2]


def test_disk_full_at_a_checkpoint(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = checkpoint._Sink.write

    def write_until_full(sink: checkpoint._Sink, chunk: bytes | memoryview) -> int:
        assert sink.file is not None
        if "00000008" in sink.file.name and sink.error is None:
            sink.error = OSError(errno.ENOSPC, "No space left on device")
        return write(sink, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint._Sink, "write", write_until_full)
        told = refused(capsys, *TRAIN.split())
    assert told.startswith("The disk is full: checkpoint new/checkpoints/step-00000008.pt needs 2.")
    assert "MB are free. The last checkpoint, new/checkpoints/step-00000004.pt, is kept. Free some space" in told
    assert [path.name for path in (at / "new/checkpoints").iterdir()] == ["step-00000004.pt"]
    assert poa("pretrain", "--out", "new", "--resume") == 0
    assert (at / f"new/checkpoints/step-{STEPS:08}.pt").exists()


def test_disk_full_at_the_metrics() -> None:
    with pytest.raises(UserError, match=r"^/dev/full cannot be written: No space left.* resume with --resume\.$"):
        MetricsLog(Path("/dev/full")).write(1, {"loss": 1.0})


@pytest.mark.parametrize(
    ("ahead", "every", "updated"),
    [((), 1, "The weights were not updated."), (("cpu",), 2, "The weights were updated with that, and are not saved.")],
)
def test_loss_that_is_not_finite(
    at: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ahead: tuple[str, ...],
    every: int,
    updated: str,
) -> None:
    monkeypatch.setattr(loop, "AHEAD", ahead)
    told = refused(capsys, *TRAIN.split(), "--lr", "1e9", "--epochs", "50", "--saving.every-epochs", str(every / 4))
    step = int(told.removeprefix("Not finite at step ").split(":")[0])
    assert "loss = nan" in told
    newest = f"new/checkpoints/step-{(step - 1) // every * every:08}.pt"
    kept = f"{updated} The last checkpoint, {newest}, is kept. Start a new run in another --out with a lower --lr."
    assert kept in told
    assert len((at / "new/metrics.jsonl").read_text().splitlines()) == step - 1
    state = checkpoint.load_checkpoint(at / newest)["method"]
    assert all(value.isfinite().all() for value in state.values()), "what was saved last is not good"


def test_weights_that_are_not_finite_before_any_checkpoint(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--lr 1e39 --optimizer.warmup-epochs 0 --saving.every-epochs 0.25 --monitor.every-epochs 0.25"
    capsys.readouterr()
    assert poa(*TRAIN.split(), *words.split()) == 2
    *said, told = capsys.readouterr().err.splitlines()
    assert told.startswith("poa: Not finite after the last step: method.student.backbone.")
    assert told.endswith(
        "; no checkpoint of it is written. No checkpoint was saved before: "
        "delete new and start again with a lower --lr."
    )
    assert any("Features of size 64x3 are not finite and have no scores at step 1." in line for line in said)
    assert not (at / "new/checkpoints").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), "Lower --batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory."), "--accumulate"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x.jpg"), "/data/x.jpg: Permission denied. Fix"),
        (OSError("the pipe burst"), "the pipe burst. Fix this and try again."),
    ],
)
def test_what_goes_wrong_underway(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loop, "train_step", fail)
    assert told in refused(capsys, *TRAIN.split())


def test_defects_are_not_hidden(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(loop, "train_step", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        poa(*TRAIN.split())
