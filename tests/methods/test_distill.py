import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from frozen import WIDTHS, Teacher
from poa import distributed
from poa.config.pretraining import DistillSettings
from poa.data.views import Views
from poa.elastic.recompute import Recomputed
from poa.elastic.space import SearchSpace, Size
from poa.families.vit import ViT
from poa.methods.distill import Distill
from poa.methods.layers import RunningStandard
from poa.models.registry import family_of
from processes import run_processes
from reference.losses import feature_distance, resized_grid, standardised

FAMILY = ViT(SearchSpace.grid([16, 32], [2, 3]), image_size=16, patch_size=4, head_dim=16)
SMALL, WIDE, INTACT = Size(16, (2,)), Size(32, (2,)), Size(32, (3,))
BATCH = 4
Rows = list[list[float]]


def method(*, family: Any = FAMILY, drop_path: float = 0.0, checkpointing: bool = False, **settings: Any) -> Distill:
    """With parameters far from their initial values."""
    given = {"drop_path": drop_path, "checkpointing": checkpointing, "intact_share": settings.pop("intact_share", 0.8)}
    made = Distill(family, Teacher(), widths=WIDTHS, distillation=DistillSettings(**settings), hidden=8, **given)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.student.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + float(parameter.ndim == 1))
    return made


def batch(*, num_locals: int = 2, side: int = 16, local_side: int = 8) -> Views:
    generator = torch.Generator().manual_seed(1)
    globals_ = torch.randn(2 * BATCH, 3, side, side, generator=generator)
    locals_ = torch.randn(num_locals * BATCH, 3, local_side, local_side, generator=generator)
    return Views(globals_, locals_, torch.zeros(2 * BATCH, 16, dtype=torch.bool))


def total_of(made: Distill, views: Views, sizes: Sequence[Size]) -> Tensor:
    losses = made(views, sizes, temperature=1.0)
    weights = made.weights(sizes, num_locals=len(views.locals) // BATCH)
    assert weights.keys() == losses.keys()
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def gradients(made: Distill) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in made.named_parameters() if value.grad is not None}


@torch.no_grad()
def by_hand(made: Distill, views: Views, sizes: Sequence[Size], *, patch: float, local: float, s: float) -> float:
    """The total loss of a first step, image by image and pair by pair."""
    asked = made.frozen.network(views.globals)
    cls = standardised(asked.cls.tolist())
    grids = [resized_grid(grid, 4) for grid in asked.patches.tolist()]
    flat = standardised([row for grid in grids for row in grid])

    def mean(given: Rows, rows: Rows) -> float:
        return sum(feature_distance(ours, theirs, s) for ours, theirs in zip(given, rows, strict=True)) / len(given)

    def seen(student: Any) -> tuple[Rows, Rows, Rows]:
        heads, features = student.heads, student.backbone(views.globals)
        small = student.backbone(views.locals).cls if len(views.locals) else features.cls[:0]
        patches = [heads.patches(row).tolist() for image in features.patches for row in image]
        return heads.cls(features.cls).tolist(), heads.cls(small).tolist(), patches

    def distance(student: tuple[Rows, Rows, Rows]) -> float:
        crops, small, patches = student
        found = mean(crops, cls) + patch * mean(patches, flat)
        if small and local:
            pairs = itertools.product(range(len(small)), range(2))
            values = [feature_distance(small[n], cls[view * BATCH + n % BATCH], s) for n, view in pairs]
            found += local * sum(values) / len(values)
        return found

    intact = seen(made.student)
    total = made.intact_share * distance(intact)
    for size in sizes:
        elastic = seen(made.sub_networks.extract(size, made.student))
        same = mean(elastic[0], intact[0]) + (local * mean(elastic[1], intact[1]) if elastic[1] and local else 0.0)
        total += (1 - made.intact_share) * (distance(elastic) + same) / len(sizes)
    return total


@pytest.mark.parametrize("sizes", [(SMALL,), (WIDE, SMALL, SMALL)])
@pytest.mark.parametrize("num_locals", [0, 2])
def test_the_loss_equals_loops(sizes: tuple[Size, ...], num_locals: int) -> None:
    made, views = method(patch_weight=0.5, local_weight=0.7, smooth_l1=0.3, intact_share=0.6).double(), batch()
    views = Views(views.globals.double(), views.locals.double()[: num_locals * BATCH], views.masks)
    expected = by_hand(made, views, sizes, patch=0.5, local=0.7, s=0.3)
    assert total_of(made, views, sizes).item() == pytest.approx(expected, rel=1e-6)


def test_what_has_no_weight_is_not_computed() -> None:
    """Local crops are not even looked at, and there is no projection of patches."""
    made, views = method(patch_weight=0, local_weight=0), batch()
    poisoned = Views(views.globals, views.locals * torch.nan, views.masks)
    assert made(poisoned, [SMALL], temperature=1.0).keys() == {"intact/global", "elastic/global", "elastic/same_global"}
    assert torch.isfinite(torch.stack(list(made(poisoned, [SMALL], temperature=1.0).values()))).all()
    assert not any("patches" in name for name, _ in made.student.heads.named_parameters())


