from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from torch import nn

from poa.config.segmentation import Segmentation
from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.tasks.maps import Maps
from poa.tasks.segmentation.crops import CropBatch
from poa.tasks.segmentation.masks import Pairs, pair_up
from poa.tasks.segmentation.model import Segmenter
from poa.tasks.segmentation.predict import agreement, count
from poa.tasks.segmentation.train import SegmenterTraining, evaluate, pixel_loss, train
from poa.tasks.training import Diverged, Hooks
from tasks.segmentation.mask_images import IGNORE, write_pairs

PREPROCESSING = Preprocessing(24, 24, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3))
CPU = torch.device("cpu")
LINEAR = Segmentation(
    epochs=3, batch_size=4, lr=2e-2, crop=24, stride=16, scale=(0.8, 1.2), most=1.0, flip=0.5, jitter=0.1
)
TUNED = LINEAR.changed(frozen=False, lr=3e-3, layer_decay=0.5, drop_path=0.1)
UPERNET = TUNED.changed(head="upernet", channels=8)


def vit(**over: Any) -> nn.Module:
    torch.manual_seed(0)
    arguments = {"img_size": 24, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", **{**arguments, "dynamic_img_size": True, **over}).eval()


def resnet() -> nn.Module:
    torch.manual_seed(0)
    arguments = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32), "stem_chs": 8, "preact": False}
    return timm.create_model("resnetv2_50", num_classes=0, **arguments).eval()


def segmenter(settings: Segmentation = LINEAR, model: nn.Module | None = None, *, num_classes: int = 3) -> Segmenter:
    model = model or vit(drop_path_rate=settings.drop_path)
    return Segmenter(Maps(model, image_size=(24, 24)), settings, num_classes=num_classes)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    images, masks = write_pairs(tmp_path_factory.mktemp("pairs"), num_images=9)
    return pair_up(open_index(images), open_index(masks))


@pytest.mark.parametrize("settings", [LINEAR, LINEAR.changed(taps="last"), UPERNET])
@pytest.mark.parametrize("model", [vit, resnet])
def test_scores_for_each_pixel_of_images_of_any_size(settings: Segmentation, model: Any) -> None:
    network = segmenter(settings, model()).eval()
    for height, width in ((32, 32), (33, 50), (64, 41)):
        with torch.no_grad():
            images = torch.randn(2, 3, height, width)
            main, auxiliary = network.scores(images)
            assert main.shape == (2, 3, height, width)
            assert torch.equal(main, network(images))
        assert (auxiliary is not None) == (settings.head == "upernet")
        assert auxiliary is None or auxiliary.shape == main.shape


def test_linear_head_by_hand() -> None:
    network = segmenter(model=resnet()).eval()
    norm, convolution = network.head.layers
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = network.maps(images)
        grown = [nn.functional.interpolate(each, maps[0].shape[2:], mode="bilinear") for each in maps]
        every = torch.cat(grown, dim=1)[0]
        centred = (every - norm.running_mean[:, None, None]) / (norm.running_var + 1e-5).sqrt()[:, None, None]
        scores = torch.einsum("kc,chw->khw", convolution.weight[:, :, 0, 0], centred) + convolution.bias[:, None, None]
        expected = nn.functional.interpolate(scores[None], (64, 96), mode="bilinear")
        torch.testing.assert_close(network(images), expected)
    assert every.shape == (96, 16, 24)
    last = segmenter(LINEAR.changed(taps="last"), resnet()).head.layers[0]
    assert last.num_features == 32


def test_maps_of_short_transformers_are_taken_once() -> None:
    assert segmenter(model=vit(depth=2)).head.layers[0].num_features == 48
    assert segmenter(model=vit(depth=4)).head.layers[0].num_features == 72  # blocks 1, 1, 2, 3
    assert segmenter(UPERNET, vit(depth=2))(torch.randn(2, 3, 24, 24)).shape == (2, 3, 24, 24)


