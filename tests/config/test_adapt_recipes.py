"""Recipes by which trained weights become all sizes, beside those from scratch."""

from typing import Any

import pytest

from poa.config.resolve import recipes, resolve
from poa.models.registry import family_of
from poa.pretraining.advice import warnings_of


@pytest.mark.parametrize("recipe", [name for name in recipes() if name.startswith("adapt-")])
def test_trained_weights_are_adapted_with_care(recipe: str) -> None:
    """What differs from the recipe from scratch; sizes of other networks, and patches of 14 pixels, fit too."""
    config, scratch = resolve(recipe=recipe), resolve(recipe=recipe.replace("adapt", "vit"))
    ours, theirs = config.optimizer, scratch.optimizer
    assert (config.sampling, config.distill.teacher, config.distill.weight) == ("widening", "init", (1.0, 1.0))
    base = resolve(recipe="vit-96") if "small" in recipe else scratch
    assert ours.base_lr == base.optimizer.base_lr / 2
    assert 2 * ours.warmup_epochs < ours.backbone_warmup_epochs <= config.epochs / 3
    assert ours.teacher_momentum[0] > theirs.teacher_momentum[0]
    assert config.epochs <= scratch.epochs / 3
    assert (config.batch_size, config.heads) == (base.batch_size, base.heads)
    assert warnings_of(config, num_images=10**6 if recipe.endswith("-1m") else 20_000) == []
    given: dict[str, Any] = {"views": {"global_size": 98, "local_size": 42}} if recipe == "adapt-96" else {}
    if recipe in ("adapt-96", "adapt-224"):
        dinov2 = family_of(resolve({"model": "vit_small_patch14_dinov2", **given}, recipe=recipe))
        assert str(dinov2.space.intact) == "384x12"
    if recipe == "adapt-224":
        for name in ("resnet50_gn", "swin_tiny_patch4_window7_224", "vit_small_patch16_224"):
            assert len(family_of(resolve({"model": name}, recipe=recipe)).space.sizes) >= 8
