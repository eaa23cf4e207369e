"""The terms of all students and their gradients, made some rows at a time, against all logits at once and loops."""

import math

import pytest
import torch
from torch import Tensor

from conformance import filler
from poa.losses.objective import HeadOutput, Student
from poa.losses.prototypes import Logits, MovingAverageCenter, Prototypes, Stored, mask_weights, sinkhorn
from poa.losses.streamed import Crops, add_product, cross_entropies
from reference import losses as reference

BATCH, NUM_LOCALS, WIDTH, NUM = 3, 4, 5, 7
MASKS = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]) > 0
PATCHES = int(MASKS.sum())
SHARES = {"global": 0.1, "ibot": 0.7, "local": 0.3, "same_global": 0.2, "same_local": 0.4}
LARGER = (None, 0, 1)  # the third student learns from the second


def head(number: int, prototypes: Tensor) -> HeadOutput:
    rows = [filler((count, WIDTH), 10 * number + k) for k, count in enumerate((2 * BATCH, NUM_LOCALS * BATCH, PATCHES))]
    return HeadOutput(*[3 * each.to(prototypes.dtype) for each in rows], prototypes)


def students(prototypes: Tensor) -> list[Student]:
    weights = [{name: SHARES[name] for name in SHARES if not name.startswith("same") or number} for number in range(3)]
    heads = [head(number, prototypes) for number in range(3)]
    for each in heads:
        for rows in each[:3]:
            rows.requires_grad_()
    return [Student(*each) for each in zip(heads, LARGER, weights, strict=True)]


def plain(teacher: HeadOutput, given: list[Student], temperature: float) -> list[dict[str, Tensor]]:
    """As the losses are defined, with all logits at once."""

    def logs(rows: Tensor) -> Tensor:
        return (rows @ given[0].output.prototypes.T / 0.1).log_softmax(1)

    def targets(rows: Tensor) -> Tensor:
        return torch.tensor(
            reference.sinkhorn(rows.tolist(), teacher.prototypes.tolist(), temperature), dtype=rows.dtype
        )

    first, second = teacher.globals.chunk(2)
    crops, patches = targets(torch.cat([second, first])), targets(teacher.patches)
    both = (crops[:BATCH] + crops[BATCH:]) / 2
    found = []
    for student, larger, _ in given:
        terms = {
            "global": -(crops * logs(student.globals)).sum(1).mean(),
            "ibot": -(mask_weights(MASKS)[:, None] * patches * logs(student.patches)).sum() / (2 * BATCH),
            "local": -(both.repeat(NUM_LOCALS, 1) * logs(student.locals)).sum(1).mean(),
        }
        if larger is not None:
            for name in ("globals", "locals"):
                asked = logs(getattr(given[larger].output, name)).exp().detach()
                terms[f"same_{name[:-1]}"] = -(asked * logs(getattr(student, name))).sum(1).mean()
        found.append(terms)
    return found


