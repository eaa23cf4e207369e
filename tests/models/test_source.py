"""What is scored: runs, folders and timm names."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import poa
import tiny
from poa.errors import UserError
from poa.families.base import Features
from poa.models import hub, weights
from poa.models import source as sources
from poa.models.run import Run
from poa.models.source import model_source, run_source
from poa.models.weights import TrainedWeights
from trained import made, saved

SIZES = ("32x2", "32x3", "64x2", "64x3")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return poa.pretrain(
        **tiny.settings(out=tmp_path_factory.mktemp("sources") / "run", epochs=1, model={"head_dim": 32})
    )


@pytest.fixture(scope="module")
def model(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.extract("32x3", out=tmp_path_factory.mktemp("models") / "32x3")


def images(side: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def pooled(network: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Features of a plain timm model, as timm gives them."""
    with torch.no_grad():
        features: torch.Tensor = network.eval().forward_head(network.forward_features(pixels), pre_logits=True)
    return features


def fill(network: nn.Module) -> nn.Module:
    """Running statistics and weights that are not as they begin."""
    generator = torch.Generator().manual_seed(1)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value += 0.02 * torch.rand(value.shape, generator=generator)
    return network


def test_a_run(run: Run) -> None:
    source = model_source(str(run.folder))
    assert (source.name, source.names, source.branch) == (str(run.folder), SIZES, "teacher")
    (file,) = run.paths.checkpoints.glob("*.pt")
    assert source.weights == f"teacher at step {run.step}, sha256 {file.read_bytes()[-64:-48].decode()}"
    assert (source.preprocessing.image_size, source.preprocessing.resize, source.out) == (16, 16, run.folder / "eval")
    assert (source.preprocessing.mean, source.preprocessing.std) == (run.config.views.mean, run.config.views.std)
    for name in SIZES:
        network = source.network(name)
        assert torch.equal(network(images()).cls, run.network(name)(images()).cls)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    untrained = run_source(run, branch="untrained", out=Path("elsewhere"))
    assert (untrained.branch, untrained.out) == ("untrained", Path("elsewhere"))
    assert untrained.weights.startswith("untrained, seed 0, model ")
    wider = run.config.model_copy(update={"model": run.config.model.changed(width_max=96)})
    assert run_source(Run(run.folder, wider), branch="untrained").weights != untrained.weights
    assert torch.equal(untrained.network("32x2")(images()).cls, run.untrained("32x2")(images()).cls)


def test_images_of_another_size(run: Run) -> None:
    source = model_source(str(run.folder), image_size=24)
    assert (source.preprocessing.image_size, source.preprocessing.resize) == (24, 24)
    with pytest.raises(UserError, match=r"image size 20 is not.*Set --image-size to 16 or 24"):
        model_source(str(run.folder), image_size=20)
    resized = run.config.model_copy(update={"evaluation": run.config.evaluation.model_copy(update={"resize": 20})})
    assert run_source(Run(run.folder, resized), image_size=24).preprocessing.resize == 30


def test_sizes_are_chosen_by_name(run: Run) -> None:
    source = model_source(str(run.folder))
    assert source.choose("all") == source.choose(["all"]) == SIZES
    assert source.choose("64x3, 32x2") == source.choose(["64x3", "32x2"]) == ("64x3", "32x2")
    for wanted, words in (
        ("40x2", "no size '40x2'. Did you mean '32x2'"),
        ("big", "'big' is not a size"),
        ((), "Name the sizes"),
    ):
        with pytest.raises(UserError, match=words):
            source.choose(wanted)


def test_an_extracted_size(run: Run, model: Path) -> None:
    source = model_source(str(model))
    assert (source.names, source.out) == (("32x3",), Path("eval/32x3"))
    assert (source.preprocessing.image_size, source.preprocessing.resize) == (16, 16)
    assert (source.preprocessing.mean, source.preprocessing.std) == (run.config.views.mean, run.config.views.std)
    network = source.network("32x3")
    found, expected = network(images()), run.network("32x3")(images())
    assert torch.equal(found.cls, expected.cls)
    assert torch.equal(found.patches, expected.patches)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert source.choose("all") == source.choose("32x3") == ("32x3",)
    with pytest.raises(UserError, match=r"single network and has no size '32x2'\. Did you mean '32x3'"):
        source.choose("32x2")
    assert model_source(f"local-dir:{model}").weights == source.weights
    with pytest.raises(UserError, match="is not the folder of a run, so it has no initial sizes"):
        model_source(str(model), branch="initial")