def test_weights_of_the_head_are_drawn_by_the_seed() -> None:
    one, same, other = (segmenter(UPERNET.changed(seed=seed)).head.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_loss_is_the_mean_over_pixels_with_a_class() -> None:
    scores = torch.randn(2, 3, 4, 5, requires_grad=True)
    masks = torch.randint(3, (2, 4, 5))
    masks[0, :2] = 9
    kept = [(i, r, c) for i in range(2) for r in range(4) for c in range(5) if masks[i, r, c] != 9]
    expected = sum(-scores[i, :, r, c].log_softmax(dim=0)[masks[i, r, c]] for i, r, c in kept) / len(kept)
    torch.testing.assert_close(pixel_loss(scores, masks, ignore=9), expected)
    nothing = pixel_loss(scores, torch.full_like(masks, 9), ignore=9)
    nothing.backward()
    assert nothing == 0
    assert (scores.grad == 0).all()


def score(network: Segmenter, pairs: Pairs) -> float:
    found = evaluate(network, pairs, LINEAR, PREPROCESSING, num_classes=3, device=CPU)
    return agreement(found.counts).miou


@pytest.mark.parametrize(
    ("settings", "model"),
    [(LINEAR.changed(epochs=8), vit), (TUNED.changed(epochs=12, lr=1e-2, drop_path=0.0), resnet)],
)
def test_training_learns(pairs: Pairs, settings: Segmentation, model: Any) -> None:
    network = segmenter(settings, model())
    before, weights = score(network, pairs), {k: v.clone() for k, v in network.maps.state_dict().items()}
    reached = train(network, pairs, settings, PREPROCESSING, device=CPU)
    assert before < 20 < 50 < score(network, pairs)
    assert reached.epoch == settings.epochs
    changed = [name for name, value in network.maps.state_dict().items() if not torch.equal(value, weights[name])]
    assert bool(changed) == (not settings.frozen)
    assert any("running_mean" in name for name in changed) == (not settings.frozen)


@pytest.mark.parametrize("settings", [LINEAR, UPERNET])
def test_going_on_changes_no_bit(pairs: Pairs, settings: Segmentation) -> None:
    states: dict[int, Any] = {}

    def save(epoch: int, state: dict[str, Any]) -> None:
        states[epoch] = {**state, "training": _copied(state["training"])}

    whole = segmenter(settings)
    told: list[int] = []
    hooks = Hooks(save=save, advance=lambda num, _: told.append(num))
    reached = train(whole, pairs, settings, PREPROCESSING, device=CPU, hooks=hooks)
    assert (list(states), sum(told)) == ([1, 2, 3], 24)  # of nine images one sits out each epoch
    assert ("maps" in str(list(states[1]["training"]["network"]))) == (not settings.frozen)
    for epoch in (1, 3):
        torch.manual_seed(epoch)
        again = segmenter(settings)
        assert train(again, pairs, settings, PREPROCESSING, device=CPU, hooks=Hooks(states[epoch])) == reached
        expected = whole.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def _copied(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def rates(training: SegmenterTraining, *parameters: nn.Parameter) -> list[float]:
    groups = training._optimizer.param_groups
    return [next(g["lr"] for g in groups if any(each is one for each in g["params"])) for one in parameters]


def batch() -> CropBatch:
    masks = torch.randint(3, (2, 24, 24), generator=torch.Generator().manual_seed(0))
    return CropBatch(torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)), masks)


def test_learning_rates() -> None:
    settings = UPERNET.changed(lr=1.0e-3, warmup_share=0.2, warmup_lr=1e-4, min_lr=1e-5, power=2.0)
    training = SegmenterTraining(segmenter(settings), settings, num_steps=10, ignore=IGNORE, device=CPU)
    network, found = training.network, []
    blocks = [block.mlp.fc1.weight for block in network.maps.model.blocks]
    for step in (0, 2, 6):
        training.step(step, batch())
        found.append(rates(training, network.head.classify.weight, network.auxiliary.layers[2].weight, *blocks))
    for step, (head, auxiliary, *layers) in zip((0, 2, 6), found, strict=True):
        expected = 1e-4 if step == 0 else 1e-5 + (1e-3 - 1e-5) * (1 - (step - 2) / 8) ** 2
        assert head == auxiliary == pytest.approx(expected)
        assert [one / two for one, two in pairwise(layers)] == pytest.approx([0.5] * 3)
    decays = {g["weight_decay"] for g in training._optimizer.param_groups}
    assert decays == {0.0, settings.weight_decay}
    covered = sum(len(group["params"]) for group in training._optimizer.param_groups)
    assert covered == len(list(network.parameters()))
    frozen = SegmenterTraining(segmenter(), LINEAR, num_steps=10, ignore=IGNORE, device=CPU)
    assert sum(len(group["params"]) for group in frozen._optimizer.param_groups) == 4


