"""Cross-entropies over many prototypes with their gradients, some rows at a time: all logits never exist at once.

While the logits of some rows are there, all that needs them is made: the terms of all students, and the gradients of
features and prototypes, in the forward pass (as Liger's fused linear cross-entropy does, arXiv 2410.10989).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from poa.machine.precision import for_products, wide

CPU_CHUNK_VALUES, CHUNK_VALUES = 2**21, 2**26
"""About as many logits of a network at a time, on a CPU and elsewhere: with fewer, the products are slow."""


def chunks(num_rows: int, prototypes: Float[Tensor, "prototypes width"], *, repeats: int = 1) -> Iterator[slice]:
    """Rows to take at a time, each of which stands for ``repeats`` rows of logits."""
    values = CPU_CHUNK_VALUES if prototypes.device.type == "cpu" else CHUNK_VALUES
    step = max(1, values // (len(prototypes) * max(repeats, 1)))
    return (slice(first, min(first + step, num_rows)) for first in range(0, num_rows, step))


class Crops(NamedTuple):
    """One kind of crops (or patches) as all students see it.

    Attributes:
        asked: The teacher's distributions of some of its rows.
        weights: Of each row of the teacher, which all rows of a student for it have.
        students: Features, the same number of rows for each row of the teacher, one after another.
    """

    asked: Callable[[slice], Float[Tensor, "some prototypes"]]
    weights: Float[Tensor, "asked"]
    students: Sequence[Float[Tensor, "rows width"]]


def cross_entropies(
    crops: Sequence[Crops],
    prototypes: Float[Tensor, "prototypes width"],
    *,
    larger: Sequence[int | None],
    temperature: float,
    shares: Float[Tensor, "students kinds two"],
) -> Float[Tensor, "students kinds two"]:
    """Of each student and kind of crops ``-sum(weight * sum(target * log_probability))``, against two targets.

    The first target is the teacher's distribution, the second that of a larger student on the same row, which no
    gradient reaches; it is computed where it has a share. All students have the same prototypes.

    Args:
        crops: Kinds of crops.
        prototypes: Of the students.
        larger: For each student the number of the one before it that teaches it, or None.
        temperature: Divides the logits.
        shares: Weights of these terms in the loss, for which gradients are made: a multiple of the sum of the terms,
            each times its share, is all that can be differentiated.
    """
    features = [rows for kind in crops for rows in kind.students]
    multiplied = for_products(prototypes.detach())
    values: Tensor = _CrossEntropies.apply(crops, larger, temperature, shares, multiplied, prototypes, *features)
    return values


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        crops: Sequence[Crops],
        larger: Sequence[int | None],
        temperature: float,
        shares: Tensor,
        multiplied: Tensor,
        prototypes: Tensor,
        *features: Tensor,
    ) -> Tensor:
        dtype = torch.promote_types(prototypes.dtype, torch.float32)
        values = shares.new_zeros(shares.shape, dtype=dtype, device=prototypes.device)
        of_prototypes = torch.zeros_like(prototypes, dtype=dtype)
        of_features = []
        with torch.autocast(prototypes.device.type, enabled=False):
            for number, kind in enumerate(crops):
                pass_ = _Pass(kind, multiplied, of_prototypes, shares[:, number].tolist(), larger, temperature)
                of_features += pass_.run(values[:, number])
        there = shares.to(values, non_blocking=values.is_cuda)  # else a GPU is waited for
        ctx.save_for_backward(there, of_prototypes, *of_features)
        ctx.dtypes = [each.dtype for each in (prototypes, *features)]
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        shares, *gradients = ctx.saved_tensors
        factor = (given * shares).sum() / shares.square().sum().clamp(min=torch.finfo(shares.dtype).tiny)
        apart = (given - factor * shares).abs().max()
        torch._assert_async(apart <= 1e-4 * given.abs().max(), "the terms are not weighed by their shares")
        return (None,) * 5 + tuple((factor * each).to(dtype) for each, dtype in zip(gradients, ctx.dtypes, strict=True))


class _Pass(NamedTuple):
    """Once through one kind of crops."""

    kind: Crops
    prototypes: Tensor
    """In the precision of products."""
    of_prototypes: Tensor
    """Their gradient, to which is added, in the precision of everything else."""
    shares: Sequence[tuple[float, float]]
    larger: Sequence[int | None]
    temperature: float

    def run(self, values: Float[Tensor, "students two"]) -> list[Tensor]:
        """Add to the terms; returns the gradients of all students' features."""
        students = [wide(rows) / self.temperature for rows in self.kind.students]
        gradients = [torch.zeros_like(rows) for rows in students]
        num_asked = len(self.kind.weights)
        repeats = len(students[0]) // max(num_asked, 1)
        for few in chunks(num_asked, self.prototypes, repeats=repeats):
            own = slice(few.start * repeats, few.stop * repeats)
            self._rows(few, repeats, [rows[own] for rows in students], [each[own] for each in gradients], values)
        return gradients

    def _rows(self, few: slice, repeats: int, students: list[Tensor], gradients: list[Tensor], values: Tensor) -> None:
        """Of all students some rows: as many times ``repeats`` as these of the teacher."""
        asked = self.kind.asked(few)
        weights = self.kind.weights[few].to(asked.dtype)
        if repeats > 1:
            asked, weights = asked.repeat_interleave(repeats, 0), weights.repeat_interleave(repeats)
        teachers = [larger if same else None for larger, (_, same) in zip(self.larger, self.shares, strict=True)]
        seen: dict[int, Tensor] = {}
        for number, (rows, gradient, teacher) in enumerate(zip(students, gradients, teachers, strict=True)):
            targets = [asked] if teacher is None else [asked, seen[teacher]]
            seen[number] = self._student(number, rows, targets, weights, gradient, values[number])
            seen = {each: made for each, made in seen.items() if each in teachers[number + 1 :]}

    def _student(
        self, number: int, rows: Tensor, targets: list[Tensor], weights: Tensor, gradient: Tensor, values: Tensor
    ) -> Tensor:
        """Its distributions; in place where it can be, since a new matrix costs more than what is done to it."""
        low, shares = self.prototypes.dtype, self.shares[number][: len(targets)]
        made = (rows.to(low) @ self.prototypes.T).to(rows.dtype)
        logs = made.log_softmax(1)
        for place, target in enumerate(targets):
            values[place] -= weights @ torch.mul(target, logs, out=made).sum(1)
        asked, *seen = targets
        target = torch.lerp(asked, seen[0], shares[1] / sum(shares), out=made) if seen else asked
        probabilities = logs.exp_()
        wrong = torch.sub(probabilities, target, out=made)
        scale = (sum(shares) * weights)[:, None]
        low_wrong = wrong.to(low)
        torch.mul(low_wrong @ self.prototypes, scale / self.temperature, out=gradient)
        # on a CPU a chunk has few rows, and to add a large product of low precision takes longer than to make it
        add_product(self.of_prototypes, (wrong if wrong.is_cpu else low_wrong).T, scale * rows)
        return probabilities


def add_product(
    total: Float[Tensor, "prototypes width"],
    left: Float[Tensor, "prototypes rows"],
    right: Float[Tensor, "rows width"],
) -> None:
    """``total += left @ right``, multiplied in the precision of the left matrix."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right.to(left.dtype))
