import math
import weakref
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from poa.config.network import HeadSettings
from poa.config.pretraining import LossSettings
from poa.data.views import Views
from poa.elastic.recompute import Recomputed
from poa.elastic.space import SearchSpace, Size
from poa.families.vit import ViT
from poa.losses.objective import HeadOutput, Student, Targets
from poa.losses.prototypes import MovingAverageCenter, Prototypes
from poa.methods.poa import POA
from reference import losses as reference_losses
from reference import poa as reference

FAMILY = ViT(SearchSpace.grid([16, 32], [2, 3]), image_size=16, patch_size=8, head_dim=16)
SMALL, WIDE, INTACT = Size(16, (2,)), Size(32, (2,)), Size(32, (3,))
HEADS = HeadSettings(prototypes=(6, 9), hidden=8, bottleneck=4)
BATCH, TEMPERATURE = 3, 0.05


def method(
    *,
    drop_path: float = 0.0,
    checkpointing: bool = False,
    memory: Literal["normal", "low"] = "normal",
    **losses: Any,
) -> POA:
    """With parameters far from their initial values, the teacher unlike the student."""
    heads = HEADS.model_copy(update={"memory": memory})
    made = POA(FAMILY, heads=heads, losses=LossSettings(**losses), drop_path=drop_path, checkpointing=checkpointing)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + float(parameter.ndim == 1))
    return made


def batch(*, num_locals: int = 2, masked: bool = True) -> Views:
    generator = torch.Generator().manual_seed(1)
    masks = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]) > 0
    return Views(
        torch.randn(2 * BATCH, 3, 16, 16, generator=generator),
        torch.randn(num_locals * BATCH, 3, 8, 8, generator=generator),
        masks if masked else torch.zeros_like(masks),
    )


def weighted(made: POA, losses: dict[str, Tensor], *, num_locals: int = 2) -> Tensor:
    weights = made.weights((), num_locals=num_locals)
    assert weights.keys() == losses.keys()
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def doubled(views: Views) -> Views:
    return Views(views.globals.double(), views.locals.double(), views.masks)


def gradients(made: POA) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in made.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("num_locals", [0, 2])
@pytest.mark.parametrize("sizes", [(SMALL,), (WIDE, SMALL, SMALL)])
def test_the_loss_equals_loops(variant: str, num_locals: int, sizes: tuple[Size, ...]) -> None:
    made, views = method(variant=variant).double(), doubled(batch(num_locals=num_locals))
    value = weighted(made, made(views, sizes, temperature=TEMPERATURE), num_locals=num_locals)
    elastics: list[Any] = [made.sub_networks.extract(size, made.student) for size in sizes]
    expected = reference.total(
        made.teacher, made.student, elastics, views, temperature=TEMPERATURE, paper=variant == "paper"
    )
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_other_weights_and_centring_equal_loops(memory: Literal["normal", "low"]) -> None:
    made = method(memory=memory, intact_share=0.6, koleo=0.3, centering="moving-average").double()
    assert made.objective.keep_logits == (memory == "normal")
    views = doubled(batch())
    centers = {k: [0.1 * number for number in range(k)] for k in HEADS.prototypes}
    for each in (*made.cls_centers, *made.patch_centers):
        assert isinstance(each, MovingAverageCenter)
        each.center.copy_(torch.tensor(centers[len(each.center)]))

    def centred(rows: list[list[float]], prototypes: list[list[float]], temperature: float) -> list[list[float]]:
        center = centers[len(prototypes)]
        logits = reference_losses.logits(rows, prototypes, 1.0)
        return [
            reference_losses.softmax([(x - c) / temperature for x, c in zip(row, center, strict=True)])
            for row in logits
        ]

    value = weighted(made, made(views, [SMALL], temperature=TEMPERATURE))
    elastic: Any = made.sub_networks.extract(SMALL, made.student)
    expected = reference.total(
        made.teacher,
        made.student,
        [elastic],
        views,
        temperature=TEMPERATURE,
        share=0.6,
        koleo_weight=0.3,
        targets_of=centred,
    )
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_weights_are_those_of_the_official_code() -> None:
    """18 pairs: 2 of global crops, 16 of local ones; cross-view terms sum to 1, same-view terms to 0.4, iBOT to 1."""
    weights = method().weights((), num_locals=8)
    expected = {
        "intact/global": 0.8 * 2 / 18,
        "intact/local": 0.8 * 16 / 18,
        "intact/ibot": 0.8,
        "intact/koleo": 0.1,
        "elastic/global": 0.2 * 2 / 18,
        "elastic/local": 0.2 * 16 / 18,
        "elastic/ibot": 0.2,
        "elastic/koleo": 0.1,
        "elastic/same_global": 0.2,
        "elastic/same_local": 0.2,
    }
    assert weights == pytest.approx(expected)


