"""What is handed out loads with timm alone and is, bit for bit, what was trained."""

import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import poa
import tiny
from conformance import filler
from poa.data.images import Preprocessing
from poa.elastic.network import SubNetworks
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.export.card import Origin
from poa.export.timm import write_size
from poa.families.base import Backbone, Family, Features
from poa.families.convnext import ConvNeXt
from poa.families.dinov3 import DINOv3
from poa.families.resnet import ResNet
from poa.families.swin import Swin
from poa.families.vit import ViT
from poa.models.run import Run

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
FAMILY = ViT(SearchSpace.grid([16, 32], [2, 3]), image_size=16, patch_size=8, head_dim=16)
HIERARCHICAL = {"space": SearchSpace.grid([16, 32], [1, 2]), "image_size": 32, "depths": (1, 1, 2, 1)}
SWIN = Swin(patch_size=2, window_size=4, head_dim=8, **HIERARCHICAL)
RESNET = ResNet(SearchSpace.grid([32, 64], [(1, 1), (2, 2)]), image_size=20, depths=(1, 2, 2, 1), channels=16)
CONVNEXT = ConvNeXt(**HIERARCHICAL)
SETTINGS: dict[str, Family] = {
    "plain": FAMILY,
    "registers and SwiGLU": ViT(FAMILY.space, image_size=16, patch_size=4, head_dim=16, swiglu=True, register_tokens=2),
    "mean of patches": replace(FAMILY, global_pool="avg", fc_norm=True),
    "convolutional stem": replace(FAMILY, stem="conv"),
    "no LayerScale": ViT(FAMILY.space, image_size=24, patch_size=8, head_dim=8, layer_scale=0.0),
    "another architecture": replace(FAMILY, architecture="vit_small_patch14_reg4_dinov2", register_tokens=4),
    "DINOv3": DINOv3(FAMILY.space, image_size=16, patch_size=8, head_dim=16),
    "Swin": SWIN,
    "Swin, wide MLPs": replace(SWIN, mlp_ratio=5.0, window_size=3, patch_size=4),
    "ResNet": RESNET,
    "ResNet, narrower than it hands on": replace(RESNET, channels=32),
    "ResNet, one norm group": replace(RESNET, norm_groups=1),
    "ResNet, means in shortcuts": replace(RESNET, avg_down=True),
    "ConvNeXt": CONVNEXT,
    "ConvNeXt, LayerScale": replace(CONVNEXT, layer_scale=0.5),
    "ConvNeXt, version 2": replace(CONVNEXT, architecture="convnextv2_atto"),
}
SIDES = {
    "vit": (16, 32, 8),
    "dinov3": (16, 32, 8),
    "swin": (16, 32, 10),
    "resnet": (20, 32, 45),
    "convnext": (32, 48, 70),
}
"""Of images for each family, in pixels; the first is that of training."""
SHORT: dict[str, Any] = {"epochs": 1, "limit": 16, "monitor": {"num_images": 16}}

# Loads each folder with `poa` out of reach, and writes what the model makes of some images.
CONSUMER = """
import json, sys, timm, torch
sys.modules["poa"] = None
torch.set_num_threads(1)
request = torch.load(sys.argv[1])
replies = {}
for folder, images in request.items():
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))
    with torch.inference_mode():
        replies[folder] = [model((batch.float() / 255 - mean) / std) for batch in images]
    first = images[0].float()
    classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=10)
    replies[folder].append(classifier(first))
    grey = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=1).eval()
    replies[folder].append([grey(first[:, :1]), model(first[:, :1].expand(-1, 3, -1, -1))])
torch.save(replies, sys.argv[2])
"""


def bytes_of(image_size: int) -> Tensor:
    return ((filler((3, 3, image_size, image_size), image_size) + 0.5) * 255).to(torch.uint8)


def sub_network(family: Family, size: Size) -> tuple[Backbone, Callable[..., Features]]:
    """A size cut out of a random intact network: as a module of its own, and in place."""
    intact = family.build(family.space.intact)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in intact.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + float(parameter.ndim == 1))
    nets = SubNetworks(family.build, family.space.intact, source=family.source, groups=family.groups)
    network = nets.extract(size, intact)
    assert isinstance(network, Backbone)
    return network, nets.bind(size, dict(intact.named_parameters()), training=False)


