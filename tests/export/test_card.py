"""Model cards: what they say, that nothing on them is taken for markup, and that their programs run where they lie."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from poa.data.images import Preprocessing
from poa.export.about import About
from poa.export.card import Evaluation, Origin, put_scores
from poa.export.timm import Blueprint, write_finetuned
from poa.tasks.classification.train import with_head

CLASSES = ("cat", "<b>|dog`", "e\nmu")
PREPROCESSING = Preprocessing(16, 20, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
ORIGIN = Origin("a test")
DOCUMENT = Path(__file__).parents[2] / "docs" / "ship.md"
SCORED = Evaluation("knn", "test: digits/test", {"top1": 39.25, "top5": 80.0}, {"top1": (33.0, 45.06)})


def written(folder: Path, *, head: str = "linear", origin: Origin = ORIGIN) -> Path:
    arguments = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1, "num_classes": 3}
    torch.manual_seed(0)
    model: Any = with_head(timm.create_model("vit_tiny_patch16_224", **arguments), head, num_classes=3, seed=0)
    blueprint = Blueprint("vit_tiny_patch16_224", arguments, CLASSES, None if head == "linear" else "head")
    write_finetuned(model, blueprint, name="16x1", folder=folder, preprocessing=PREPROCESSING, origin=origin)
    return folder


def programs(folder: Path) -> dict[str, str]:
    """By what is above them."""
    text = (folder / "README.md").read_text("utf-8")
    return dict(re.findall(r"### (.*)\n(?:.*\n\n)?```python\n((?:.*\n)*?)```", text))


def copied(folder: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy elsewhere, with a photo, which becomes the current directory."""
    shutil.move(folder, to)
    pixels = np.random.default_rng(0).integers(0, 256, (29, 51, 3), np.uint8)
    Image.fromarray(pixels).save(to / "photo.jpg")
    monkeypatch.chdir(to)
    return to


@torch.no_grad()
def run(program: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(program, names)
    return names


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_copied_folder_is_used_as_its_card_says(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = copied(written(tmp_path / "there", head=head), tmp_path / "copy", monkeypatch)
    told = programs(here)
    assert set(told) == {"timm", "transformers", "ONNX Runtime"}
    names = run(told["timm"])
    assert names["scores"].shape == (1, 3)
    assert capsys.readouterr().out.strip("\n") == CLASSES[int(names["scores"].argmax())]
    assert isinstance(names["classifier"] if head == "mlp" else names["model"].head, nn.Module)
    assert ("image-classification" in told["transformers"]) == (head == "linear")


def test_images_are_prepared_alike_without_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = copied(written(tmp_path / "there"), tmp_path / "copy", monkeypatch)
    seen: list[Tensor] = []
    about = About("96x3", "features", (), PREPROCESSING, False, "fp32", "drawn")

    def session(file: str) -> Any:
        assert Path(file).is_file()
        return SimpleNamespace(
            run=lambda _, given: [seen.append(torch.from_numpy(given["images"]))],
            get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=about.metadata()),
        )

    (here / "exported").mkdir()
    (here / "exported/there.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=session))  # type: ignore[arg-type]  # a stand-in
    run(programs(here)["ONNX Runtime"])
    exported = here / "runs/mine/exported/96x3.onnx"
    exported.parent.mkdir(parents=True)
    exported.touch()
    [program] = re.findall(r"```python\n([^`]*InferenceSession[^`]*)```", DOCUMENT.read_text("utf-8"))
    run(program)
    names = run(programs(here)["timm"])
    expected = names["prepare"](Image.open(here / "photo.jpg").convert("RGB"))[None]
    for prepared in seen:
        torch.testing.assert_close(prepared, expected, rtol=0, atol=1e-6)
    assert len(seen) == 2


def test_what_a_stranger_needs(tmp_path: Path) -> None:
    origin = Origin(
        "run <i>, step 4",
        {"images": "a|b, 64 images"},
        {"vit_x": None, "vit_y": "cc-by-nc-4.0"},
        (SCORED,),
        licence="my: own",
    )
    card = (written(tmp_path / "model", origin=origin) / "README.md").read_text("utf-8")
    assert "\nlicense: 'my: own'\ntags: [image-classification, timm, transformers]\n---\n" in card
    for line in (
        "| from | run \\<i\\>, step 4 |",
        "| images | a\\|b, 64 images |",
        "| classes | 3: cat, \\<b\\>\\|dog\\`, e\\\\nmu |",
        "- knn, test: digits/test: top1 39.2 % (33.0 to 45.1), top5 80.0 %",
        "They derive from the weights of vit_x, whose licence is not known here: look it up; its terms apply here too.",
        "They derive from the weights of vit_y, whose licence is cc-by-nc-4.0; its terms apply here too.",
    ):
        assert line in card, line
    for part in ("architecture", "parameters", "resized to 20 pixels", "16 x 16 pixels", "mean (0.1, 0.2, 0.3)"):
        assert part in " ".join(card.split()), part
    assert str(tmp_path) not in card


def test_scores_come_onto_a_card_once(tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    card = folder / "README.md"
    assert "had not been scored when this file was written" in card.read_text("utf-8")
    put_scores(folder, SCORED)
    once = card.read_text("utf-8")
    assert "top1 39.2 % (33.0 to 45.1)" in once
    assert "had not been scored" not in once
    put_scores(folder, SCORED)
    assert card.read_text("utf-8") == once
    put_scores(tmp_path, SCORED)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
