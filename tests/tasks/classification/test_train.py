import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa.config.finetune import PRESETS, Finetune
from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.errors import UserError
from poa.tasks.classification.data import Labelled, TrainingBatch, draw_rows, labelled, training_transform
from poa.tasks.classification.train import CorrectedEma, ModelTraining, finetune, ranks_of, with_head
from poa.tasks.training import Diverged, Hooks

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(8, 8, (0.3, 0.3, 0.3), (0.35, 0.35, 0.35))
PLAIN = Finetune(
    epochs=3,
    batch_size=16,
    warmup_share=0.0,
    mixup=0.0,
    cutmix=0.0,
    smoothing=0.0,
    drop_path=0.0,
    ema=0.0,
    layer_decay=1.0,
    lr=1e-3,
    crop_scale=(1.0, 1.0),
    flip=0.0,
)
EVERYTHING = PLAIN.changed(
    mixup=0.8,
    cutmix=1.0,
    smoothing=0.1,
    drop_path=0.3,
    ema=0.9,
    layer_decay=0.75,
    warmup_share=0.2,
    crop_scale=(0.5, 1.0),
    flip=0.5,
    rand_augment="rand-m9-mstd0.5-inc1",
    erasing=0.5,
    repeats=2,
)


def vit(*, drop_path: float = 0.0, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    settings = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **settings | options, drop_path_rate=drop_path)


def digits(*, train: int = 64, test: int = 40) -> tuple[Labelled, Labelled]:
    return labelled(open_index("digits/train", limit=train), open_index("digits/test", limit=test))


class Result(NamedTuple):
    ranks: Tensor
    loss: float
    num_images: int

    def percent_within(self, places: int) -> float:
        return 100 * float((self.ranks < places).double().mean())


def run(
    settings: Finetune,
    model: nn.Module | None = None,
    *,
    data: tuple[Labelled, Labelled] | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008  # unchangeable
) -> tuple[nn.Module, Result]:
    train, test = data or digits()
    chosen = train.take(draw_rows(train.labels, settings))
    model = vit(drop_path=settings.drop_path) if model is None else model
    model, summary = finetune(model, chosen, settings, PREPROCESSING, device=CPU, hooks=hooks)
    _, ranks = ranks_of(model, test, preprocessing=PREPROCESSING, device=CPU)
    return model, Result(ranks, summary.loss, len(chosen.labels))


def training(settings: Finetune, model: nn.Module | None = None, *, num_steps: int = 10) -> ModelTraining:
    return ModelTraining(model or vit(), settings, num_classes=10, num_steps=num_steps, device=CPU)


