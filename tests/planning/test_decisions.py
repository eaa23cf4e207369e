"""The recipe for images and machine, and what is changed of it."""

from typing import Any, NamedTuple

import pytest

from poa.config.nested import flat, nested
from poa.config.pretraining import Config
from poa.config.resolve import IN_EPOCHS, read_recipe, recipes, resolve
from poa.planning.decisions import (
    FEWEST_STEPS,
    MOST_STEPS,
    Decision,
    crops_for,
    decide,
    length,
    of_length,
    start_of,
)
from poa.planning.facts import ImageFacts, MachineFacts

CIFAR = ImageFacts(10_000, 48, 32, 32**2, False, (0.491, 0.482, 0.447), (0.247, 0.244, 0.262))
CPU = MachineFacts("cpu", 24 * 10**9, 2)
GPU = MachineFacts("cuda", 24 * 10**9, 16)


def images(number: int = 10_000, side: int = 32, *, grey: bool = False) -> ImageFacts:
    return ImageFacts(number, 48, side, side**2, grey, (0.3, 0.3, 0.3), (0.2, 0.2, 0.2))


class Row(NamedTuple):
    images: ImageFacts
    machine: MachineFacts
    given: dict[str, Any]
    family: str | None
    recipe: str


@pytest.mark.parametrize(
    "row",
    [
        Row(images(side=8), CPU, {}, None, "demo"),
        Row(images(side=8), CPU, {}, "convnext", "convnext-small-data"),
        Row(images(side=32), CPU, {}, None, "vit-small-data"),
        Row(images(100, side=32), CPU, {}, None, "vit-small-data"),
        Row(images(100, side=480), CPU, {}, None, "vit-small-data"),
        Row(images(100, side=480), GPU, {}, None, "vit-small-data"),
        Row(images(30_000, side=32), GPU, {}, None, "vit-small-data"),
        Row(images(side=48), GPU, {}, None, "vit-small-data"),
        Row(images(side=32), CPU, {}, "convnext", "convnext-small-data"),
        Row(images(side=32), CPU, {"distill.teacher": "t"}, None, "vit-small-data"),
        Row(images(side=32), CPU, {"method": "seed"}, None, "vit-small-data"),
        Row(images(side=32), CPU, {"method": "distill"}, None, "distill-small-data"),
        Row(images(side=32), CPU, {"method": "distill"}, "vit", "distill-small-data"),
        Row(images(side=200), CPU, {"method": "distill"}, "convnext", "distill-convnext-small-data"),
        Row(images(side=32), CPU, {"method": "distill"}, "resnet", "distill-resnet-small-data"),
        Row(images(side=200), CPU, {"method": "distill"}, "resnet", "resnet-96"),
        Row(images(side=32), CPU, {"method": "distill"}, "swin", "swin-small-data"),
        Row(images(side=200), GPU, {"method": "distill"}, "vit", "vit-224"),
        Row(images(side=200), GPU, {"method": "distill", "init": "w"}, "vit", "adapt-224"),
        Row(images(side=32), CPU, {"method": "single"}, None, "vit-small-data"),
        Row(images(side=32), CPU, {"method": "own"}, None, "vit-small-data"),
        Row(images(side=32), CPU, {}, "vit", "vit-small-data"),
        Row(images(side=200), CPU, {}, "vit", "vit-small-data"),
        Row(images(side=200), GPU, {}, "vit", "vit-224"),
        Row(images(side=200), CPU, {}, "dinov3", "vit-96"),
        Row(images(side=200), CPU, {}, "swin", "swin-96"),
        Row(images(side=200), CPU, {"views.global_size": 32}, "resnet", "resnet-small-data"),
        Row(images(side=200), CPU, {"init": "w"}, "vit", "adapt-96"),
        Row(images(side=200), GPU, {"init": "w"}, "vit", "adapt-224"),
        Row(images(10**6, side=200), GPU, {"init": "w"}, "vit", "adapt-224-1m"),
        Row(images(30_000, side=200), GPU, {}, None, "vit-224"),
        Row(images(10**6, side=200), GPU, {}, None, "vit-224-1m"),
        Row(images(10**6, side=200), GPU, {}, "swin", "swin-224-1m"),
        Row(images(side=32), CPU, {"method": "slimclr-simclr"}, None, "slimclr-small-data"),
    ],
    ids=str,
)
def test_start(row: Row) -> None:
    found = start_of(row.images, row.machine, row.given, family=row.family)
    assert found.recipe == row.recipe
    assert found.recipe in recipes()
    assert found.reason


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((8, CPU), [16, 24, 28, 32]),
        ((27, CPU), [28, 24, 16, 32]),
        ((28, CPU), [32, 28, 24, 16, 48]),
        ((32, CPU), [32, 28, 24, 16, 48]),
        ((200, CPU), [96, 64, 48, 32, 28, 24, 16, 112]),
        ((200, GPU), [224, 192, 160, 128]),
    ],
)
def test_crops_are_as_large_as_images_and_device_allow(row: tuple[int, MachineFacts], expected: list[int]) -> None:
    assert crops_for(images(side=row[0]), row[1])[: len(expected)] == expected


