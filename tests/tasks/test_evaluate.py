"""What all tasks do alike with what they are given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poa.config.detection import Detection
from poa.config.finetune import Finetune
from poa.config.segmentation import Segmentation
from poa.evaluation.sweep import SweepOptions
from poa.tasks import evaluate
from poa.tasks.detection.data import CocoImages
from poa.tasks.segmentation.masks import MaskedImages
from poa.tasks.training import Task
from supervised import Models, family, source_of_models
from tasks.detection.coco_images import write_coco
from tasks.segmentation.mask_images import write_pairs

OPTIONS = SweepOptions(sizes=("16x1",), workers=0)


def task_of(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any], out: Path, *given: Any, **options: Any) -> Any:
    """The task that a function makes, which is not run."""
    made: list[Task] = []
    monkeypatch.setattr(evaluate, "_run", made.append)
    source = source_of_models(out, Models(family(image_size=24, patch_size=8)))
    run(source, *given, **options, save_every=3, options=OPTIONS)
    (task,) = made
    assert (task.source, task.options, task.save_every, task.config) == (source, OPTIONS, 3, given[0])
    return task


def test_a_limit_is_of_training_images_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Finetune(epochs=1, batch_size=4)
    task = task_of(
        monkeypatch, evaluate.finetune_networks, tmp_path, settings, train="digits/train", test="digits/test", limit=20
    )
    assert len(task.images.labels) == 20
    assert len(task.test.labels) > 100
    pairs = [MaskedImages(*write_pairs(tmp_path / part, num_images=6, seed=len(part))) for part in ("train", "test")]
    segmentation = Segmentation(epochs=1, batch_size=2, crop=24, stride=16)
    task = task_of(
        monkeypatch, evaluate.segment_networks, tmp_path, segmentation, train=pairs[0], test=pairs[1], limit=4
    )
    assert (len(task.train.pairs), len(task.test.pairs)) == (4, 6)
    coco = [CocoImages(*write_coco(tmp_path / f"coco-{part}", num_images=6, seed=len(part))) for part in ("a", "bc")]
    detection = Detection(epochs=1, batch_size=2)
    task = task_of(monkeypatch, evaluate.detect_networks, tmp_path, detection, train=coco[0], test=coco[1], limit=4)
    assert len(task.train) == 4
    assert len(task.test) == 6
