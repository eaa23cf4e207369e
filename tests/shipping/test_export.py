"""Files of a network do what the network does, without this package, or are not left behind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from rich.console import Console
from torch import nn
from torchvision.transforms.v2 import Normalize

import supervised
from command import poa
from poa.data.images import Preprocessing
from poa.errors import UserError
from poa.export.about import KEY, read_about
from poa.export.apart import Reply
from poa.families.base import Features
from poa.shipping import export as shipping
from poa.shipping.check import Agreement, agreement, refusal
from poa.shipping.export import Result, Wish, export
from poa.shipping.maker import Maker
from poa.shipping.networks import Exportable, Exportables, OneImage, _Pooled, exportables
from poa.shipping.scores import Labelled, open_labelled, score
from poa.shipping.table import table
from poa.tasks.detection.model import DetectorPlan, build_detector
from poa.text import plain_console

SIDE = 16
PREPARED = Preprocessing(SIDE, SIDE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def vit() -> Exportable:
    family = supervised.family(image_size=SIDE, patch_size=8)
    torch.manual_seed(0)
    network = _Pooled(family.build(family.space.sizes[0])).eval().requires_grad_(False)
    return Exportable("16x1", network, "features", PREPARED, "drawn", ())


def given(network: Exportable, out: Path, data: str | None = None) -> Exportables:
    return Exportables((network.name,), lambda _: network, out, data)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """In two precisions, taking pixels."""
    wish = Wish(precisions=("int8", "fp32"), pixels=True, calibrate="digits/train")
    return export(given(vit(), tmp_path_factory.mktemp("exported")), wish, console=Console(quiet=True))


def test_files_do_what_the_network_does(exported: Result) -> None:
    """For batches of 1, 2 and 5 images, in a process that cannot import this package."""
    assert not exported.refused
    full, small = exported.files
    assert [each.file.name for each in exported.files] == ["16x1-pixels.onnx", "16x1-int8-pixels.onnx"]
    assert full.agreement.difference <= 1e-5
    assert 1e-5 < small.agreement.difference < 0.1
    assert small.agreement.cosine > 0.99
    assert {path.name for path in full.file.parent.iterdir()} == {each.file.name for each in exported.files}
    assert full.num_bytes == full.file.stat().st_size > small.num_bytes


def test_files_say_what_they_are_and_nothing_of_this_machine(exported: Result) -> None:
    for each, precision in zip(exported.files, ("fp32", "int8"), strict=True):
        model = onnx.load(each.file)
        about = read_about({entry.key: entry.value for entry in model.metadata_props}, file="it")
        assert about == vit().about(precision, pixels=True)
        (images,) = model.graph.input
        sides = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
        assert (images.name, sides) == ("images", ["batch", SIDE, SIDE, 3])
        assert [output.name for output in model.graph.output] == ["features"]
        assert b".py" not in each.file.read_bytes()
        assert not any(node.metadata_props for node in model.graph.node)


def test_int8_is_of_weights_by_channel(exported: Result) -> None:
    model = onnx.load(exported.files[1].file)
    kinds = [node.op_type for node in model.graph.node]
    assert "DequantizeLinear" in kinds
    int8 = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8]
    weights = [each for each in int8 if len(each.dims) > 1]
    scales = {each.name: each.dims for each in model.graph.initializer if each.name.endswith("_scale")}
    assert len(weights) == 4  # q, k and v; their projection; two layers of the MLP; not patches, of the image itself
    for weight in weights:
        (channels,) = scales[weight.name.removesuffix("_quantized") + "_scale"]
        assert channels in weight.dims


def test_a_program_takes_any_number_of_images(tmp_path: Path) -> None:
    network = vit()
    (file,) = Maker(network, tmp_path, pixels=False, calibration=None).make("program", "fp16", "half.pt2")
    assert b".py" not in file.read_bytes(), "a folder of this machine"
    extra = {KEY: ""}
    program = torch.export.load(file, extra_files=extra).module()
    assert read_about(extra, file="it") == network.about("fp16", pixels=False)
    assert "upsample" not in program.code, "timm resizes positions of equal size too while it is traced"
    assert len(program.state_dict()) == len(network.network.state_dict()) - 1  # without the mask token
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(batch))
        found = agreement([program(images)], [network.network(images)])
        assert 1e-7 < found.difference < 1e-2


def test_detectors_take_one_image(tmp_path: Path) -> None:
    """By the older exporter; with a cascade, whose stages hand boxes on."""
    family = supervised.family(image_size=32, patch_size=8)
    architecture, arguments = family.timm_config(family.space.sizes[0])
    plan = DetectorPlan(
        head="cascade-mask-rcnn",
        num_classes=3,
        mean=PREPARED.mean,
        std=PREPARED.std,
        side=32,
        longest=32,
        train_sides=(32,),
        channels=8,
        box_head="mlp",
        box_loss="smooth-l1",
        hidden=8,
        anchor_cells=4.0,
        regions=8,
        min_score=0.0,
        most=5,
    )
    torch.manual_seed(0)
    detector = build_detector(timm.create_model(architecture, **arguments), plan).eval().requires_grad_(False)
    prepared = replace(PREPARED, image_size=32, resize=32)
    network = Exportable("boxes", OneImage(detector, side=32).eval(), "detection", prepared, "drawn", ("a", "b", "c"))
    result = export(given(network, tmp_path), Wish(images="digits/test"), console=Console(quiet=True))
    assert not result.refused
    model = onnx.load(result.files[0].file)
    assert [output.name for output in model.graph.output] == ["boxes", "labels", "scores"]
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    (whole,) = detector([image])
    found = network.network(Normalize(PREPARED.mean, PREPARED.std)(image)[None])
    for each, name in zip(found, ("boxes", "labels", "scores"), strict=True):
        torch.testing.assert_close(each, whole[name])


def shown(result: Result) -> str:
    console = plain_console(width=60)
    with console.capture() as text:
        console.print(table(result))
    return text.get()


def test_the_table_fits_narrow_terminals(exported: Result) -> None:
    text = shown(exported)
    assert max(map(len, text.splitlines())) <= 60
    for each in exported.files:
        assert f"{each.milliseconds:.2f}" in text
        assert f"{each.num_bytes / 1e6:.2f}" in text


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.Tensor], None]:
    """Files that are not written by an exporter, and what comes out of them."""

    def make(_: Maker, kind: str, precision: str, name: str) -> tuple[Path, ...]:
        path = make.folder / name
        path.write_bytes(b"content")
        return (path,)

    plain = Maker.__init__

    def begin(self: Maker, network: Exportable, folder: Path, **options: Any) -> None:
        make.folder = folder
        plain(self, network, folder, **options)

    monkeypatch.setattr(Maker, "__init__", begin)
    monkeypatch.setattr(Maker, "make", make)

    def gives(outputs: torch.Tensor) -> None:
        monkeypatch.setattr(shipping, "run_apart", lambda *_, **__: Reply((outputs,), 1.0))

    return gives


class Constant(nn.Module):
    """A network of known features."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0, 2.0]]).expand(len(images), 2)