def changed(found: list[Decision]) -> dict[str, Any]:
    assert all(each.reason for each in found)
    return {each.setting: each.value for each in found}


def test_small_images_of_the_recipe_s_size_change_little() -> None:
    assert changed(decide(CIFAR, CPU, {}, recipe="vit-small-data", crop=32)) == {}
    bigger = decide(CIFAR, CPU, {}, recipe="vit-small-data", crop=48)
    assert changed(bigger) == {"views.global_size": 48}
    bigger = decide(CIFAR, CPU, {"views.num_locals": 2}, recipe="adapt-small-data", crop=48)
    assert changed(bigger) == {"views.global_size": 48, "views.local_size": 24}
    assert changed(decide(CIFAR, CPU, {"views.local_size": 12}, recipe="adapt-small-data", crop=48)) == {
        "views.global_size": 48
    }


def test_grey_characters_are_not_mirrored() -> None:
    found = changed(decide(images(side=28, grey=True), CPU, {}, recipe="vit-small-data", crop=24))
    assert found["views.flip"] == found["views.grey_probability"] == 0
    assert found["views.jitter"] == (0.4, 0.4, 0.0, 0.0)
    assert found["views.mean"] == (0.3, 0.3, 0.3)
    assert "views.flip" not in changed(decide(images(side=99, grey=True), CPU, {}, recipe="vit-small-data", crop=24))
    with_weights = changed(decide(images(), CPU, {"init": "weights"}, recipe="vit-small-data", crop=32))
    assert with_weights == {}, "trained weights keep the mean that they were trained with"


def test_tiny_images_with_colours_are_not_digits() -> None:
    found = changed(decide(images(side=16), CPU, {}, recipe="demo", crop=16))
    assert (found["views.flip"], found["views.grey_probability"], found["views.jitter"][2]) == (0.5, 0.2, 0.2)
    assert found["monitor.data"] is None, "the recipe's are digits"
    assert "views.flip" not in changed(decide(images(side=8, grey=True), CPU, {}, recipe="demo", crop=16))


def test_few_images_make_small_batches_and_few_prototypes() -> None:
    found = changed(decide(images(100), CPU, {}, recipe="vit-224", crop=32))
    assert (found["batch_size"], found["heads.prototypes"]) == (32, (64,))
    assert changed(decide(images(9), CPU, {}, recipe="vit-224", crop=32))["batch_size"] == 8
    assert changed(decide(images(3), CPU, {}, recipe="vit-224", crop=32))["batch_size"] == 3
    assert "heads.prototypes" not in changed(decide(images(100), CPU, {}, recipe="adapt-small-data", crop=32))
    three = MachineFacts("cuda", None, 8, processes=3)
    assert changed(decide(images(), three, {}, recipe="adapt-small-data", crop=32))["batch_size"] == 63


def test_photographs_are_decoded_beside_the_training() -> None:
    photographs = images(side=200)
    assert changed(decide(photographs, CPU, {}, recipe="vit-96", crop=96))["workers"] == 1
    many = MachineFacts("cpu", None, 32, processes=2)
    assert changed(decide(photographs, many, {}, recipe="vit-96", crop=96))["workers"] == 12
    alone = MachineFacts("cpu", None, 1)
    assert "workers" not in changed(decide(photographs, alone, {}, recipe="vit-96", crop=96))


