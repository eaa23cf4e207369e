from typing import Any

import pytest
import torch

from poa.config.network import HeadSettings
from poa.config.pretraining import LossSettings
from poa.data.views import Views
from poa.elastic.space import SearchSpace, Size
from poa.families.vit import ViT
from poa.losses.coding_rate import coding_rate
from poa.methods.poa import POA
from reference import poa as reference
from reference.losses import dot

FAMILY = ViT(SearchSpace.grid([16, 32], [2, 3]), image_size=16, patch_size=8, head_dim=16)
SMALL, BATCH, SHARE, DISTORTION = Size(16, (2,)), 3, 0.7, 0.2
MASKS = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]) > 0


def made(**losses: Any) -> POA:
    settings = LossSettings(kind="coding-rate", distortion=DISTORTION, intact_share=SHARE, **losses)
    method = POA(FAMILY, heads=HeadSettings(hidden=8, bottleneck=4), losses=settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + float(parameter.ndim == 1))
    return method.double()


def batch(num_locals: int) -> Views:
    generator = torch.Generator().manual_seed(1)
    crops = torch.randn(2 * BATCH, 3, 16, 16, generator=generator).double()
    return Views(crops, torch.randn(num_locals * BATCH, 3, 8, 8, generator=generator).double(), MASKS)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def distances(asked: list[list[float]], given: list[list[float]]) -> list[float]:
    return [1 - dot(ours, theirs) for ours, theirs in zip(asked, given, strict=True)]


@pytest.mark.parametrize("num_locals", [0, 2])
def test_terms_of_the_coding_rate_equal_loops(num_locals: int) -> None:
    method, views = made(), batch(num_locals)
    losses = method(views, [SMALL], temperature=0.04)
    elastic: Any = method.sub_networks.extract(SMALL, method.student)
    ((t,), _) = reference.look(method.teacher, views, batch=BATCH, masked=False)
    looked = {
        name: reference.look(net, views, batch=BATCH, masked=True)[0][0]
        for name, net in {"intact": method.student, "elastic": elastic}.items()
    }
    counts = [sum(row) for row in MASKS.tolist()]
    patch_weights = [1 / count for count in counts for _ in range(count)]
    for branch, seen in looked.items():
        expected = {
            "global": mean(distances(t.globals[1], seen.globals[0]) + distances(t.globals[0], seen.globals[1])),
            "ibot": sum(w * d for w, d in zip(patch_weights, distances(t.patches, seen.patches), strict=True)) / 6,
            "rate": -mean(
                [
                    coding_rate(
                        (torch.tensor(ours).double() + torch.tensor(theirs).double()) / 2, distortion=DISTORTION
                    ).item()
                    for ours, theirs in zip(seen.globals, t.globals, strict=True)
                ]
            ),
        }
        if num_locals:
            expected["local"] = mean([d for crop in seen.locals for view in t.globals for d in distances(view, crop)])
        for name, value in expected.items():
            assert losses[f"{branch}/{name}"].item() == pytest.approx(value, rel=1e-6), name
    same = mean(
        [d for a, b in zip(looked["intact"].globals, looked["elastic"].globals, strict=True) for d in distances(a, b)]
    )
    assert losses["elastic/same_global"].item() == pytest.approx(same, rel=1e-6)


def test_weights_of_the_coding_rate() -> None:
    weights = made(rate=0.5).weights([SMALL], num_locals=0)
    assert weights["intact/rate"] == pytest.approx(SHARE * 0.5)
    assert weights["elastic/rate"] == pytest.approx((1 - SHARE) * 0.5)
    assert weights.keys() == made()(batch(0), [SMALL], temperature=0.04).keys()


def test_every_parameter_of_the_student_learns() -> None:
    method = made()
    losses, weights = method(batch(2), [SMALL], temperature=0.04), method.weights([SMALL], num_locals=2)
    torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in method.student.parameters())
    assert not any("weight_v" in name for name in method.state_dict())


def test_no_prototypes_to_collapse_to() -> None:
    assert made().log_prototypes == float("inf")
