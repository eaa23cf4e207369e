"""Every flag of a command arrives at the function that does the work. A command or a flag without words here fails.

What settings do there is tested with each protocol and task; of those that are flags one a command is given.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from poa import cli
from poa.choice.scores import Labelled
from poa.cli.evaluate import Options, show_results
from poa.config import finetune, segmentation
from poa.config.choice import Limits, MeasureSettings
from poa.config.detection import Detection
from poa.config.examination import Examination
from poa.config.values import Settings
from poa.evaluation.clustering import Cluster
from poa.evaluation.joint_linear import Switchable
from poa.evaluation.knn import Knn
from poa.evaluation.linear import FewShot
from poa.evaluation.probe import Probe
from poa.evaluation.results import Results
from poa.evaluation.retrieval import Retrieval
from poa.evaluation.sweep import SweepOptions
from poa.robustness.conditions import Robustness
from poa.tasks.detection.data import CocoImages
from poa.tasks.segmentation.masks import MaskedImages
from refusals import refused

Case = tuple[str, str, dict[str, Any]]
SOURCE = ("runs/mine", {"branch": "untrained", "image_size": 32, "out": Path("there"), "checkpoint": 8})
ELSEWHERE = SOURCE[0], {"branch": "untrained", "image_size": 32, "checkpoint": 8}
"""Of commands whose --out is for something else."""
GENERAL = "--sizes 32x2 64x3 --branch untrained --name mine --image-size 32 --out there --limit 7 --checkpoint 8 "
GENERAL += "--workers 2 --overwrite --max-bad-share 0.2"
SWEEP = {"source": SOURCE, "limit": 7, "options": (("32x2", "64x3"), "mine", 2, True, 0.2)}
LABELLED = f"--train a c --test b d {GENERAL}"
SCORING = "poa.evaluation.evaluate.evaluate"
SCORED = {**SWEEP, "train": ("a", "c"), "test": ("b", "d")}
SMALL = segmentation.PRESETS["small-data-upernet"]
CASES: dict[str, Case] = {
    "evaluate knn": (f"{LABELLED} --k 3 4", SCORING, {**SCORED, "protocol": Knn(ks=(3, 4))}),
    "evaluate few-shot": (f"{LABELLED} --per-class 3", SCORING, {**SCORED, "protocol": FewShot(per_class=3)}),
    "evaluate retrieval": (f"{LABELLED} --k 3", SCORING, {**SCORED, "protocol": Retrieval(ks=(3,))}),
    "evaluate linear": (
        f"{LABELLED} --classifier switchable --epochs 3 --no-distil",
        SCORING,
        {**SCORED, "protocol": Switchable(epochs=3, distilled=False)},
    ),
    "evaluate probe": (
        f"{LABELLED} --raw --epochs 3",
        SCORING,
        {**SCORED, "protocol": Probe(standardise=False, epochs=3)},
    ),
    "evaluate cluster": (
        f"--test b d {GENERAL} --seeds 3 --clusters 4",
        SCORING,
        {**SCORED, "train": None, "protocol": Cluster(seeds=(0, 1, 2), clusters=4)},
    ),
    "evaluate quality": (
        f"--data a c {GENERAL} --k 3 --seed 2",
        "poa.evaluation.quality.evaluate",
        {**SWEEP, "data": ("a", "c"), "k": 3, "seed": 2},
    ),
    "evaluate robustness": (
        f"{LABELLED} --masks m --test-limit 5 --kinds occlusion --k 3",
        "poa.robustness.evaluate.evaluate",
        {
            **SCORED,
            "robustness": Robustness(k=3, shuffle=(), corruptions=()),
            "masks": Path("m"),
            "test_limit": 5,
        },
    ),
    "evaluate disturbances": (
        "--images a c --out b.png --image-size 32 --number 3 --seed 2",
        "poa.robustness.plots.show",
        {"images": ("a", "c"), "out": Path("b.png"), "image_size": 32, "number": 3, "seed": 2},
    ),
    "evaluate finetune": (
        f"{LABELLED} --preset imagenet-vit-s --save-every 3 --epochs 2",
        "poa.tasks.evaluate.finetune_networks",
        {**SCORED, "config": finetune.PRESETS["imagenet-vit-s"].changed(epochs=2), "save_every": 3},
    ),
    "evaluate transfer": (
        f"{LABELLED} --preset cars-s --save-every 3 --epochs 2",
        "poa.tasks.evaluate.finetune_networks",
        {**SCORED, "config": finetune.TRANSFER["cars-s"].changed(epochs=2), "save_every": 3},
    ),
    "evaluate segmentation": (
        f"--train a --train-masks b --test c --test-masks d {GENERAL} --classes f --ignore 11 "
        "--preset small-data-upernet --save-every 3 --epochs 2",
        "poa.tasks.evaluate.segment_networks",
        {
            **SWEEP,
            "config": SMALL.changed(epochs=2),
            "train": MaskedImages("a", "b"),
            "test": MaskedImages("c", "d"),
            "classes": Path("f"),
            "ignore": 11,
            "save_every": 3,
        },
    ),
    "evaluate detection": (
        f"--train-images a --train-annotations b --test-images c --test-annotations d {GENERAL} "
        "--preset small-data --together --save-every 3 --epochs 2",
        "poa.tasks.evaluate.detect_networks",
        {
            **SWEEP,
            "config": Detection(epochs=2),
            "train": CocoImages("a", Path("b")),
            "test": CocoImages("c", Path("d")),
            "together": True,
            "save_every": 3,
        },
    ),
    "finetune": (
        f"--train a c {GENERAL} --preset imagenet-vit-s --save-every 3 --epochs 2",
        "poa.tasks.evaluate.finetune_networks",
        {**SWEEP, "train": ("a", "c"), "config": finetune.PRESETS["imagenet-vit-s"].changed(epochs=2), "save_every": 3},
    ),
    "segment": (
        f"--train a --masks b {GENERAL} --classes f --ignore 11 --preset small-data-upernet --save-every 3 --epochs 2",
        "poa.tasks.evaluate.segment_networks",
        {**SWEEP, "config": SMALL.changed(epochs=2), "train": MaskedImages("a", "b"), "classes": Path("f")}
        | {"ignore": 11, "save_every": 3},
    ),
    "detect": (
        f"--train a --annotations b {GENERAL} --preset small-data --together --save-every 3 --epochs 2",
        "poa.tasks.evaluate.detect_networks",
        {**SWEEP, "config": Detection(epochs=2), "train": CocoImages("a", Path("b")), "together": True}
        | {"save_every": 3},
    ),
    "predict": (
        "a c --out b --all-classes --min-score 0.5 --limit 7 --workers 2 --overwrite",
        "poa.tasks.predict.predict",
        {
            "model": "runs/mine",
            "images": ("a", "c"),
            "out": Path("b"),
            "all_classes": True,
            "min_score": 0.5,
            "limit": 7,
        }
        | {"workers": 2, "overwrite": True},
    ),
    "doctor": (
        "a --out a.html --write-list b.txt --min-side 9 --model m --size 32x2 --checkpoint best --limit 7 --workers 2 "
        "--overwrite",
        "poa.examination.examine.examine",
        {
            "data": ("runs/mine", "a"),
            "settings": Examination(min_side=9),
            "out": Path("a.html"),
            "write_list": Path("b.txt"),
        }
        | {"comparison": (("m", {"checkpoint": "best"}), "32x2"), "limit": 7, "workers": 2, "overwrite": True},
    ),
    "embed": (
        "--data a c --out b --sizes 32x2 --patches --branch untrained --image-size 32 --limit 7 --workers 2 "
        "--overwrite --checkpoint 8 --whiten 0.2 --whitened-as g.npy",
        "poa.features.embed.embed",
        {"source": ELSEWHERE, "data": ("a", "c"), "out": Path("b"), "sizes": ("32x2",), "patches": True}
        | {"whiten": 0.2, "whitened_as": Path("g.npy"), "limit": 7, "workers": 2, "overwrite": True},
    ),
    "pictures": (
        "--images a c --out b --sizes 32x2 --kinds colours matches --limit 7 --show 3 --seed 2 --branch untrained "
        "--image-size 32 --workers 2 --overwrite --checkpoint 8",
        "poa.pictures.draw.draw",
        {
            "sources": [ELSEWHERE],
            "images": ("a", "c"),
            "out": Path("b"),
            "sizes": ("32x2",),
            "kinds": ("colours", "matches"),
        }
        | {"limit": 7, "show": 3, "seed": 2, "workers": 2, "overwrite": True},
    ),
    "measure": (
        "--sizes 32x2 64x3 --image-size 32 --checkpoint 8 --threads 2 --batch 3",
        "poa.choice.measure.measure_sources",
        {
            "sources": [("runs/mine", {"image_size": 32, "checkpoint": 8})],
            "how": MeasureSettings(threads=2, batch=3),
            "sizes": ("32x2", "64x3"),
        },
    ),
    "choose": (
        "--max-ms 5 --min-score 30 --threads 2 --score linear --checkpoint best --train a c --test b d --limit 7 "
        "--workers 2",
        "poa.choice.choose.choose",
        {
            "source": ("runs/mine", {"checkpoint": "best"}),
            "limits": Limits(max_ms=5, min_score=30),
            "score": "linear",
            "how": MeasureSettings(threads=2),
            "images": Labelled(("b", "d"), ("a", "c"), 7, 2),
        },
    ),
    "export": (
        "--size 32x2 --format program --precision fp16 --image-size 32 --checkpoint best --with-preprocessing "
        "--calibrate a --images b --tolerance 0.1 --train c --test d --limit 7 --max-loss 2 --out e --overwrite",
        "poa.shipping.networks.exportables",
        {"given": "runs/mine", "sizes": ("32x2",), "image_size": 32, "checkpoint": "best"},
    ),
    "report": (
        "--images a c --out b.html --sizes 32x2 --kinds colours matches --limit 7 --show 3 --checkpoint best",
        "poa.report.write.write_report",
        {"subjects": ("runs/mine",), "images": ("a", "c"), "out": Path("b.html"), "sizes": ("32x2",)}
        | {"kinds": ("colours", "matches"), "limit": 7, "show": 3, "checkpoint": "best"},
    ),
    "polish": (
        "--size 32x2 --epochs 3 --data a c --out b --checkpoint best",
        "poa.experiments.polish.polish_settings",
        {
            "run": (Path("runs/mine"), {"checkpoint": "best"}),
            "size": "32x2",
            "epochs": 3,
            "data": ("a", "c"),
            "out": Path("b"),
        },
    ),
    "plan": (
        "--data a --recipe demo --config c.yaml --hours 2 --steps 3 --model swin --epochs 4",
        "poa.planning.run_plan.make_plan",
        {
            "given": {"data": "a", "epochs": 4, "model": {"name": "swin"}},
            "recipe": "demo",
            "file": Path("c.yaml"),
            "hours": 2.0,
            "steps": 3,
        },
    ),
    "demo": (
        "--model swin --method poa --out b --epochs 3",
        "poa.experiments.demo.demo",
        {"out": Path("b"), "model": "swin", "method": "poa", "epochs": 3},
    ),
}
NO_SOURCE = {"evaluate disturbances", "demo", "plan"}
TESTED_ELSEWHERE = {"pretrain", "sizes", "extract", "gradients", "recipes", "compare", "evaluate"}
"""In test_cli and experiments/test_compare; ``evaluate`` alone does nothing."""


class Arrived(Exception):  # noqa: N818  # nothing is wrong
    """Raised in place of the work."""


def arrived(monkeypatch: pytest.MonkeyPatch, command: str, words: str, function: str) -> dict[str, Any]:
    """By what a command calls a function: its arguments, without consoles."""
    module, _, name = function.rpartition(".")
    known = signature(getattr(import_module(module), name))

    def work(*arguments: Any, **options: Any) -> Any:
        raise Arrived(known.bind(*arguments, **options).arguments)

    monkeypatch.setattr(function, work)
    monkeypatch.setattr("poa.models.source.model_source", lambda *given, **options: (*given, options))
    monkeypatch.setattr("poa.examination.examine.Comparison", lambda *given: given)
    monkeypatch.setattr("poa.models.run.load", lambda *given, **options: (*given, options))
    model = [] if command in NO_SOURCE else ["runs/mine"]
    with pytest.raises(Arrived) as caught:
        cli.main([*command.split(), *model, *words.split()])
    found: dict[str, Any] = dict(caught.value.args[0])
    found.pop("console", None)
    if isinstance(options := found.get("options"), SweepOptions):
        found["options"] = (options.sizes, options.name, options.workers, options.overwrite, options.max_bad_share)
    return found


def test_what_writes_files_runs_in_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    together = {"pretrain", "plan", "polish", "finetune", "segment", "detect", "evaluate", "sizes", "recipes"}
    assert {name for name in cli.app if not name.startswith("-")} == together | set(cli.IN_ONE_PROCESS)
    assert "poa doctor runs in one process, and a launcher says that this is one of 2" in refused(capsys, "doctor", "a")


@pytest.mark.parametrize("is_main", [True, False])
def test_an_evaluation_is_shared_among_processes_and_shown_by_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_main: bool
) -> None:
    told: list[str] = []

    @contextmanager
    def group(*, device: torch.device) -> Iterator[None]:
        told.append(f"joined on {device.type}")
        yield
        told.append("left")

    monkeypatch.setattr("poa.distributed.process_group", group)
    monkeypatch.setattr("poa.distributed.is_main", lambda: is_main)
    source = SimpleNamespace(out=tmp_path, branch="teacher", choose=lambda _: ["32x2"])
    results = Results("knn", {}, scores={"32x2": {"top1@20": 50.0}})
    show_results(lambda options: results, lambda *_: told.append("shown"), source, Options())  # type: ignore[arg-type]
    assert told == ["joined on cpu", *["shown"] * is_main, "left"]


@pytest.mark.parametrize("command", CASES)
def test_every_flag_arrives(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    words, function, expected = CASES[command]
    assert arrived(monkeypatch, command, words, function) == expected


def flags_of(command: str) -> set[str]:
    """All flags of a command but those that are settings of a protocol, a task or a run."""
    app = cli.app
    for word in command.split():
        app = app[word]
    arguments = list(app.assemble_argument_collection())
    of_settings = {
        name
        for argument in arguments
        if isinstance(default := argument.field_info.default, Settings)
        for name in type(default).model_fields
    }
    own = (each for each in arguments if each.parse and not of_settings & set(each.keys))
    return {name for each in own for name in each.names[:1] if name.startswith("--")}


def test_every_command_and_flag_is_here() -> None:
    commands = {name for name in cli.app if not name.startswith("-")}
    commands |= {f"evaluate {name}" for name in cli.app["evaluate"] if not name.startswith("-")}
    assert commands == set(CASES) | TESTED_ELSEWHERE
    for command, (words, _, _) in CASES.items():
        assert flags_of(command) <= set(words.split()), command