CONSTANT = Exportable("constant", Constant(), "features", PREPARED, "none")


def test_a_file_that_does_something_else_is_not_left_behind(wrong: Any, tmp_path: Path) -> None:
    wrong(torch.tensor([[1.0, 2.1]]).expand(8, 2))
    result = export(given(CONSTANT, tmp_path / "out"), Wish(), console=Console(quiet=True))
    assert not result.files
    assert "differ by up to 5.0e-02 of the largest value, more than 1e-05" in result.refused["constant.onnx"]
    assert list((tmp_path / "out").iterdir()) == []
    allowed = export(given(CONSTANT, tmp_path / "out"), Wish(tolerance=0.06), console=Console(quiet=True))
    assert [each.file.read_bytes() for each in allowed.files] == [b"content"]
    with pytest.raises(UserError, match=r"constant\.onnx already exists\. Choose another --out, or .* --overwrite"):
        export(given(CONSTANT, tmp_path / "out"), Wish())


def test_int8_that_loses_score_is_not_left_behind(wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(torch.tensor([[1.0, 2.0]]).expand(8, 2))
    scores = iter((50.0, 48.5, 50.0, 49.5))
    monkeypatch.setattr(shipping, "score", lambda *_: next(scores))
    wish = Wish(precisions=("int8",), calibrate="digits/test", labelled=Labelled("digits/train", "digits/test", 20))
    result = export(given(CONSTANT, tmp_path), wish, console=Console(quiet=True))
    assert "its score is 48.5, that of the network 50.0, a loss of more than 1 point" in str(result.refused)
    assert list(tmp_path.iterdir()) == []
    kept = export(given(CONSTANT, tmp_path), wish, console=Console(quiet=True))
    assert [each.scores for each in kept.files] == [(50.0, 49.5)]
    assert "49.5  +0.5" in shown(kept)


def test_scores_are_those_of_the_images() -> None:
    """A network that sees the mean brightness of each row alone, and a classifier that always takes one class."""
    labelled = open_labelled(Labelled("digits/train", "digits/test", 100))
    of_rows = score(lambda images: images.float().mean(3)[:, 0], CONSTANT, labelled)
    assert 20 < of_rows < 95
    digits = replace(CONSTANT, task="classification", classes=tuple(map(str, reversed(range(10)))))
    always_nine = score(lambda images: torch.eye(10)[:1].expand(len(images), 10), digits, labelled)
    assert always_nine == 10
    with pytest.raises(UserError, match="The training images of constant have 2 classes"):
        score(lambda images: images, replace(digits, classes=("cat", "dog")), labelled)
    with pytest.raises(UserError, match="needs --train and --test"):
        score(lambda images: images, CONSTANT, open_labelled(Labelled(None, "digits/test", 100)))


def test_agreement() -> None:
    expected = torch.tensor([[3.0, 4.0], [0.0, -8.0]])
    found = agreement([torch.tensor([[4.0, 3.0], [0.0, -8.0]])], [expected])
    assert found == pytest.approx((1 / 8, (24 / 25 + 1) / 2))
    assert agreement([expected, torch.tensor([3, 1])], [expected, torch.tensor([2, 1])]).difference == 0.5
    assert agreement([expected[:0]], [expected[:0]]) == (0.0, 1.0)
    for bad in (torch.full((2, 2), torch.nan), expected[:1]):
        assert agreement([bad], [expected]) == (float("inf"), 0.0)
    assert refusal(Agreement(1e-5, 1.0), "fp32", tolerance=None) is None
    assert "fp16" in str(refusal(Agreement(0.5, 0.8), "int8", tolerance=None))


def test_names_of_files_say_what_they_are(wrong: Any, tmp_path: Path) -> None:
    wrong(torch.tensor([[1.0, 2.0]]).expand(8, 2))
    one = replace(given(CONSTANT, tmp_path, data="digits/train"), mark="-24px")
    wish = Wish(formats=("program", "onnx"), precisions=("fp16", "int8"), pixels=True)
    result = export(one, wish, console=Console(quiet=True))
    names = [each.file.name for each in result.files]
    assert names == [f"constant-24px-{rest}" for rest in ("fp16-pixels.pt2", "fp16-pixels.onnx", "int8-pixels.onnx")]


def test_bad_wishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, quiet = given(CONSTANT, tmp_path / "out"), Console(quiet=True)
    with pytest.raises(
        UserError, match=r"^--format must be one or more of onnx, program, executorch, openvino, got tf\.$"
    ):
        export(one, Wish(formats=("tf",)), console=quiet)
    with pytest.raises(UserError, match=r"--format program --precision int8\. Choose .* program: fp32, fp16;"):
        export(one, Wish(formats=("program",), precisions=("int8",)), console=quiet)
    with pytest.raises(UserError, match="int8 needs images that are like those of later use: give --calibrate FOLDER"):
        export(one, Wish(precisions=("int8",)), console=quiet)
    gone = given(CONSTANT, tmp_path / "out", data=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"those of the run cannot be opened \(.*gone.*\)\. Give --calibrate FOLDER"):
        export(gone, Wish(precisions=("int8",)), console=quiet)
    with pytest.raises(UserError, match=r"--train and --test score files of int8\. Add --precision int8"):
        export(one, Wish(labelled=Labelled("digits/train", "digits/test")), console=quiet)
    for wish in (Wish(calibrate="gone"), Wish(images="gone")):
        with pytest.raises(UserError, match="gone"):
            export(one, wish, console=quiet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        export(one, Wish(precisions=("int8",), calibrate=str(tmp_path / "empty")), console=quiet)
    for module, kind, extra in (("onnx", "onnx", "export"), ("openvino",) * 3, ("program", "executorch", "executorch")):
        monkeypatch.setattr(f"poa.export.{module}.find_spec", lambda _: None)
        with pytest.raises(
            UserError, match=rf"--format {kind} needs the package \w+, which is not installed\. .*\[{extra}\]'"
        ):
            export(one, Wish(formats=(kind,)), console=quiet)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "detection.json").write_text("{}")
    detector = exportables(str(tmp_path))
    for wish in (Wish(("program",)), Wish(precisions=("int8",))):
        with pytest.raises(UserError, match=r"cannot be exported with .*\. Choose from --format onnx: fp32\."):
            export(detector, wish, console=Console(quiet=True))
    (tmp_path / "weights.pt").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"weights\.pt is a file of weights, which does not name its network"):
        exportables(str(tmp_path / "weights.pt"))
    assert poa("export", tmp_path, "--format", "tflite") == 2
    told = capsys.readouterr().err
    assert "tflite" in told
    assert "onnx" in told
    assert poa("export", tmp_path, "--train", "digits/train") == 2
    assert "--train and --limit go with --test" in capsys.readouterr().err


def test_a_file_of_others_is_not_read(tmp_path: Path) -> None:
    for metadata in ({}, {KEY: "{}"}, {KEY: "no json"}, {KEY: json.dumps(["list"])}):
        with pytest.raises(UserError, match=r"it does not say how images are prepared .* `poa export` wrote"):
            read_about(metadata, file="it")


def test_features_are_pooled() -> None:
    class Two(nn.Module):
        def forward(self, images: torch.Tensor) -> Features:
            return Features(images.mean(dim=(2, 3)), images.flatten(2).mT)

    images = torch.from_numpy(np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2))
    assert torch.equal(_Pooled(Two())(images), images.mean(dim=(2, 3)))
