"""Slimmable networks by contrast; the letters are those of the acceptance tests in the specification of SlimCLR."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poa import distributed
from poa.config.pretraining import SlimSettings
from poa.data.views import Views
from poa.elastic.recompute import Recomputed
from poa.elastic.space import SearchSpace, Size
from poa.families.slim_resnet import SlimResNet
from poa.losses.contrastive import Similarities
from poa.losses.slimmable import soft_cross_entropy
from poa.methods.contrast import MoCoV2, MoCoV3, SimCLR
from poa.methods.slimclr import SlimCLR
from processes import run_processes
from reference.contrastive import info_nce, moco_v3, nt_xent

FULL, HALF = Size(16, (1, 1, 1, 1)), Size(8, (1, 1, 1, 1))
BATCH = 4
MADE: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": 16, "dim": 8},
    "mocov2": {"dim": 8, "queue": 8},
    "mocov2-norm": {"head_norm": True, "hidden": 16, "dim": 8, "queue": 8},
    "mocov3": {"hidden": 16, "dim": 8},
}
KINDS: dict[str, type[SlimCLR]] = {"simclr": SimCLR, "mocov2": MoCoV2, "mocov2-norm": MoCoV2, "mocov3": MoCoV3}


def family(widths: Sequence[Size] = (HALF, FULL)) -> SlimResNet:
    return SlimResNet(SearchSpace(tuple(widths), (1,) * len(widths)), image_size=32)


def method(
    name: str, *, widths: Sequence[Size] = (HALF, FULL), checkpointing: bool = False, **slimming: Any
) -> SlimCLR:
    """With all parameters away from 0, since blocks start as nothing."""
    torch.manual_seed(0)
    kind: Any = KINDS[name]
    made: SlimCLR = kind(family(widths), SlimSettings(**MADE[name], **slimming), checkpointing=checkpointing)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made.train()


def views(images: slice = slice(None), *, batch: int = BATCH) -> Views:
    generator = torch.Generator().manual_seed(2)
    globals_ = torch.randn(2, batch, 3, 32, 32, generator=generator)[:, images].flatten(0, 1)
    return Views(globals_, torch.empty(0, 3, 32, 32), torch.zeros(len(globals_), 4, dtype=torch.bool))


def total(made: SlimCLR, sizes: Sequence[Size], batch: Views) -> Tensor:
    weights, losses = made.weights(sizes, num_locals=0), made(batch, sizes, temperature=1.0)
    assert weights.keys() == losses.keys()
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def gradients(made: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in made.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", KINDS)
def test_e_before_the_others_join_the_full_width_learns_alone(name: str) -> None:
    made = method(name)
    assert made.weights((), num_locals=0) == {"16x1-1-1-1/contrast": 1.0}
    total(made, (), views()).backward()
    of_half = {key for key, _ in made.student.backbone.named_parameters() if key.endswith((".1.weight", ".1.bias"))}
    assert of_half
    assert all(made.student.backbone.get_parameter(key).grad is None for key in of_half)
    silent = {key for key, parameter in made.student.backbone.named_parameters() if parameter.grad is None}
    assert silent == of_half | {"mask_token"}


@pytest.mark.parametrize("name", KINDS)
def test_e_then_losses_are_weighed_and_added(name: str) -> None:
    made = method(name)
    assert made.weights((HALF,), num_locals=0) == pytest.approx(
        {"16x1-1-1-1/contrast": 1.5, "8x1-1-1-1/contrast": 0.5, "8x1-1-1-1/distillation": 0.5}
    )
    total(made, (HALF,), views()).backward()
    silent = {key for key, parameter in made.student.named_parameters() if parameter.grad is None}
    assert silent == {"backbone.mask_token"}
    plain = method(name, distillation=None, weighting="even")
    assert plain.weights((HALF,), num_locals=0) == {"16x1-1-1-1/contrast": 1.0, "8x1-1-1-1/contrast": 1.0}


@pytest.mark.parametrize("name", KINDS)
def test_e_contrast_and_distillation_share_the_weight_of_a_width(name: str) -> None:
    """Distillation has the share that is set, contrast the rest."""
    weights = method(name, distillation_share=0.25).weights((HALF,), num_locals=0)
    assert weights["8x1-1-1-1/distillation"] == pytest.approx(weights["8x1-1-1-1/contrast"] / 3)
    assert weights["8x1-1-1-1/distillation"] > 0


@pytest.mark.parametrize(("name", "divisor"), [("simclr", 1.0), ("mocov2", 1.0), ("mocov2-norm", 1.0), ("mocov3", 0.2)])
def test_f_distillation_compares_cosines_and_with_moco_v3_logits(
    monkeypatch: pytest.MonkeyPatch, name: str, divisor: float
) -> None:
    """As the official code does; the published temperature of MoCo v3 is 1, where there is no difference."""
    made = method(name, temperature=0.2, distillation_temperature=1.5)
    passed: list[list[Similarities]] = []
    similarities = made.similarities

    def seen(*args: Any) -> list[list[Similarities]]:
        passed.extend(similarities(*args))
        return passed

    monkeypatch.setattr(made, "similarities", seen)
    found = made(views(), (HALF,), temperature=1.0)["8x1-1-1-1/distillation"]
    rows = [[each.values / divisor for each in pairing] for pairing in passed]
    expected = sum(soft_cross_entropy(half, full, temperature=1.5) for full, half in rows)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", KINDS)
def test_f_the_full_width_learns_nothing_from_distillation(name: str) -> None:
    made = method(name)
    made(views(), (HALF,), temperature=1.0)["8x1-1-1-1/distillation"].backward()
    found = gradients(made.student.backbone)
    assert all(found[key].abs().sum() > 0 for key in found if key.endswith(".1.weight"))
    assert not any(key.endswith(".0.weight") and "norm" in key for key in found)
    conv = found["model.stages.0.blocks.0.conv2.weight"]
    assert conv[:8, :8].abs().sum() > 0
    assert conv[8:].count_nonzero() == conv[:, 8:].count_nonzero() == 0


@pytest.mark.parametrize("name", ["mocov2", "mocov2-norm", "mocov3"])
def test_g_the_momentum_encoder_is_of_full_width_and_measures_by_itself(name: str) -> None:
    made: Any = method(name)
    names = dict(made.momentum.named_buffers())
    assert not any(isinstance(layer, nn.ModuleList) for layer in made.momentum.backbone.modules())
    made(views(), (HALF,), temperature=1.0)
    passes = 1 if name.startswith("mocov2") else 2
    assert {int(value) for key, value in names.items() if key.endswith("num_batches_tracked")} == {passes}
    before = {key: value.clone() for key, value in made.momentum.named_parameters()}
    kept = {key: value.clone() for key, value in names.items()}
    source = made.plain()
    made.update_teacher(0.75)
    for key, value in made.momentum.named_parameters():
        torch.testing.assert_close(value, 0.75 * before[key] + 0.25 * source[key])
    assert all(torch.equal(value, kept[key]) for key, value in made.momentum.named_buffers())
    assert not any(parameter.requires_grad for parameter in made.momentum.parameters())


def test_with_one_width_they_are_the_plain_methods() -> None:
    batch = views()
    first, second = batch.globals.chunk(2)
    for name in KINDS:
        made: Any = method(name, widths=(FULL,)).eval()
        if name == "simclr":
            expected = nt_xent(made.student(first), made.student(second), temperature=0.1)
        elif name.startswith("mocov2"):
            expected = info_nce(made.student(first), made.momentum(second), made.queue.rows.clone(), temperature=0.2)
        else:
            made.momentum.eval()
            expected = moco_v3(made.student(first), made.momentum(second), temperature=1.0)
            expected = expected + moco_v3(made.student(second), made.momentum(first), temperature=1.0)
        made.train()
        made.student.eval()  # so that nothing depends on which pass comes first
        if name != "simclr":
            made.momentum.eval()
        made.training = False
        found = made(batch, (), temperature=1.0)
        torch.testing.assert_close(found["16x1-1-1-1/contrast"], expected)


def test_with_batch_norm_moco_v2_has_the_head_of_simclr() -> None:
    """In both encoders; without, that which is published: two layers, as wide as the features at first."""
    made, published, simclr = method("mocov2-norm"), method("mocov2"), method("simclr")
    assert isinstance(made, MoCoV2)
    ours, theirs = ({key: x.shape for key, x in each.student.heads.state_dict().items()} for each in (made, simclr))
    assert ours == theirs
    layers = [type(layer).__name__ for layer in made.momentum.heads.children()]
    assert layers == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    width = published.student.backbone.num_features
    shapes = [tuple(value.shape) for name, value in published.student.heads.named_parameters() if "weight" in name]
    assert shapes == [(width, width), (8, width)]


@pytest.mark.parametrize("name", KINDS)
def test_statistics_of_a_width_move_with_its_own_passes_alone(name: str) -> None:
    made = method(name)
    tracked = {key: value for key, value in made.student.named_buffers() if key.endswith("num_batches_tracked")}
    half = {key for key in tracked if key.startswith("backbone.") and key.endswith(".1.num_batches_tracked")}
    made(views(), (), temperature=1.0)
    passes = 1 if name.startswith("mocov2") else 2
    assert {int(tracked[key]) for key in half} == {0}
    assert {int(value) for key, value in tracked.items() if key.startswith("backbone.") and key not in half} == {passes}
    made(views(), (HALF,), temperature=1.0)
    assert {int(tracked[key]) for key in half} == {passes}


@pytest.mark.parametrize("name", KINDS)
def test_checkpointing_changes_no_bit(name: str) -> None:
    """Nor do statistics move twice."""
    results = []
    for checkpointing in (False, True):
        made = method(name, checkpointing=checkpointing)
        parts = [*made.student.backbone.blocks, made.student.heads]
        assert [isinstance(part, Recomputed) for part in parts] == [checkpointing] * len(parts)
        total(made, (HALF,), views()).backward()
        results.append(gradients(made) | dict(made.named_buffers()))
    expected, found = results
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def step(name: str, processes: int) -> dict[str, Tensor]:
    made = method(name, checkpointing=processes == 2 and name == "mocov3")
    wrapped = distributed.data_parallel(made, device=torch.device("cpu"), find_unused=True)
    share = 8 // processes
    own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    losses = wrapped(views(own, batch=8), (HALF,), temperature=1.0)
    weights = made.weights((HALF,), num_locals=0)
    torch.stack([weights[key] * loss for key, loss in losses.items()]).sum().backward()
    return gradients(made) | {key: value.clone() for key, value in made.named_buffers()}


def on_each_process() -> dict[str, Any]:
    """All of the following in one pair of processes: to start them takes longer than the rest."""
    steps = {name: step(name, 2) for name in ("simclr", "mocov3")}
    return {**steps, "keys": keys_of(8), "shuffled": shuffled(8)}


@pytest.fixture(scope="module")
def two_processes() -> list[dict[str, Any]]:
    return run_processes(on_each_process, 2)


@pytest.mark.parametrize("name", ["simclr", "mocov3"])
def test_two_processes_with_synced_statistics_equal_one(two_processes: list[dict[str, Any]], name: str) -> None:
    expected = step(name, 1)
    for found in (result[name] for result in two_processes):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            # Summed in another order; BatchNorms over few cells enlarge that about a thousandfold on the way back.
            torch.testing.assert_close(value, expected[key], rtol=1e-2, atol=2e-4)


def keys_of(batch: int) -> tuple[Tensor, Tensor]:
    """Keys of this process, from an encoder that does not look at the batch, and the queue."""
    made: Any = method("mocov2")
    made.momentum.eval()
    share = batch // distributed.world_size()
    own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    keys = made._keys(views(own, batch=batch).globals.chunk(2)[1])
    made.queue.enqueue(keys)
    return keys, made.queue.rows


def test_shuffled_keys_come_back_in_their_order(two_processes: list[dict[str, Any]]) -> None:
    keys, queue = keys_of(8)
    (first, rows), (second, others) = (result["keys"] for result in two_processes)
    torch.testing.assert_close(torch.cat([first, second]), keys)
    torch.testing.assert_close(rows, queue)
    assert torch.equal(rows, others)


def shuffled(batch: int) -> Tensor:
    """What the momentum encoder of this process sees of the second views."""
    made: Any = method("mocov2")
    seen: list[Tensor] = []
    made.momentum.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    own = slice(distributed.rank() * batch // 2, (distributed.rank() + 1) * batch // 2)
    made._keys(views(own, batch=batch).globals.chunk(2)[1])
    return seen[0]


def test_the_momentum_encoder_sees_images_of_other_processes(two_processes: list[dict[str, Any]]) -> None:
    second = views(batch=8).globals.chunk(2)[1]
    parts = [result["shuffled"] for result in two_processes]
    seen = torch.cat(parts)
    order = [int((second == image).flatten(1).all(1).nonzero()) for image in seen]
    assert sorted(order) == list(range(8))
    assert set(order[:4]) != set(range(4))


def test_the_order_goes_on_where_it_was_saved() -> None:
    made, other = method("mocov2"), method("mocov2")
    assert isinstance(made, MoCoV2)
    assert isinstance(other, MoCoV2)
    second = views().globals.chunk(2)[1]
    made._keys(second)
    other.load_state_dict(made.state_dict())
    seen = list[Tensor]()
    for each in (made, other):
        each.momentum.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        each._keys(second)
    assert torch.equal(*seen)
    assert made.drawn == other.drawn == int(other.shuffles) == 2
    assert not torch.equal(seen[0], second)