def test_second_head_adds_as_much_to_the_loss_as_set(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, losses = UPERNET.changed(auxiliary=0.3), iter((2.0, 5.0))
    training = SegmenterTraining(segmenter(settings), settings, num_steps=8, ignore=IGNORE, device=CPU)
    monkeypatch.setattr(
        "poa.tasks.segmentation.train.pixel_loss", lambda found, *_, **__: 0 * found.sum() + next(losses)
    )
    assert training.step(0, batch()) == pytest.approx(2.0 + 0.3 * 5.0)


def test_second_head_adds_to_the_loss() -> None:
    def first_loss(weight: float) -> float:
        settings = UPERNET.changed(auxiliary=weight, drop_path=0.0)
        return SegmenterTraining(segmenter(settings), settings, num_steps=9, ignore=IGNORE, device=CPU).step(0, batch())

    none, some, more = first_loss(0.0), first_loss(0.4), first_loss(0.8)
    assert more - some == pytest.approx(some - none, rel=1e-3)
    assert some - none > 0.2


def test_loss_that_is_not_finite() -> None:
    network = segmenter()
    nn.init.constant_(network.head.layers[1].weight, torch.nan)
    with pytest.raises(Diverged, match=r"loss is nan at step 0.*lower --lr"):
        SegmenterTraining(network, LINEAR, num_steps=3, ignore=IGNORE, device=CPU).step(0, batch())


def test_one_window_equals_whole_images(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> None:
    images, masks = write_pairs(tmp_path_factory.mktemp("square"), num_images=5, height=24, width=24)
    square, network = pair_up(open_index(images), open_index(masks)), segmenter().eval()
    nn.init.normal_(network.head.layers[1].weight)

    whole = LINEAR.changed(whole=True, stride=0)

    def found(of: Pairs, settings: Segmentation = LINEAR) -> Any:
        return evaluate(network, of, settings, PREPROCESSING, num_classes=3, device=CPU)

    assert torch.equal(found(square).counts, found(square, whole).counts)
    assert not torch.equal(found(pairs).counts, found(pairs, whole).counts)  # two windows
    tested = found(square)
    for each in tested.examples:
        number = int(each.name.removesuffix(".jpg"))
        counted = count(each.pair.mask, each.predicted, num_classes=3, ignore=IGNORE)
        assert torch.equal(counted, tested.counts[number])
    assert [each.name for each in tested.examples] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    smaller = found(square, whole.changed(resize=12))
    assert smaller.examples[0].pair.image.shape == (1, 3, 12, 12)
    assert smaller.examples[0].predicted.shape == (24, 24)


def test_frozen_backbones_keep_every_statistic() -> None:
    network = segmenter(model=resnet())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    training = SegmenterTraining(network, LINEAR, num_steps=3, ignore=IGNORE, device=CPU)
    training.step(1, batch())
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in changed} == {"head"}
    assert all(parameter.grad is None for parameter in network.maps.parameters())
    assert any("running_var" in name for name in changed)


def test_images_are_enlarged_to_whole_patches() -> None:
    network = segmenter().eval()
    nn.init.normal_(network.head.layers[1].weight)
    images = torch.randn(1, 3, 22, 33)
    enlarged = nn.functional.pad(images, (0, 3, 0, 2))
    with torch.no_grad():
        torch.testing.assert_close(network(images), network(enlarged)[:, :, :22, :33])
