"""Blocks of ViTs that drop a branch for some of the images."""

from dataclasses import replace

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from families.networks import VIT, noisy, sub_networks
from poa.elastic.network import SubNetworks
from poa.elastic.space import Size
from poa.families.vit import SubsetDropBlock

pytestmark = pytest.mark.usefixtures("same_random_numbers")


def block(rate: float, *, silent: str) -> SubsetDropBlock:
    """A block in training mode, one of its two branches silenced."""
    family = replace(VIT, layer_scale=1.0)
    first = noisy(family, drop_path=rate).model.blocks[0]
    assert isinstance(first, SubsetDropBlock)
    nn.init.zeros_(getattr(first, silent).gamma)
    return first.train()


@pytest.mark.parametrize("silent", ["ls1", "ls2"])
@pytest.mark.parametrize(("rate", "batch", "kept"), [(0.2, 10, 8), (0.2, 7, 5), (0.5, 3, 1), (0.9, 4, 1), (0.25, 4, 3)])
def test_drop_path_computes_a_branch_for_a_part_of_the_images_and_scales_it(
    silent: str, rate: float, batch: int, kept: int
) -> None:
    first, x = block(rate, silent=silent), torch.randn(batch, 5, 96)
    seen: list[int] = []
    with first.attn.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]))):
        added = first(x) - x
    whole = first.eval()(x) - x
    changed = added.flatten(1).abs().amax(1) > 0
    assert changed.sum() == kept
    assert seen == [kept]
    torch.testing.assert_close(added[changed], whole[changed] * batch / kept, rtol=1e-4, atol=1e-4)


def test_drop_path_keeps_the_expected_value() -> None:
    first, x = block(0.4, silent="ls1"), torch.randn(5, 3, 96)
    with torch.no_grad():
        added = torch.stack([first(x) - x for _ in range(2000)]).mean(0)
        whole = first.eval()(x) - x
    shares = (added * whole).sum((1, 2)) / whole.square().sum((1, 2))
    assert shares.tolist() == pytest.approx([1.0] * 5, abs=0.09)  # five standard errors of 2000 draws with p = 0.6


def test_a_low_rate_is_timms_drop_path() -> None:
    """Up to 0.1 every image is drawn by itself, so their number varies."""
    first, x = block(0.1, silent="ls1"), torch.randn(8, 2, 96)
    whole = first.eval()(x) - x
    numbers = set()
    for _ in range(50):
        added = first.train()(x) - x
        changed = added.flatten(1).abs().amax(1) > 0
        numbers.add(int(changed.sum()))
        torch.testing.assert_close(added[changed], whole[changed] / 0.9, rtol=1e-4, atol=1e-4)
    assert len(numbers) > 1


def test_all_blocks_have_the_same_rate() -> None:
    rates = {(each.drop_path1.drop_prob, each.drop_path2.drop_prob) for each in noisy(VIT, drop_path=0.3).model.blocks}
    assert rates == {(0.3, 0.3)}


def test_no_drop_path_without_a_rate_or_out_of_training() -> None:
    teacher = VIT.build(VIT.space.intact)
    assert {type(each) for each in teacher.model.blocks} == {Block}
    student = noisy(VIT, drop_path=0.5)
    teacher.load_state_dict(student.state_dict())
    images = torch.randn(4, 3, 32, 32)
    expected = teacher.train()(images).cls
    assert torch.equal(teacher.eval()(images).cls, expected)
    assert torch.equal(student.eval()(images).cls, expected)
    assert not torch.equal(student.train()(images).cls, expected)


def test_sub_networks_drop_in_training_only() -> None:
    student, size = noisy(VIT, drop_path=0.5), Size(64, (3,))
    nets = SubNetworks(
        lambda each: VIT.build(each, drop_path=0.5), VIT.space.intact, source=VIT.source, groups=VIT.groups
    )
    images, parameters = torch.randn(4, 3, 32, 32), dict(student.named_parameters())
    expected = sub_networks(VIT).extract(size, student)(images).cls
    assert torch.equal(nets.extract(size, student)(images).cls, expected)
    assert torch.equal(nets.bind(size, parameters, training=False)(images).cls, expected)
    assert not torch.equal(nets.bind(size, parameters, training=True)(images).cls, expected)
