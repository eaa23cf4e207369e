from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from poa.config.detection import Detection
from poa.errors import UserError
from poa.tasks.detection.cascade import WEIGHTS, Cascade, _without
from poa.tasks.detection.data import InstanceBatch
from poa.tasks.detection.model import Anchors, DetectorPlan, Levels, Resizing, build_detector, fitted
from poa.tasks.detection.train import DetectorTraining, detector_plan
from poa.tasks.maps import Maps
from poa.tasks.training import Diverged

SETTINGS = Detection(channels=8, hidden=16, regions=16, sides=(32, 48), test_side=48, longest=64, most=5)
VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32, "dynamic_img_size": True}
RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8}


def plan(settings: Detection = SETTINGS, **over: Any) -> DetectorPlan:
    return replace(detector_plan(settings, num_classes=2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)), **over)


def vit(patch: int = 16) -> torch.nn.Module:
    torch.manual_seed(0)
    size = 2 * patch
    model: torch.nn.Module = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, **{**VIT, "patch_size": patch, "img_size": size}
    )
    return model


def resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model("resnet18", num_classes=0, **RESNET)
    return model


def detector(settings: Detection = SETTINGS, model: torch.nn.Module | None = None) -> Any:
    torch.manual_seed(1)
    return build_detector(model or vit(), plan(settings))


def batch(*, masks: bool = True) -> InstanceBatch:
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(3, 40, 60, generator=generator), torch.rand(3, 50, 30, generator=generator))
    mask = torch.zeros(2, 40, 60, dtype=torch.uint8)
    mask[0, 5:30, 5:30] = mask[1, 10:35, 30:60] = 1
    boxes = torch.tensor([[5.0, 5.0, 30.0, 30.0], [30.0, 10.0, 60.0, 35.0]])
    full = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": mask}
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 50, 30, dtype=torch.uint8),
    }
    targets = [full, empty]
    if not masks:
        targets = [{name: value for name, value in each.items() if name != "masks"} for each in targets]
    return InstanceBatch(images, tuple(targets), ())


@pytest.mark.parametrize(
    ("head", "terms"),
    [
        ("faster-rcnn", {"loss_classifier", "loss_box_reg"}),
        ("mask-rcnn", {"loss_classifier", "loss_box_reg", "loss_mask"}),
        ("cascade-rcnn", {f"loss_{term}_{stage}" for term in ("classifier", "box_reg") for stage in range(3)}),
        (
            "cascade-mask-rcnn",
            {f"loss_{term}_{stage}" for term in ("classifier", "box_reg") for stage in range(3)} | {"loss_mask"},
        ),
    ],
)
def test_every_head_trains_all_it_has_and_detects(head: str, terms: set[str]) -> None:
    has_masks = "mask" in head
    box_head = "convolutions" if head.endswith("faster-rcnn") else "mlp"
    network = detector(SETTINGS.changed(head=head, box_head=box_head, box_loss="smooth-l1", min_score=0.0)).train()
    images, targets, _ = batch(masks=has_masks)
    losses: dict[str, Tensor] = network(list(images), list(targets))
    assert set(losses) == terms | {"loss_objectness", "loss_rpn_box_reg"}
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    bare = {name for name, each in network.named_parameters() if each.grad is None}
    assert bare <= {"backbone.maps.model.cls_token"}
    with torch.inference_mode():
        found: list[Mapping[str, Tensor]] = network.eval()(list(images))
    assert [set(each) for each in found] == [{"boxes", "labels", "scores"} | ({"masks"} if has_masks else set())] * 2
    for each, image in zip(found, images, strict=True):
        assert 0 < len(each["boxes"]) <= 5
        assert set(each["labels"].tolist()) <= {1, 2}
        assert float(each["boxes"][:, 2].max()) <= image.shape[2] + 1e-3
        assert float(each["boxes"][:, 3].max()) <= image.shape[1] + 1e-3
        if has_masks:
            assert each["masks"].shape == (len(each["boxes"]), 1, *image.shape[1:])


