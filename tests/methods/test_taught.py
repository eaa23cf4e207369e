from typing import Any

import pytest
import torch
from torch import Tensor

from frozen import WIDTHS, Teacher
from poa.config.network import HeadSettings
from poa.config.pretraining import DistillSettings, LossSettings
from poa.data.views import Views
from poa.elastic.space import SearchSpace, Size
from poa.families.vit import ViT
from poa.methods.poa import POA
from poa.methods.taught import TaughtPOA
from reference.losses import feature_distance, standardised

FAMILY = ViT(SearchSpace.grid([16, 32], [2, 3]), image_size=16, patch_size=8, head_dim=16)
SMALL, WIDE = Size(16, (2,)), Size(32, (2,))
HEADS = HeadSettings(prototypes=(6, 9), hidden=8, bottleneck=4)
BATCH = 3


def randomised(made: POA) -> POA:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for branch in (made.student, made.teacher):
            for parameter in branch.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + float(parameter.ndim == 1))
    return made


def method(*, elastic: bool = True, share: float = 0.8, **settings: Any) -> TaughtPOA:
    """With parameters far from their initial values."""
    given = {"heads": HEADS, "losses": LossSettings(intact_share=share), "elastic": elastic}
    taught = {"widths": WIDTHS, "distillation": DistillSettings(**settings)}
    made = randomised(TaughtPOA(FAMILY, Teacher(), **taught, **given))
    assert isinstance(made, TaughtPOA)
    return made


def batch() -> Views:
    generator = torch.Generator().manual_seed(1)
    masks = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]) > 0
    crops, small = (torch.randn(2 * BATCH, 3, side, side, generator=generator) for side in (16, 8))
    return Views(crops, small, masks)


def test_terms_of_poa_stay_and_those_of_the_frozen_teacher_are_added() -> None:
    made, views = method(), batch()
    plain = POA(FAMILY, heads=HEADS, losses=LossSettings())
    plain.load_state_dict({name: made.state_dict()[name] for name in plain.state_dict()})
    losses = made(views, [SMALL, WIDE], temperature=0.05)
    own = plain(views, [SMALL, WIDE], temperature=0.05)
    assert all(torch.equal(losses[name], loss) for name, loss in own.items())
    names = {"frozen_global", "frozen_patch", "frozen_local"}
    assert losses.keys() - own.keys() == {f"{branch}/{name}" for branch in ("intact", "elastic") for name in names}


@torch.no_grad()
def test_patches_that_students_leave_out_are_not_asked_for() -> None:
    made, views = method(), batch()
    kept = torch.tensor([[0, 3], [1, 2], [0, 1], [2, 3], [1, 3], [0, 2]])
    losses = made(views._replace(kept=kept, masks=torch.zeros_like(views.masks)), [SMALL], temperature=0.05)
    asked = made.frozen.network(views.globals)
    rows = torch.tensor(standardised(asked.patches.flatten(0, 1).tolist())).view_as(asked.patches)
    students: dict[str, Any] = {"intact": made.student, "elastic": made.sub_networks.extract(SMALL, made.student)}
    for branch, student in students.items():
        given = student.heads[-1].patches(student.backbone.visible(views.globals, kept).patches)
        distances = [
            feature_distance(given[crop, patch].tolist(), rows[crop, patch].tolist(), 0.1)
            for crop, patches in enumerate(kept.tolist())
            for patch in patches
        ]
        torch.testing.assert_close(losses[f"{branch}/frozen_patch"].item(), sum(distances) / len(distances))


@torch.no_grad()
def test_terms_of_the_frozen_teacher_equal_loops() -> None:
    made, views = method(), batch()
    losses = made(views, [SMALL], temperature=0.05)
    asked = made.frozen.network(views.globals)
    cls, patches = standardised(asked.cls.tolist()), standardised(asked.patches.flatten(0, 1).tolist())

    def mean(given: Tensor, rows: list[list[float]]) -> float:
        pairs = zip(given.tolist(), rows, strict=True)
        return sum(feature_distance(ours, theirs, 0.1) for ours, theirs in pairs) / len(rows)

    students: dict[str, Any] = {"intact": made.student, "elastic": made.sub_networks.extract(SMALL, made.student)}
    for branch, student in students.items():
        project = student.heads[-1]
        features = student.backbone(views.globals, views.masks)  # hidden patches are predicted as the others are
        small = project.cls(student.backbone(views.locals).cls)
        expected = {
            "global": mean(project.cls(features.cls), cls),
            "patch": mean(project.patches(features.patches).flatten(0, 1), patches),
            "local": (mean(small, 2 * cls[:BATCH]) + mean(small, 2 * cls[BATCH:])) / 2,
        }
        for name, value in expected.items():
            assert losses[f"{branch}/frozen_{name}"].item() == pytest.approx(value, rel=1e-4), (branch, name)


def test_weights_are_shared_and_scheduled() -> None:
    plain = POA(FAMILY, heads=HEADS, losses=LossSettings(intact_share=0.6)).weights((), num_locals=2)
    weights = method(share=0.6, patch_weight=0.5, local_weight=0.25).weights((), num_locals=2, frozen=2.0)
    further = {"global": 2.0, "patch": 1.0, "local": 0.5}
    expected = {f"intact/frozen_{name}": 0.6 * weight for name, weight in further.items()}
    expected |= {f"elastic/frozen_{name}": 0.4 * weight for name, weight in further.items()}
    assert weights == pytest.approx(plain | expected)
    alone = method(elastic=False, patch_weight=0).weights((), num_locals=0)
    assert {name: value for name, value in alone.items() if "frozen" in name} == {"intact/frozen_global": 1.0}


def test_what_has_no_weight_is_not_computed() -> None:
    losses = method(patch_weight=0, local_weight=0)(batch(), [SMALL], temperature=0.05)
    assert {name for name in losses if "frozen" in name} == {"intact/frozen_global", "elastic/frozen_global"}


def test_all_of_the_student_learns_at_any_weight_and_no_teacher_does() -> None:
    made = method().train()
    losses, weights = made(batch(), [SMALL], temperature=0.05), made.weights((), num_locals=2, frozen=0.0)
    torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
    found = {name for name, parameter in made.named_parameters() if parameter.grad is not None}
    assert found == {name for name, _ in made.named_parameters() if name.startswith("student.")}
    assert isinstance(made.frozen.network, Teacher)
    assert made.frozen.network.calls == 1
    assert not any(module.training for module in (*made.frozen.modules(), *made.teacher.modules()))


def test_the_moving_teacher_follows_and_statistics_are_saved() -> None:
    made, views = method(), batch()
    made(views, [SMALL], temperature=0.05)
    made.update_teacher(0.9)
    again = method()
    again.load_state_dict(made.state_dict())
    first, second = (each(views, [SMALL], temperature=0.05) for each in (made, again))
    assert all(torch.equal(loss, second[name]) for name, loss in first.items())
    assert made.exported is made.teacher