def write(folder: Path, *, family: Family = FAMILY, size: Size | None = None, **over: Any) -> Path:
    size = size or family.space.sizes[0]
    network, elastic = sub_network(family, size)
    preprocessing = Preprocessing(family.image_size, family.image_size * 5 // 4, MEAN, STD)
    arguments: dict[str, Any] = {"preprocessing": preprocessing, "origin": Origin("a test"), **over}
    return write_size(arguments.pop("network", network), elastic, family=family, size=size, folder=folder, **arguments)


class Consumed(NamedTuple):
    """Sizes of a run, and what a program without this package made of them."""

    run: Run
    replies: dict[str, list[Any]]


def three(run: Run) -> tuple[str, ...]:
    sizes = run.sizes()
    return sizes[0], sizes[len(sizes) // 2], sizes[-1]


@pytest.fixture(scope="module")
def consumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Consumed]:
    """The smallest, a middle and the largest size of a run of every family, all loaded by one program."""
    folder = tmp_path_factory.mktemp("consumed")
    runs = {
        family: poa.pretrain(**tiny.settings(family, out=str(folder / family), **SHORT)) for family in tiny.FAMILIES
    }
    asked = {
        str(run.extract(size)): [bytes_of(side) for side in SIDES[family]]
        for family, run in runs.items()
        for size in three(run)
    }
    torch.save(asked, folder / "ask")
    done = subprocess.run(
        [sys.executable, "-c", CONSUMER, str(folder / "ask"), str(folder / "reply")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    replies = {Path(name): reply for name, reply in torch.load(folder / "reply").items()}
    return {
        family: Consumed(run, {at.name: reply for at, reply in replies.items() if at.is_relative_to(run.folder)})
        for family, run in runs.items()
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_models_load_without_this_package(consumed: dict[str, Consumed], family: str) -> None:
    """At the size of training and at others, prepared as the folder asks for; with a classifier; for grey images."""
    run, replies = consumed[family]
    assert replies.keys() == set(three(run))
    for size, (*found, logits, (grey, three_times_grey)) in replies.items():
        for side, features in zip(SIDES[family], found, strict=True):
            assert torch.equal(features, run.features(bytes_of(side), size=size)), (size, side)
        assert logits.shape == (3, 10)
        # float32, in which the weights of three channels are summed before they meet the image, not after
        torch.testing.assert_close(grey, three_times_grey, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_the_family_survives(name: str, tmp_path: Path) -> None:
    family = SETTINGS[name]
    for size in (family.space.sizes[0], family.space.intact):
        network, elastic = sub_network(family, size)
        folder = write(tmp_path / str(size), family=family, size=size)
        images = filler((2, 3, family.image_size, family.image_size), 5).float()
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(model(images), elastic(images).cls)
        assert model.state_dict().keys() == network.model.state_dict().keys()
        classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=10).eval()
        assert classifier(images).shape == (2, 10)
        assert torch.equal(classifier.forward_features(images), model.forward_features(images))
        told = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
        assert isinstance(classifier.get_submodule(told["classifier"]), nn.Linear)
        assert isinstance(model.get_submodule(told["first_conv"]), nn.Conv2d)


def test_timm_prepares_images_as_training_did(tmp_path: Path) -> None:
    model = timm.create_model(f"local-dir:{write(tmp_path / 'model')}", pretrained=True)
    data = timm.data.resolve_model_data_config(model)
    assert tuple(data["input_size"]) == (3, 16, 16)
    assert (tuple(data["mean"]), tuple(data["std"])) == (MEAN, STD)
    assert (data["crop_pct"], data["crop_mode"], data["interpolation"]) == (0.8, "center", "bicubic")
    prepared = timm.data.create_transform(**data)(Image.new("RGB", (40, 30), (255, 0, 51)))
    expected = [
        (value - mean) / std for value, mean, std in zip((1.0, 0.0, 0.2), data["mean"], data["std"], strict=True)
    ]
    assert prepared.shape == (3, 16, 16)
    assert prepared.mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_folder_explains_itself(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    card = (folder / "README.md").read_text()
    assert "# 16x2\n" in card
    assert "| part | of 32x3: width 16 of 32; blocks, counted from 0: 0, 2 of 3 |" in card
    assert "| from | a test |" in card
    network, _ = sub_network(FAMILY, Size(16, (2,)))
    assert f"{sum(parameter.numel() for parameter in network.model.parameters()):,} parameters" in card
    assert json.loads((folder / "config.json").read_text())["num_features"] == 16
    assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) & stat.S_IROTH


@pytest.mark.parametrize("name", ["a b", "a#b?c", "100%41", 'a"\\b'])
def test_odd_names_of_folders(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / name)
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).embed_dim == 16
    assert str(tmp_path) not in (folder / "README.md").read_text("utf-8")


def test_a_folder_that_others_cannot_open(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"caf\\xe9 has a path with bytes that are not UTF-8.*Choose another --out"):
        write(tmp_path / os.fsdecode(b"caf\xe9"))
    assert not any(tmp_path.iterdir())


def test_an_empty_folder_may_be_filled_even_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write(Path()) == Path()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sorted(os.listdir(".")) == ["README.md", "config.json", "model.safetensors"]  # noqa: PTH208  # through the cwd


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_folder_in_use_is_left_alone(kind: str, tmp_path: Path) -> None:
    used = tmp_path / "used"
    file = used / "mine" if kind == "folder" else used
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(UserError, match=r"already exists\. Choose another --out"):
        write(used)
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_what_a_stopped_command_wrote_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "model")
    when = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    def told(**over: Any) -> str:
        assert write(folder, **over) == folder
        return capsys.readouterr().err.replace("\n", " ")

    assert f"Note: {folder} already holds this model, with the same weights. It is kept." in told()
    assert "It is kept; --overwrite writes its README.md again." in told(origin=Origin("scored meanwhile"))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == when
    assert "It is kept, and its README.md is written again." in told(origin=Origin("scored later"), overwrite=True)
    assert "scored later" in (folder / "README.md").read_text()
    weights = (folder / "model.safetensors").read_bytes()
    for content in (weights[:-1], weights[:-1] + b"x"):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"already exists\. Choose another --out, or replace .* with --overwrite"):
            write(folder)


def test_models_alone_are_overwritten(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "exported").mkdir()
    write(folder, size=FAMILY.space.intact, overwrite=True)
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).embed_dim == 32
    assert not (folder / "exported").exists(), "files made of the old weights are left"
    (folder / "notes").write_text("mine")
    with pytest.raises(UserError, match="also holds notes, which is no part of a model and would be lost"):
        write(folder, overwrite=True)
    for other in (tmp_path, folder / "notes"):
        with pytest.raises(UserError, match=r"holds no model, so that --overwrite does not replace it\. Choose"):
            write(other, overwrite=True)
    assert (folder / "notes").read_text() == "mine"


