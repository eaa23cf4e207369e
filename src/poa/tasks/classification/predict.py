"""Labels of images with probabilities, by a fine-tuned model: a line of a CSV file for each image."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from poa.data.augment import normalise
from poa.data.images import Preprocessing
from poa.data.index import ImageIndex
from poa.data.loader import images_for_scoring
from poa.models.folder import weights_of
from poa.tasks.classification.folder import read_classifier
from poa.tasks.predictor import Part, Predictor, check_finite
from poa.text import csv_cell

BATCH = 64
_DECIMALS = 6

Score = Callable[[UInt8[Tensor, "batch 3 side side"]], Float[Tensor, "batch classes"]]
"""From the pixels of prepared images to scores of each class, before the softmax."""


@dataclass(frozen=True)
class LabelPredictor(Predictor):
    """A classifier of images.

    Attributes:
        score: Gives the scores of each class.
        classes: Their names, in this order.
        preprocessing: How images are cut.
        weights: What the parameters are.
        all_classes: Whether the probability of each class is written, in columns of the class names.
    """

    score: Score
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights: str
    all_classes: bool = False

    kind = "a classifier"
    example = "labels.csv"
    is_file = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """How images are prepared, and what is written."""
        return {"classes": self.classes, "all_classes": self.all_classes, **self.preprocessing.stated()}

    def parts(self, index: ImageIndex, *, start: int, workers: int) -> Iterator[Part]:
        """Batches of images."""
        size, resize = self.preprocessing.image_size, self.preprocessing.resize
        for batch in images_for_scoring(
            index, size=size, resize=resize, batch_size=BATCH, workers=workers, start=start
        ):
            names = [index.name(i) for i in batch.indices]
            scores = self.score(batch.images).float().cpu() if names else torch.empty(0, len(self.classes))
            for name, row in zip(names, scores, strict=True):
                check_finite(row, name=name)
            lines = [self._line(name, row) for name, row in zip(names, scores.softmax(dim=1), strict=True)]
            yield Part(len(names) + len(batch.bad), lines, bad=[index.name(i) for i in batch.bad])

    def finish(self, lines: Iterator[str], whole: Path) -> None:
        """The lines below a heading."""
        with whole.open("w", encoding="utf-8", newline="") as file:
            further = map(csv_cell, self.classes) if self.all_classes else ()
            file.write(f"{_row(['image', 'label', 'probability', *further])}\n")
            file.writelines(f"{line}\n" for line in lines)

    def _line(self, name: str, probabilities: Float[Tensor, " classes"]) -> str:
        label = int(probabilities.argmax())
        shown = [f"{value:.{_DECIMALS}f}" for value in probabilities.tolist()]
        further = shown if self.all_classes else ()
        return _row([csv_cell(name), csv_cell(self.classes[label]), shown[label], *further])


def _row(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def label_predictor(folder: Path, *, device: torch.device, all_classes: bool = False) -> LabelPredictor:
    """The classifier in a folder that ``poa finetune`` wrote."""
    found = read_classifier(folder)
    score = _Normalised(found.network.to(device), found.preprocessing, device)
    return LabelPredictor(score, found.classes, found.preprocessing, weights_of(folder), all_classes)


@dataclass(frozen=True)
class _Normalised:
    """A network on images as they are read."""

    network: nn.Module
    preprocessing: Preprocessing
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch classes"]:
        """Scores of each class."""
        own = self.preprocessing
        scores: Tensor = self.network(normalise(images.to(self.device), mean=own.mean, std=own.std))
        return scores
