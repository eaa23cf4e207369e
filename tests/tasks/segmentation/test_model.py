import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa.tasks.maps import Level
from poa.tasks.segmentation.model import AuxiliaryHead, LinearHead, UperNetHead, side_by_side

LEVELS = [Level(3, 4.0), Level(4, 8.0), Level(5, 16.0), Level(6, 32.0)]


def maps() -> list[Tensor]:
    return [torch.randn(2, level.channels, int(64 / level.stride), int(96 / level.stride)) for level in LEVELS]


def lively(head: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics that are not those of a fresh BatchNorm."""
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return head.eval()


def grown(one: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(one, size=like.shape[2:], mode="bilinear")


def test_upernet_step_by_step() -> None:
    torch.manual_seed(0)
    head, (first, second, third, last) = lively(UperNetHead(LEVELS, channels=7, num_classes=2)), maps()
    pooled = [F.adaptive_avg_pool2d(last, cells) for cells in (1, 2, 3, 6)]
    context = torch.cat([last, *(grown(head.pooled[i](each), last) for i, each in enumerate(pooled))], dim=1)
    top = head.context(context)
    down3 = head.lateral[2](third) + grown(top, third)
    down2 = head.lateral[1](second) + grown(down3, second)
    down1 = head.lateral[0](first) + grown(down2, first)
    fine = [head.smooth[0](down1), grown(head.smooth[1](down2), first), grown(head.smooth[2](down3), first)]
    expected = head.classify(head.fuse(torch.cat([*fine, grown(top, first)], dim=1)))
    found = head([first, second, third, last])
    assert found.shape == (2, 2, 16, 24)
    torch.testing.assert_close(found, expected)


def test_every_parameter_of_upernet_learns() -> None:
    head = UperNetHead([Level(4, 16.0)] * 4, channels=3, num_classes=2)
    head([torch.randn(2, 4, 6, 6) for _ in range(4)]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_small_heads() -> None:
    given = maps()
    assert LinearHead(LEVELS, num_classes=5)(given).shape == (2, 5, 16, 24)
    assert AuxiliaryHead(LEVELS[2], channels=4, num_classes=5)([given[2]]).shape == (2, 5, 4, 6)
    joined = side_by_side(given)
    assert joined.shape == (2, 18, 16, 24)
    assert torch.equal(joined[:, :3], given[0])
    assert torch.equal(joined[:, 12:], grown(given[3], given[0]))
