"""What is scored while training: which images, seen how, and which sizes."""

import pytest
import torch

import tiny
from evaluation.scored import scored
from poa.data.augment import normalise
from poa.data.index import open_index
from poa.elastic.network import state
from poa.evaluation.knn import Knn
from poa.pretraining.advice import cure_of_collapse
from poa.pretraining.build import Parts, assemble
from poa.pretraining.monitor import Monitor, Sample, take_sample

CPU = torch.device("cpu")
VIEWS = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}


def parts_of(**over: object) -> tuple[Parts, Monitor]:
    config = tiny.config(limit=16, views=VIEWS, **over)
    parts = assemble(config, open_index(config.data, limit=config.limit), device=CPU)
    return parts, Monitor(config, parts)


def test_as_many_images_as_set_as_scoring_sees_them() -> None:
    config = tiny.config(monitor={"num_images": 20}, evaluation={"resize": 24})
    sample = take_sample("digits/test", config, labelled=True)
    assert sample.images.shape == (20, 3, 16, 16)
    assert sample.labels is not None
    assert sorted(sample.labels.tolist()) == sorted([*range(10)] * 2)
    whole = take_sample("digits/test", tiny.config(monitor={"num_images": 20}), labelled=False)
    assert whole.labels is None
    assert not torch.equal(sample.images, whole.images)  # a centre of 24 pixels, and the whole image


def test_features_are_those_of_the_exported_network_on_images_normalised_as_set() -> None:
    parts, monitor = parts_of(monitor={"num_images": 16})
    size = parts.family.space.intact
    images = normalise(monitor._sample.images, mean=VIEWS["mean"], std=VIEWS["std"])
    with torch.inference_mode():
        expected = parts.method.exported.backbone.eval()(images).cls
    weights = state(parts.method.exported.backbone)
    torch.testing.assert_close(monitor._features(size, weights), expected)


def test_labelled_images_are_classified_by_three_sizes() -> None:
    parts, monitor = parts_of(monitor={"num_images": 40, "data": "digits/test"})
    asked = take_sample("digits/test", tiny.config(monitor={"num_images": 40}), labelled=True)
    assert torch.equal(monitor._sample.images, asked.images)
    scores, _ = monitor.score(1, {"intact/global": 1.0, "elastic/global": 1.0}, state(parts.method.exported.backbone))
    assert sorted(name for name in scores if name.startswith("knn")) == ["knn/32x2", "knn/48x3", "knn/64x3"]


def test_sizes_vote_with_three_quarters_of_the_images() -> None:
    """With the 20 nearest of them, as the published k-NN."""
    parts, monitor = parts_of(batch_size=4, monitor={"num_images": 16})
    generator = torch.Generator().manual_seed(0)
    labels, features = torch.arange(200) % 4, torch.randn(200, 6, generator=generator)
    features[:, :4] += 2 * torch.eye(4)[labels]
    monitor._sample = Sample(torch.empty(200, 3, 16, 16, dtype=torch.uint8), labels.numpy())
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    bank, queries = order[:150], order[150:]
    wanted = scored(Knn(ks=(20,)), features[bank], labels[bank], features[queries], labels[queries], num_classes=4)
    assert monitor._knn(features) == pytest.approx(wanted.scores["top1@20"])
    assert monitor._collapse._grace_steps == 2 * parts.steps_per_epoch == 8


@pytest.mark.parametrize(
    ("over", "cure"),
    [
        ({}, "Raise --losses.koleo or --lr, or use fewer --heads.prototypes."),
        ({"method": "single"}, "Raise --losses.koleo or --lr, or use fewer --heads.prototypes."),
        ({"losses": {"kind": "coding-rate"}}, "Lower --lr, or raise --optimizer.warmup-epochs or --losses.rate."),
    ],
    ids=str,
)
def test_a_collapsed_run_is_told_what_helps_its_kind_of_loss(over: dict[str, object], cure: str) -> None:
    parts, monitor = parts_of(**over)
    weights = {name: torch.zeros_like(value) for name, value in state(parts.method.exported.backbone).items()}
    for step in (0, 100, 200):
        _, sentences = monitor.score(step, {"intact/global": 1.0, "elastic/global": 1.0}, weights)
    assert sentences
    assert all(each.endswith(cure) for each in sentences)


def test_a_slimmable_network_has_no_loss_of_these_kinds() -> None:
    config = tiny.config(method="slimclr-simclr")
    assert cure_of_collapse(config) == "Lower --lr, or raise --optimizer.warmup-epochs."
