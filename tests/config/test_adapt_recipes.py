"""Recipes by which trained weights become all sizes, beside those from scratch."""

from typing import Any

import pytest

from poa.config.resolve import recipes, resolve
from poa.models.registry import family_of
from poa.pretraining.advice import warnings_of

AT_224 = [name for name in recipes() if name.startswith("adapt-224")]


@pytest.mark.parametrize("recipe", AT_224)
def test_trained_weights_are_adapted_with_care(recipe: str) -> None:
    """What differs from the recipe from scratch."""
    config, scratch = resolve(recipe=recipe), resolve(recipe=recipe.replace("adapt", "vit"))
    assert config.optimizer.base_lr == scratch.optimizer.base_lr / 2
    assert config.optimizer.teacher_momentum[0] > scratch.optimizer.teacher_momentum[0]
    assert config.epochs <= scratch.epochs / 3
    assert (config.batch_size, config.heads) == (scratch.batch_size, scratch.heads)


@pytest.mark.parametrize("recipe", [name for name in recipes() if name.startswith("adapt-")])
def test_it_is_taught_by_itself_and_warms_up_slowly(recipe: str) -> None:
    """Networks of other sizes, and patches of 14 pixels, fit too."""
    config = resolve(recipe=recipe)
    ours = config.optimizer
    assert (config.sampling, config.distill.teacher, config.distill.weight) == ("published", "init", (1.0, 1.0))
    assert 2 * ours.warmup_epochs < ours.backbone_warmup_epochs <= config.epochs / 3
    assert warnings_of(config, num_images=10**6 if recipe.endswith("-1m") else 20_000) == []
    given: dict[str, Any] = {"views": {"global_size": 98, "local_size": 42}} if recipe == "adapt-96" else {}
    if recipe in ("adapt-96", "adapt-224"):
        dinov2 = family_of(resolve({"model": "vit_small_patch14_dinov2", **given}, recipe=recipe))
        assert str(dinov2.space.intact) == "384x12"
    if recipe == "adapt-224":
        for name in ("resnet50_gn", "swin_tiny_patch4_window7_224", "vit_small_patch16_224"):
            assert len(family_of(resolve({"model": name}, recipe=recipe)).space.sizes) >= 8


def test_small_images_and_photographs_differ_in_crops_and_patches_alone() -> None:
    small, photographs = resolve(recipe="adapt-small-data"), resolve(recipe="adapt-96")
    assert photographs.views.global_size == 3 * small.views.global_size
    assert photographs.model.patch_size == 16
    apart = {"views": small.views, "model": small.model}
    assert photographs.model_copy(update=apart) == small
    assert photographs.model.model_copy(update={"patch_size": 8}) == small.model
