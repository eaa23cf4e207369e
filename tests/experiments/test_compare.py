"""One elastic run against its baselines, from the command to the table."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import tiny
from command import dashed, poa
from experiments.some_digits import some_digits
from poa.errors import UserError
from poa.evaluation.linear import Linear
from poa.experiments import compare, num_sizes, runs
from poa.experiments.compare import Result, Score, comparison_plot, comparison_tables
from poa.experiments.runs import Labelled
from poa.pretraining import process
from poa.training.metrics import read_metrics

TRAIN, TEST = "digits/train", "digits/test"
CHEAPER = {"views": {**tiny.CHEAPER["views"], "global_size": 24, "small_epochs": 0.5}, "losses": {"ibot": 0.0}}
GIVEN = {"data": TRAIN, "limit": 32, "epochs": 1, "heads": {"prototypes": [16]}, **CHEAPER}


def words(folder: Path, out: Path, *, seeds: str = "0 1") -> list[str]:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(dashed(tiny.settings(**GIVEN))))
    test = some_digits(TEST, folder / "test")
    given = f"--config {file} --out {out} --sizes 32x2 --seeds {seeds} --train {TRAIN} --test {test} --vote-limit 60"
    return ["compare", *given.split()]


def without_sizes(words: Sequence[str]) -> list[str]:
    place = words.index("--sizes")
    return [*words[:place], *words[place + 2 :]]


class Done(NamedTuple):
    """A comparison of two sizes with two seeds; every training takes two steps."""

    folder: Path
    first_status: int
    trained: Sequence[bool]
    """Whether each training resumed another, in their order."""


@pytest.fixture(autouse=True, scope="module")
def one_strength() -> Iterator[None]:
    """Of linear classifiers: to choose one of many for each network would take longer than to train the networks."""
    protocols = [(score, Linear(strengths=(0.1,)) if each.name == "linear" else each) for score, each in runs.PROTOCOLS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "PROTOCOLS", tuple(protocols))
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """It was stopped before its second training, and finished by the same command."""
    folder = tmp_path_factory.mktemp("compare")
    trained: list[bool] = []

    def until_the_second(config: Any, *, resume: bool, **options: Any) -> Any:
        trained.append(resume)
        if len(trained) == 2:
            raise UserError("stopped here")
        return process.train(config, resume=resume, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "train", until_the_second)
        first_status = poa(*words(folder, folder / "all"))
        assert poa(*words(folder, folder / "all")) == 0
    return Done(folder, first_status, trained)


def test_everything_is_trained_scored_and_written(done: Done) -> None:
    rows = list(csv.DictReader(io.StringIO((done.folder / "all/compare.csv").read_text())))
    assert {(row["way"], row["budget"]) for row in rows} == {
        ("poa", "images"),
        ("poa", "compute"),
        ("single", "images"),
        ("single", "compute"),
        ("seed", "images"),
        ("seed", "compute"),
    }
    results = json.loads((done.folder / "all/compare.json").read_text())
    assert len(results) == len(rows) == 6 * 2 * 2
    for row, result in zip(rows, results, strict=True):
        assert len(result["values"]) == 2
        assert float(row["mean"]) == pytest.approx(sum(result["values"]) / 2)
        assert float(row["spread"]) == pytest.approx(abs(result["values"][0] - result["values"][1]) / 2**0.5)
        half = (float(row["high"]) - float(row["low"])) / 2
        assert half == pytest.approx(12.706 * float(row["spread"]) / 2**0.5, rel=1e-4)  # Student's t with one degree
    assert (done.folder / "all/compare.png").stat().st_size > 10_000


def test_values_are_those_of_the_runs(done: Done) -> None:
    results = json.loads((done.folder / "all/compare.json").read_text())
    for protocol, score in (("knn", "top1@20"), ("linear", "top1")):
        (elastic,) = [
            each
            for each in results
            if (each["way"], each["budget"], each["size"], each["protocol"]) == ("poa", "images", "32x2", protocol)
        ]
        for seed in (0, 1):
            content = json.loads((done.folder / f"all/seed{seed}/poa/eval/{protocol}/{protocol}.json").read_text())
            assert elastic["values"][seed] == content["scores"]["32x2"][score]


def test_the_same_command_again_trains_nothing(
    done: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained again"))
    baseline = next(done.folder.glob("all/seed0/single-*/config.yaml"))
    text = baseline.read_text()
    assert "warmup_epochs: 1.0" in text
    text = re.sub(r"small_size: \d+", "small_size: null", text)
    baseline.write_text(text.replace("warmup_epochs: 1.0", "warmup_epochs: 2.0"))  # by the rules of an earlier commit
    assert poa(*words(done.folder, done.folder / "all")) == 0
    said = capsys.readouterr()
    before = "views.small_size none (now 16), optimizer.warmup_epochs 2.0 (now 1.0)"
    assert f"Note: {baseline.parent} was begun with {before} and keeps it." in said.err
    assert "one elastic run" in said.out
    assert "SEED, equal compute" in said.out
    assert max(map(len, said.out.splitlines()[:16])) <= 80
    assert "of the compute done" in said.err


def test_other_settings_are_no_way_to_go_on(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is trained already; what the user does not give is as in the first elastic run."""
    assert poa(*words(done.folder, done.folder / "all"), "--lr", "0.5") == 2
    assert "seed0/poa was started with other settings: lr (None in the run, 0.5 now)." in capsys.readouterr().err


