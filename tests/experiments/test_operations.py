"""Operations that are counted from shapes are those that torch counts while it trains."""

from dataclasses import replace
from functools import cache
from statistics import fmean

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from poa.config.pretraining import Config
from poa.data.masks import kept_for
from poa.data.views import Views
from poa.elastic.space import Size
from poa.experiments import operations
from poa.experiments.operations import training_flops
from poa.models.registry import family_of, only
from poa.pretraining.crops import crops_of
from poa.pretraining.method import method_of
from poa.pretraining.schedule import subnets_of

SMALL, LARGE = Size(32, (2,)), Size(64, (3,))


def config(**over: object) -> Config:
    """With four sizes."""
    return tiny.config(heads={"prototypes": [16, 32]}, model={"head_dim": 32}, **over)


def views(config: Config, epoch: int = 0) -> Views:
    """One image, as many patches hidden as on average."""
    cropping = crops_of(config, family_of(config), steps_per_epoch=1).at(epoch)
    settings, masking = cropping.views, cropping.masking
    masks = torch.zeros(2, masking.grid**2, dtype=torch.bool)
    share = 0.0 if masking.dropped else masking.share
    masks.view(-1)[: round(2 * masking.grid**2 * share * sum(masking.ratio) / 2)] = True
    return Views(
        torch.randn(2, 3, settings.global_size, settings.global_size),
        torch.randn(settings.num_locals, 3, settings.local_size, settings.local_size),
        masks,
        kept_for([0], masking=masking, batch_size=1, seed=0, step=0),
    )


@pytest.mark.parametrize("family", ["vit", "swin", "resnet", "convnext"])
def test_counted_from_shapes_as_while_running(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the patches of every crop are hidden, so that the mean is a whole number."""
    chosen = tiny.config(family, method="single", views={"mask_share": 1.0, "mask_ratio": (0.5, 0.5)})
    method, intact = method_of(chosen, family_of(chosen)), family_of(chosen).space.intact
    weights = method.weights((), num_locals=chosen.views.num_locals)
    with FlopCounterMode(display=False) as forward:
        total = sum(
            (weights[name] * term for name, term in method(views(chosen), (), temperature=0.05).items()),
            torch.zeros(()),
        )
    with FlopCounterMode(display=False) as backward:
        total.backward()
    if family != "convnext":  # torch counts the backward pass of grouped convolutions as if they had one group
        there_and_back = forward.get_total_flops() + backward.get_total_flops()
        assert training_flops(chosen, "single", intact) == pytest.approx(there_and_back, rel=0.05)
    monkeypatch.setattr(operations, "BACKWARD", 0.0)
    assert training_flops(chosen, "single", intact) == pytest.approx(
        forward.get_total_flops(), rel=0.03
    )  # KoLeo and Sinkhorn-Knopp


@pytest.mark.parametrize("sampling", ["published", "widening"])
def test_small_crops_and_patches_left_out_are_counted_as_over_a_whole_run(
    sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each size is drawn as often as it is weighted in the part with small crops, and in the others."""
    given = {"sampling": sampling, "epochs": 4, "views": {**tiny.CHEAPER["views"], "mask_share": 1.0}}
    chosen = config(**given, losses={"ibot": 0.0})
    family = replace(family_of(chosen), fused_attention=False)  # torch does not count that of CPUs
    an_epoch = len(family.space.entries) - 1
    method, subnets = method_of(chosen, family), subnets_of(chosen, family, steps_per_epoch=an_epoch)

    @cache
    def running(epoch: int, sizes: tuple[Size, ...]) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            method(views(chosen, epoch), sizes, temperature=0.05)
        return counter.get_total_flops()

    counted = fmean(running(step >= an_epoch, subnets(step)) for step in range(4 * an_epoch))
    monkeypatch.setattr(operations, "BACKWARD", 0.0)
    assert training_flops(chosen, "poa", LARGE) == pytest.approx(counted, rel=0.05 if sampling == "widening" else 0.001)


def test_a_distillation_sees_small_crops_and_all_patches() -> None:
    def flops(**of_crops: object) -> float:
        return training_flops(config(epochs=4, distill={"queue": 16}, views=of_crops), "seed", SMALL)

    small, large = flops(global_size=16), flops(global_size=32)
    first = {"global_size": 32, "small_size": 16, "drop_patches": 0.5}
    assert flops(**first, small_epochs=1.0) == pytest.approx(small / 4 + large * 3 / 4)
    assert flops(**first, small_epochs=9.0) == pytest.approx(small)


def test_an_elastic_step_costs_a_student_more() -> None:
    elastic, alone = (training_flops(config(), way, LARGE) for way in ("poa", "single"))
    twice = training_flops(config(elastic_samples=2), "poa", LARGE)
    assert twice - elastic == pytest.approx(elastic - alone)
    assert elastic < training_flops(config(sampling="sandwich"), "poa", LARGE)
    smallest = training_flops(config(), "single", SMALL)
    assert smallest < elastic - alone + smallest < elastic
    assert smallest == training_flops(only(config(), SMALL), "single", SMALL)


def test_a_distillation_costs_its_teacher_forward_and_its_student_both_ways() -> None:
    grown = [training_flops(config(distill={"queue": queue}), "seed", SMALL) for queue in (16, 32)]
    crops = 2 + config().views.num_locals
    more = 2 * crops * 64 * 16 * (1 + 3)  # 16 more rows of 64 numbers; once, and there and back
    assert grown[1] - grown[0] == pytest.approx(more)