def test_weights_are_those_of_the_paper() -> None:
    weights = method(variant="paper", koleo=0.05).weights((), num_locals=8)
    assert [weights[f"intact/{name}"] for name in ("global", "local", "ibot", "koleo")] == [0.8, 0.8, 0.8, 0.1]
    elastic = [weights[f"elastic/{name}"] for name in ("global", "local", "ibot", "koleo")]
    assert elastic == pytest.approx([0.2, 0.2, 0.2, 0.1])


@torch.no_grad()
@pytest.mark.parametrize("kept", [None, torch.tensor(BATCH * [[0, 2, 3], [0, 1, 3]])])
def test_the_gram_term_equals_loops_and_is_shared_by_both_students(kept: Tensor | None) -> None:
    """Of all patches that the students compute, hidden ones too."""
    made, views = method(gram=0.5, ibot=0.0).double(), doubled(batch())._replace(kept=kept)
    losses, weights = made(views, [SMALL], temperature=TEMPERATURE), made.weights([SMALL], num_locals=2)
    assert losses.keys() == weights.keys()
    assert (weights["intact/gram"], weights["elastic/gram"]) == pytest.approx((0.4, 0.1))
    rows = range(2 * BATCH)
    seen = [list(range(4)) for _ in rows] if kept is None else kept.tolist()
    asked = made.teacher.backbone(views.globals).patches
    students: dict[str, Any] = {"intact": made.student, "elastic": made.sub_networks.extract(SMALL, made.student)}
    for branch, student in students.items():
        look = student.backbone
        given = look(views.globals, views.masks) if kept is None else look.visible(views.globals, kept)
        expected = reference_losses.gram_distance(
            *([patches[row, seen[row]].tolist() for row in rows] for patches in (given.patches, asked))
        )
        assert losses[f"{branch}/gram"].item() == pytest.approx(expected), branch


def test_terms_of_several_sizes_are_averaged() -> None:
    made, views = method(), batch()
    both = made(views, [SMALL, WIDE], temperature=TEMPERATURE)
    single = [made(views, [size], temperature=TEMPERATURE) for size in (SMALL, WIDE)]
    for name, loss in both.items():
        expected = (single[0][name] + single[1][name]) / 2
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        assert name.startswith("intact/") == torch.equal(single[0][name], single[1][name])


def test_without_sizes_there_are_the_terms_of_the_intact_student() -> None:
    made, views = method(), batch()
    alone = made(views, [], temperature=TEMPERATURE)
    with_elastic = made(views, [SMALL], temperature=TEMPERATURE)
    assert alone.keys() == {name for name in with_elastic if name.startswith("intact/")}
    assert all(torch.equal(loss, with_elastic[name]) for name, loss in alone.items())


def test_the_intact_student_learns_nothing_from_the_same_view_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """They teach the elastic one alone, so weights that it does not use get no gradient from them."""
    made, views = method(), batch()
    weights = {name: float("same" in name) for name in made.weights([SMALL], num_locals=2)}
    monkeypatch.setattr(made, "weights", lambda *_, **__: weights)
    losses = made(views, [SMALL], temperature=TEMPERATURE)
    (losses["elastic/same_global"] + losses["elastic/same_local"]).backward()
    whole = made.student.backbone.get_parameter("model.blocks.2.mlp.fc1.weight").grad
    assert whole is not None
    assert whole[:64, :16].abs().sum() > 0
    assert whole[64:].count_nonzero() == whole[:, 16:].count_nonzero() == 0
    middle = made.student.backbone.get_parameter("model.blocks.1.mlp.fc1.weight").grad
    assert middle is None or middle.count_nonzero() == 0


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("sizes", [(SMALL,), ()])
def test_every_parameter_of_the_student_gets_a_gradient_and_none_of_the_teacher(
    masked: bool, sizes: tuple[Size, ...]
) -> None:
    made, views = method(), batch(masked=masked)
    losses = made(views, sizes, temperature=TEMPERATURE)
    torch.stack([made.weights(sizes, num_locals=2)[name] * loss for name, loss in losses.items()]).sum().backward()
    found = gradients(made)
    assert found.keys() == {name for name, _ in made.named_parameters() if name.startswith("student.")}
    silent = {name for name, gradient in found.items() if gradient.count_nonzero() == 0}
    assert silent == (set() if masked else {"student.backbone.mask_token"})


