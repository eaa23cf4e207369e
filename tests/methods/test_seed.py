from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poa import distributed
from poa.config.pretraining import DistillSettings
from poa.data.views import Views
from poa.elastic.recompute import Recomputed
from poa.elastic.space import SearchSpace, Size
from poa.families.vit import ViT
from poa.losses.contrastive import similarity_distillation
from poa.methods.seed import SEED
from processes import run_processes

SIZE, TEACHERS = Size(16, (2,)), Size(32, (2,))
FAMILY = ViT(SearchSpace((SIZE,), (1,)), image_size=16, patch_size=8, head_dim=16)
BATCH, WIDTH = 4, 32


def method(*, queue: int = 8, checkpointing: bool = False, **further: Any) -> SEED:
    torch.manual_seed(0)
    teacher = ViT(SearchSpace((TEACHERS,), (1,)), image_size=16, patch_size=8, head_dim=16).build(TEACHERS)
    with torch.no_grad():
        for parameter in teacher.parameters():  # else the embeddings of all crops are nearly the same
            parameter.add_(0.2 * torch.randn_like(parameter))
    distillation = DistillSettings(queue=queue, **further)
    return SEED(FAMILY, teacher, width=WIDTH, distillation=distillation, checkpointing=checkpointing)


def views(*, num_locals: int = 2, images: slice = slice(None)) -> Views:
    generator = torch.Generator().manual_seed(1)
    globals_ = torch.randn(2, BATCH, 3, 16, 16, generator=generator)[:, images]
    locals_ = torch.randn(num_locals, BATCH, 3, 8, 8, generator=generator)[:, images]
    flat = globals_.flatten(0, 1)
    return Views(flat, locals_.flatten(0, 1), torch.zeros(len(flat), 4, dtype=torch.bool))


def gradients(made: SEED) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in made.named_parameters() if value.grad is not None}


def test_the_loss_is_that_of_the_first_paper_with_a_queue_each_kind_of_crop() -> None:
    made, batch = method(), views()
    queues = made.global_queue.rows.clone(), made.local_queue.rows.clone()
    losses = made(batch, (), temperature=1.0)
    for name, crops, queue in zip(("global", "local"), (batch.globals, batch.locals), queues, strict=True):
        asked = nn.functional.normalize(made.teacher(crops).cls, dim=1)
        given = nn.functional.normalize(made.student.heads(made.student.backbone(crops).cls), dim=1)
        expected = similarity_distillation(given, asked, queue)
        torch.testing.assert_close(losses[f"student/{name}"], expected)
    assert losses.keys() == made.weights((), num_locals=2).keys()
    assert not torch.equal(queues[0], queues[1])


def test_the_first_crop_of_each_image_is_enqueued_after_the_loss() -> None:
    made, batch = method(), views()
    made(batch, (), temperature=1.0)
    for queue, crops in ((made.global_queue, batch.globals), (made.local_queue, batch.locals)):
        expected = nn.functional.normalize(made.teacher(crops[:BATCH]).cls, dim=1)
        torch.testing.assert_close(queue.rows[:BATCH], expected)
        second = nn.functional.normalize(made.teacher(crops[BATCH : 2 * BATCH]).cls, dim=1)
        assert (second - expected).abs().amax(dim=1).min() > 0.05, "other crops would be told apart"
        assert int(queue.place) == BATCH


def test_without_local_crops() -> None:
    made = method()
    assert made(views(num_locals=0), (), temperature=1.0).keys() == made.weights((), num_locals=0).keys()
    assert int(made.local_queue.place) == 0


def test_only_the_student_learns_and_all_of_it() -> None:
    made = method(local_weight=0.5).train()
    assert made.weights((), num_locals=2) == {"student/global": 1.0, "student/local": 0.5}
    torch.stack(list(made(views(), (), temperature=1.0).values())).sum().backward()
    learning = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert gradients(made).keys() == learning
    assert {name.split(".")[0] for name in learning} == {"student"}
    assert "student.backbone.mask_token" not in learning
    assert not any(module.training for module in made.teacher.modules())
    before = {name: value.clone() for name, value in made.teacher.state_dict().items()}
    made.update_teacher(0.5)
    assert all(torch.equal(value, before[name]) for name, value in made.teacher.state_dict().items())


def test_the_student_is_handed_out() -> None:
    made = method()
    assert made.exported is made.student


def test_checkpointing_changes_no_bit() -> None:
    found = []
    for checkpointing in (False, True):
        made = method(checkpointing=checkpointing).train()
        parts = (*made.student.backbone.blocks, made.student.heads)
        assert [isinstance(part, Recomputed) for part in parts] == [checkpointing] * len(parts)
        made(views(), (), temperature=1.0)["student/global"].backward()
        found.append(gradients(made))
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def two_steps(halves: int) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of the second step, which sees what the first has put into the queue, and that queue."""
    made = method()
    wrapped = distributed.data_parallel(made, device=torch.device("cpu"))
    share = BATCH // halves
    own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    for _ in range(2):
        made.zero_grad()
        torch.stack(list(wrapped(views(images=own), (), temperature=1.0).values())).sum().backward()
    return gradients(made), made.global_queue.rows


def test_two_processes_equal_one() -> None:
    (expected, queue), (first, second) = two_steps(1), run_processes(two_steps, 2, 2)
    for found, rows in (first, second):
        torch.testing.assert_close(rows, queue)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)  # summed in another order


def test_a_student_of_another_method_is_not_asked_for_sizes() -> None:
    with pytest.raises(AssertionError, match="one size"):
        method()(views(), (SIZE,), temperature=1.0)
