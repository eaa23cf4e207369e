import pytest
import torch

from poa.config.network import HeadSettings
from poa.config.pretraining import LossSettings
from poa.data.views import Views
from poa.elastic.space import SearchSpace, Size
from poa.families.vit import ViT
from poa.methods.poa import POA

SIZE = Size(32, (2,))
FAMILY = ViT(SearchSpace((SIZE,), (1,)), image_size=16, patch_size=8, head_dim=16)
HEADS = HeadSettings(prototypes=(6, 9), hidden=8, bottleneck=4)


def views() -> Views:
    generator = torch.Generator().manual_seed(1)
    masks = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]]) > 0
    return Views(torch.randn(4, 3, 16, 16, generator=generator), torch.randn(4, 3, 8, 8, generator=generator), masks)


def test_weights_are_those_of_a_student_alone() -> None:
    """DINOv2: all cross-view pairs weigh the same and come to 1; KoLeo is summed over both global crops."""
    made = POA(FAMILY, heads=HEADS, losses=LossSettings(koleo=0.1), elastic=False)
    assert made.weights((), num_locals=8) == pytest.approx(
        {"intact/global": 2 / 18, "intact/local": 16 / 18, "intact/ibot": 1.0, "intact/koleo": 0.2}
    )
    assert made.weights((), num_locals=0) == pytest.approx(
        {"intact/global": 1.0, "intact/ibot": 1.0, "intact/koleo": 0.2}
    )
    paper = POA(FAMILY, heads=HEADS, losses=LossSettings(variant="paper"), elastic=False)
    assert paper.weights((), num_locals=8)["intact/local"] == 1.0


def test_it_is_poa_without_the_elastic_student() -> None:
    torch.manual_seed(0)
    alone = POA(FAMILY, heads=HEADS, losses=LossSettings(), elastic=False)
    torch.manual_seed(0)
    elastic = POA(FAMILY, heads=HEADS, losses=LossSettings())
    assert alone.state_dict().keys() == elastic.state_dict().keys()
    losses, others = (made(views(), (), temperature=0.05) for made in (alone, elastic))
    assert losses.keys() == others.keys() == alone.weights((), num_locals=2).keys()
    assert all(torch.equal(loss, others[name]) for name, loss in losses.items())


def test_every_parameter_of_the_student_gets_a_gradient() -> None:
    made = POA(FAMILY, heads=HEADS, losses=LossSettings(), elastic=False)
    losses, weights = made(views(), (), temperature=0.05), made.weights((), num_locals=2)
    torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
    assert all(parameter.grad is not None for parameter in made.student.parameters())
    assert all(parameter.grad is None for parameter in made.teacher.parameters())
    assert made.exported is made.teacher


def test_it_takes_no_sizes() -> None:
    made = POA(FAMILY, heads=HEADS, losses=LossSettings(), elastic=False)
    with pytest.raises(AssertionError, match="one size"):
        made(views(), (SIZE,), temperature=0.05)
