"""Without --model, a run that starts from trained weights has their network."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import poa
import tiny
from command import poa as command
from poa.models.run import Run
from poa.models.weights import with_network
from trained import made, saved

CONVNEXT = tiny.FAMILIES["convnext"]["model"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of a ConvNeXt."""
    return poa.pretrain(**tiny.settings("convnext", out=tmp_path_factory.mktemp("runs") / "run", epochs=1, limit=16))


def without_model(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in tiny.settings("convnext", **settings).items() if name != "model"}


def test_a_run_hands_on_its_network_and_all_sizes(run: Run, tmp_path: Path) -> None:
    given = without_model(out=tmp_path / "next", init=str(run.folder), epochs=1, limit=16)
    following = poa.pretrain(**given)
    assert following.config.model == run.config.model.model_copy(update={"drop_path": following.config.model.drop_path})
    assert following.sizes() == run.sizes()
    assert poa.pretrain(**given, resume_if_begun=True).config == following.config


def test_a_folder_and_a_name_are_the_network(tmp_path: Path) -> None:
    folder = saved(made("swin"), tmp_path / "model")
    assert with_network({"init": folder}) == {"init": folder, "model": {"name": folder}}
    name = "vit_small_patch14_dinov2.lvd142m"
    wide = {"init": name, "model": {"width_step": 128}}
    assert with_network(wide) == {"init": name, "model": {"name": name, "width_step": 128}}


def test_what_is_said_of_the_network_lies_over_that_of_a_run(run: Run, tmp_path: Path) -> None:
    for weights in (run.folder, sorted((run.folder / "checkpoints").glob("step-*.pt"))[-1]):
        found = with_network({"init": str(weights), "model": {"width_min": 32}})["model"]
        assert (found["name"], found["width_max"], found["width_min"]) == ("convnext", CONVNEXT["width_max"], 32)
        assert "drop_path" not in found, "it belongs to training, so the recipe says it"
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"init": str(run.folder), "model": {"width_min": 32}}), encoding="utf-8")
    assert with_network({}, file=file)["model"] == found


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"init": None},
        {"init": "hf-hub:owner/name"},
        {"init": "weights.pth"},
        {"init": "no such thing"},
        {"init": "vit_small_patch16_224", "model": "vit"},
        {"init": "vit_small_patch16_224", "model": {"name": "swin"}},
        {"init": "resnet50", "method": "slimclr-mocov2"},
    ],
    ids=str,
)
def test_nothing_changes_where_weights_do_not_tell_or_a_network_is_named(given: dict[str, Any]) -> None:
    assert with_network(given) is given
    slimmable = {"init": "resnet50"}
    assert with_network(slimmable, recipe="slimclr-small-data") is slimmable, "it refuses weights"


def test_a_run_that_is_resumed_keeps_its_own(run: Run) -> None:
    given = {"init": "vit_small_patch16_224", "out": run.folder}
    assert with_network(given, resume=True) is given
    assert "model" in with_network(given)
    assert "model" in with_network({**given, "out": "not begun"}, resume=True)


def test_the_command_its_file_and_its_plan(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"init": str(run.folder), "recipe": "adapt-small-data"}), encoding="utf-8")
    words = ["pretrain", "--data", "digits", "--device", "cpu", "--print-config"]
    init = ["--init", str(run.folder)]
    for further in ([*init, "--recipe", "adapt-small-data"], [*init, "--steps", "8"], ["--config", str(file)]):
        assert command(*words, *further) == 0
        found = yaml.safe_load(capsys.readouterr().out)["model"]
        assert (found["name"], found["width_max"]) == ("convnext", CONVNEXT["width_max"])
