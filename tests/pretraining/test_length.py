"""A run with a constant learning rate can be made longer, and a run stops early where its score stays."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import poa
import tiny
from poa.config.resolve import of_run, resolve
from poa.errors import UserError
from poa.pretraining import loop, process
from poa.pretraining.dry_run import dry_run
from poa.pretraining.monitor import Monitor
from poa.pretraining.step import StepResult
from poa.training.checkpoint import load_checkpoint, saved_steps
from poa.training.metrics import read_metrics
from trained import assert_same_state


def settings(out: Path, **over: Any) -> dict[str, Any]:
    """Two steps an epoch, a cool-down of one; all that is random takes part."""
    given = {
        "out": str(out),
        "limit": 32,
        "elastic_samples": 2,
        "model": {"drop_path": 0.3},
        "optimizer": {"schedule": "constant", "cooldown_epochs": 0.5},
        "monitor": {"num_images": 16},
        "saving": {"every_epochs": 0.5, "keep_last": 1},
    }
    return tiny.settings("vit", **tiny.merged(given, over))


def trained(resume: bool = False, **given: Any) -> str:
    """Train in this process; returns what is said."""
    said = io.StringIO()
    process.train(resolve(given, resume=resume), resume=resume, console=Console(file=said, width=1000))
    return said.getvalue()


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of 2 epochs that is made one of 3, and what is said then."""
    folder = tmp_path_factory.mktemp("runs") / "longer"
    trained(**settings(folder, epochs=2))
    assert saved_steps(folder / "checkpoints") == [3, 4]
    return folder, trained(out=str(folder), epochs=3, resume=True)


def test_a_run_that_is_made_longer_equals_one_that_was_planned_so(longer: tuple[Path, str], tmp_path: Path) -> None:
    trained(**settings(tmp_path / "run", epochs=3))
    runs = longer[0], tmp_path / "run"
    assert len({(run / "metrics.jsonl").read_bytes() for run in runs}) == 1
    assert [saved_steps(run / "checkpoints") for run in runs] == [[5, 6]] * 2
    for step in (5, 6):
        assert_same_state(*(load_checkpoint(poa.load(run, checkpoint=step).checkpoint) for run in runs))
    assert of_run(longer[0] / "config.yaml").epochs == 3


def test_what_was_trained_for_the_shorter_length_is_kept_as_a_run(longer: tuple[Path, str]) -> None:
    folder, said = longer
    kept = folder / "earlier/2-epochs"
    assert (
        f"{folder} now has epochs 3 instead of 2. It goes on from step 3, the last kept one before a cool-down. What "
        f"was trained past it is kept as a run of its own, {kept}."
    ) in said
    run = poa.load(kept)
    assert (run.step, run.config.epochs, run.config.out) == (4, 2, str(kept))
    assert [row["step"] for row in read_metrics(run.paths.metrics)] == [1, 2, 3, 4]
    assert run.network("32x2") is not None
    assert poa.pretrain(out=kept, resume=True).step == 4