def test_an_extracted_size_that_is_not_made_for_such_images(model: Path) -> None:
    assert model_source(str(model), image_size=24).preprocessing.resize == 24
    with pytest.raises(
        UserError, match=r"cannot process images of 20 pixels.*It is made for 16 pixels: leave out --im"
    ):
        model_source(str(model), image_size=20)


def test_images_are_resized_as_in_the_run(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    file = tmp_path / "model/config.json"
    content = json.loads(file.read_text())
    for side, resize in ((96, 118), (16, 20), (224, 256)):  # 96 / (96 / 118) is a little below 118
        content["pretrained_cfg"] |= {"crop_pct": side / resize, "input_size": [3, side, side]}
        file.write_text(json.dumps(content))
        seen = model_source(str(tmp_path / "model")).preprocessing
        assert (seen.image_size, seen.resize) == (side, resize)


def test_a_folder_that_timm_loads_is_no_run(run: Run, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    shutil.copy(run.paths.config, tmp_path / "model")
    assert model_source(str(tmp_path / "model")).names == ("model",)


def test_other_weights_are_told_apart(run: Run, model: Path, tmp_path: Path) -> None:
    before = model_source(str(model)).weights
    assert run.extract("32x3", out=tmp_path / "32x3")
    assert model_source(str(tmp_path / "32x3")).weights == before
    changed = fill(timm.create_model(f"local-dir:{model}", pretrained=True))
    save_file(changed.state_dict(), tmp_path / "32x3/model.safetensors")
    assert model_source(str(tmp_path / "32x3")).weights != before
    assert model_source(str(tmp_path / "32x3"), branch="untrained").weights.startswith(
        "untrained 32x3, seed 0, sha256 "
    )


def test_an_extracted_size_without_training_is_always_the_same(model: Path) -> None:
    torch.manual_seed(3)
    first = model_source(str(model), branch="untrained").network("32x3")(images()).cls
    state = torch.get_rng_state()
    second = model_source(str(model), branch="untrained").network("32x3")(images()).cls
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.allclose(first, model_source(str(model)).network("32x3")(images()).cls)


@pytest.mark.parametrize("folder", [False, True], ids=["run", "folder"])
def test_models_to_be_trained_further(run: Run, model: Path, folder: bool) -> None:
    source = model_source(str(model) if folder else str(run.folder))
    found = source.timm_model("32x3", num_classes=7, drop_path=0.3)
    assert found(images()).shape == (2, 7)
    assert all(parameter.requires_grad for parameter in found.parameters())
    assert [block.drop_path1.drop_prob for block in list(found.blocks)[1:]] == [pytest.approx(0.15), pytest.approx(0.3)]
    assert torch.equal(pooled(found, images()), run.network("32x3")(images()).cls)
    again = source.timm_model("32x3", num_classes=7)
    assert torch.equal(again.head.weight, found.head.weight)
    assert bool((found.head.weight != 0).any())
    with torch.no_grad():
        found.norm.weight.zero_()
    assert torch.equal(source.network("32x3")(images()).cls, run.network("32x3")(images()).cls), "weights are shared"


def test_swin_runs_give_models_too(tmp_path: Path) -> None:
    run = poa.pretrain(**tiny.settings("swin", out=tmp_path / "run", epochs=1))
    name = run.sizes()[0]
    found = run_source(run).timm_model(name, num_classes=3, drop_path=0.1)
    torch.testing.assert_close(pooled(found, images()), run.network(name)(images()).cls)
    assert found(images()).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "side", "cells"),
    [("resnet10t", 64, 4), ("mobilenetv3_small_050", 64, 4), ("vit_tiny_patch16_224", 32, 4)],
)
def test_timm_names_without_training(name: str, side: int, cells: int) -> None:
    source = model_source(name, branch="untrained", image_size=side)
    assert (source.names, source.out) == ((name,), Path("eval", name))
    assert source.weights.startswith(f"untrained {name}, seed 0, sha256 ")
    network = source.network(name)
    with torch.no_grad():
        features = network(images(side))
    plain = source.timm_model(name, num_classes=5)
    assert torch.allclose(pooled(plain, images(side)), features.cls)
    assert plain(images(side)).shape == (2, 5)
    assert features.patches.shape == (2, cells, plain.num_features)
    crop = plain.pretrained_cfg["crop_pct"]
    assert source.preprocessing.resize == int(side / crop + 1e-6) > side


