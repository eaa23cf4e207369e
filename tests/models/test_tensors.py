"""Files of weights from others: what is taken out of them, and what is refused."""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from torch import Tensor

from poa.errors import UserError
from poa.models.tensors import check_types, read_file, unwrapped

State = dict[str, Tensor]
NETWORK = ("cls_token", "patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.1.norm1.weight", "norm.weight")
WEIGHTS = {name: torch.full((2,), float(number)) for number, name in enumerate(NETWORK)}
OTHERS = {name: value + 10 for name, value in WEIGHTS.items()}
TOKEN = torch.full((1, 2), 20.0)
ONE = torch.ones(1)


def below(prefix: str, state: State = WEIGHTS) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def chunked(state: State) -> State:
    """Blocks in chunks of one, numbered through."""
    return {name.replace("blocks.", "blocks.0.", 1).replace("0.1.", "1.1."): value for name, value in state.items()}


PRETRAININGS: dict[str, tuple[dict[str, Any], int]] = {
    "MAE": ({"model": WEIGHTS | {"mask_token": TOKEN, "decoder_embed.weight": ONE, "decoder_pos_embed": ONE}}, 3),
    "MoCo v2": ({"state_dict": below("module.encoder_q.") | below("module.encoder_k.", OTHERS)}, 5),
    "MoCo v3": (
        {
            "state_dict": below("module.momentum_encoder.", OTHERS)
            | below("module.base_encoder.")
            | {"module.predictor.0.weight": ONE}
        },
        6,
    ),
    "SimSiam": ({"state_dict": below("module.encoder.") | {"module.predictor.0.weight": ONE}}, 1),
    "lightly": ({"state_dict": below("student_backbone.vit.", OTHERS) | below("teacher_backbone.vit.")}, 5),
    "lightly's MoCo": ({"state_dict": below("backbone_momentum.", OTHERS) | below("backbone.")}, 5),
    "DINO": ({"student": below("module.backbone.", OTHERS), "teacher": below("backbone.") | {"head.mlp.0": ONE}}, 1),
    "DINOv2": ({"teacher": below("backbone.", chunked(WEIGHTS)) | {"dino_head.mlp.0.weight": ONE}}, 1),
    "solo-learn": ({"state_dict": below("momentum_backbone.", OTHERS) | below("backbone.")}, 5),
    "VICReg": ({"model": below("module.backbone.") | {"module.projector.0.weight": ONE}}, 1),
    "MSN": ({"encoder": below("module.", OTHERS), "target_encoder": below("module."), "prototypes": ONE}, 0),
    "BYOL": (below("online_encoder.net.") | below("target_encoder.net.", OTHERS), 5),
    "timm's average": ({"state_dict": OTHERS, "state_dict_ema": WEIGHTS}, 0),
    "sharded": ({"model": {name.replace(".0.", ".0._fsdp_wrapped_module."): x for name, x in WEIGHTS.items()}}, 0),
    "own prefix": (below("my_network."), 0),
    "own prefix beside others": (below("my.network.") | {"my.other.weight": ONE}, 1),
    "own container": ({"network": WEIGHTS, "epoch": 3, "optimizer": {"state": {}}}, 0),
}


@pytest.mark.parametrize("training", PRETRAININGS)
def test_weights_of_well_known_pre_trainings(training: str) -> None:
    content, num_aside = PRETRAININGS[training]
    weights, aside = unwrapped(content)
    assert weights.keys() == WEIGHTS.keys()
    assert all(weights[name] is value for name, value in WEIGHTS.items())
    assert len(aside) == num_aside


def test_mask_tokens_are_those_of_the_encoder() -> None:
    for content in (
        {"state_dict": WEIGHTS | {"masked_embed": TOKEN}},  # iBOT
        {"model": below("encoder.", WEIGHTS | {"mask_token": TOKEN}) | {"decoder.0.weight": ONE}},  # SimMIM
        {"teacher_backbone.mask_token": TOKEN} | below("teacher_backbone.vit."),  # lightly
    ):
        assert unwrapped(content)[0]["mask_token"] is TOKEN


def test_blocks_that_are_not_numbered_through_stay_as_they_are() -> None:
    relative = {"blocks.0.0.norm1.weight": ONE, "blocks.1.0.norm1.weight": ONE, "norm.weight": ONE}
    assert unwrapped(relative)[0].keys() == relative.keys()