def test_length() -> None:
    def epochs(number: int, machine: MachineFacts = CPU, steps: int | None = None) -> int:
        return length(images(number), machine, epochs=14, an_epoch=max(1, number // 64), steps=steps)[0]

    assert epochs(10_000) == 14
    assert epochs(1352) == -(-FEWEST_STEPS // 21)
    assert epochs(10**6) == MOST_STEPS["cpu"] // 15_625
    assert epochs(10**7) == 1
    assert epochs(10**6, GPU) == 14
    assert (epochs(10_000, steps=500), epochs(10_000, steps=3)) == (3, 1)


def test_what_a_recipe_counts_in_epochs_follows_its_length() -> None:
    base = flat(Config.model_validate(read_recipe("adapt-96")).model_dump())
    found = changed(of_length(base, {"optimizer.warmup_epochs": 1}, epochs=20, per_hour=1.5))
    longer = {"optimizer.backbone_warmup_epochs": 6.0}
    assert found == {**longer, "saving.every_epochs": 1.5, "monitor.every_epochs": 1.5}
    assert set(found) <= {*IN_EPOCHS, "saving.every_epochs", "monitor.every_epochs"}
    short = changed(of_length(base, {}, epochs=5, per_hour=100.0))
    assert (short["saving.every_epochs"], short["optimizer.backbone_warmup_epochs"]) == (0.5, 1.5)


def test_local_crops_are_multiples_of_patches() -> None:
    def side(recipe: str, crop: int, patch: int, **given: Any) -> Any:
        found = changed(decide(images(side=200), GPU, given, recipe=recipe, crop=crop, patch=patch))
        return found.get("views.local_size")

    assert side("vit-224", 192, 16) == 80
    assert side("vit-224", 192, 14) == 84
    assert side("adapt-224", 192, 14) == 98
    assert side("adapt-224", 224, 14) is None, "the recipe's fits both"
    assert side("vit-96", 48, 12) is None, "it has none"
    assert side("adapt-small-data", 16, 4) is None, "nor has this"
    assert side("adapt-small-data", 16, 4, **{"views.num_locals": 2}) == 8


def test_small_crops_follow_planned_ones_once() -> None:
    planned = nested({"views.global_size": 48})
    assert resolve({}, recipe="vit-small-data", planned=planned).views.small_size == 32
    assert resolve({"views": {"global_size": 48}}, recipe="vit-small-data", planned=planned).views.small_size == 32
    assert resolve({"views": {"global_size": 64}}, recipe="vit-small-data", planned=planned).views.small_size == 48


def test_large_crops_have_large_patches() -> None:
    """Of a ViT with a convolution; what is given stays."""

    def patch(crop: int, recipe: str = "vit-small-data", **given: Any) -> Any:
        return changed(
            decide(
                images(side=200),
                CPU,
                {name.replace("__", "."): value for name, value in given.items()},
                recipe=recipe,
                crop=crop,
            )
        ).get("model.patch_size")

    assert [patch(48), patch(64), patch(96)] == [None, 16, 16]
    assert patch(96, model__patch_size=8) is None
    assert patch(96, "vit-224") is None
    assert patch(96, "convnext-small-data") is None
    assert patch(96, model__name="vit") == 16
    assert patch(96, model__name="vit_small_patch14_dinov2") is None


def test_what_is_planned_lies_between_recipe_and_flags() -> None:
    planned = nested({"epochs": 7, "views.global_size": 48, "optimizer.warmup_epochs": 0.5})
    found = resolve({"batch_size": 32}, recipe="adapt-small-data", planned=planned)
    assert (found.epochs, found.batch_size, found.views.global_size) == (7, 32, 48)
    assert (found.optimizer.warmup_epochs, found.views.local_size) == (0.5, 24)
    assert resolve({"views": {"global_size": 64}}, recipe="adapt-small-data", planned=planned).views.global_size == 64


def test_a_decision_in_words() -> None:
    assert Decision("views.jitter", (0.4, 0.0), "why").words == "--views.jitter 0.4 0.0"
    assert Decision("monitor.data", None, "why").words == "--monitor.data none"