def test_same_as_torchvision_where_torchvision_has_it() -> None:
    network = detector(SETTINGS.changed(channels=256, hidden=1024, anchor_cells=8.0, regions=512, min_score=0.01))
    made = network.backbone
    made.out_channels = 256
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    options = {"min_size": 64, "max_size": 64, "box_score_thresh": 0.01, "box_detections_per_img": 5}
    theirs = MaskRCNN(made, 3, rpn_anchor_generator=anchors, image_mean=[0.5, 0.4, 0.3], image_std=[0.2] * 3, **options)
    theirs.load_state_dict(network.state_dict())
    images = batch().images
    same = [images[0].repeat(1, 2, 2)[:, :64, :64]]  # at its size, nothing is resized, nor are strides guessed wrongly
    network.transform.side = 64
    with torch.inference_mode():
        ours, expected = network.eval()(same)[0], theirs.eval()(same)[0]
    assert len(ours["boxes"])
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_anchors_and_pools_of_patches_of_fourteen() -> None:
    network = detector(model=vit(14))
    assert network.backbone.strides == (3.5, 7.0, 14.0, 28.0, 56.0)
    pool = network.roi_heads.box_roi_pool
    assert pool.scales == [1 / 3.5, 1 / 7, 1 / 14, 1 / 28]
    assert (pool.map_levels.k_min, pool.map_levels.k_max) == (2, 5)
    images = torch.zeros(2, 3, 56, 84)
    maps = network.backbone(images)
    assert [tuple(each.shape[2:]) for each in maps.values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    boxes = Anchors(network.backbone.strides, 4.0)(ImageList(images, [(56, 84)] * 2), list(maps.values()))
    assert len(boxes) == 2
    first = boxes[0][: 16 * 24 * 3].view(16, 24, 3, 4)
    centres = (first[..., :2] + first[..., 2:]) / 2
    assert torch.equal(centres[..., 0, 0], centres[..., 2, 0])
    assert float(centres[15, 23, 0, 0] - centres[0, 0, 0, 0]) == 23 * 3.5
    assert float(centres[15, 23, 0, 1] - centres[0, 0, 0, 1]) == 15 * 3.5
    assert (first[3, 3, 1, 2:] - first[3, 3, 1, :2]).tolist() == [14.0, 14.0]


def test_resizing() -> None:
    assert fitted(480, 640, shorter=240, longest=1000) == (240, 320)
    assert fitted(480, 640, shorter=480, longest=320) == (240, 320)
    assert fitted(1, 1000, shorter=10, longest=100) == (1, 100)
    images, targets, _ = batch()
    resizing = Resizing(plan(), multiple=16)
    found, objects = resizing.eval()(list(images), list(targets))
    assert found.image_sizes == [(43, 64), (64, 38)]
    assert found.tensors.shape == (2, 3, 64, 64)
    boxes, mask = objects[0]["boxes"], objects[0]["masks"][0]
    assert boxes[0].tolist() == pytest.approx([5 * 64 / 60, 5 * 43 / 40, 30 * 64 / 60, 30 * 43 / 40])
    rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
    assert (int(columns[0]), int(rows[0])) == (5, 5)
    assert (int(columns[-1]), int(rows[-1])) == (31, 31)
    assert objects[1]["masks"].shape == (0, 64, 38)
    assert torch.equal(targets[0]["boxes"][0], torch.tensor([5.0, 5, 30, 30]))  # as it was
    assert {min(resizing.train()(list(images[:1]))[0].image_sizes[0]) for _ in range(20)} == {32, 43}
    # fine stripes become grey, not stripes
    stripes = torch.zeros(3, 48, 480)
    stripes[:, :, ::2] = 1
    small = Resizing(plan(mean=(0.0,) * 3, std=(1.0,) * 3, side=12, longest=120), multiple=4).eval()([stripes])[0]
    assert float((small.tensors[0, :, :, 1:-1] - 0.5).abs().max()) < 0.05


def test_cascade_without_what_was_true() -> None:
    before = torch.tensor([[0.0, 0, 1, 1], [1, 1, 2, 2], [0, 0, 1, 2]])
    kept = _without(before + 5, before, torch.tensor([[1.0, 1, 2, 2], [9, 9, 10, 10]]))
    assert torch.equal(kept, before[[0, 2]] + 5)
    assert torch.equal(_without(before + 5, before, torch.zeros(0, 4)), before + 5)


def cascade(box_loss: str) -> tuple[Cascade, dict[str, Tensor], list[Tensor], list[dict[str, Tensor]]]:
    settings = SETTINGS.changed(head="cascade-rcnn", box_loss=box_loss, min_score=0.0)
    network = detector(settings)
    images, targets, _ = batch(masks=False)
    maps = network.backbone(torch.stack([images[0][:, :32, :32]]))
    proposals = [torch.tensor([[4.0, 4, 28, 28], [0, 0, 10, 10]])]
    return network.roi_heads, maps, proposals, [{**targets[0], "boxes": targets[0]["boxes"].clamp(max=32)}]


def test_cascade_by_hand() -> None:
    heads, maps, proposals, _ = cascade("smooth-l1")
    heads.eval()
    boxes, likely = proposals[0], []
    with torch.inference_mode():
        found, losses = heads(maps, proposals, [(32, 32)])
        for stage, scale in zip(heads.stages, (10.0, 20.0, 30.0), strict=True):
            seen = stage.box_head(stage.box_roi_pool(maps, [boxes], [(32, 32)]))
            logits, changes = stage.box_predictor(seen)
            likely.append(logits.softmax(dim=1))
            sides, centres = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
            centres = centres + sides * changes[:, :2] / scale
            sides = sides * (changes[:, 2:] / scale * 2).exp()
            boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1).clamp(0, 32)
    assert losses == {}
    mean = sum(likely) / 3
    for box, label, score in zip(found[0]["boxes"], found[0]["labels"], found[0]["scores"], strict=True):
        (place,) = ((boxes - box).abs().amax(dim=1) < 1e-4).nonzero().flatten().tolist()
        assert float(mean[place, label]) == pytest.approx(float(score), abs=1e-6)
    assert len(found[0]["boxes"]) >= 2


