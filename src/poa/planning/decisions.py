"""Which recipe suits images and machine, and what is changed of it: pure functions of facts and of what is given."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from poa.config.channels import RGB
from poa.config.nested import flat
from poa.config.pretraining import SELF_DISTILLED, Config
from poa.config.resolve import IN_EPOCHS, of_epochs, read_recipe
from poa.config.values import flag, written
from poa.errors import counted
from poa.planning.facts import ImageFacts, MachineFacts

CROPS = (16, 24, 28, 32, 48, 64, 96, 112, 128, 160, 192, 224)
"""Sides of the global crops that are considered, in pixels."""
LARGEST_CROP = {"cpu": 96}
"""On kinds of devices; elsewhere the largest of all."""
MANY, VERY_MANY = 20_000, 200_000
"""Images: from the first number on a ViT is taken on a GPU, from the second on recipes for about a million."""
FEWEST_STEPS = 1000
"""Of a run whose length is not given: what a small set needs, however many epochs that is."""
MOST_STEPS = {"cpu": 20_000}
"""Of a run whose length is not given, on kinds of devices."""
SMALLEST_BATCH, SMALLEST_LOCAL = 8, 8
LARGE_PATCH, LARGE_PATCHES_FROM = 16, 64
"""Side of the patches behind a ViT's convolution where crops have so many pixels on a side, or more."""
TINY = 24
"""Shorter sides below this, in pixels, are those of digits and the like."""
FAMILIES = ("vit", "swin", "resnet", "convnext")
TAUGHT = {
    "vit-small-data": "distill-small-data",
    "convnext-small-data": "distill-convnext-small-data",
    "resnet-small-data": "distill-resnet-small-data",
}
"""Recipes for learning from a trained network alone."""


class Decision(NamedTuple):
    """A setting that differs from the recipe, and why."""

    setting: str
    """Dotted name."""
    value: Any
    reason: str

    @property
    def words(self) -> str:
        """As a flag of the command."""
        return f"{flag([self.setting])} {written(self.value)}"


@dataclass(frozen=True, slots=True)
class Start:
    """The recipe that a plan starts from.

    Attributes:
        recipe: Its name.
        reason: Why it suits.
    """

    recipe: str
    reason: str


def start_of(images: ImageFacts, machine: MachineFacts, given: Mapping[str, Any], *, family: str | None) -> Start:
    """The recipe for a network of a family, or of the family that learns most where none is asked for.

    Args:
        images: What they are like.
        machine: What it has.
        given: Settings that the user gave, by dotted name.
        family: Of the network that the user named.
    """
    found = _own_start(images, machine, given, family=family)
    if given.get("method") == "distill" and found.recipe in TAUGHT:
        return Start(TAUGHT[found.recipe], f"{found.reason}; made for learning from a trained network alone")
    return found


def _own_start(images: ImageFacts, machine: MachineFacts, given: Mapping[str, Any], *, family: str | None) -> Start:
    """The same for networks that learn by themselves."""
    if str(given.get("method", "")).startswith("slimclr"):
        return Start("slimclr-small-data", "the only recipe of slimmable networks that is not for many GPUs")
    room = "224" if machine.device != "cpu" and images.side >= 160 else "96" if images.side >= 48 else "small-data"
    side = given.get("views.global_size")
    if side is not None:
        room = "224" if side >= 160 else "96" if side >= 48 else "small-data"
    suffix = "-1m" if room == "224" and images.number >= VERY_MANY else ""
    if given.get("init") is not None:
        return Start(f"adapt-{room}{suffix}", "made for runs that start from trained weights (--init)")
    if family is None and images.side < TINY and room == "small-data":
        return Start("demo", f"made for images about as small as these, of {images.side} pixels")
    if family in ("dinov3", "swin", "resnet") or (family == "vit" and room == "224"):
        base = "vit" if family == "dinov3" else family
        why = f"a {base} was asked for, and the images' shorter side is {images.side} pixels"
        return Start(f"{base}-{room}{suffix}", why)
    if family is None and room == "224" and images.number >= MANY:
        return Start(f"vit-224{suffix}", f"{images.number:,} photographs and a GPU are enough for a ViT")
    if family == "convnext":
        return Start("convnext-small-data", "the ConvNeXt recipe that learned most in our runs")
    return Start("vit-small-data", "of all families a ViT learned most in our runs, from small images and photographs")