@pytest.mark.parametrize(("name", "size"), [("swin_tiny_patch4_window7_224", 32), ("convnext_atto", 32)])
def test_cells_of_maps(name: str, size: int) -> None:
    further = {"img_size": size, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)} if "swin" in name else {}
    plain = timm.create_model(name, num_classes=0, **further).eval()
    with torch.no_grad():
        features = sources._PlainNetwork(plain)(images(size))
        assert torch.equal(features.cls, plain(images(size)))
        maps = plain.forward_features(images(size))
    assert isinstance(features, Features)
    first = maps[:, 0, 0] if "swin" in name else maps[:, :, 0, 0]
    assert torch.equal(features.patches[:, 0], first)
    assert features.patches.shape[2] == plain.num_features


def known(monkeypatch: pytest.MonkeyPatch, name: str) -> nn.Module:
    """Weights of a name are there without being fetched."""
    model = fill(timm.create_model(name))
    monkeypatch.setattr(
        weights, "read", lambda wanted: TrainedWeights(wanted, model.state_dict(), (), remedy="", model=model)
    )
    return model


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"])
def test_trained_timm_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    trained = known(monkeypatch, name)
    source = model_source(name)
    assert (source.weights[:-16], source.names) == (f"timm {name}, sha256 ", (name,))
    side = source.preprocessing.image_size
    with torch.no_grad():
        assert torch.allclose(source.network(name)(images(side)).cls, pooled(trained, images(side)))
    for classes in (1000, 4):  # as many as the weights have, too
        found: Any = source.timm_model(name, num_classes=classes)
        assert torch.allclose(pooled(found, images(side)), pooled(trained, images(side)))
        head = found.get_classifier()
        assert not torch.allclose(head.weight, trained.get_classifier().weight[:classes])


def test_positions_are_resized_to_other_image_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: Any = known(monkeypatch, "vit_tiny_patch16_224")
    source = model_source("vit_tiny_patch16_224", image_size=64)
    network: Any = source.network(source.names[0])
    assert network.model.pos_embed.shape == (1, 17, 192)
    assert torch.equal(network.model.pos_embed[:, :1], trained.pos_embed[:, :1])
    assert source.timm_model("", num_classes=2)(images(64)).shape == (2, 2)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_why_unreachable", lambda: "no network")
    with pytest.raises(UserError) as found:
        model_source("resnet10t")
    assert str(found.value).startswith("resnet10t: its weights cannot be downloaded (no network). Without internet")
    assert "--init" not in str(found.value)
    assert "or a file of weights" not in str(found.value)


def test_networks_that_cannot_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TypeError("unexpected keyword argument 'img_size'\nand more")

    with pytest.raises(
        UserError, match=r"dla46_c: timm cannot build this network with num_classes=3, drop_path_rate=0\.2"
    ):
        model_source("dla46_c", branch="untrained", image_size=32).timm_model("", num_classes=3, drop_path=0.2)
    monkeypatch.setattr(timm.models.resnet.ResNet, "forward_features", refuse)
    with pytest.raises(UserError, match=r"cannot process images of 176 pixels \(TypeError: [^\n]*\)\. Choose another"):
        model_source("resnet10t", branch="untrained")


def test_what_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("resnt18", "resnt18: there is no such file, folder or timm model. Did you mean 'resnet18'"),
        (f"{tmp_path}/none", "none: there is no such file or folder"),
        (f"{tmp_path}/weights.pth", "weights.pth is a file"),
        (f"{tmp_path}/empty", "empty is neither the folder of a run nor one with config.json"),
    ):
        for branch in ("teacher", "untrained"):
            with pytest.raises(UserError, match=words):
                model_source(name, branch=branch)
    with pytest.raises(UserError, match="--image-size must be at least 1, got 0"):
        model_source("resnet10t", branch="untrained", image_size=0)
    with pytest.raises(UserError, match="no branch 'student'"):
        model_source("resnet10t", branch="student")


def test_weights_that_do_not_fit_their_folder_are_not_loaded_in_part(tmp_path: Path) -> None:
    """With a classifier, which is left out, timm leaves out other tensors as well."""
    folder = Path(saved(made(), tmp_path))
    state, described = load_file(folder / "model.safetensors"), (folder / "config.json").read_text()
    content = json.loads(described)
    content["model_args"]["depth"] = 2
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"do not fit its network: the network has no blocks\.2\.\S+, \S+, \S+ and \d+ more"
    ):
        model_source(str(folder))
    (folder / "config.json").write_text(described)
    del state["norm.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        UserError, match=r"do not fit its network: they lack norm\.weight\. Give a folder as timm writes"
    ):
        model_source(str(folder))
    state["norm.weight"] = torch.full((64,), torch.nan)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r": norm\.weight holds NaN or infinite values\. Give other weights"):
        model_source(str(folder))
