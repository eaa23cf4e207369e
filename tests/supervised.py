"""Sources of four small sizes for tests of trainings with labels, boxes or masks, and what stops such trainings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from poa.data.images import Preprocessing
from poa.elastic.space import SearchSpace, Size
from poa.evaluation.results import Results, Scores
from poa.evaluation.sweep import SweepOptions
from poa.families.vit import ViT
from poa.models.source import ModelSource
from poa.training import checkpoint

MEAN, STD = (0.3, 0.3, 0.3), (0.35, 0.35, 0.35)


def family(*, image_size: int, patch_size: int) -> ViT:
    grid = SearchSpace.grid((16, 32), (1, 2))
    return ViT(grid, image_size=image_size, patch_size=patch_size, head_dim=16, layer_scale=0.0)


class Models:
    """Makes the models of a source, notes which, and spoils some."""

    def __init__(self, family: ViT, spoiled: Sequence[str] = ()) -> None:
        self.made: list[str] = []
        self.drop_paths: set[float] = set()
        self._family, self._spoiled = family, spoiled

    def __call__(self, name: str, *, num_classes: int, drop_path: float = 0.0) -> nn.Module:
        self.made.append(name)
        self.drop_paths.add(drop_path)
        architecture, arguments = self._family.timm_config(Size.parse(name))
        torch.manual_seed(len(name) + int(name[0]))
        model = timm.create_model(architecture, **{**arguments, "num_classes": num_classes}, drop_path_rate=drop_path)
        if name in self._spoiled:
            nn.init.constant_(model.norm.weight, torch.nan)
        return model


def source_of_models(out: Path, models: Models, **options: Any) -> ModelSource:
    vit = models._family
    settings: dict[str, Any] = {
        "name": "runs/mine",
        "names": tuple(map(str, vit.space.sizes)),
        "network": vit.build,
        "timm_model": models,
        "weights": "teacher at step 5",
        "preprocessing": Preprocessing(vit.image_size, vit.image_size, MEAN, STD),
        "out": out,
        "family": vit,
    }
    return ModelSource(**settings | options)


def scores_of(run: Callable[..., Results], source: ModelSource, *arguments: Any, **options: Any) -> Scores:
    """Scores of the networks asked for; those of ``options`` that all sweeps take are put together."""
    of_sweep = {
        name: options.pop(name)
        for name in ("sizes", "name", "workers", "overwrite", "console", "max_bad_share")
        if name in options
    }
    results = run(source, *arguments, **options, options=SweepOptions(**of_sweep))
    return results.of(source.choose(of_sweep.get("sizes", "all")))


def stop(patch: pytest.MonkeyPatch, run: Callable[..., Any], *arguments: Any, after: int, **options: Any) -> None:
    """Run, and end the program after some checkpoints."""
    plain, made = checkpoint.save_checkpoint, []

    def save(*arguments: Any, **settings: Any) -> None:
        plain(*arguments, **settings)
        made.append(arguments)
        if len(made) == after:
            raise KeyboardInterrupt

    with patch.context() as inner:
        inner.setattr(checkpoint, "save_checkpoint", save)
        with pytest.raises(KeyboardInterrupt):
            run(*arguments, **options)