def test_a_model_that_differs_is_refused(tmp_path: Path) -> None:
    network, _ = sub_network(FAMILY, Size(16, (2,)))
    with torch.no_grad():
        network.get_parameter("model.blocks.1.mlp.fc2.bias")[0] += 1e-5
    with pytest.raises(RuntimeError, match="is not the one that was trained"):
        write(tmp_path / "model", network=network)
    assert not list(tmp_path.iterdir())


def test_a_model_that_timm_builds_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = timm.create_model

    def other(*words: Any, **options: Any) -> Any:
        model = build(*words, **options)
        if words[0].startswith("local-dir:"):
            model.blocks[0].attn.scale *= 2
            model.blocks[0].attn.fused_attn = False
        return model

    monkeypatch.setattr("poa.export.timm.timm.create_model", other)
    with pytest.raises(RuntimeError, match="is not the one that was trained"):
        write(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    for place in ("save", "timm.create_model"):
        with monkeypatch.context() as patch:
            patch.setattr(f"poa.export.timm.{place}", interrupted)
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path / "model")
        assert not list(tmp_path.iterdir())
    write(tmp_path / "model")


def test_what_a_kill_left_behind_is_in_no_way(tmp_path: Path) -> None:
    (tmp_path / ".model.tmp").mkdir()
    (tmp_path / ".model.tmp/half").write_text("half")
    os.utime(tmp_path / ".model.tmp", (0, 0))
    write(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_leaves_nothing_but_a_sentence(tmp_path: Path) -> None:
    with file_size_limit(1000), pytest.raises(UserError, match=r"model cannot be written: File too large\. Choose"):
        write(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: Not a directory\. Choose another folder"):
        write(tmp_path / "file/model")
