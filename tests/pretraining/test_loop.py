"""A run that was stopped, killed or resumed ends as if nothing had happened."""

import io
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

import poa
import tiny
from command import poa as command
from poa.config.resolve import resolve
from poa.data.index import open_index
from poa.errors import UserError
from poa.pretraining import loop
from poa.pretraining.dry_run import dry_run
from poa.training.checkpoint import checkpoints, latest_checkpoint, load_checkpoint, save_checkpoint, saved_steps
from poa.training.metrics import read_metrics
from trained import assert_same_state

EPOCHS, STEPS = 2, 8
# All that is random takes part: drop path, masks, several sizes a step. A checkpoint every other step.
GIVEN: dict[str, Any] = {"epochs": EPOCHS, "elastic_samples": 2, "saving": {"every_epochs": 0.5}}
DROP_PATH: dict[str, Any] = {"model": {"drop_path": 0.3}}
KILLED = ("vit", "swin")
"""With workers and without."""
STOPPED = [family for family in tiny.FAMILIES if family != "swin"]
PROGRAM = Path(__file__).parents[1] / "interrupted_runs.py"


def settings(family: str, out: Path, **over: Any) -> dict[str, Any]:
    given = tiny.merged(GIVEN, {"views": {"num_locals": 0}} if family == "resnet" else DROP_PATH)  # it takes longest
    return tiny.merged(tiny.settings(family, **given), {"out": str(out), **over})


class Interrupted(NamedTuple):
    """A run that got a signal before a step."""

    folder: Path
    step: int
    status: int

    @property
    def said(self) -> str:
        return self.folder.with_suffix(".err").read_text()


Case = tuple[str, signal.Signals, int, str]
"""Family, signal, before which step, and to whom: the process, or all of its group, as from a terminal."""
Runs = dict[tuple[str, signal.Signals], Interrupted]


def run_and_signal(folder: Path, cases: Sequence[Case]) -> Runs:
    """Pre-train for each case in a process and a process group of its own, and wait for the end of all they start.

    One family loads its images in a worker, which takes seconds to start.
    """
    folders = [folder / f"{family}-{number:d}" for family, number, *_ in cases]
    given = [
        (settings(family, out, workers=int(family == "vit")), int(number), step, whom)
        for (family, number, step, whom), out in zip(cases, folders, strict=True)
    ]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    ended = zip(cases, folders, map(int, done.stdout.split()), strict=True)
    return {(family, number): Interrupted(out, step, status) for (family, number, step, _), out, status in ended}


def assert_same_run(folder: Path, expected: Path) -> None:
    first, second = read_metrics(folder / "metrics.jsonl"), read_metrics(expected / "metrics.jsonl")
    assert [row["step"] for row in first] == list(range(1, STEPS + 1))
    assert first == second
    ends = [latest_checkpoint(each / "checkpoints") for each in (folder, expected)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].name == ends[1].name == f"step-{STEPS:08d}.pt"
    assert_same_state(load_checkpoint(ends[0]), load_checkpoint(ends[1]))