def batch(seed: int = 0, size: int = 16) -> TrainingBatch:
    generator = torch.Generator().manual_seed(seed)
    return TrainingBatch(torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 10, ())


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_plain_steps_are_those_of_torch() -> None:
    settings = PLAIN.changed(lr=1e-2, min_lr=1e-3)
    ours, reference = training(settings, num_steps=4), vit()
    decaying = [p for n, p in reference.named_parameters() if p.ndim > 1 and n not in ("pos_embed", "cls_token")]
    others = [p for n, p in reference.named_parameters() if p.ndim <= 1 or n in ("pos_embed", "cls_token")]
    groups = [{"params": decaying, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 + 0.5 * (1e-2 - 1e-3) * (1 + math.cos(math.pi * step / 4))
        loss = F.cross_entropy(reference(batch(step).images), batch(step).labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert ours.step(step, batch(step)) == pytest.approx(loss.item(), rel=1e-5)
    for name, value in ours.scored.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_learning_rates() -> None:
    settings = PLAIN.changed(lr=1e-2, warmup_share=0.5, warmup_lr=1e-3, min_lr=1e-4, layer_decay=0.5)
    ours = training(settings, num_steps=8)
    found = []
    for step in range(8):
        ours.step(step, batch())
        rates = {group["lr_scale"]: group["lr"] for group in ours._optimizer.param_groups}
        assert sorted(rates) == [0.125, 0.25, 0.5, 1.0]  # embedding, two blocks, norm and classifier
        assert all(rate == pytest.approx(scale * rates[1.0]) for scale, rate in rates.items())
        found.append(rates[1.0])
    rising = [1e-3 + 9e-3 * step / 4 for step in range(4)]
    falling = [1e-4 + 0.5 * 9.9e-3 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert found == pytest.approx(rising + falling)


@pytest.mark.parametrize("decay", [0.7, 0.99])
def test_average_of_weights(decay: float) -> None:
    ours, seen = training(PLAIN.changed(ema=decay)), []
    for step in range(5):
        ours.step(step, batch(step))
        seen.append(copy.deepcopy(ours.model.state_dict()))
    shares = torch.tensor([decay ** (4 - step) for step in range(5)])
    shares /= shares.sum()
    for name, value in ours.scored.state_dict().items():
        expected = sum(share * weights[name] for share, weights in zip(shares, seen, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert not equal(ours.scored.state_dict(), ours.model.state_dict())


def test_average_begins_with_the_first_step() -> None:
    averaged = CorrectedEma(vit(), decay=0.7)
    assert averaged.get_decay(1) == pytest.approx(0.0)
    assert averaged.get_decay(2) == pytest.approx(0.7 / 1.7)
    assert averaged.get_decay(1000) == pytest.approx(0.7)


def test_without_average_the_weights_are_scored() -> None:
    ours = training(PLAIN)
    assert ours.scored is ours.model


def test_smoothed_labels() -> None:
    ours = training(PLAIN.changed(smoothing=0.2))
    expected = F.cross_entropy(vit()(batch().images), batch().labels, label_smoothing=0.2)
    assert ours.step(0, batch()) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_images_and_labels_are_mixed_alike(monkeypatch: pytest.MonkeyPatch, mixup: float, cutmix: float) -> None:
    seen: dict[str, Tensor] = {}
    ours = training(PLAIN.changed(mixup=mixup, cutmix=cutmix, smoothing=0.1))
    ours.model.register_forward_pre_hook(lambda _, inputs: seen.update(images=inputs[0].clone()))
    loss = type(ours._loss).forward
    monkeypatch.setattr(
        type(ours._loss), "forward", lambda self, x, target: (seen.update(targets=target), loss(self, x, target))[1]
    )
    levels = torch.arange(16.0)[:, None, None, None].expand(16, 3, 8, 8).clone()
    ours.step(3, TrainingBatch(levels, torch.arange(16) % 10, ()))
    share = (seen["images"][0].mean() / 15).item()  # of the last image in the first
    assert 0.01 < share < 0.99
    hard = 0.9 + 0.01
    assert seen["targets"][0, 0].item() == pytest.approx((1 - share) * hard + share * 0.01, abs=1e-5)
    assert seen["targets"][0, 5].item() == pytest.approx(share * hard + (1 - share) * 0.01, abs=1e-5)
    assert bool((seen["images"] == seen["images"].round()).all()) == (cutmix > 0)


def test_drop_path_drops() -> None:
    settings = PLAIN.changed(lr=1e-12, min_lr=0.0, drop_path=0.5)
    model = vit(drop_path=0.5)
    nn.init.normal_(model.head.weight)
    ours = training(settings, model.eval())
    losses = [ours.step(step, batch()) for step in (0, 1, 2, 2)]
    assert losses[2] == pytest.approx(losses[3], rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-4
    without = training(settings.changed(drop_path=0.0))
    assert without.step(0, batch()) == pytest.approx(without.step(1, batch()), rel=1e-6)


@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING, EVERYTHING.changed(head="mlp", precision="bf16")])
def test_stopped_training_goes_on_bit_for_bit(settings: Finetune) -> None:
    states: dict[int, Any] = {}
    whole, expected = run(
        settings, hooks=Hooks(save=lambda epoch, state: states.setdefault(epoch, copy.deepcopy(state)))
    )
    assert sorted(states) == [1, 2, 3]
    for epoch in (1, 3):
        again: list[int] = []
        other = vit(seed=5, drop_path=settings.drop_path)
        model, result = run(settings, other, hooks=Hooks(states[epoch], lambda epoch, _, to=again: to.append(epoch)))
        assert equal(model.state_dict(), whole.state_dict())
        assert torch.equal(result.ranks, expected.ranks)
        assert result.loss == expected.loss
        assert again == list(range(epoch + 1, 4))


def test_seed_decides_and_global_generators_are_left_alone() -> None:
    model, data = vit(drop_path=0.3), digits()
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # beartype itself uses Python's
    first, _ = run(EVERYTHING.changed(epochs=1), model, data=data)
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    np.random.seed(1)
    second, _ = run(EVERYTHING.changed(epochs=1))
    third, _ = run(EVERYTHING.changed(epochs=1, seed=1))
    assert equal(first.state_dict(), second.state_dict())
    assert not equal(first.state_dict(), third.state_dict())


def test_it_learns() -> None:
    settings = PLAIN.changed(epochs=8, lr=1e-2, batch_size=32, ema=0.7)
    told: list[int] = []
    model, result = run(
        settings, data=digits(train=256, test=200), hooks=Hooks(advance=lambda num, _: told.append(num))
    )
    assert 50 < result.percent_within(1) < result.percent_within(5) <= 100
    assert (result.num_images, sum(told)) == (256, 8 * 256)
    assert result.loss < 1.5
    assert torch.equal(ranks_of(model, digits(test=200)[1], preprocessing=PREPROCESSING, device=CPU)[1], result.ranks)


def test_part_of_the_images() -> None:
    settings = PLAIN.changed(epochs=1, per_class=3)
    assert run(settings)[1].num_images == 30
    assert run(settings.changed(per_class=None, share=0.5))[1].num_images == 34  # 3 or 4 of 6 or 7 a class


def test_ranks() -> None:
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = torch.zeros(len(images), 10)
            logits[:, 3] = 1.0
            logits[20:, 0] = torch.nan
            return logits

    _, test = digits(test=40)
    read, found = ranks_of(Fixed(), test, preprocessing=PREPROCESSING, device=CPU)
    expected = [0 if label == 3 else label + (label < 3) for label in test.labels.tolist()]
    assert found.tolist() == expected[:20] + [15] * 20
    assert read == list(range(40))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precisions(precision: str) -> None:
    loss = training(PLAIN.changed(precision=precision)).step(0, batch())
    assert loss == pytest.approx(training(PLAIN).step(0, batch()), rel=0.02)
    assert loss != training(PLAIN).step(0, batch())


def test_diverged_training_is_stopped_before_the_weights_are_lost() -> None:
    ours = training(PLAIN)
    before = copy.deepcopy(ours.model.state_dict())
    bad = batch()
    bad.images[3, 0, 0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"loss is nan at step 7.*lower --lr"):
        ours.step(7, bad)
    assert equal(before, ours.model.state_dict())


def test_heads() -> None:
    model = with_head(vit(), "mlp", num_classes=10, seed=0)
    assert [type(layer).__name__ for layer in model.head] == ["Linear", "GELU", "Linear"]
    assert (model.head[0].weight.shape, model.head[2].weight.shape) == ((2048, 16), (10, 2048))
    assert equal(model.state_dict(), with_head(vit(), "mlp", num_classes=10, seed=0).state_dict())
    resnet = with_head(timm.create_model("resnet10t", num_classes=10), "mlp", num_classes=10, seed=0)
    assert resnet(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert with_head(model, "linear", num_classes=10, seed=0) is model
    with pytest.raises(UserError, match="no linear classifier to replace"):
        with_head(vit(num_classes=0), "mlp", num_classes=10, seed=0)


def test_batches_larger_than_the_images() -> None:
    with pytest.raises(UserError, match="--batch-size 66 is larger than the number of images, 64"):
        run(PLAIN.changed(batch_size=66))


def test_unreadable_test_images(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"damaged")
    index = open_index(str(tmp_path), cache=tmp_path / "cache")
    with pytest.raises(UserError, match=r"Of 2 test images in .* none could"):
        ranks_of(vit(), Labelled(index, index.labels()), preprocessing=PREPROCESSING, device=CPU)


@pytest.mark.parametrize("text", ["nonsense", "rand-q3"])
def test_wrong_rand_augment(text: str) -> None:
    with pytest.raises(UserError, match=f"--rand-augment {text}: timm cannot parse it"):
        training_transform(Finetune(rand_augment=text), PREPROCESSING)


def test_timm_understands_all_presets() -> None:
    for settings in PRESETS.values():
        training_transform(settings, Preprocessing(224, 256, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def test_evaluation_does_not_train() -> None:
    _, test = digits()
    model, _ = run(PLAIN.changed(epochs=1), timm.create_model("resnet10t", num_classes=10))
    before = copy.deepcopy(model.state_dict())
    ranks_of(model.train(), test, preprocessing=PREPROCESSING, device=CPU)
    assert equal(before, model.state_dict())