def test_prototypes_are_made_once_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made, losses, seen = method(), Prototypes.losses, []

    def watched(self: Prototypes, asked: Targets, students: list[Student], **further: Any) -> list[Any]:
        seen.append([student.output.prototypes for student in students])
        return losses(self, asked, students, **further)

    monkeypatch.setattr(Prototypes, "losses", watched)
    made(batch(), [SMALL, WIDE], temperature=TEMPERATURE)
    for (ours, *others), head in zip(seen, made.student.heads, strict=True):
        assert [each is ours for each in others] == [True, True]
        assert torch.equal(ours, head.prototypes())


def test_no_mask_means_no_patch_term() -> None:
    losses = method()(batch(masked=False), [SMALL], temperature=TEMPERATURE)
    assert losses["intact/ibot"].item() == losses["elastic/ibot"].item() == 0.0


def test_masks_reach_the_students_and_not_the_teacher() -> None:
    made = method()
    with torch.no_grad():
        made.student.backbone.get_parameter("mask_token").fill_(3.0)
        views, others = batch(), batch(masked=False)
        masked, plain = made.student(views), made.student(others)
        assert not torch.equal(masked.cls, plain.cls)
        assert torch.equal(masked.heads[0].locals, plain.heads[0].locals)
        assert torch.equal(made.teacher(views, teacher=True).cls, made.teacher(others, teacher=True).cls)
        assert torch.equal(made.teacher(others).cls, made.teacher(views, teacher=True).cls)


def test_the_teacher_starts_as_the_student_and_follows_as_a_moving_average() -> None:
    made = POA(FAMILY, heads=HEADS, losses=LossSettings())
    pairs = list(zip(made.teacher.parameters(), made.student.parameters(), strict=True))
    assert all(torch.equal(teacher, student) for teacher, student in pairs)
    with torch.no_grad():
        for parameter in made.student.parameters():
            parameter.normal_()
    expected = [0.9 * teacher + 0.1 * student for teacher, student in pairs]
    made.update_teacher(0.9)
    for (teacher, _), value in zip(pairs, expected, strict=True):
        torch.testing.assert_close(teacher.data, value.data)
    assert not any(teacher.requires_grad for teacher, _ in pairs)


def test_the_teacher_always_evaluates() -> None:
    made = method(drop_path=0.5).train()
    assert made.student.training
    assert not any(module.training for module in made.teacher.modules())


def test_drop_path_is_for_students_in_training() -> None:
    made, plain, views = method(drop_path=0.5), method(), batch()
    expected = plain(views, [SMALL], temperature=TEMPERATURE)
    made.eval()
    assert all(torch.equal(loss, expected[name]) for name, loss in made(views, [SMALL], temperature=0.05).items())
    made.train()
    dropped = made(views, [SMALL], temperature=TEMPERATURE)
    assert not any(torch.equal(dropped[name], expected[name]) for name in ("intact/global", "elastic/global"))
    rows = (made.teacher(views, teacher=True), plain.teacher(views, teacher=True))
    assert torch.equal(rows[0].cls, rows[1].cls)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_changes_no_bit(drop_path: float) -> None:
    results = []
    for checkpointing in (False, True):
        made = method(drop_path=drop_path, checkpointing=checkpointing).train()
        parts = (*made.student.backbone.blocks, *made.student.heads)
        assert [isinstance(part, Recomputed) for part in parts] == [checkpointing] * len(parts)
        torch.manual_seed(0)
        losses = made(batch(), [SMALL, WIDE], temperature=TEMPERATURE)
        weighted(made, losses).backward()
        results.append((losses, gradients(made)))
    (losses, found), (others_losses, others) = results
    assert all(torch.equal(loss, others_losses[name]) for name, loss in losses.items())
    assert found.keys() == others.keys()
    assert all(torch.equal(gradient, others[name]) for name, gradient in found.items())


def test_moving_average_centres_follow_the_teacher_and_are_saved() -> None:
    made, views = method(centering="moving-average"), batch()
    made(views, [SMALL], temperature=TEMPERATURE)
    state = made.state_dict()
    names = {f"{kind}_centers.{number}.center" for kind in ("cls", "patch") for number in range(2)}
    assert names == {name for name in state if "center" in name}
    for number, head in enumerate(made.teacher(views, teacher=True).heads):
        for kind, rows in (("cls", head.globals), ("patch", head.patches)):
            expected = 0.1 * (rows @ head.prototypes.T).mean(0)
            torch.testing.assert_close(state[f"{kind}_centers.{number}.center"], expected)
    again = method(centering="moving-average")
    again.load_state_dict(state)
    first, second = (each(views, [SMALL], temperature=TEMPERATURE) for each in (made, again))
    assert all(torch.equal(loss, second[name]) for name, loss in first.items())