def test_it_goes_on_where_it_was_stopped(done: Done) -> None:
    """Each training but the second, which was stopped, was begun once."""
    assert done.first_status == 2
    folders = sorted(done.folder.glob("all/seed*/*/metrics.jsonl"))
    assert all(len(read_metrics(metrics)) >= 2 for metrics in folders)
    assert len(done.trained) == 1 + len(folders)
    assert not any(done.trained)


@pytest.mark.parametrize(
    ("over", "sizes", "seeds", "said"),
    [
        ({"out": ""}, ["32x2"], [0], "--out FOLDER is required"),
        ({"method": "single"}, ["32x2"], [0], "needs --method poa, got single"),
        ({"init": "somewhere"}, ["32x2"], [0], "leave --init out"),
        ({}, ["32x2"], [], "one or more --seeds, all different, got none"),
        ({}, ["32x2"], [1, 1], "one or more --seeds, all different, got 1, 1"),
        ({"distill": {"teacher": "other"}}, ["32x2"], [0], "leave --distill.teacher out"),
        ({}, ["64x3"], [0], r"names only the intact network.*such as 32x2"),
        ({}, ["40x2"], [0], r"no size '40x2'.*Did you mean"),
    ],
)
def test_what_cannot_be_compared_is_told(
    tmp_path: Path, over: dict[str, object], sizes: Sequence[str], seeds: Sequence[int], said: str
) -> None:
    config = tiny.config(**{"out": str(tmp_path / "all"), **GIVEN, **over})
    with pytest.raises(UserError, match=said):
        compare.planned(config, sizes=sizes, seeds=seeds, labelled=Labelled(TRAIN, TEST))
    assert not (tmp_path / "all").exists()


def test_labels_are_looked_for_before_anything_is_trained(tmp_path: Path) -> None:
    config = tiny.config(out=str(tmp_path / "all"), **GIVEN)
    with pytest.raises(UserError, match="nowhere"):
        compare.planned(config, sizes=["32x2"], seeds=[0], labelled=Labelled("nowhere", TEST))
    assert not (tmp_path / "all").exists()


def test_intervals_over_seeds_are_students() -> None:
    """The example of five values with mean 3 and deviation 1.5811; t is 2.7764 with four degrees."""
    score = Result("poa", "images", "32x2", "knn", (1.0, 2.0, 3.0, 4.0, 5.0), 1.0).score()
    assert score.low == pytest.approx(3 - 2.7764 * 1.5811 / 5**0.5, abs=1e-3)
    assert score.high == pytest.approx(3 + 2.7764 * 1.5811 / 5**0.5, abs=1e-3)
    alone = Result("poa", "images", "32x2", "knn", (1.0,), 1.0).score()
    assert (alone.mean, alone.spread, alone.low, alone.high) == (1.0, None, None, None)


def scores() -> list[Score]:
    return [
        Score(way, budget, size, protocol, 40.0 + number, 0.4, 1.25, 39.5 + number, 40.5 + number)
        for number, (way, budget) in enumerate((("poa", "images"), ("poa", "compute"), ("single", "images")))
        for size in ("32x2", "64x3")
        for protocol in ("knn", "linear")
    ]


def test_tables_leave_out_what_is_missing_and_mark_the_best() -> None:
    first, second = comparison_tables(scores())
    assert [column.header for column in first.columns] == ["way", "compute", "32x2", "64x3"]
    assert first.row_count == second.row_count == 2
    cells = [str(cell) for cell in first.columns[2].cells]
    assert cells == ["40.0 ±0.5", "42.0 ±0.5"]
    (alone, _) = comparison_tables([score._replace(spread=None, low=None, high=None) for score in scores()])
    assert [str(cell) for cell in alone.columns[2].cells] == ["40.0", "42.0"]
    styles = [cell.style for cell in first.columns[2].cells]  # type: ignore[union-attr]
    assert styles == ["", "bold green"]


