from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poa.config.detection import Detection
from poa.elastic.space import SearchSpace, Size
from poa.families.slim_resnet import SlimResNet
from poa.tasks.detection.model import DetectorPlan
from poa.tasks.detection.slimmable import SlimDetectors, extract_detector, slim_detectors
from poa.tasks.detection.train import DetectorTraining, detector_plan
from tasks.detection.test_model import batch

FAMILY = SlimResNet(SearchSpace.grid([8, 16], [(1, 1, 1, 1)]), image_size=32)
NARROW, WIDE = FAMILY.space.sizes
SETTINGS = Detection(
    channels=8, hidden=16, regions=16, sides=(32,), test_side=32, longest=64, most=5, min_score=0.0, clip=0.0
)


def model(size: Size) -> nn.Module:
    backbone = FAMILY.build(size)
    network: nn.Module = backbone.model
    return network


def weights(size: Size) -> dict[str, Tensor]:
    torch.manual_seed(size.width)
    made = model(size)
    for name, value in made.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value += 0.01 * torch.rand_like(value)  # little enough not to keep all below 0
        if ".norm" in name and name.endswith("weight"):  # the last of a block begins at 0
            value.uniform_(0.5, 1.0)
    return made.state_dict()


def plan(settings: Detection = SETTINGS) -> DetectorPlan:
    return detector_plan(settings, num_classes=2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


def detectors(settings: Detection = SETTINGS) -> SlimDetectors:
    wide = weights(WIDE)
    known = {WIDE: wide, NARROW: weights(NARROW)}
    torch.manual_seed(1)
    return slim_detectors(model, known, plan(settings), trains_norms=settings.batch_norm)


def training(made: SlimDetectors, settings: Detection = SETTINGS, **over: Any) -> DetectorTraining:
    options = {"narrower": made.narrower} | over
    return DetectorTraining(made.whole, settings, num_steps=4, steps=2, device=torch.device("cpu"), **options)


def test_a_width_is_an_ordinary_detector() -> None:
    made = detectors()
    images = list(batch().images)
    for size, network in ((NARROW, made.narrower[0]), (WIDE, made.whole)):
        alone = extract_detector(made, size, model(size), plan())
        with torch.inference_mode():
            expected, found = network.eval()(images), alone(images)
        for each, other in zip(expected, found, strict=True):
            assert len(each["boxes"]) == 5
            assert torch.equal(each["labels"], other["labels"])
            for name in ("boxes", "scores", "masks"):
                assert torch.allclose(each[name], other[name], atol=1e-4), name
        assert not any(".norm1.0." in name for name in alone.state_dict())
    wide = extract_detector(made, WIDE, model(WIDE), plan()).backbone.maps.model.state_dict()
    assert all(torch.equal(wide[name], value) for name, value in weights(WIDE).items())
    narrow = extract_detector(made, NARROW, model(NARROW), plan()).backbone.maps.model.state_dict()
    expected = weights(NARROW)
    norms = [name for name in expected if "running" in name]
    assert norms
    assert all(torch.equal(narrow[name], expected[name]) for name in norms)  # its own
    first = "stem.conv.weight"
    assert torch.equal(narrow[first], wide[first][: len(narrow[first])])


class Nothing(nn.Module):
    """A detector that takes a number and leaves no trace."""

    def forward(self, *_: Any) -> dict[str, Tensor]:
        return {"loss": torch.zeros((), requires_grad=True)}


def test_gradients_of_all_widths_are_added() -> None:
    def gradients(narrow: bool, wide: bool) -> dict[str, Tensor]:
        made = detectors()
        step = training(made)
        step._all = (*(made.narrower if narrow else (Nothing(),)), made.whole if wide else Nothing())
        step.step(0, batch())
        return {
            name: torch.zeros(()) if each.grad is None else each.grad for name, each in made.whole.named_parameters()
        }

    both, wide, narrow = gradients(True, True), gradients(False, True), gradients(True, False)
    for name, value in both.items():
        assert torch.allclose(value, wide[name] + narrow[name], rtol=1e-4, atol=1e-6), name
    name = "backbone.maps.model.stages.1.blocks.0.conv2.weight"
    assert float(narrow[name].abs().sum()) > 0
    assert bool((narrow[name][NARROW.width * 2 :] == 0).all())
    assert float(narrow["roi_heads.box_predictor.cls_score.weight"].abs().sum()) > 0
    # as one that was built so
    made = detectors()
    training(made).step(0, batch())
    assert torch.equal(dict(made.whole.named_parameters())[name].grad, both[name])


def test_norms_of_each_width_stay_or_are_trained() -> None:
    def changed(settings: Detection) -> set[str]:
        made = detectors(settings)
        before = {name: value.clone() for name, value in made.whole.state_dict().items()}
        training(made, settings).step(3, batch())
        now = made.whole.state_dict()
        return {name for name in before if not torch.equal(now[name], before[name])}

    kept = changed(SETTINGS)
    assert "backbone.maps.model.stages.0.blocks.0.conv1.weight" in kept
    assert not any(".norm" in name for name in kept)
    trained = changed(SETTINGS.changed(batch_norm=True))
    for number in range(2):
        assert f"backbone.maps.model.stages.0.blocks.0.norm1.{number}.running_mean" in trained
        assert f"backbone.maps.model.stages.3.blocks.0.norm2.{number}.weight" in trained
    frozen = changed(SETTINGS.changed(frozen=True))
    assert not any(name.startswith("backbone.maps") for name in frozen)
    assert "backbone.fpn.inner_blocks.0.0.weight" in frozen


@pytest.mark.parametrize("head", ["cascade-mask-rcnn", "faster-rcnn"])
def test_other_heads(head: str) -> None:
    settings = SETTINGS.changed(head=head)
    made = detectors(settings)
    loss = training(made, settings).step(0, batch(masks="mask" in head))
    assert 0 < loss < float("inf")
    alone = extract_detector(made, NARROW, model(NARROW), plan(settings))
    with torch.inference_mode():
        assert len(alone([torch.rand(3, 40, 40)])[0]["boxes"])