def test_the_state_holds_teacher_and_student_and_no_sub_network() -> None:
    made = method()
    made(batch(), [SMALL], temperature=TEMPERATURE)
    parts = {name.split(".")[0] for name in made.state_dict()}
    assert parts == {"student", "teacher"}
    assert len(made.state_dict()) == 2 * len(list(made.student.parameters()))


@pytest.mark.parametrize("gains", [True, False])
def test_losses_and_gradients_stay_in_full_precision_under_autocast(
    gains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poa.machine.precision.gains_by_bf16", lambda _: gains)
    made, views = method().train(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = made(views, [SMALL], temperature=TEMPERATURE)
    full = made(views, [SMALL], temperature=TEMPERATURE)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(loss.item() == pytest.approx(full[name].item(), rel=0.1, abs=0.05) for name, loss in losses.items())
    weighted(made, losses).backward()
    assert {gradient.dtype for gradient in gradients(made).values()} == {torch.float32}
    plan = made.sub_networks.plan(SMALL).cuts
    assert plan["backbone.model.blocks.0.attn.qkv.weight"].castable
    assert not any(cut.castable for name, cut in plan.items() if name.startswith("heads.") or "norm" in name)


def test_a_sub_network_under_autocast_is_the_extracted_network_under_autocast() -> None:
    """Casting the cut once gives the same bits as autocast's own casts."""
    made, views = method(), batch()
    extracted: Any = made.sub_networks.extract(SMALL, made.student)
    parameters = dict(made.student.named_parameters())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        in_place = made.sub_networks.bind(SMALL, parameters, training=False, dtype=torch.bfloat16)(views)
        alone = extracted(views)
    assert torch.equal(in_place.cls, alone.cls)
    assert torch.equal(in_place.heads[1].patches, alone.heads[1].patches)


def test_nearest_neighbours_over_one_process_are_its_own() -> None:
    views = batch()
    own, over_ranks = (
        method(koleo_over_ranks=flag)(views, [], temperature=0.05)["intact/koleo"] for flag in (False, True)
    )
    assert own.item() == over_ranks.item()
    assert math.isfinite(own.item())


def test_an_elastic_student_can_learn_from_the_one_before_it() -> None:
    """In order of the step: the first from the intact student, the second from the first."""
    chained = POA(FAMILY, heads=HEADS, losses=LossSettings(), taught_by_next=True)
    chained.load_state_dict(method().state_dict())
    views = batch()
    losses = chained(views, [WIDE, SMALL], temperature=TEMPERATURE)
    smaller: list[Any] = [chained.sub_networks.extract(size, chained.student) for size in (WIDE, SMALL)]
    networks = [chained.student, *smaller]
    looked = [reference.look(network, views, batch=BATCH, masked=True)[0] for network in networks]
    pairs = [
        [reference.same_view(student, teacher)[0] for student, teacher in zip(*heads, strict=True)]
        for heads in ((looked[1], looked[0]), (looked[2], looked[1]))
    ]
    expected = reference.mean([reference.mean(heads) for heads in pairs])
    assert losses["elastic/same_global"].item() == pytest.approx(expected, rel=1e-5)


def test_prototypes_of_a_head_are_gone_before_those_of_the_next_one_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made, used, alive = method(), [], []
    targets, losses = Prototypes.targets, Prototypes.losses

    def watched_targets(self: Prototypes, teacher: HeadOutput, **further: Any) -> Targets:
        alive.append([reference() is not None for reference in used])
        used.append(weakref.ref(teacher.prototypes))
        return targets(self, teacher, **further)

    def watched_losses(self: Prototypes, asked: Targets, students: list[Student], **further: Any) -> list[Any]:
        alive.append([reference() is not None for reference in used])
        used.append(weakref.ref(students[0].output.prototypes))
        return losses(self, asked, students, **further)

    monkeypatch.setattr(Prototypes, "targets", watched_targets)
    monkeypatch.setattr(Prototypes, "losses", watched_losses)
    made(batch(), [SMALL, WIDE], temperature=TEMPERATURE)
    assert alive == [[False] * number for number in range(2 * len(HEADS.prototypes))]