def test_a_picture_of_one_seed(tmp_path: Path) -> None:
    comparison_plot(
        [score._replace(spread=None, low=None, high=None) for score in scores()], out=tmp_path / "picture.png"
    )
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_bars_are_as_long_as_the_upper_half_of_the_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[float], list[float]]] = []
    monkeypatch.setattr(compare, "legend", lambda *_, **__: None)
    monkeypatch.setattr(compare.Axes, "errorbar", lambda _, x, y, **given: drawn.append((y, given["yerr"])))
    comparison_plot(scores(), out=tmp_path / "picture.png")
    found = {(mean, round(mean + half, 6)) for row in drawn for mean, half in zip(*row, strict=True)}
    assert found == {(each.mean, each.high) for each in scores() if (each.way, each.budget) in compare.WAYS}


def test_scores_are_those_of_the_protocols_as_they_are() -> None:
    """With the settings of ``poa evaluate knn`` and ``linear`` that are not given a flag."""
    assert {score: (each.name, each.given()) for score, each in compare.PROTOCOLS} == {
        "top1@20": ("knn", {}),
        "top1": ("linear", {}),
    }


def test_flags_reach_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def noted(config: Any, **options: Any) -> None:
        seen.update(options, epochs=config.epochs, out=config.out)
        raise UserError("noted")

    labelled = Labelled((TRAIN,), (str(tmp_path / "test"),), 60)  # the command takes several sources
    monkeypatch.setattr(compare, "planned", noted)
    monkeypatch.setattr(num_sizes, "planned", noted)
    given = words(tmp_path, tmp_path / "all", seeds="3 4")
    assert poa(*given) == 2
    common = {"seeds": (3, 4), "labelled": labelled, "epochs": 1, "out": str(tmp_path / "all")}
    assert seen == {"sizes": ("32x2",), **common}
    seen.clear()
    assert poa(*without_sizes(given), "--num-sizes", "1", "3", "--all-sizes") == 2
    assert seen == {"numbers": (1, 3), "all_sizes": True, **common}
    seen.clear()
    assert poa(*without_sizes(given), "--num-sizes") == 2
    assert seen == {"numbers": (), "all_sizes": False, **common}


@pytest.mark.parametrize(
    ("sizes", "more", "said"),
    [
        (True, ["--num-sizes", "3"], "Give either --sizes, such as"),
        (False, [], "Give either --sizes, such as"),
        (True, ["--all-sizes"], "--all-sizes goes with --num-sizes"),
    ],
)
def test_sizes_or_their_number(
    tmp_path: Path, sizes: bool, more: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"compare --data digits --out {tmp_path / 'all'} --train {TRAIN} --test {TEST}".split()
    assert poa(*given, *(["--sizes", "32x2"] if sizes else []), *more) == 2
    assert said in capsys.readouterr().err


def test_n_sizes_take_what_is_trained_already(
    done: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, the smallest and the largest were trained for as long by the comparison of these two."""
    trained: list[str] = []

    def noted(config: Any, **options: Any) -> Any:
        trained.append(Path(config.out).name)
        return process.train(config, **options)

    monkeypatch.setattr(runs, "train", noted)
    given = [*without_sizes(words(done.folder, done.folder / "all", seeds="0")), "--num-sizes", "3"]
    assert poa(*given) == 0
    assert trained
    assert not {"poa", "single-32x2-1-epochs", "single-64x3-1-epochs"} & set(trained)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines()[:16])) <= 80
    assert "Smallest N from which the elastic run is ahead" in said
    content = json.loads((done.folder / "all/compare-num-sizes.json").read_text())
    assert len(content["results"]) == 3 * 3 * 2
    first = json.loads((done.folder / "all/compare.json").read_text())
    for protocol in ("knn", "linear"):
        (before,), (after,) = (
            [tuple(each["values"][:1]) for each in found if (each["way"], each["size"], each["protocol"]) == what]
            for what in [("poa", "64x3", protocol)]
            for found in ([each for each in first if each["budget"] == "images"], content["results"])
        )
        assert before == after
    assert (done.folder / "all/compare-num-sizes.png").read_bytes().startswith(b"\x89PNG")
