import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance import filler
from poa.elastic.space import Size
from poa.elastic.switchable import Switchable, SwitchableNetworks, state
from poa.errors import UserError

FULL, HALF, QUARTER = (Size(width, (1,)) for width in (8, 4, 2))
SIZES = (FULL, HALF, QUARTER)
OUT = 5


class Toy(nn.Module):
    """A convolution, a linear layer and BatchNorms of three kinds: in a sequence, of rows, and without parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Linear(width, 2 * width)
        self.norm = nn.BatchNorm1d(2 * width)
        self.out = nn.Linear(2 * width, OUT)
        self.last = nn.BatchNorm1d(OUT, affine=False)
        nn.init.zeros_(self.norm.weight)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.stem(images).mean((2, 3))
        out: Tensor = self.last(self.out(self.norm(self.inner(rows)).relu()))
        return out


def build(size: Size) -> Toy:
    return Toy(size.width)


NETS = SwitchableNetworks(build, SIZES)
IMAGES = filler((6, 3, 5, 5), 1).float()


@pytest.fixture
def whole() -> nn.Module:
    """The intact network, away from its initial values: sizes that are taken for one another must not agree."""
    torch.manual_seed(0)
    network = NETS.whole()
    with torch.no_grad():
        for number, tensor in enumerate(state(network).values()):
            if tensor.is_floating_point():
                tensor.copy_(filler(tuple(tensor.shape), number).float() + 0.6)
    return network


def standalone(whole: nn.Module, number: int) -> Toy:
    """A plain network of a size with the first rows and columns of the weights, and the BatchNorms of that number."""
    network = build(SIZES[number])
    theirs = whole.state_dict()
    own = {}
    for name, value in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer in ("stem.1", "norm", "last"):
            own[name] = theirs[f"{layer}.{number}.{kind}"].clone()
        else:
            own[name] = theirs[name][tuple(slice(0, length) for length in value.shape)].clone()
    network.load_state_dict(own)
    return network


def test_names() -> None:
    names = {name for name in NETS.whole().state_dict() if name.startswith(("stem.1", "last"))}
    affine = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert names == {f"stem.1.{number}.{kind}" for number in range(3) for kind in affine} | {
        f"last.{number}.{kind}" for number in range(3) for kind in affine - {"weight", "bias"}
    }


def test_own_layers_start_as_their_sizes_have_them() -> None:
    whole = NETS.whole()
    for number, width in enumerate((8, 4, 2)):
        assert whole.get_parameter(f"norm.{number}.weight").tolist() == [0.0] * 2 * width
        assert whole.get_parameter(f"stem.1.{number}.weight").tolist() == [1.0] * width


def test_fresh_weights_do_not_depend_on_the_other_sizes() -> None:
    torch.manual_seed(3)
    alone, after = build(FULL).state_dict(), torch.rand(1)
    torch.manual_seed(3)
    whole, after_all = NETS.whole().state_dict(), torch.rand(1)
    assert torch.equal(alone["stem.0.weight"], whole["stem.0.weight"])
    assert torch.equal(alone["out.weight"], whole["out.weight"])
    assert torch.equal(after, after_all)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("number", range(3))
def test_a_size_is_a_plain_network_bit_for_bit(whole: nn.Module, number: int, training: bool) -> None:
    plain = standalone(whole, number).train(training)
    bound = NETS.bind(SIZES[number], state(whole), training=training)
    for _ in range(2):  # the second pass sees the statistics that the first has moved
        assert torch.equal(bound(IMAGES), plain(IMAGES))
    moved = NETS.extract(SIZES[number], whole).state_dict()
    assert all(torch.equal(moved[name], value) for name, value in plain.state_dict().items())
    assert moved.keys() == plain.state_dict().keys()


@pytest.mark.parametrize("number", range(3))
def test_training_moves_the_statistics_of_its_size_alone(whole: nn.Module, number: int) -> None:
    before = copy.deepcopy(whole.state_dict())
    NETS.bind(SIZES[number], state(whole), training=False)(IMAGES)
    assert all(torch.equal(before[name], value) for name, value in whole.state_dict().items())
    NETS.bind(SIZES[number], state(whole), training=True)(IMAGES)
    changed = {name for name, value in whole.state_dict().items() if not torch.equal(before[name], value)}
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{layer}.{number}.{kind}" for layer in ("stem.1", "norm", "last") for kind in kinds}
    assert whole.get_buffer(f"norm.{number}.num_batches_tracked") == before[f"norm.{number}.num_batches_tracked"] + 1


@pytest.mark.parametrize("number", range(3))
def test_gradients_are_the_plain_networks(whole: nn.Module, number: int) -> None:
    """They fill the first rows and columns; own layers of other sizes have none."""
    plain = standalone(whole, number).train()
    F.cross_entropy(plain(IMAGES), torch.arange(6) % OUT).backward()
    F.cross_entropy(NETS.bind(SIZES[number], state(whole), training=True)(IMAGES), torch.arange(6) % OUT).backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, cut in NETS.plan(SIZES[number]).cuts.items():
        gradient = whole.get_parameter(cut.source).grad
        assert gradient is not None
        part = gradient[tuple(slice(0, length) for length in cut.shape)]
        assert torch.equal(part, expected[name])
        assert gradient.count_nonzero() == part.count_nonzero()
    others = [n for n in range(3) if n != number]
    assert all(whole.get_parameter(f"norm.{other}.weight").grad is None for other in others)


def test_one_backward_pass_for_all_sizes_adds_up(whole: nn.Module) -> None:
    """Also where a size is called twice."""
    targets = torch.arange(6) % OUT

    def loss(size: Size) -> Tensor:
        bound = NETS.bind(size, state(whole), training=True)
        return F.cross_entropy(bound(IMAGES), targets) + F.cross_entropy(bound(IMAGES.flip(0)), targets)

    before = copy.deepcopy(whole.state_dict())
    for size in SIZES:
        loss(size).backward()
    separately = {name: parameter.grad for name, parameter in whole.named_parameters()}
    statistics = {name: value.clone() for name, value in whole.named_buffers()}
    whole.load_state_dict(before)
    whole.zero_grad(set_to_none=True)
    sum((loss(size) for size in SIZES), torch.zeros(())).backward()
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(parameter.grad, separately[name])
    assert all(torch.equal(value, statistics[name]) for name, value in whole.named_buffers())


def test_the_intact_network_calls_its_own_layers(whole: nn.Module) -> None:
    bound = NETS.bind(FULL, state(whole), training=False)
    assert torch.equal(whole.eval()(IMAGES), bound(IMAGES))
    assert isinstance(whole.get_submodule("norm"), Switchable)


def test_weights_are_cut_without_a_factor(whole: nn.Module) -> None:
    part = NETS.plan(HALF)(state(whole))["inner.weight"]
    assert torch.equal(part, whole.get_parameter("inner.weight")[:8, :4])
    assert {cut.scale for size in SIZES for cut in NETS.plan(size).cuts.values()} == {1.0}


def test_the_plan_of_the_intact_network_gives_plain_names(whole: nn.Module) -> None:
    """So a plain network can follow as a moving average, without the other sizes' layers."""
    plain = NETS.plan(FULL)(state(whole))
    assert plain.keys() == dict(build(FULL).named_parameters()).keys()
    assert plain["norm.weight"] is whole.get_parameter("norm.0.weight")


