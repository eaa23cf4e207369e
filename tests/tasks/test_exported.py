"""Exported files used on images: the same as the network, and what is refused."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from poa.data.images import Preprocessing
from poa.errors import UserError
from poa.export.about import About, Task
from poa.tasks import exported, predict
from tasks.segmentation.mask_images import write_pairs

MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.4, 0.3)
SIDE = 8
CLASSES = ("ant", "bee", "=cat")


def about(task: Task, *, pixels: bool = False, side: int = SIDE) -> About:
    return About("64x3", task, CLASSES, Preprocessing(side, side, MEAN, STD), pixels, "fp32", "of a test")


class Means(nn.Module):
    """Logits from the means of the channels, of normalised images or of pixels with the channels last."""

    def __init__(self, *, pixels: bool = False) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, images: Tensor) -> Tensor:
        if self.pixels:
            images = (images.permute(0, 3, 1, 2).float() / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(
                STD
            ).view(1, 3, 1, 1)
        return images.mean(dim=(2, 3))


def write_program(file: Path, *, pixels: bool) -> Path:
    images = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8) if pixels else torch.zeros(2, 3, SIDE, SIDE)
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    program = torch.export.export(Means(pixels=pixels), (images,), dynamic_shapes=shapes)
    torch.export.save(program, file, extra_files=about("classification", pixels=pixels).metadata())
    return file


def write_onnx(file: Path, task: Task = "classification", *, side: int = SIDE, metadata: bool = True) -> Path:
    """Means of the channels as logits; or the channels as scores of the classes of each pixel."""
    if task == "segmentation":
        weight = numpy_helper.from_array(np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "weight")
        nodes, weights, shape = [helper.make_node("Conv", ["images", "weight"], ["out"])], [weight], [side, side]
    else:
        nodes = [helper.make_node("GlobalAveragePool", ["images"], ["pooled"])]
        nodes.append(helper.make_node("Flatten", ["pooled"], ["out"], axis=1))
        weights, shape = [], []
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, side, side])
    result = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 3, *shape])
    graph = helper.make_graph(nodes, "means", [given], [result], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if metadata:
        helper.set_model_props(model, about(task, side=side).metadata())
    onnx.save(model, str(file))
    return file


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("kind", ["onnx", "pixels"])
def test_labels(images: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("model.onnx" if kind == "onnx" else "model.pt2")
    (write_onnx(file) if kind == "onnx" else write_program(file, pixels=kind == "pixels"))
    found = predict.predict(str(file), str(images), out=tmp_path / "labels.csv", all_classes=True)
    assert (found.kind, found.num_images) == ("a classifier", 3)
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    assert list(rows[0]) == ["image", "label", "probability", "ant", "bee", "'=cat"]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(images / f"{i}.png"))) for i in range(3)])
    expected = Means(pixels=True)(pixels).softmax(dim=1)
    probabilities = torch.tensor([[float(row[name]) for name in ("ant", "bee", "'=cat")] for row in rows])
    torch.testing.assert_close(probabilities, expected, atol=2e-6, rtol=0)


def test_masks(tmp_path: Path) -> None:
    """Of images that are larger than the window in one direction and smaller in the other."""
    folder, _ = write_pairs(tmp_path, num_images=2, height=24, width=40)
    file = write_onnx(tmp_path / "model.onnx", "segmentation", side=32)
    predict.predict(str(file), folder, out=tmp_path / "out")
    with Image.open(tmp_path / "out/1.png") as mask, Image.open(Path(folder) / "1.jpg") as image:
        values = (np.array(image) / 255 - MEAN) / STD
        assert np.mean(np.array(mask) == values.argmax(axis=2)) > 0.99  # but for ties


def test_refused(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "features.onnx": write_onnx(tmp_path / "features.onnx", "features"),
        "strange.onnx": write_onnx(tmp_path / "strange.onnx", metadata=False),
    }
    for name in ("damaged.onnx", "damaged.pt2", "weights.safetensors", "model.xml"):
        files[name] = tmp_path / name
        files[name].write_bytes(b"damaged")
    for name, text in (
        ("features.onnx", r"features\.onnx gives features, no labels or masks\. Give a file of a model that was"),
        ("strange.onnx", r"strange\.onnx does not say how images are prepared for it\. Give a file that `poa export`"),
        ("damaged.onnx", r"damaged\.onnx cannot be loaded \(.*\)\. Give a file that `poa export` wrote\."),
        ("damaged.pt2", r"damaged\.pt2 cannot be loaded \(.*\)\. Give a file that `poa export` wrote\."),
        (
            "weights.safetensors",
            r"weights\.safetensors is not of a kind that can be used here\. Give \.onnx or \.pt2, or",
        ),
        ("model.xml", r"model\.xml is not of a kind that can be used here"),
    ):
        with pytest.raises(UserError, match=text):
            predict.predict(str(files[name]), str(images), out=tmp_path / "labels.csv")
    monkeypatch.setattr(exported, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"strange\.onnx needs .*onnxruntime.*not installed.*\[export\]"):
        predict.predict(str(files["strange.onnx"]), str(images), out=tmp_path / "labels.csv")


def test_options_of_others_are_refused(tmp_path: Path) -> None:
    file: Any = write_onnx(tmp_path / "model.onnx", "segmentation")
    with pytest.raises(UserError, match="--all-classes has an effect on a classifier alone"):
        predict.open_model(str(file), all_classes=True)
    with pytest.raises(UserError, match="--min-score has an effect on a detector alone"):
        predict.open_model(str(file), min_score=0.5)