def test_cascade_weighs_its_stages() -> None:
    """With scores that are equal for all classes, the classification loss of a stage is its weight times ln 3."""
    heads, maps, proposals, targets = cascade("giou")
    for stage in heads.stages:
        for layer in (stage.box_predictor.cls_score, stage.box_predictor.bbox_pred):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    _, losses = heads.train()(maps, proposals, [(32, 32)], targets)
    for number, weight in enumerate(WEIGHTS):
        assert float(losses[f"loss_classifier_{number}"].detach()) == pytest.approx(
            weight * torch.log(torch.tensor(3.0)).item()
        )
    # four boxes of the first stage: two true ones, which are as they should be; one of side 24, of which 23 x 23
    # lie in the first object of 25; and one of background
    iou = 23 * 23 / (24 * 24 + 25 * 25 - 23 * 23)
    enclosing = 26 * 26
    giou = iou - (enclosing - (24 * 24 + 25 * 25 - 23 * 23)) / enclosing
    assert float(losses["loss_box_reg_0"].detach()) == pytest.approx(10 * (1 - giou) / 4, rel=1e-4)


def test_proposals_of_the_next_stage_need_more_overlap() -> None:
    heads = cascade("smooth-l1")[0]
    assert [stage.proposal_matcher.high_threshold for stage in heads.stages] == [0.5, 0.6, 0.7]
    assert [stage.proposal_matcher.low_threshold for stage in heads.stages] == [0.5, 0.6, 0.7]


def training(
    settings: Detection = SETTINGS, model: torch.nn.Module | None = None, num_steps: int = 8
) -> DetectorTraining:
    network = detector(settings, model)
    return DetectorTraining(network, settings, num_steps=num_steps, steps=2, device=torch.device("cpu"))