Whole = Callable[[str], Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run of a family without interruption."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def run(family: str) -> Path:
        poa.pretrain(**settings(family, folder / family))
        return folder / family

    return run


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_run_leaves_what_it_promises(whole: Whole, family: str) -> None:
    names = {path.name for path in whole(family).iterdir()}
    assert {"config.yaml", "command.txt", "env.json", "checkpoints", "metrics.jsonl"} <= names
    assert saved_steps(whole(family) / "checkpoints") == [STEPS - 2, STEPS]
    rows = read_metrics(whole(family) / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "rankme" in row] == [4, 8]
    assert all(len(row["size"].split()) == 2 for row in rows)
    assert len({row["size"] for row in rows}) > 2


def test_the_same_settings_give_the_same_run_also_with_workers(whole: Whole, tmp_path: Path) -> None:
    poa.pretrain(**settings("vit", tmp_path / "run", workers=2))
    assert_same_run(tmp_path / "run", whole("vit"))


def test_images_that_a_program_holds_train_as_their_files(whole: Whole, tmp_path: Path) -> None:
    index = open_index("digits")
    labels = index.labels().tolist()
    images = [(Image.open(io.BytesIO(index.read(i))), label) for i, label in enumerate(labels)]
    poa.pretrain(**settings("vit", tmp_path / "run", data=images))
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (tmp_path / "run", whole("vit"))]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """By family and signal; one program runs them all, as it has to import everything.

    A request to stop reaches the worker too. That of a killed run ends too: as long as it lives, it holds on to the
    output that is waited for.
    """
    stopped: list[Case] = [(family, signal.SIGTERM, 4, "group") for family in STOPPED]
    killed: list[Case] = [(family, signal.SIGKILL, random.Random().randrange(3, STEPS), "process") for family in KILLED]
    return run_and_signal(tmp_path_factory.mktemp("interrupted"), [*stopped, *killed])


@pytest.mark.parametrize("family", STOPPED)
def test_a_run_that_was_asked_to_stop_goes_on_as_if_it_had_not(whole: Whole, interrupted: Runs, family: str) -> None:
    run = interrupted[family, signal.SIGTERM]
    assert run.status == 0, run.said
    stopped = poa.load(run.folder).step
    assert stopped == len(read_metrics(run.folder / "metrics.jsonl")) == 6
    assert "stopped and saved at step 6 of 8" in run.said
    assert "--resume" in run.said
    assert "This is no job of Slurm" in run.said
    poa.pretrain(out=run.folder, resume=True, workers=0)
    assert_same_run(run.folder, whole(family))