def test_extracted_networks_share_nothing(whole: nn.Module) -> None:
    network = NETS.extract(HALF, whole)
    assert type(network) is Toy
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    before = NETS.bind(HALF, state(whole), training=False)(IMAGES)
    network.train()(IMAGES)
    with torch.no_grad():
        network.out.weight.zero_()
    assert torch.equal(NETS.bind(HALF, state(whole), training=False)(IMAGES), before)


def test_state_dict_brings_everything_back(whole: nn.Module) -> None:
    again = NETS.whole()
    again.load_state_dict(whole.state_dict())
    for size in SIZES:
        expected = NETS.bind(size, state(whole), training=False)(IMAGES)
        assert torch.equal(NETS.bind(size, state(again), training=False)(IMAGES), expected)


def test_other_layers_can_be_each_sizes_own() -> None:
    """Such as switchable linear layers, with which no number is shared but those of the stem."""
    nets = SwitchableNetworks(build, SIZES, kinds=(nn.modules.batchnorm._BatchNorm, nn.Linear))
    whole = nets.whole()
    nets.bind(HALF, state(whole), training=True)(IMAGES).square().sum().backward()
    reached = {name for name, parameter in whole.named_parameters() if parameter.grad is not None}
    own = {f"{layer}.1.{kind}" for layer in ("stem.1", "inner", "norm", "out") for kind in ("weight", "bias")}
    assert reached == own | {"stem.0.weight"}
    assert nets.extract(HALF, whole).get_parameter("out.weight").shape == (OUT, 8)


def test_low_precision_where_autocast_runs() -> None:
    nets = SwitchableNetworks(build, SIZES, castable=lambda name: name.startswith("inner"))
    parts = nets.plan(HALF)(state(nets.whole()), dtype=torch.bfloat16)
    assert {name for name, part in parts.items() if part.dtype == torch.bfloat16} == {"inner.weight", "inner.bias"}


def test_unknown_size(whole: nn.Module) -> None:
    with pytest.raises(UserError, match=r"no layers for size 3x1\. Choose from 8x1, 4x1, 2x1\."):
        NETS.bind(Size(3, (1,)), state(whole), training=False)


class Table(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("table", torch.zeros(width))


def test_buffers_are_not_cut() -> None:
    nets = SwitchableNetworks(lambda size: Table(size.width), SIZES)
    nets.plan(FULL)
    with pytest.raises(ValueError, match="buffer 'table'"):
        nets.plan(HALF)
