"""Every way of scoring through the command, on runs, extracted sizes and timm names."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import poa as library
from command import SIZES, poa, tiny_file
from poa.choice.measured import Measured, Measurement, Setup, save
from poa.choice.subjects import overview
from poa.errors import UserError
from poa.evaluation import cost
from poa.evaluation import rows as tables
from poa.evaluation.results import results_file
from poa.models.run import Run
from poa.models.source import model_source
from poa.training.checkpoint import load_checkpoint, save_checkpoint

TEST = ("--test", "digits/test")
IMAGES = ("--train", "digits/train", *TEST, "--limit", "60")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scoring")
    assert poa("pretrain", "--config", tiny_file(folder), "--out", folder / "run", "--epochs", "1") == 0
    assert poa("extract", folder / "run", "--size", "32x3", "--out", folder / "32x3") == 0
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one's own, to the tests' folder."""
    shutil.copytree(made / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return Path("run")


def lines_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def cells(out: str, size: str) -> list[str]:
    """What stands in a line of a table."""
    (line,) = [line for line in out.splitlines() if line.split(" ")[0] == size]
    return line.split()


@pytest.mark.parametrize(
    ("name", "words", "headline", "shown"),
    [
        ("knn", (*IMAGES, "--k", "5", "20"), "top1@20", ["top1@20", "top1@5", "top5@5", "top5@20"]),
        ("linear", (*IMAGES, "--strengths", "0.1", "0.01"), "top1", ["top1", "top5"]),
        (
            "few-shot",
            (*IMAGES, "--per-class", "2", "--draws", "2", "--strengths", "0.1"),
            "top1",
            ["top1", "top1_spread", "top5", "top5_spread"],
        ),
        ("cluster", (*TEST, "--limit", "60", "--restarts", "1"), "accuracy", ["accuracy", "ari", "nmi", "fmi", "ami"]),
        ("retrieval", IMAGES, "map", ["map", "recall@1", "recall@5", "recall@10"]),
    ],
)
def test_commands(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, words: tuple[str, ...], headline: str, shown: list[str]
) -> None:
    assert poa("evaluate", name, run, *words) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    facts, found = ["size", "params", "M", "GFLOPs", "weight"], out.splitlines()[0].split()
    assert found == [*facts, *shown][: len(found)]
    assert len(found) >= len(facts) + 2
    folder = run / "eval" / name
    number = len(facts) + len(shown) - len(found)
    assert (f"more {'score' if number == 1 else 'scores'}: see {folder}/{name}.csv." in out) == (number > 0)
    assert out.splitlines()[-2:] == [f"Scores: {folder}/{name}.csv", f"Map: {folder}/{name}.png"]
    assert {path.name for path in folder.iterdir()} == {f"{name}.{kind}" for kind in ("csv", "json", "png")}
    content = json.loads((folder / f"{name}.json").read_text())
    assert tuple(content["scores"]) == SIZES
    assert tables.headline(tables.run_rows(library.load(run)))[0].split()[-1] == headline
    used = {part: content["settings"].get(part, "none").split()[0] for part in ("train", "test")}
    assert used == ({"train": "none", "test": "60"} if name == "cluster" else {"train": "60", "test": "445"})
    for line in lines_of(folder / f"{name}.csv"):
        told = f"{float(line[headline]):.1f}"
        assert told in cells(out, line["size"])
        if name != "cluster":
            half = (float(line[f"{headline}_high"]) - float(line[f"{headline}_low"])) / 2
            assert f"{told} ±{half:.1f}" in out
    assert ("±: half of the 95 % interval over test images" in out) == (name != "cluster")


def test_all_scores_in_one_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cheap = ("--sizes", "32x2")
    for words in (
        ("knn", *IMAGES, "--k", "20"),
        ("knn", *IMAGES, "--k", "20", "--branch", "untrained"),
        ("linear", *IMAGES, "--strengths", "0.1"),
        ("linear", *IMAGES, "--strengths", "0.1", "--branch", "untrained"),
        ("linear", *IMAGES, "--strengths", "0.2", "--name", "mine"),
        ("retrieval", *IMAGES),
        ("knn", *IMAGES, "--k", "5", "--name", "mine"),
    ):
        assert poa("evaluate", words[0], run, *words[1:], *cheap) == 0
    capsys.readouterr()
    assert poa("sizes", run) == 0
    out = capsys.readouterr().out
    heading, columns, *_ = out.splitlines()
    assert max(map(len, out.splitlines())) <= 80
    names = ["top1@20", "untrained top1@20", "linear top1", "retrieval map"]
    names += ["mine top1@5", "linear-untrained top1", "mine linear top1"]
    assert tables.headline(tables.run_rows(library.load(run))) == names
    shown = columns.split()[5:]
    assert len(shown) >= 3
    assert shown == [name.rpartition(" ")[2] for name in names[: len(shown)]]
    assert heading.split() == [name.rpartition(" ")[0] for name in names[1 : len(shown)]]
    assert "±: half of the 95 % interval over test images" in out.splitlines()
    more = 3 * 2 + 3 * 2 + 4 - len(shown)
    assert out.splitlines()[-1] == f"{more} more scores: --out FILE.csv or FILE.json writes all."
    assert poa("sizes", run, "--out", "sizes.csv") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{more} more scores: see sizes.csv."
    first, *_ = lines_of(Path("sizes.csv"))
    assert set(names) < set(first)
    expected = json.loads((run / "eval/mine/linear.json").read_text())["scores"]["32x2"]["top1"]
    assert float(first["mine linear top1"]) == expected


def test_linear_classifiers_of_all_sizes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*IMAGES, "--learning-rates", "0.3", "--epochs", "4")
    losses = {}
    for kind in ("switchable", "slimmable"):
        assert poa("evaluate", "linear", run, *words, "--classifier", kind) == 0
        out = capsys.readouterr().out
        assert out.splitlines()[-2] == f"Scores: {run}/eval/linear-{kind}/linear-{kind}.csv"
        content = json.loads((run / f"eval/linear-{kind}/linear-{kind}.json").read_text())
        assert content["settings"]["networks"] == list(SIZES)
        assert tuple(content["scores"]) == SIZES
        assert all(f"{scores['top1']:.1f}" in cells(out, size) for size, scores in content["scores"].items())
        losses[kind] = [content["details"][size]["training_loss"] for size in SIZES]
    assert losses["switchable"] != losses["slimmable"]
    for wrong, told in (
        (("--learning-rates", "0.3"), "--classifier own does not use"),
        (("--classifier", "slimmable", "--strengths", "1"), "does not use --strengths"),
        (("--classifier", "slimmable", "--epochs", "0"), "--epochs cannot be '0'"),
    ):
        assert poa("evaluate", "linear", run, *IMAGES, *wrong) == 2
        assert told in capsys.readouterr().err