def rates(settings: Detection, num_steps: int = 8) -> list[float]:
    """Learning rate of what is new at each step."""
    made, found = training(settings, num_steps=num_steps), []
    for step in range(num_steps):
        made._scheduler.step_update(step)
        found.append(made._optimizer.param_groups[-1]["lr"])
    return found


def test_schedules() -> None:
    steps = SETTINGS.changed(lr=1.0, epochs=4, milestones=(2, 3), warmup_share=0.25, warmup_lr=0.2)
    assert rates(steps) == pytest.approx([0.2, 0.6, 1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = SETTINGS.changed(lr=1.0, epochs=4, warmup_share=0.25, warmup_lr=0.2, min_lr=0.1)
    found = rates(cosine)
    assert found[:3] == pytest.approx([0.2, 0.6, 1])
    assert found[5] == pytest.approx(0.55)
    assert all(later < earlier for earlier, later in pairwise(found[2:]))


def test_layers_learn_the_more_slowly_the_earlier_they_come() -> None:
    made = training(SETTINGS.changed(lr=1.0, layer_decay=0.5))
    of_parameter = {
        id(each): group.get("lr_scale", 1.0) for group in made._optimizer.param_groups for each in group["params"]
    }
    names = {name: of_parameter[id(each)] for name, each in made.network.named_parameters()}
    model = "backbone.maps.model"
    assert names[f"{model}.blocks.1.attn.qkv.weight"] == 2 * names[f"{model}.blocks.0.attn.qkv.weight"]
    assert names[f"{model}.blocks.0.attn.qkv.weight"] == 2 * names[f"{model}.patch_embed.proj.weight"]
    assert {scale for name, scale in names.items() if not name.startswith(model)} == {1.0}
    decayed = {id(each): group["weight_decay"] for group in made._optimizer.param_groups for each in group["params"]}
    for name, each in made.network.named_parameters():
        assert bool(decayed[id(each)]) == (each.ndim > 1 and "pos_embed" not in name and "cls_token" not in name), name


def test_frozen_parts_stay() -> None:
    def after(settings: Detection) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        made = training(settings, resnet())
        before = {name: value.clone() for name, value in made.network.backbone.maps.state_dict().items()}
        made.step(3, batch())
        return before, made.network.backbone.maps.state_dict()

    before, now = after(SETTINGS.changed(frozen=True))
    assert all(torch.equal(now[name], before[name]) for name in before)
    before, now = after(SETTINGS)
    changed = {name for name in before if not torch.equal(now[name], before[name])}
    assert "model.layer4.0.conv2.weight" in changed
    assert not any("bn" in name or "downsample.1" in name for name in changed)
    before, now = after(SETTINGS.changed(batch_norm=True))
    assert not torch.equal(now["model.bn1.running_mean"], before["model.bn1.running_mean"])
    assert not torch.equal(now["model.layer4.0.bn2.weight"], before["model.layer4.0.bn2.weight"])


def test_gradients_are_clipped_and_steps_repeatable() -> None:
    def after(**over: Any) -> dict[str, Tensor]:
        made = training(SETTINGS.changed(**over))
        torch.rand(len(over))  # what was drawn before does not matter
        made.step(3, batch())
        state: dict[str, Tensor] = made.network.state_dict()
        return state

    first, again = after(), after(clip=1.0, most=5)
    assert all(torch.equal(first[name], again[name]) for name in first)
    made = training(SETTINGS.changed(clip=1e-3))
    made.step(3, batch())
    norms = [float(each.grad.norm()) for each in made.network.parameters() if each.grad is not None]
    assert sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


OTHER: dict[str, Any] = {
    "head": "faster-rcnn",
    "channels": 16,
    "hidden": 8,
    "box_head": "convolutions",
    "anchor_cells": 2.0,
    "regions": 4,
    "lr": 1e-4,
    "layer_decay": 0.5,
    "warmup_share": 0.5,
    "weight_decay": 0.9,
    "clip": 1e-3,
    "frozen": True,
    "sides": (24,),
    "longest": 48,
    "seed": 1,
}
ELSEWHERE = {
    **dict.fromkeys(("batch_size", "flip", "epochs"), "which images: test_evaluate"),
    **dict.fromkeys(("test_side", "min_score", "most"), "of detections: the plan"),
    **dict.fromkeys(("warmup_lr", "min_lr", "milestones"), "test_schedules"),
    "batch_norm": "of networks that have it: test_frozen_parts_stay",
    "box_loss": "of cascades: test_cascade_by_hand",
    "drop_path": "how the backbone is built: test_evaluate",
}


def test_every_setting_acts() -> None:
    """Another value trains another network in one step; a new setting without a row fails."""

    def after(over: dict[str, Any]) -> dict[str, Tensor]:
        made = training(SETTINGS.changed(**{"warmup_share": 0.0, **over}))
        made.step(3, batch())
        state: dict[str, Tensor] = made.network.state_dict()
        return state

    usual = after({})
    for field, value in OTHER.items():
        found = after({field: value})
        same = found.keys() == usual.keys() and all(torch.equal(usual[name], found[name]) for name in usual)
        assert not same, field
    assert set(Detection.model_fields) == set(OTHER) | set(ELSEWHERE)


def test_settings_are_those_of_the_plan() -> None:
    found = plan(SETTINGS.changed(min_score=0.2, most=7, test_side=40, anchor_cells=3.0, longest=96))
    assert (found.min_score, found.most, found.side, found.train_sides) == (0.2, 7, 40, (32, 48))
    assert (found.anchor_cells, found.longest, found.regions, found.hidden, found.channels) == (3.0, 96, 16, 16, 8)


def test_lost_networks() -> None:
    model: Any = resnet()
    torch.nn.init.constant_(model.layer4[0].bn2.weight, torch.nan)
    with pytest.raises(Diverged, match=r"the loss is nan at step 3 \(.*loss_classifier.*\)\. Try"):
        training(model=model).step(3, batch())


def test_backbones_without_four_maps() -> None:
    short = timm.create_model("resnet18", num_classes=0, **RESNET, features_only=False)
    del short.feature_info[-2:]
    with pytest.raises(UserError, match=r"made of one or 4 maps|cannot process images"):
        Levels(Maps(short, image_size=(64, 64)), 8)


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ({"head": "yolo"}, "--head cannot be 'yolo'. .*mask-rcnn"),
        ({"box_head": "x"}, "--box-head cannot be 'x'"),
        ({"box_loss": "x"}, "--box-loss cannot be 'x'"),
        ({"box_loss": "giou"}, "--box-loss giou needs a cascade.*Choose cascade-mask-rcnn"),
        ({"frozen": True, "drop_path": 0.1}, "--drop-path .* has no effect on a frozen"),
        ({"frozen": True, "batch_norm": True}, "--batch-norm has no effect on a frozen"),
        ({"milestones": (3, 2)}, "--milestones must be ascending"),
        ({"milestones": (50,)}, "below --epochs 50"),
        ({"epochs": 0}, "--epochs cannot be 0: it should be greater than or equal to 1"),
        ({"regions": 0}, "--regions cannot be 0"),
        ({"lr": 0.0}, "--lr cannot be 0.0: it should be greater than 0"),
        ({"anchor_cells": -1.0}, "--anchor-cells cannot be -1.0"),
        ({"clip": -1.0}, "--clip cannot be -1.0"),
        ({"flip": 1.5}, "--flip cannot be 1.5: it should be less than or equal to 1"),
        ({"min_score": 1.0}, "--min-score cannot be 1.0: it should be less than 1"),
        ({"layer_decay": 0.0}, "--layer-decay cannot be 0.0"),
        ({"sides": ()}, "--sides cannot be"),
        ({"test_side": 0}, "--test-side cannot be 0"),
        ({"longest": 50}, "--longest 50 is less than the shorter side of images, 288"),
    ],
)
def test_bad_settings(over: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Detection(**over)
