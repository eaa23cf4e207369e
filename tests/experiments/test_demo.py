"""The demo, shortened: every stage of it, scored on a part of the embedded digits."""

from pathlib import Path

import pytest
import timm

import poa
from experiments.some_digits import some_digits
from poa.cli import main
from poa.experiments import demo
from poa.models.run import Run


def test_demo_trains_scores_extracts_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    for name in ("TRAIN", "TEST"):
        monkeypatch.setattr(demo, name, some_digits(getattr(demo, name), tmp_path / name))
    train = demo.train
    monkeypatch.setattr(demo, "train", lambda config, **rest: train(config.model_copy(update={"limit": 128}), **rest))
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(out), "--epochs", "1"])
    assert not ended.value.code
    assert len(timm.create_model(f"local-dir:{out}/models/128x6", pretrained=True).blocks) == 6
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert printed.count(" ±") == 12
    assert "12 sizes, k-NN" in printed
    assert f"poa choose {out} --max-ms 2" in printed.replace("\n", "")

    run = poa.load(out)
    halfway = Run(out, run.config.changed(epochs=2))
    monkeypatch.setattr(demo, "train", lambda *_, **__: halfway)  # what it returns when it was asked to stop
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(out), "--epochs", "2"])
    assert ended.value.code == 2
    assert "was stopped before its end. Resume with the same command." in capsys.readouterr().err


def test_families_have_demos_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--model", "swn", "--out", str(tmp_path / "demo")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip() == "poa: There is no demo of 'swn'. Did you mean 'swin'?"
    assert not list(tmp_path.iterdir())
