"""Hours of all runs of a comparison, by two steps of each kind."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tiny
from poa.experiments import forecast as forecasting
from poa.experiments.forecast import forecast, forecast_lines, forecast_table
from poa.experiments.plan import plan
from poa.models.registry import family_of
from poa.pretraining.dry_run import measure


def test_each_kind_is_measured_once_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distillation too, whose teacher is not trained yet."""
    out = tmp_path / "all"
    config = tiny.config(out=str(out), limit=48, epochs=4, views={"num_locals": 0})
    space = family_of(config).space
    made = plan(config, sizes=(space.sizes[0], space.intact), seeds=(0, 1), num_images=48)
    measured: dict[str, float] = {}

    def noted(settings: Any, **options: Any) -> Any:
        found = measure(settings, **options)
        measured[f"{settings.method}-{family_of(settings).space.intact}"] = found.cpu_seconds_per_step
        return found

    monkeypatch.setattr(forecasting, "measure", noted)
    done = next(folder for folder in made.trainings if folder.name.startswith("single-64x3"))
    monkeypatch.setattr(forecasting, "steps_done", lambda folder: 10**6 if folder == done else 0)
    found = forecast(made.trainings, Console(quiet=True))
    assert list(measured) == ["poa-64x3", "single-64x3", "single-32x2", "seed-32x2"]
    assert not out.exists()
    for each, (folder, training) in zip(found, made.trainings.items(), strict=True):
        kind = "poa-64x3" if folder.name == "poa" else folder.name.rsplit("-", 2)[0]
        assert each.cpu_seconds == pytest.approx(training.num_steps * measured[kind])
        assert each.cpu_seconds > 0
        assert each.left == (0 if folder == done else 1)
    rows = forecast_table(found).columns[0].cells
    assert list(rows) == [folder.name for folder in made.trainings if folder.parent.name == "seed0"]
    both, total = forecast_lines(found)
    assert both == "The runs of each of the 2 seeds are the same."
    assert total.startswith(f"In total {len(made.trainings)} runs, ")