@pytest.mark.parametrize("family", KILLED)
def test_a_killed_run_goes_on_as_if_it_had_not_been(whole: Whole, interrupted: Runs, family: str) -> None:
    run = interrupted[family, signal.SIGKILL]
    assert run.status == -signal.SIGKILL, run.said
    assert len(read_metrics(run.folder / "metrics.jsonl")) == run.step
    newest = run.step // 2 * 2  # handed over just before the kill where the step is even
    assert poa.load(run.folder).step in ({newest, newest - 2} if run.step == newest else {newest})
    poa.pretrain(out=run.folder, resume=True, workers=0)
    assert_same_run(run.folder, whole(family))


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    _stop_at(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        poa.pretrain(**settings("vit", folder))
    monkeypatch.undo()
    with pytest.raises(UserError, match="no checkpoint"):
        _ = poa.load(folder).step
    poa.pretrain(out=folder, resume=True)
    assert_same_run(folder, whole("vit"))


def test_a_device_that_gets_steps_ahead_learns_the_same(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is asked to stop, which is read a step later, and goes on."""
    begun, read = list[int](), list[tuple[int, int]]()
    begin_step, folder = loop.begin_step, tmp_path / "run"

    def begin(parts: Any, step: int, *given: Any, **options: Any) -> Any:
        begun.append(step + 1)
        if len(begun) == 5:
            signal.raise_signal(signal.SIGTERM)
        return begin_step(parts, step, *given, **options)

    monkeypatch.setattr(loop, "AHEAD", ("cpu",))
    monkeypatch.setattr(loop, "begin_step", begin)
    noting = {"on_step": lambda step, _: read.append((step, begun[-1]))}
    poa.pretrain(**settings("vit", folder, saving={"every_epochs": 1}), **noting)
    assert begun == [1, 2, 3, 4, 5, 6, 7], "the request came while the fifth step was begun"
    assert read == [(1, 2), (2, 3), (3, 4), (4, 4), (5, 6), (6, 7), (7, 7)], "a step was not ahead, or not waited for"
    assert saved_steps(folder / "checkpoints") == [4, 7]
    poa.pretrain(out=folder, resume=True)
    assert_same_run(folder, whole("vit"))


def _stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    train_step = loop.train_step

    def stopping(parts: Any, now: int, batch: Any, **options: Any) -> Any:
        if now == step:
            raise KeyboardInterrupt
        return train_step(parts, now, batch, **options)

    monkeypatch.setattr(loop, "train_step", stopping)


def test_a_finished_run_has_nothing_to_go_on_with(whole: Whole) -> None:
    before = (whole("vit") / "metrics.jsonl").read_bytes()
    run = poa.pretrain(out=whole("vit"), resume=True)
    assert run.step == STEPS
    assert (whole("vit") / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("over", "named"),
    [
        ({"batch_size": 32}, r"batch_size \(16 in the run, 32 now\)"),
        ({"seed": 1}, r"seed \(0 in the run, 1 now\)"),
        ({"model": {"drop_path": 0.1}}, r"model\.drop_path \(0\.3 in the run, 0\.1 now\)"),
        ({"epochs": EPOCHS + 1}, r"epochs \(2 in the run, 3 now\)"),
    ],
)
def test_other_settings_are_no_way_to_go_on(whole: Whole, over: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=rf"was started with other settings: {named}"):
        poa.pretrain(out=whole("vit"), resume=True, **over)


def test_a_run_with_a_cosine_says_how_to_go_on(whole: Whole, tmp_path: Path) -> None:
    """And so it does."""
    folder = shutil.copytree(whole("vit"), tmp_path / "run")
    with pytest.raises(
        UserError, match=r"follows a cosine to the end cannot be made longer, as one with --opt"
    ) as error:
        poa.pretrain(out=folder, resume=True, epochs=EPOCHS + 1)
    words = str(error.value).partition("in a new run: poa ")[2].partition(". Resume it with its own settings")[0]
    assert command(*shlex.split(words)) == 0
    longer = poa.load(tmp_path / "run-longer")
    assert (longer.step, longer.config.init) == (STEPS // EPOCHS, str(folder))
    assert_same_state(longer.initial("64x3").state_dict(), poa.load(folder).network("64x3").state_dict())


@pytest.mark.parametrize(
    ("over", "named"),
    [
        ({"epochs": 3}, r"epochs \(2 in the checkpoint, 3 now\)"),
        ({"seed": 1}, r"seed \(0 in the checkpoint, 1 now\)"),
        ({"method": "single"}, r"method \('poa' in the checkpoint, 'single' now\)"),
        ({"batch_size": 8}, r"batch_size \(16 in the checkpoint, 8 now\)"),
        ({"lr": 0.01}, r"lr \(None in the checkpoint, 0.01 now\)"),
        ({"model": {"width_max": 96}}, r"model.width_max \(64 in the checkpoint, 96 now\)"),
    ],
)
def test_an_edited_config_is_no_way_to_go_on(whole: Whole, tmp_path: Path, over: dict[str, Any], named: str) -> None:
    """Nor is the checkpoint of a run with other settings: what the checkpoint was trained with counts."""
    shutil.copytree(whole("vit"), tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(yaml.safe_dump(tiny.merged(yaml.safe_load(config.read_text()), over)))
    refused = rf"was trained with other settings than those in config\.yaml: {named}\. Rest"
    with pytest.raises(UserError, match=refused):
        poa.pretrain(out=tmp_path / "run", resume=True)
    with pytest.raises(UserError, match=refused):
        dry_run(resolve({"out": str(tmp_path / "run")}, resume=True), resume=True, console=Console(quiet=True))


@pytest.mark.parametrize(
    ("over", "named"),
    [({"method": "seed"}, "method"), ({"views": {"mean": [0.0] * 3}}, "views.mean")],
)
def test_an_edited_config_is_no_way_to_score(whole: Whole, tmp_path: Path, over: dict[str, Any], named: str) -> None:
    """Where it would take another branch, or show other pixels; ``epochs`` do not matter here."""
    shutil.copytree(whole("vit"), tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(yaml.safe_dump(tiny.merged(yaml.safe_load(config.read_text()), over | {"epochs": 5})))
    with pytest.raises(UserError, match=rf"other settings than those in config\.yaml: {named} \("):
        poa.load(tmp_path / "run").network("32x2")


def test_a_checkpoint_that_does_not_say_its_settings_is_resumed(whole: Whole, tmp_path: Path) -> None:
    """As older versions have written it."""
    folder = tmp_path / "run"
    shutil.copytree(whole("vit"), folder)
    *_, half, end = checkpoints(folder / "checkpoints")
    state = load_checkpoint(half)
    end.unlink()
    half.unlink()
    for name in ("settings", "processes"):
        del state[name]
    save_checkpoint(folder / "checkpoints", STEPS - 2, state)
    poa.pretrain(out=folder, resume=True)
    assert_same_run(folder, whole("vit"))


def test_a_folder_in_use_is_left_alone(whole: Whole) -> None:
    before = sorted(path.name for path in whole("vit").rglob("*"))
    with pytest.raises(UserError, match="already holds a run"):
        poa.pretrain(**settings("vit", whole("vit")))
    assert sorted(path.name for path in whole("vit").rglob("*")) == before


def test_there_must_be_a_run_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run to resume"):
        poa.pretrain(**settings("vit", tmp_path / "none"), resume=True)
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
    return settings("vit", out, data=str(images), limit=None, epochs=2, **over)


def test_bad_images_are_skipped_and_listed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", num_good=45, num_bad=3)
    run = poa.pretrain(**image_settings(images, tmp_path / "run", max_bad_share=0.1))
    listed = (tmp_path / "run/bad_images.txt").read_text().splitlines()
    names = [f"{number}-bad.png\tdamaged" for number in ("005", "015", "025")]
    assert sorted(line.partition(":")[0] for line in listed) == names
    assert run.step == 6
    assert all(row["loss"] is not None for row in read_metrics(tmp_path / "run/metrics.jsonl"))
    shown = capsys.readouterr().err
    assert "Images that cannot be read are skipped: 3 so far" in shown
    assert "Note: 3 of 48 images tried in" in shown


def test_too_many_bad_images_stop_the_run(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", num_good=93, num_bad=3)  # of which one in three is tried before
    with pytest.raises(UserError, match=r"[23] of 96 images cannot be read, more than the allowed share of 2\.0%"):
        poa.pretrain(**image_settings(images, tmp_path / "run", max_bad_share=0.02))
    assert 2 <= len((tmp_path / "run/bad_images.txt").read_text().splitlines()) <= 3


def test_images_that_are_mostly_bad_are_found_before_the_run(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", num_good=12, num_bad=20)
    with pytest.raises(UserError, match=r"of 32 images tried in .* cannot be read"):
        poa.pretrain(**image_settings(images, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_other_images_are_no_way_to_go_on_but_moved_ones_are(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", num_good=32)
    poa.pretrain(**image_settings(images, tmp_path / "run"))
    moved = images.rename(tmp_path / "moved")
    run = poa.pretrain(out=tmp_path / "run", data=moved, resume=True)
    assert run.step == 4
    file = min(moved.iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[:-20] + bytes(20))
    with pytest.raises(UserError, match=r"\(32 images\) are not those .* was trained on: some were .* written again"):
        poa.pretrain(out=tmp_path / "run", data=moved, resume=True)
    of_earlier_version = load_checkpoint(run.checkpoint) | {"images": open_index(str(moved)).listed}
    save_checkpoint(run.paths.checkpoints, 4, of_earlier_version)
    assert poa.pretrain(out=tmp_path / "run", data=moved, resume=True).step == 4
    Image.new("RGB", (12, 12)).save(moved / "one-more.png")
    added = r"\(33 images\) are not those .* was trained on"
    with pytest.raises(UserError, match=added):
        poa.pretrain(out=tmp_path / "run", data=moved, resume=True)
    config = resolve({"out": str(tmp_path / "run"), "data": str(moved)}, resume=True)
    with pytest.raises(UserError, match=added):
        dry_run(config, resume=True, console=Console(quiet=True))
