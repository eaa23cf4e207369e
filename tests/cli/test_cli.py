import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import docstring_parser
import pytest
import timm
import torch
import yaml

import poa as library
from command import SIZES, STEPS, TINY, dashed, poa, tiny_file
from poa import files
from poa.config import resolve
from poa.errors import UserError
from poa.models.run import Run
from poa.pretraining import launch
from poa.training.progress import duration
from trained import assert_same, features_of, from_folder, made, saved

KNN = ("--train", "digits/train", "--test", "digits/test", "--limit", "100", "--k", "5", "20")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("command")
    assert poa("pretrain", "--config", tiny_file(folder), "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def printed_config(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert poa("pretrain", *words, "--print-config") == 0
    content: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return content


def test_pretrain_leaves_a_run(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "command.txt", "env.json", "metrics.jsonl", "checkpoints", ".lock"
    }  # fmt: skip
    assert steps(run) == list(range(1, STEPS + 1))
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000004.pt", "step-00000008.pt"]


def test_from_run_to_models(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert poa("sizes", run, "--out", run.parent / "sizes.csv") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if "x" in line.split(" ")[0]] == list(SIZES)
    assert "* intact network, from which the others are cut" in out, "the caption is wrapped"
    assert "weight: how often training draws a size" in out
    assert "top1" not in out
    assert (run.parent / "sizes.csv").read_text().startswith("size,width,depth,parameters,flops,weight,intact\n32x2,")

    assert poa("evaluate", "knn", run, *KNN, "--sizes", "all") == 0
    first = capsys.readouterr().out
    assert all(word in first for word in (*SIZES, "top1@5", "top1@20"))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "network", lambda *_: pytest.fail("sizes with scores were scored again"))
        assert poa("evaluate", "knn", run, *KNN) == 0
    assert capsys.readouterr().out == first

    assert poa("evaluate", "knn", run, *KNN, "--branch", "untrained", "--sizes", "32x2", "64x3") == 0
    assert "32x3" not in capsys.readouterr().out
    assert poa("sizes", run) == 0
    heading, columns, *_ = capsys.readouterr().out.splitlines()
    assert heading.split() == ["untrained"]
    assert columns.split()[-2:] == ["top1@20", "top1@20"]

    assert poa("measure", run, "--sizes", "32x3", "64x3", "--seconds", "0.001", "--batch", "2") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if "x" in line.split(" ")[0]] == ["32x3", "64x3"]
    assert f"1 thread, batch 2, 16 pixels. Kept in {run / 'eval' / 'measured'}." in out
    assert poa("choose", run, "--max-ms", "10000", "--seconds", "0.001", "--checkpoint", str(STEPS)) == 0
    answer, heading, *_, following = capsys.readouterr().out.splitlines()
    size = answer.split(":")[0]
    assert size in SIZES
    assert " %, " in answer
    assert heading.split()[:4] == ["size", "top1@20", "ms", "MB"]
    assert following == f"Next: poa export {run} --size {size} --format onnx --checkpoint {STEPS}"
    found = library.choose(library.load(run), max_ms=10_000, seconds=0.001)
    assert str(found) == answer
    assert (
        library.measure(run, sizes=[size], threads=1, seconds=0.001)[size].parameters
        == found.chosen.measurement.parameters
    )
    with pytest.raises(UserError, match="Add --test"):
        library.choose(run, train="digits/train")
    assert poa("choose", run, "--max-ms", "0.0001") == 2
    assert "keeps to --max-ms 0.0001: the fastest, " in capsys.readouterr().err

    assert poa("extract", run, "--size", "32x2", "64x3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(run / "models" / size) for size in ("32x2", "64x3")]
    shutil.rmtree(run / "models/64x3")
    assert poa("extract", run, "--size", "32x2", "64x3") == 0, "a command that was stopped cannot be finished"
    assert capsys.readouterr().out.splitlines() == lines
    assert poa("extract", run, "--size", "32x3", "--out", run.parent / "model") == 0
    model = timm.create_model(f"local-dir:{run.parent / 'model'}", pretrained=True).eval()
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    loaded = library.load(run)
    expected = loaded.features(pixels, size="32x3")
    views = loaded.config.views
    normalised = (pixels / 255 - torch.tensor(views.mean).view(3, 1, 1)) / torch.tensor(views.std).view(3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(model(normalised), expected)


def test_scores_of_an_earlier_checkpoint_say_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "eval" / "old" / "knn.json"
    file.parent.mkdir(parents=True)
    file.write_text(
        json.dumps(
            {"protocol": "knn", "settings": {"weights": "teacher at step 4"}, "scores": {"32x2": {"top1@20": 50.0}}}
        )
    )
    table = run.parent / "old.csv"
    assert poa("sizes", run, "--out", table) == 0
    assert "old step 4 top1@20" in table.read_text().splitlines()[0].split(",")
    file.unlink()
    file.parent.rmdir()


def test_resume_needs_the_folder_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert poa("pretrain", "--config", tiny_file(tmp_path), "--out", out) == 0
    whole = (out / "metrics.jsonl").read_text()
    (out / "checkpoints" / "step-00000008.pt").unlink()
    harmless = ("--workers", "1", "--saving.keep-last", "1", "--monitor.every-epochs", "9", "--devices", "1")
    assert poa("pretrain", "--out", out, "--resume", *harmless) == 0
    assert steps(out) == list(range(1, STEPS + 1))
    again = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert again == [json.loads(line)["loss"] for line in whole.splitlines()], "the run did not go on where it was"
    assert (out / "checkpoints/step-00000008.pt").exists()
    capsys.readouterr()
    assert poa("pretrain", "--out", out, "--resume") == 0, "a finished run has nothing to do"
    told = capsys.readouterr().err
    assert "run was finished before: nothing is left to train" in told
    assert "images/s" not in told


def test_resume_before_the_first_checkpoint_starts_over(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert poa("pretrain", "--config", tiny_file(tmp_path), "--out", out, "--epochs", "1") == 0
    (out / "checkpoints" / "step-00000004.pt").unlink()
    assert poa("pretrain", "--out", out, "--resume") == 0
    assert steps(out) == [1, 2, 3, 4]


def test_the_library_does_as_the_command(tmp_path: Path) -> None:
    made = library.pretrain(config=tiny_file(tmp_path), out=tmp_path / "run", epochs=1, monitor={"num_images": 2})
    assert made.sizes() == SIZES
    assert made.config.epochs == 1
    (tmp_path / "run/checkpoints/step-00000004.pt").unlink()
    assert library.pretrain(out=tmp_path / "run", resume=True).step == 4, "the stored settings were not used"


def test_printed_config_reads_back(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--config", tiny_file(at), "--lr", "3e-4", "--heads.prototypes", "8", "16", "--model.layer-scale", "none")
    first = printed_config(capsys, *given)
    assert (first["lr"], first["heads"]["prototypes"], first["model"]["layer_scale"]) == (3e-4, [8, 16], None)
    (at / "again.yaml").write_text(yaml.safe_dump(first))
    assert printed_config(capsys, "--config", "again.yaml") == first


def test_flags_win_over_config_over_recipe(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = printed_config(capsys, "--recipe", "demo")
    default = resolve.Config().model_dump(mode="json")
    assert recipe["epochs"] != default["epochs"]
    (at / "mine.yaml").write_text("epochs: 7\nmodel: {depth-max: 9}\noptimizer: {clip: 1.0}\n")
    over = printed_config(capsys, "--recipe", "demo", "--config", "mine.yaml", "--model.depth-max", "8")
    assert (over["epochs"], over["optimizer"]["clip"]) == (7, 1.0)
    assert over["model"] == {**recipe["model"], "depth_max": [8]}
    (at / "named.yaml").write_text("recipe: demo\nepochs: 70\n")
    assert printed_config(capsys, "--config", "named.yaml") == {**recipe, "epochs": 70}


def test_keys_with_dashes(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed_config(capsys, "--config", tiny_file(at))
    assert (found["batch_size"], found["model"]["head_dim"]) == (TINY["batch-size"], 32)


@pytest.mark.parametrize("further", [(), ("--devices", "2", "--out", "new", "--saving.keep-every-epochs", "1")])
def test_dry_run_writes_nothing(at: Path, capsys: pytest.CaptureFixture[str], further: tuple[str, ...]) -> None:
    config = tiny_file(at)
    assert poa("pretrain", "--config", config, "--dry-run", *further) == 0
    assert [path.name for path in at.iterdir()] == ["tiny.yaml"]
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["images"], lines["sizes"]) == ("64", "4")
    assert lines["time"].endswith(f"for {STEPS} steps")
    disk, checkpoint = (float(number) for number in re.findall(r"[\d.]+(?= MB)", lines["disk"]))
    assert disk / checkpoint == pytest.approx(6 if further else 4, rel=0.02)
    assert ("Only one of 2 processes was measured" in lines["note"]) == bool(further)


def test_a_forecast_holds(at: Path, run: Path) -> None:
    from rich.console import Console

    from poa.pretraining.dry_run import dry_run

    forecast = dry_run(resolve.resolve(file=tiny_file(at)), console=Console(quiet=True))
    written = (run / "checkpoints" / "step-00000008.pt").stat().st_size
    assert forecast.measured.checkpoint_bytes == pytest.approx(written, rel=0.1)
    seconds = forecast.measured.seconds_per_step
    assert forecast.images_per_second * seconds == pytest.approx(TINY["batch-size"])
    assert forecast.lines()[5] == f"time         {duration(STEPS * seconds)} for {STEPS} steps"
    assert forecast.measured.memory_bytes > 1e8
    resumed = dry_run(resolve.resolve({"out": str(run)}, resume=True), resume=True, console=Console(quiet=True))
    assert resumed.lines()[5] == f"time         0:00 for 0 steps after the {STEPS} that are done"


def listening(parent: int) -> set[str]:
    """Addresses at which processes started by this one can be reached, as /proc writes them."""
    inodes = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended
            if (folder / "stat").read_text().rpartition(")")[2].split()[1] == str(parent):
                inodes |= {str(file.readlink()) for file in (folder / "fd").iterdir()}
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path("/proc/net", kind).read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def test_two_devices_start_two_processes_and_stop_on_request(
    at: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They begin with the network and the weights in a folder, share its weights, and end in one process."""
    model = made()
    config = from_folder("vit", saved(model, at / "model"), data="digits/train")
    (at / "from-folder.yaml").write_text(yaml.safe_dump(dashed(config)))
    found_meanwhile: list[object] = []

    def stop_after_a_step() -> None:
        while not (at / "run/metrics.jsonl").exists():
            time.sleep(0.02)
        found_meanwhile.append(listening(os.getpid()))
        try:
            library.pretrain(out="run", resume=True, devices=1)
        except UserError as error:
            found_meanwhile.append(str(error))
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(sys, "argv", ["poa", "pretrain", "as typed"])
    stopper = threading.Thread(target=stop_after_a_step, daemon=True)
    stopper.start()
    shared = ("--devices", "2", "--parallel", "fsdp")
    assert poa("pretrain", "--config", "from-folder.yaml", "--out", "run", *shared, "--steps", "40") == 75
    stopper.join()
    reachable, told = found_meanwhile
    assert reachable in ({"0100007F"}, {"00000000000000000000000001000000"}), "not loopback, or not loopback only"
    assert str(told).startswith("run is in use by process "), "a second writer was let in"
    *_, last = found = steps(at / "run")
    assert found == list(range(1, last + 1))
    assert last < 40
    assert (at / f"run/checkpoints/step-{last:08}.pt").exists()
    assert (at / "run/command.txt").read_text() == "poa pretrain 'as typed'\n"
    errors = capfd.readouterr().err
    assert errors.count(f"stopped and saved at step {last} of 40") == 1, errors
    assert errors.count("tensors loaded") == 1
    assert errors.count("Training in 2 processes on the CPU: 8 of the 16 images of a step on each.") == 1
    assert "--epochs 10: so that the run has about 40 steps" in (at / "run/plan.txt").read_text()
    assert "Warning" not in errors, errors
    begun = library.load("run")
    assert begun.config.model.name == "vit_base_patch16_224"
    assert_same(begun.initial(begun.space.intact).model.state_dict(), features_of(model))
    assert poa("pretrain", "--out", "run", "--resume", "--devices", "1", "--parallel", "auto") == 0
    assert steps(at / "run") == list(range(1, 41))


def test_processes_that_die(tmp_path: Path) -> None:
    def end(*codes: str) -> launch.Failure | None:
        processes = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
        try:
            return launch.first_failed(processes, grace_seconds=0.5)
        finally:
            for process in processes:
                process.kill()
                process.wait()

    assert end("", "") is None
    wait = "import time; time.sleep(60)"
    assert end(wait, "raise SystemExit(3)") == (1, 3)
    assert end("import os; os.kill(os.getpid(), 9)", wait) == (0, -signal.SIGKILL)
    at_once = [Mock(poll=lambda status=status: status) for status in (1, -signal.SIGKILL, 1)]
    assert launch.first_failed(at_once, grace_seconds=0.5) == (1, -signal.SIGKILL), "not the one that was killed"


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        (UserError("Do this."), 2, UserError("Do this.")),
        (PermissionError(13, "Permission denied", "/x"), 2, UserError("/x: Permission denied. Fix this and try ")),
        (ZeroDivisionError("a defect"), 1, RuntimeError("ZeroDivisionError: a defect")),
        (KeyboardInterrupt(), 130, KeyboardInterrupt("")),
    ],
)
def test_what_a_process_leaves_is_told_by_its_launcher(
    at: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, status: int, told: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(launch.this_process, "train", fail)
    monkeypatch.setattr(sys, "argv", ["launch", str(at), "start", "poa", "pretrain"])
    monkeypatch.setenv("RANK", "1")
    (at / "config.yaml").write_text(resolve.to_yaml(resolve.resolve()))
    with pytest.raises(SystemExit) as ended:
        launch.main()
    assert ended.value.code == status
    assert sys.argv == ["poa", "pretrain"]
    found = launch._error(launch.Failure(0, status), at)
    assert type(found) is type(told)
    assert str(told) in str(found)
    killed = launch._error(launch.Failure(0, -signal.SIGKILL), at)
    assert "SIGKILL" in str(killed) or status == 2


def test_essential_settings_come_first_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert poa("pretrain", "--help") == 0
    panels = capsys.readouterr().out.split("╭─ ")
    flags = [line.split()[1] for line in panels[1].splitlines() if line.startswith("│ --")]
    essential = "data out method epochs batch-size lr devices precision seed init"
    essential += " recipe config hours steps resume resume-if-begun dry-run print-config"
    assert flags == [f"--{name}" for name in essential.split()]
    read: Any = docstring_parser.parse_from_object
    assert read.cache_info().hits  # reading pydantic's base class for each section would double the time


def test_interrupted(at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train", interrupt)
    assert poa("pretrain", "--config", tiny_file(at), "--out", "run") == 130
    assert capsys.readouterr().err == "poa: Interrupted.\n"