def test_a_network_without_prefix_keeps_its_names() -> None:
    assert unwrapped(WEIGHTS | {"encoder.weight": ONE})[0].keys() == {*WEIGHTS, "encoder.weight"}


def test_names_that_fit_are_left_alone(tmp_path: Path) -> None:
    state = below("model.") | {"other.weight": ONE}
    torch.save(state, tmp_path / "a.pth")
    weights, aside = read_file(tmp_path / "a.pth", name="a", wanted=below("model.").keys())
    assert (weights.keys(), aside) == (state.keys(), ())


@pytest.mark.parametrize("ending", [".ckpt", ".pth.tar"])
def test_objects_beside_the_weights_are_left_out(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("library_that_is_not_here")

    class Settings:
        __module__ = module.__name__
        __qualname__ = "Settings"

    class SettingsDict(dict[str, int]):
        __module__ = module.__name__
        __qualname__ = "SettingsDict"

    monkeypatch.setattr(module, "Settings", Settings, raising=False)
    monkeypatch.setattr(module, "SettingsDict", SettingsDict, raising=False)
    settings = Settings()
    settings.__dict__["epochs"] = 3
    beside = [settings, SettingsDict(epochs=3), argparse.Namespace(epochs=3), Path("data")]
    with monkeypatch.context() as there:
        there.setitem(sys.modules, module.__name__, module)
        torch.save({"state_dict": WEIGHTS, "hyper_parameters": beside}, tmp_path / f"a{ending}")
    assert read_file(tmp_path / f"a{ending}", name="a")[0].keys() == WEIGHTS.keys()


class Deletes:
    """Runs code where it is loaded without care."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return shutil.rmtree, (self.folder,)


def test_no_code_runs(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "beside": Deletes(tmp_path)}, tmp_path / "a.pth")
    assert read_file(tmp_path / "a.pth", name="a")[0].keys() == WEIGHTS.keys()
    assert tmp_path.exists()


UNUSABLE: dict[str, tuple[Callable[[], Tensor], str]] = {
    "fp8": (lambda: ONE.to(torch.float8_e4m3fn), r"has numbers of type float8_e4m3fn"),
    "complex": (lambda: ONE.to(torch.complex64), r"has numbers of type complex64"),
    "quantised": (lambda: torch.quantize_per_tensor(ONE, 0.1, 0, torch.qint8), r"has numbers of type qint8"),
    "sparse": (lambda: torch.eye(2).to_sparse(), r"is sparse"),
    "without data": (lambda: ONE.to("meta"), r"has a shape without data \(meta device\)"),
    "huge view": (lambda: ONE.expand(10**12, 1), r"has the shape 1000000000000x1, but fewer numbers than that"),
}


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
@pytest.mark.parametrize("kind", UNUSABLE)
def test_tensors_that_no_network_can_hold_are_refused(kind: str, tmp_path: Path) -> None:
    value, told = UNUSABLE[kind]
    torch.save(WEIGHTS | {"norm.weight": value()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=rf"^--init a: norm\.weight {told}\. Give dense weights of type float32, "):
        read_file(tmp_path / "a.pth", name="a")


def test_integers_are_tables_but_no_weights() -> None:
    tables = {"relative_position_index": torch.zeros(2, dtype=torch.int64)}
    check_types("a", tables, tables)
    with pytest.raises(UserError, match=r"^--init a: norm\.weight has numbers of type int8\. Give dense weights of"):
        check_types("a", {"norm.weight": ONE.to(torch.int8)}, {"norm.weight": ONE})


def test_a_small_file_cannot_unfold(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10_000), "b": ONE}, tmp_path / "a.pth")
    with ZipFile(tmp_path / "a.pth") as whole, ZipFile(tmp_path / "b.pth", "w", ZIP_DEFLATED) as small:
        for entry in whole.infolist():
            small.writestr(entry.filename, whole.read(entry))
    with pytest.raises(UserError, match=r"b\.pth cannot be read as a file of weights \(ValueError: it is compressed,"):
        read_file(tmp_path / "b.pth", name="b")


def test_containers_in_themselves_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"contains no named tensors"):
        read_file(tmp_path / "a.pth", name="a")