def test_what_does_not_fit_the_length_of_a_run_is_refused(longer: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = longer
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"become a run of 2 epochs: .* from step 3 on, .* is of step 5\. Give more"):
        trained(out=str(folder), epochs=2, resume=True)
    given: dict[str, Any] = {"out": str(folder), "optimizer": {"schedule": "cosine"}}
    with pytest.raises(UserError, match=r"other settings: optimizer\.schedule \('constant' in the run, 'cosine' now\)"):
        trained(**given, resume=True)
    edited = Path(shutil.copytree(folder, tmp_path / "run"))
    (edited / "config.yaml").write_text((edited / "config.yaml").read_text().replace("epochs: 3", "epochs: 9", 1))
    with pytest.raises(UserError, match=r"other settings than those in config\.yaml: epochs \(3 in the checkpoint, 9"):
        trained(out=str(edited), resume=True)
    config = resolve({"out": str(folder), "epochs": 4}, resume=True)
    forecast = dry_run(config, resume=True, console=Console(quiet=True))
    assert (forecast.measured.done, forecast.num_steps) == (5, 3)
    assert (folder / "config.yaml").read_bytes() == before


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Runs do all but train; the scores of their checks, which happen after each step, are those of this list."""
    scores: list[float] = []

    def train_step(*_: Any, **__: Any) -> StepResult:
        return StepResult({"loss": 1.0, "intact/global": 1.0, "elastic/global": 1.0}, (), 0.1, stop=False)

    monkeypatch.setattr(loop, "train_step", train_step)

    def score(*_: Any) -> tuple[dict[str, float], list[Any]]:
        return {"knn/64x3": scores[0] - 1, "knn/32x2": scores.pop(0) + 1}, []

    monkeypatch.setattr(Monitor, "score", score)
    return scores


def test_a_disk_error_leaves_a_run_that_can_be_made_longer(
    untrained: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    untrained += [1.0] * 4
    given = {"saving": {"every_epochs": 0.5, "keep_last": 2}, "optimizer": {"cooldown_epochs": 1}}
    trained(**settings(tmp_path / "run", epochs=2, **given))
    assert saved_steps(tmp_path / "run/checkpoints") == [2, 3, 4]
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(UserError, match=r"cannot be written to .*: No space left on device"):
        trained(out=str(tmp_path / "run"), epochs=3, resume=True)
    monkeypatch.undo()
    assert saved_steps(tmp_path / "run/checkpoints") == [2, 3, 4]
    untrained += [1.0] * 2
    assert "goes on from step 2, the last" in trained(out=str(tmp_path / "run"), epochs=3, resume=True)
    assert saved_steps(tmp_path / "run/earlier/2-epochs/checkpoints") == [3, 4]


EARLY: dict[str, Any] = {
    "monitor": {"every_epochs": 0.5, "patience": 1, "data": "digits/train"},
    "saving": {"every_epochs": 50},
}


def test_a_run_stops_where_its_score_stays_and_cools_down_from_there(untrained: list[float], tmp_path: Path) -> None:
    """The best checkpoint stays, and so does the last before the cool-down."""
    untrained += [2.0, 3.0, 1.0]
    out = str(tmp_path / "run")
    said = trained(**settings(tmp_path / "run", epochs=9, **EARLY))
    assert saved_steps(tmp_path / "run/checkpoints") == [2, 3]
    for line in (
        "stopped early at step 3 of 18 ",
        "best       k-NN 3, mean of 2 sizes, at step 2 (--checkpoint best)",
        "why        k-NN has not risen for 1 check (--monitor.patience)",
        f"cool down  poa pretrain --out {out} --resume --epochs 2 --monitor.patience none",
        f"or go on   poa pretrain --out {out} --resume --monitor.patience none",
    ):
        assert line in said
    assert poa.load(out, checkpoint="best").step == 2
    again = trained(out=out, resume=True)
    assert "stopped early at step 3 of 18 " in again
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 3
    untrained += [0.5]
    assert "run finished" in trained(out=out, epochs=2, monitor=EARLY["monitor"], resume=True)
    assert saved_steps(tmp_path / "run/checkpoints") == [2, 3, 4]
    assert not (tmp_path / "run/earlier").exists()


def test_a_run_with_a_cosine_stops_early_and_shows_its_best(untrained: list[float], tmp_path: Path) -> None:
    untrained += [5.0, 4.0, 3.0, 7.0]
    early = tiny.merged(EARLY, {"monitor": {"patience": 2}})
    cosine = {"schedule": "cosine", "cooldown_epochs": None}
    said = trained(**settings(tmp_path / "run", epochs=2, optimizer=cosine, **early))
    assert "stopped early at step 3 of 4 " in said
    assert f"next      poa sizes {tmp_path / 'run'} --checkpoint best" in said
    assert saved_steps(tmp_path / "run/checkpoints") == [1, 3]
    assert "run finished" in trained(out=str(tmp_path / "run"), monitor={"patience": None}, resume=True)
    assert saved_steps(tmp_path / "run/checkpoints") == [4]
    assert poa.load(tmp_path / "run", checkpoint="best").step == 4