def test_the_teacher_runs_once_a_step_and_never_learns() -> None:
    made = method(drop_path=0.5).train()
    total_of(made, batch(), [SMALL, WIDE]).backward()
    network = made.frozen.network
    assert isinstance(network, Teacher)
    assert network.calls == 1
    assert made.student.training
    assert not any(module.training for module in made.frozen.modules())
    found = gradients(made)
    learning = {name for name, _ in made.named_parameters() if name.startswith("student.")}
    assert found.keys() == learning - {"student.backbone.mask_token"}
    assert all(gradient.count_nonzero() for gradient in found.values())
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.update_teacher(0.5)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_the_intact_student_learns_nothing_from_the_same_view_terms() -> None:
    made = method()
    losses = made(batch(), [SMALL], temperature=1.0)
    (losses["elastic/same_global"] + losses["elastic/same_local"]).backward()
    whole = made.student.backbone.get_parameter("model.blocks.2.mlp.fc1.weight").grad
    assert whole is not None
    assert whole[:64, :16].abs().sum() > 0
    assert whole[64:].count_nonzero() == whole[:, 16:].count_nonzero() == 0


def test_the_first_layer_of_the_projection_is_cut_by_width() -> None:
    made = method()
    small: Any = made.sub_networks.extract(SMALL, made.student)
    whole: Any = made.student.heads
    for ours, theirs in ((small.heads.cls, whole.cls), (small.heads.patches, whole.patches)):
        torch.testing.assert_close(ours[0].weight, 2 * theirs[0].weight[:, :16])
        assert torch.equal(ours[2].weight, theirs[2].weight)


def test_a_space_of_one_size_has_the_intact_student_alone() -> None:
    family = ViT(SearchSpace((SMALL,), (1,)), image_size=16, patch_size=4, head_dim=16)
    made = method(family=family, patch_weight=0.5)
    assert made.weights((), num_locals=1) == {"intact/global": 1.0, "intact/patch": 0.5, "intact/local": 1.0}
    total_of(made, batch(), ()).backward()
    assert made.exported is made.student


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_changes_no_bit(drop_path: float) -> None:
    found = []
    for checkpointing in (False, True):
        made = method(drop_path=drop_path, checkpointing=checkpointing).train()
        parts = (*made.student.backbone.blocks, made.student.heads)
        assert [isinstance(part, Recomputed) for part in parts] == [checkpointing] * len(parts)
        torch.manual_seed(0)
        total_of(made, batch(), [SMALL, WIDE]).backward()
        found.append(gradients(made))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_statistics_follow_all_rows() -> None:
    """Exactly, as long as batches are few; then as a moving average."""
    torch.manual_seed(0)
    rows = 3 * torch.randn(40, 2, dtype=torch.float64) + torch.tensor([100.0, -1.0])
    standard = RunningStandard(2).double()
    found = [standard(part) for part in rows.split(8)]
    torch.testing.assert_close(standard.mean, rows.mean(0))
    torch.testing.assert_close(standard.variance, rows.var(0, unbiased=False))
    torch.testing.assert_close(found[0], torch.tensor(standardised(rows[:8].tolist()), dtype=torch.float64))
    torch.testing.assert_close(found[4], (rows[32:] - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt())
    standard.batches.fill_(10**6)
    standard(rows[:8] + 5)
    expected = 0.999 * rows.mean(0) + 0.001 * (rows[:8] + 5).mean(0)
    torch.testing.assert_close(standard.mean, expected)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_every_family_learns_from_a_teacher_with_another_grid(name: str) -> None:
    family = family_of(tiny.config(name))
    made = method(family=family).train()
    side = family.image_size
    total_of(made, batch(num_locals=1, side=side, local_side=side), family.space.sizes[:1]).backward()
    learning = {f"student.{name}" for name, _ in made.student.named_parameters()}
    assert gradients(made).keys() == learning - {"student.backbone.mask_token"}


def two_steps(halves: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the second step, and statistics after it."""
    made = method().train()
    wrapped = distributed.data_parallel(made, device=torch.device("cpu"))
    share = BATCH // halves
    own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    views = batch()
    parts = [rows.unflatten(0, (2, BATCH))[:, own].flatten(0, 1) for rows in views[:3]]
    for _ in range(2):
        made.zero_grad()
        losses = wrapped(Views(*parts), [SMALL], temperature=1.0)
        torch.stack([made.weights((), num_locals=2)[name] * loss for name, loss in losses.items()]).sum().backward()
    return gradients(made), made.frozen.standard.state_dict()


def test_two_processes_equal_one() -> None:
    (expected, statistics), (first, second) = two_steps(1), run_processes(two_steps, 2, 2)
    for found, theirs in (first, second):
        for name, value in statistics.items():
            torch.testing.assert_close(theirs[name], value)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)  # summed in another order


def test_low_precision_is_for_backbones_alone() -> None:
    made = method().train()
    exact = made(batch(), [SMALL], temperature=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method().train()(batch(), [SMALL], temperature=1.0)
    for name, loss in exact.items():
        assert rough[name].dtype == torch.float32
        assert rough[name] != loss
        torch.testing.assert_close(rough[name], loss, rtol=0.1, atol=0.02)