def test_an_extracted_size_scores_as_the_size_of_the_run(
    made: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*IMAGES, "--k", "20")
    assert poa("evaluate", "knn", run, *words, "--sizes", "32x3") == 0
    expected = json.loads((run / "eval/knn/knn.json").read_text())
    assert "Map:" not in capsys.readouterr().out
    assert poa("evaluate", "knn", made / "32x3", *words) == 0
    out = capsys.readouterr().out
    found = json.loads(Path("eval/32x3/knn/knn.json").read_text())
    assert (found["scores"], found["intervals"]) == (expected["scores"], expected["intervals"])
    assert found["settings"]["weights"] != expected["settings"]["weights"]
    assert out.splitlines()[-1] == "Scores: eval/32x3/knn/knn.csv"
    assert cells(out, "32x3")[:4] == ["32x3", "0.045", "0.000", f"{expected['scores']['32x3']['top1@20']:.1f}"]
    assert (run / "eval/knn/knn.csv").read_text() == Path("eval/32x3/knn/knn.csv").read_text()


def test_subjects_beside_one_another(made: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes of a run, an extracted one and a timm name; with times where these can be compared."""
    folder = made / "32x3"
    assert poa("evaluate", "knn", run, *IMAGES, "--k", "20") == 0
    assert poa("evaluate", "knn", folder, *IMAGES, "--k", "20") == 0
    common, other = (Setup("a processor", "cpu", "torch", "2.14", threads, 1, 16) for threads in (1, 2))
    measured = Measurement(0.5, 0.6, 9, 2000.0, None, 184_000, 45_000, 10**5, "2026-01-01")
    save(model_source(str(run)), Measured(other, {"32x2": measured}))
    for source, milliseconds in ((str(run), 0.5), (str(folder), 0.7)):
        save(model_source(source), Measured(common, {"32x3": replace(measured, ms=milliseconds)}))
    capsys.readouterr()
    given = ("--out", "all.csv", "--plot", "all.png", "--cost", "ms", "--score", "top5@20")
    assert poa("sizes", run, folder, "resnet10t", *given) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-3:] == [
        "±: half of the 95 % interval over test images",
        f"ms: {common}",
        "Chart: all.png",
    ]
    assert Path("all.png").read_bytes().startswith(b"\x89PNG")
    rows = lines_of(Path("all.csv"))
    assert [(row["subject"], row["size"], row["milliseconds"], row["megabytes"]) for row in rows] == [
        *(("run", size, *(("0.5", "0.184") if size == "32x3" else ("", ""))) for size in SIZES),
        ("32x3", "32x3", "0.7", "0.184"),
        ("resnet10t", "resnet10t", "", ""),
    ]
    of_run = json.loads((run / "eval/knn/knn.json").read_text())["intervals"]["32x3"]["top1@20"]
    assert [float(rows[1][f"top1@20_{end}"]) for end in ("low", "high")] == of_run
    assert float(rows[4]["top1@20"]) == float(rows[1]["top1@20"])
    same = library.sizes(library.load(run), folder, "resnet10t")
    assert [{name: "" if x is None else str(x) for name, x in each.items()} for each in same] == rows
    assert overview([str(run), str(folder)]).heading == "POA on digits/train; 32x3"
    with pytest.raises(UserError, match="No network is named"):
        library.sizes()
    assert poa("evaluate", "knn", run, *IMAGES, "--k", "20", "--sizes", "32x3") == 0
    assert f"ms: {common}" in capsys.readouterr().out.splitlines()
    for words, told in (
        ((run, f"{run}/"), "run is named twice. Name each run or network once."),
        ((run, "--cost", "ms"), "Add --plot FILE.png"),
        ((run, "--score", "top1@7"), "No size has a score 'top1@7'. Did you mean"),
        (("--recipe", "demo", "--plot", "a.png"), "Leave out --plot"),
    ):
        assert poa("sizes", *words) == 2
        assert told in capsys.readouterr().err


def test_a_timm_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("resnet10t", *IMAGES, "--branch", "untrained", "--image-size", "32", "--k", "20")
    assert poa("evaluate", "knn", *words) == 0
    shown = capsys.readouterr()
    assert cells(shown.out, "resnet10t")[1:3] == ["4.9", "0.045"]
    assert "Results are written to eval/resnet10t in the current folder; --out" in shown.err
    (line,) = lines_of(Path("eval/resnet10t/untrained/knn.csv"))
    assert (line["size"], line["width"], line["depth"]) == ("resnet10t", "", "")
    assert float(line["top1@20"]) > 10
    assert poa("evaluate", "knn", *words, "--out", "elsewhere", "--name", "one") == 0
    assert Path("elsewhere/one/knn.json").exists()
    assert "Results are written" not in capsys.readouterr().err
    assert json.loads(Path("elsewhere/one/knn.json").read_text())["settings"]["image_size"] == 32


def test_flops_are_those_of_the_images(run: Path) -> None:
    small, large = (
        tables.scored_rows(model_source(str(run), image_size=side), {"32x2": {"top1": 1.0}}) for side in (16, 32)
    )
    assert [str(row.size) for row in small] == ["32x2"]
    assert small[0].flops == tables.run_rows(library.load(run))[0].flops
    assert large[0].flops > 3 * small[0].flops


def test_sizes_that_fail_are_reported_after_the_others(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Run.network

    def collapsed(self: Run, size: Any) -> Any:
        network = plain(self, size)
        if str(size) in ("32x2", "64x2"):
            nn.init.constant_(network.model.norm.weight, torch.nan)
        return network

    monkeypatch.setattr(Run, "network", collapsed)
    words = ("evaluate", "knn", run, *IMAGES, "--k", "20")
    assert poa(*words) == 2
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines() if line[:2] in ("32", "64")] == ["32x3", "64x3"]
    last = told.err.splitlines()[-1]
    assert last.startswith(
        "poa: 2 of 4 networks could not be scored; the others are in run/eval/knn/knn.json. 32x2, 64x2: The features"
    )
    assert poa(*words, "--sizes", "32x2") == 2
    assert "1 of 1 network could not be scored. 32x2: " in capsys.readouterr().err


def test_scores_of_before_intervals_are_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", "knn", run, *IMAGES, "--k", "20")
    assert poa(*words, "--sizes", "32x2") == 0
    file = run / "eval/knn/knn.json"
    content = json.loads(file.read_text())
    kept = {key: content[key] for key in ("protocol", "settings", "bad_images", "scores")}
    assert set(kept["settings"]) == {
        "weights", "train", "test", "image_size", "resize", "mean", "std", "precision", "ks", "temperature", "whiten"
    }  # fmt: skip
    assert kept["settings"].pop("whiten") is None, "what came later is off"
    file.write_text(json.dumps(kept))
    capsys.readouterr()
    assert poa(*words, "--sizes", "32x2") == 0
    assert "±" not in capsys.readouterr().out
    assert poa(*words) == 0
    out = capsys.readouterr().out
    assert "±: half" in out
    assert "±" not in " ".join(cells(out, "32x2"))
    assert json.loads(file.read_text())["scores"]["32x2"] == kept["scores"]["32x2"]


def test_scores_of_another_run_are_not_handed_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", "knn", run, *IMAGES, "--k", "20", "--sizes", "32x2")
    assert poa(*words) == 0
    (checkpoint,) = (run / "checkpoints").iterdir()
    state = load_checkpoint(checkpoint)
    name = next(name for name in state["method"] if name.endswith("norm.weight"))
    state["method"][name] *= 2  # as another seed would give, after as many steps
    save_checkpoint(checkpoint.parent, state["step"], state)
    capsys.readouterr()
    assert poa(*words) == 2
    step = rf"teacher at step {state['step']}, sha256 \w{{16}}"
    assert re.search(rf"weights \({step} before, {step} now\)\. .*--name", capsys.readouterr().err)
    assert tables.headline(tables.run_rows(library.load(run))) == ["other weights top1@20", "other weights top5@20"]


def test_the_library_scores_too(made: Path, run: Path) -> None:
    options: dict[str, Any] = {"train": "digits/train", "test": "digits/test", "limit": 60, "sizes": "32x2"}
    loaded = library.load(run)
    found = library.evaluate(loaded, "linear", strengths=(0.1,), **options)
    assert found == library.evaluate(run, "linear", strengths=(0.1,), out="other", **options)
    assert Path("other/linear/linear.json").exists()
    assert library.evaluate_knn(loaded, ks=(20,), **options) == library.evaluate(str(run), ks=(20,), **options)
    assert list(library.evaluate(run, "cluster", test="digits/test", limit=60, sizes="32x2", restarts=1)["32x2"]) == [
        "accuracy", "ari", "nmi", "fmi", "ami"
    ]  # fmt: skip
    for protocol, settings, words in (
        ("lineal", {}, "no protocol 'lineal'. Did you mean 'linear'"),
        ("linear", {"strength": (0.1,)}, "Unknown setting '--strength'. Did you mean 'strengths'"),
        ("cluster", {}, "cluster uses only test images"),
    ):
        with pytest.raises(UserError, match=words):
            library.evaluate(run, protocol, **options, **settings)


def test_names_of_results(run: Path) -> None:
    teacher, untrained = (model_source(str(run), branch=branch) for branch in ("teacher", "untrained"))
    assert [results_file(each, "knn").parent.name for each in (teacher, untrained)] == ["knn", "untrained"]
    assert [results_file(each, "linear").parent.name for each in (teacher, untrained)] == ["linear", "linear-untrained"]
    assert results_file(untrained, "linear", "a") == run / "eval/a/linear.json"


def test_flops_that_cannot_be_counted_are_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = model_source("resnet10t", branch="untrained", image_size=32)
    (row,) = tables.scored_rows(source, {"resnet10t": {"top1": 1.0}})
    assert (row.size, row.parameters) == ("resnet10t", sum(value.numel() for value in source.network("").parameters()))
    assert row.flops is not None

    def refuse(*_: object, **__: object) -> int:
        raise NotImplementedError

    monkeypatch.setattr(cost, "flops", refuse)
    (row,) = tables.scored_rows(source, {"resnet10t": {"top1": 1.0}})
    assert row.flops is None
