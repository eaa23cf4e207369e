import math

import pytest
import torch
from torch import Tensor

from conformance import filler
from poa.losses.prototypes import cross_entropy, local_cross_view, mask_weights, masked_patch_loss, same_view, sinkhorn
from reference import losses as reference

BATCH, NUM_CROPS = 3, 4
PROTOTYPES = filler((7, 5), 3)
TARGETS = filler((2 * BATCH, 7), 4).mul(3).softmax(1)
FEATURES = filler((2 * BATCH, 5), 5)
LOCALS = filler((NUM_CROPS * BATCH, 5), 6)
MASKS = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]], dtype=torch.bool)


def test_official_values() -> None:
    """Teacher logits u(k, 1) and student logits 2 u(k, 2) through the official modules."""
    teacher, student, identity = filler((4, 6), 1).float(), 2 * filler((4, 6), 2).float(), torch.eye(6)
    targets = sinkhorn(teacher, identity, temperature=0.07)
    assert cross_entropy(targets, student, identity).item() == pytest.approx(6.293155, abs=2e-6)
    assert same_view(teacher, identity, student, identity).item() == pytest.approx(6.132838, abs=2e-6)


def test_by_hand() -> None:
    """Probabilities 3/4 and 1/4 against one certain and one even target."""
    features = torch.tensor([[math.log(3.0), 0.0]]).expand(2, 2)
    targets = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    rows = [math.log(4), 0.5 * math.log(4 / 3) + 0.5 * math.log(4)]
    loss = cross_entropy(targets, features, torch.eye(2), temperature=1.0)
    assert loss.item() == pytest.approx(sum(rows) / 2)
    weights = torch.tensor([2.0, 3.0])
    loss = cross_entropy(targets, features, torch.eye(2), temperature=1.0, weights=weights)
    assert loss.item() == pytest.approx(2 * rows[0] + 3 * rows[1])


def test_cross_entropy_equals_loops() -> None:
    rows = reference.cross_entropies(TARGETS.tolist(), FEATURES.tolist(), PROTOTYPES.tolist())
    weights = filler(2 * BATCH, 8)
    assert cross_entropy(TARGETS, FEATURES, PROTOTYPES).item() == pytest.approx(sum(rows) / len(rows))
    weighted = cross_entropy(TARGETS, FEATURES, PROTOTYPES, weights=weights)
    assert weighted.item() == pytest.approx(reference.dot(weights.tolist(), rows))


def test_local_cross_view_equals_loops() -> None:
    expected = reference.local_cross_view(TARGETS.tolist(), LOCALS.tolist(), PROTOTYPES.tolist(), BATCH)
    assert local_cross_view(TARGETS, LOCALS, PROTOTYPES).item() == pytest.approx(expected)


def test_masked_patches_equal_loops() -> None:
    targets, features = filler((6, 7), 9).softmax(1), filler((6, 5), 10)
    expected = reference.masked_patch_loss(targets.tolist(), features.tolist(), PROTOTYPES.tolist(), MASKS.tolist())
    loss = masked_patch_loss(targets, features, PROTOTYPES, weights=mask_weights(MASKS), num_images=len(MASKS))
    assert loss.item() == pytest.approx(expected)


def test_mask_weights_by_hand() -> None:
    torch.testing.assert_close(mask_weights(MASKS), torch.tensor([1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2]))
    assert mask_weights(torch.zeros(2, 4, dtype=torch.bool)).shape == (0,)


def test_same_view_teaches_in_one_direction() -> None:
    inputs = [tensor.clone().requires_grad_() for tensor in (FEATURES, PROTOTYPES, FEATURES + 0.1, PROTOTYPES)]
    same_view(*inputs).backward()
    assert inputs[0].grad is None
    assert inputs[1].grad is None
    assert inputs[2].grad is not None
    assert inputs[3].grad is not None


def test_same_view_is_minimal_at_the_teacher() -> None:
    features = FEATURES.clone().requires_grad_()
    same_view(FEATURES, PROTOTYPES, features, PROTOTYPES, teacher_temperature=0.2, temperature=0.2).backward()
    torch.testing.assert_close(features.grad, torch.zeros_like(features))


def test_gradients() -> None:
    features, prototypes = LOCALS.clone().requires_grad_(), PROTOTYPES.clone().requires_grad_()
    weights = filler(2 * BATCH, 8)
    rows = slice(0, 2 * BATCH)
    assert torch.autograd.gradcheck(lambda f, p: cross_entropy(TARGETS, f[rows], p), (features, prototypes))
    assert torch.autograd.gradcheck(
        lambda f, p: cross_entropy(TARGETS, f[rows], p, weights=weights), (features, prototypes)
    )
    assert torch.autograd.gradcheck(lambda f, p: local_cross_view(TARGETS, f, p), (features, prototypes))


def _without_rows(features: Tensor, prototypes: Tensor) -> list[Tensor]:
    none = TARGETS[:0]
    return [
        cross_entropy(none, features, prototypes),
        local_cross_view(TARGETS, features, prototypes),
        masked_patch_loss(none, features, prototypes, weights=none[:, 0], num_images=4),
    ]


def test_no_rows_is_zero_and_connected() -> None:
    for index in range(3):
        features, prototypes = LOCALS[:0].clone().requires_grad_(), PROTOTYPES.clone().requires_grad_()
        loss = _without_rows(features, prototypes)[index]
        loss.backward()
        assert loss.item() == 0
        assert features.grad is not None
        assert prototypes.grad is not None
        assert not prototypes.grad.any()


def test_float32_under_autocast() -> None:
    locals_, features, prototypes = LOCALS.bfloat16(), FEATURES.bfloat16(), PROTOTYPES.float()
    targets = TARGETS.float()
    expected = [
        cross_entropy(targets, features.float(), prototypes),
        local_cross_view(targets, locals_.float(), prototypes),
        same_view(features.float(), prototypes, features.float() * 0.5, prototypes),
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = [
            cross_entropy(targets, features, prototypes),
            local_cross_view(targets, locals_, prototypes),
            same_view(features, prototypes, features * 0.5, prototypes),
        ]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