def gradients(terms: list[dict[str, Tensor]], given: list[Student], *, factor: float = 0.5) -> list[Tensor]:
    total = torch.stack([s.weights[n] * t for s, own in zip(given, terms, strict=True) for n, t in own.items()]).sum()
    inputs = [given[0].output.prototypes, *(rows for student in given for rows in student.output[:3])]
    return list(torch.autograd.grad(factor * total, inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("keep", "rows"), [(True, 2), (False, 8)])
def test_terms_and_gradients_are_those_of_all_logits_at_once(
    dtype: torch.dtype, keep: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poa.losses.streamed.CPU_CHUNK_VALUES", rows * NUM)  # 8: local crops of two images, then of one
    prototypes = filler((NUM, WIDTH), 3).to(dtype).requires_grad_()
    given, teacher = students(prototypes), head(5, filler((NUM, WIDTH), 4).to(dtype))
    objective = Prototypes(0.1, keep_logits=keep)
    asked = objective.targets(teacher, temperature=0.2, centers=(None, None))
    assert isinstance(asked.globals.logits, Stored if keep else Logits)
    found = objective.losses(asked, given, patch_weights=mask_weights(MASKS))
    expected = plain(teacher, given, 0.2)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-7  # mask weights are float32
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=0)
    for ours, theirs in zip(gradients(found, given), gradients(expected, given), strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_targets_that_are_centred_stay_as_they_were_asked_for() -> None:
    center, rows = MovingAverageCenter(NUM), filler((4, WIDTH), 1).float()
    prototypes = filler((NUM, WIDTH), 4).float()
    asked = center(Logits(rows, prototypes, 0.1))
    center.update(rows, prototypes)
    torch.testing.assert_close(asked(slice(1, 3)), (rows[1:3] @ prototypes.T / 0.1).softmax(1))


def one(asked: Tensor, features: Tensor, larger: Tensor | None = None, *, weights: Tensor | None = None) -> Tensor:
    """The terms of a student whose features are its logits, or of a larger one and of it."""
    rows = [features] if larger is None else [larger, features]
    even = torch.full((len(asked),), 1 / max(len(asked), 1), dtype=asked.dtype)
    crops = Crops(asked.__getitem__, even if weights is None else weights, rows)
    shares = torch.ones(len(rows), 1, 2)
    prototypes = torch.eye(features.shape[1], dtype=features.dtype)
    numbers = [None] if larger is None else [None, 0]
    return cross_entropies([crops], prototypes, larger=numbers, temperature=0.1, shares=shares)[-1, 0]


def test_official_values() -> None:
    """Teacher logits u(k, 1) and student logits 2 u(k, 2) through the official modules."""
    teacher, student = filler((4, 6), 1).float(), 2 * filler((4, 6), 2).float()
    asked = sinkhorn(Logits(teacher, torch.eye(6), 0.07))(slice(0, 4))
    cross, same = one(asked, student, teacher)
    assert cross.item() == pytest.approx(6.293155, abs=2e-6)
    assert same.item() == pytest.approx(6.132838, abs=2e-6)


def test_by_hand() -> None:
    """Probabilities 3/4 and 1/4 against one certain and one even target."""
    features = 0.1 * torch.tensor([[math.log(3.0), 0.0]]).expand(2, 2)
    asked = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    rows = [math.log(4), 0.5 * math.log(4 / 3) + 0.5 * math.log(4)]
    assert one(asked, features)[0].item() == pytest.approx(sum(rows) / 2)
    weighted = one(asked, features, weights=torch.tensor([2.0, 3.0]))[0]
    assert weighted.item() == pytest.approx(2 * rows[0] + 3 * rows[1])


def test_without_rows_terms_are_zero_and_connected() -> None:
    features, prototypes = torch.zeros(0, WIDTH, requires_grad=True), torch.ones(NUM, WIDTH, requires_grad=True)
    crops = Crops(torch.zeros(0, NUM).__getitem__, torch.zeros(0), [features])
    values = cross_entropies([crops], prototypes, larger=[None], temperature=0.1, shares=torch.ones(1, 1, 2))
    values.sum().backward()  # type: ignore[no-untyped-call]  # torch's
    assert not values.any()
    assert features.grad is not None
    assert prototypes.grad is not None
    assert not prototypes.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_under_autocast_where_low_precision_gains_nothing_or_loses_gradients(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poa.machine.precision.gains_by_bf16", lambda _: dtype == torch.float16)
    asked, features = filler((4, 6), 1).softmax(1).float(), filler((4, 6), 2).bfloat16()
    expected = one(asked, features.float(), features.float() * 0.5)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(one(asked, features.float(), features.float() * 0.5), expected)


def low_product(left: Tensor, right: Tensor) -> Tensor:
    return (left.bfloat16() @ right.bfloat16()).float()


@pytest.mark.parametrize("keep", [True, False])
def test_products_are_bf16_and_all_else_float32_where_that_gains(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poa.machine.precision.gains_by_bf16", lambda _: True)
    prototypes = filler((NUM, WIDTH), 3).float().requires_grad_()
    given, teacher = students(prototypes), head(5, filler((NUM, WIDTH), 4).float())
    objective = Prototypes(0.1, keep_logits=keep)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        asked = objective.targets(teacher, temperature=0.2, centers=(None, None))
        found = objective.losses(asked, given, patch_weights=mask_weights(MASKS))
    rows, target = given[0].output.patches, asked.patches(slice(0, None))
    logits = low_product(teacher.patches / 0.2, teacher.prototypes.T)
    expected = torch.tensor(reference.sinkhorn((0.2 * logits).tolist(), torch.eye(NUM).tolist(), 0.2))
    torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-7)
    probabilities = low_product(rows / 0.1, prototypes.T).softmax(1)
    weights = mask_weights(MASKS)[:, None] / (2 * BATCH)
    term = -(weights * target * probabilities.log()).sum()
    torch.testing.assert_close(found[0]["ibot"], term, rtol=1e-6, atol=0)
    of_prototypes, of_globals, _, of_patches, *_ = gradients(found, given, factor=1.0)
    ours = SHARES["ibot"] * weights * low_product(probabilities - target, prototypes) / 0.1
    torch.testing.assert_close(of_patches, ours, rtol=1e-5, atol=1e-6)
    exact = gradients(objective.losses(asked, given, patch_weights=mask_weights(MASKS)), given, factor=1.0)
    for low, full in zip((of_prototypes, of_globals), exact, strict=False):
        assert low.dtype == torch.float32
        assert 0 < (low - full).abs().max() < 0.02 * full.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_added_in_the_precision_of_what_is_multiplied(dtype: torch.dtype) -> None:
    left, right = filler((NUM, 3), 1).to(dtype), filler((3, WIDTH), 2).float()
    total = torch.ones(NUM, WIDTH)
    add_product(total, left, right)
    torch.testing.assert_close(total, 1 + (left @ right.to(dtype)).float())


def test_other_weights_than_the_shares_are_refused() -> None:
    features = filler((4, 6), 2).float().requires_grad_()
    cross, same = one(filler((4, 6), 1).softmax(1).float(), features, features.detach() + 0.1)
    with pytest.raises(RuntimeError, match="not weighed by their shares"):
        (cross + 2 * same).backward()