def crops_for(images: ImageFacts, machine: MachineFacts) -> list[int]:
    """Sides of crops, the best first: the largest that images and device allow, then smaller ones, then enlarged.

    Images may be enlarged by a seventh, so that those of 28 pixels have crops of 32.
    """
    most = min(images.side * 8 // 7, LARGEST_CROP.get(machine.device, CROPS[-1]))
    return sorted(CROPS, key=lambda side: (side > most, abs(side - most)))


def decide(
    images: ImageFacts, machine: MachineFacts, given: Mapping[str, Any], *, recipe: str, crop: int, patch: int = 4
) -> list[Decision]:
    """What is changed of a recipe, apart from its length; what the user has given is left alone.

    Args:
        images: What they are like.
        machine: What it has.
        given: Settings that the user gave, by dotted name.
        recipe: Its name.
        crop: Side of the global crops, in pixels.
        patch: What the sides of local crops are multiples of.
    """
    base = flat(Config.model_validate(read_recipe(recipe)).model_dump())
    used = {**base, **given}
    patches = [*_patches(base, given, crop=crop)]
    patch = patches[0].value if patches else patch
    found = [*patches, *_views(images, machine, used, base, crop=crop, patch=patch), *_training(images, machine, used)]
    return [each for each in found if each.setting not in given and base[each.setting] != each.value]


def _patches(base: Mapping[str, Any], given: Mapping[str, Any], *, crop: int) -> Iterator[Decision]:
    """Of the recipe's network, where nothing else is given."""
    used = {**base, **given}
    is_own = used["model.name"] == base["model.name"] and "model.patch_size" not in given
    if is_own and used["model.stem"] == "conv" and crop >= LARGE_PATCHES_FROM:
        yield Decision("model.patch_size", LARGE_PATCH, f"smaller patches of crops of {crop} pixels take long")


def _views(
    images: ImageFacts,
    machine: MachineFacts,
    used: Mapping[str, Any],
    base: Mapping[str, Any],
    *,
    crop: int,
    patch: int,
) -> Iterator[Decision]:
    how = f"the images' shorter side is {images.side} pixels"
    most = LARGEST_CROP.get(machine.device, CROPS[-1])
    further = f", and the network needs {crop}" if crop > images.side else ""
    further = f"; larger crops than {most} pixels take long here" if images.side > most else further
    yield Decision("views.global_size", crop, how + further)
    if used["views.num_locals"]:
        side = round(base["views.local_size"] / base["views.global_size"] * crop / patch)
        side = patch * max(math.ceil(SMALLEST_LOCAL / patch), side)
        yield Decision("views.local_size", side, f"in proportion to crops of {crop} pixels")
    if used["init"] is None:  # trained weights know the values that they were trained with
        yield Decision("views.mean", images.mean, f"that of {images.tried} of the images")
        yield Decision("views.std", images.std, f"that of {images.tried} of the images")
    if images.is_grey:
        brightness, contrast = base["views.jitter"][:2]
        yield Decision("views.jitter", (brightness, contrast, 0.0, 0.0), "the images are grey: no colours to change")
        yield Decision("views.grey_probability", 0.0, "the images are grey already")
        if images.side <= 32:
            yield Decision("views.flip", 0.0, "small grey images are often characters, which are not to be mirrored")
    elif len(images.mean) == RGB and not any(used["views.jitter"][2:]):
        yield Decision("views.jitter", (0.4, 0.4, 0.2, 0.1), "the images have colours")
        yield Decision("views.grey_probability", 0.2, "the images have colours")
        yield Decision("views.flip", 0.5, "images with colours are rarely characters, which are not to be mirrored")


def _training(images: ImageFacts, machine: MachineFacts, used: Mapping[str, Any]) -> Iterator[Decision]:
    batch = used["batch_size"]
    if images.number < 2 * batch:
        batch = max(SMALLEST_BATCH, 2 ** int(math.log2(max(1, images.number / 2))))
        yield Decision(
            "batch_size", min(batch, images.number), f"of {images.number} images, at least two steps an epoch"
        )
    elif batch % machine.processes:
        whole = round(batch / machine.processes) * machine.processes
        yield Decision("batch_size", whole, f"a multiple of the {machine.processes} processes")
    if used["method"] in SELF_DISTILLED and used["losses.kind"] == "prototypes":
        most = max(16, 2 ** int(math.log2(images.number)))
        fewer = tuple(dict.fromkeys(min(number, most) for number in used["heads.prototypes"]))
        yield Decision("heads.prototypes", fewer, f"no more than the {images.number} images")
    yield Decision("monitor.data", None, "no labels are needed; --monitor.data shows scores of labelled images")
    if machine.device == "cpu" and images.pixels >= 128**2 and machine.cores > 1:
        workers = max(1, min(12, machine.cores - 1))
        yield Decision("workers", workers, f"decoding images of {images.side} pixels takes time; {machine.cores} cores")


def length(
    images: ImageFacts, machine: MachineFacts, *, epochs: int, an_epoch: int, steps: int | None
) -> tuple[int, str]:
    """Epochs of a run and why: so many that it takes the steps given, or, without, as many as suit the images.

    Args:
        images: What they are like.
        machine: What it has.
        epochs: Of the recipe.
        an_epoch: Steps of an epoch.
        steps: That were asked for, or that are possible in the hours that were.
    """
    if steps is not None:
        return max(1, steps // an_epoch), ""
    most = MOST_STEPS.get(machine.device, epochs * an_epoch)
    if epochs * an_epoch < FEWEST_STEPS:
        return -(-FEWEST_STEPS // an_epoch), f"a set of {images.number:,} images needs {FEWEST_STEPS:,} steps"
    if epochs * an_epoch > most:
        return max(1, most // an_epoch), f"at most about {most:,} steps without a GPU; --hours or --steps ask for more"
    return epochs, ""


def of_length(base: Mapping[str, Any], given: Mapping[str, Any], *, epochs: int, per_hour: float) -> list[Decision]:
    """What follows from the number of epochs: what the recipe counts in epochs, checkpoints, scores.

    Args:
        base: Settings of the recipe by dotted name.
        given: Those that the user gave.
        epochs: Of the run.
        per_hour: Epochs that are possible in an hour.
    """
    same = [
        Decision(
            name,
            of_epochs(name, base[name], before=base["epochs"], now=epochs),
            f"suits {counted(epochs, 'epoch')} instead of {base['epochs']}",
        )
        for name in IN_EPOCHS
        if base[name]
    ]
    every = max(0.01, round(min(epochs / 10, per_hour), 2))
    often = [
        Decision(name, every, "ten times in the run, and once an hour or more often")
        for name in ("saving.every_epochs", "monitor.every_epochs")
    ]
    return [each for each in (*same, *often) if each.setting not in given and base[each.setting] != each.value]
