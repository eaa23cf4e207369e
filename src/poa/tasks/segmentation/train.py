"""Training of one segmentation network on images with masks, and its test, put together from timm's parts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.scheduler import PolyLRScheduler
from torch import Tensor

from poa.config.segmentation import Segmentation
from poa.data.sampler import keyed_random, steps_per_epoch
from poa.tasks.segmentation.crops import CropBatch, Cropping, training_crops, whole_pairs
from poa.tasks.segmentation.masks import Pair, Pairs
from poa.tasks.segmentation.model import Segmenter
from poa.tasks.segmentation.predict import Sliding, count, predict
from poa.tasks.training import Advance, Diverged, Reached, Save, Training, adamw, train_epochs

_STEP = 3
"""What random numbers are for: dropout and drop path of a step."""
EXAMPLES = 4
"""How many test images are kept to be looked at."""


class SegmenterTraining(Training[CropBatch]):
    """A network that is being trained, and all that a step changes.

    Args:
        network: Taken over.
        settings: How to train it.
        num_steps: Of the whole training.
        ignore: Id of pixels without a class.
        device: Where to compute.
    """

    def __init__(
        self, network: Segmenter, settings: Segmentation, *, num_steps: int, ignore: int, device: torch.device
    ) -> None:
        self._settings, self._ignore, self._device = settings, ignore, device
        self.network = network.to(device)
        heads = [part for name, part in network.trained.items() if name != "maps"]
        self._optimizer = adamw(network.maps.model, heads, settings)
        warmup = min(round(settings.warmup_share * num_steps), num_steps - 1)
        self._scheduler = PolyLRScheduler(
            self._optimizer,
            t_initial=num_steps - warmup,
            power=settings.power,
            lr_min=settings.min_lr,
            warmup_t=warmup,
            warmup_lr_init=min(settings.warmup_lr, settings.lr),
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def step(self, step: int, batch: CropBatch) -> float:
        """Train on one batch.

        Args:
            step: Number of the step, from 0.
            batch: Its images and masks.

        Returns:
            The loss.

        Raises:
            Diverged: The loss is not finite.
        """
        self.network.train()
        self._scheduler.step_update(step)
        masks = batch.masks.to(self._device)
        with keyed_random(self._settings.seed, _STEP, step, device=self._device):
            main, auxiliary = self.network.scores(batch.images.to(self._device))
            loss = pixel_loss(main, masks, ignore=self._ignore)
            if auxiliary is not None:
                loss = loss + self._settings.auxiliary * pixel_loss(auxiliary, masks, ignore=self._ignore)
            value = float(loss.detach())
            if not loss.isfinite():
                raise Diverged(f"The training loss is {value} at step {step}, so that the network is lost. Lower --lr.")
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        self._optimizer.step()
        return value

    def state(self) -> dict[str, Any]:
        """All that must be saved to go on."""
        return {"network": self.network.trained.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave.

        Args:
            state: Of a training with the same settings.
        """
        self.network.trained.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


def pixel_loss(
    scores: Float[Tensor, "batch classes height width"], masks: Int[Tensor, "batch height width"], *, ignore: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pixels that have a class; 0 where none has.

    Args:
        scores: Of each class.
        masks: Class of each pixel.
        ignore: Id of pixels without a class.
    """
    total = F.cross_entropy(scores.float(), masks, ignore_index=ignore, reduction="sum")
    return total / (masks != ignore).sum().clamp(min=1)


def train(
    network: Segmenter,
    pairs: Pairs,
    *,
    settings: Segmentation,
    cropping: Cropping,
    device: torch.device,
    workers: int = 0,
    start: Mapping[str, Any] | None = None,
    save: Save | None = None,
    advance: Advance | None = None,
) -> Reached:
    """Train a network in place; one that was stopped and goes on from a saved state ends with the same bits on a CPU.

    Args:
        network: With a fresh head.
        pairs: Images and masks that can be read.
        settings: How to train.
        cropping: How crops are made.
        device: Where to compute.
        workers: Processes that prepare crops.
        start: A state to go on from.
        save: Called after each epoch with the number of epochs done and a state to go on from.
        advance: Told of images that were trained on.

    Raises:
        Diverged: The loss is not finite.
        UserError: There are fewer images than a batch needs.
    """
    steps = steps_per_epoch(len(pairs), settings.batch_size)
    training = SegmenterTraining(
        network, settings, num_steps=settings.epochs * steps, ignore=cropping.ignore, device=device
    )
    batches = partial(
        training_crops, pairs, cropping, batch_size=settings.batch_size, seed=settings.seed, workers=workers
    )
    return train_epochs(training, batches, epochs=settings.epochs, steps=steps, start=start, save=save, advance=advance)


class Example(NamedTuple):
    """A test image to be looked at.

    Attributes:
        name: Of its file.
        pair: The image and its true mask.
        predicted: Class of each pixel.
    """

    name: str
    pair: Pair
    predicted: Int[Tensor, "height width"]


class Assessed(NamedTuple):
    """What a test gave.

    Attributes:
        counts: Pixels by class of each test image, see ``poa.tasks.segmentation.predict.count``.
        examples: Some of the images, evenly spread.
    """

    counts: Int[Tensor, "images 3 classes"]
    examples: tuple[Example, ...]


def assess(
    network: Segmenter,
    pairs: Pairs,
    sliding: Sliding,
    *,
    num_classes: int,
    ignore: int,
    resize: int = 0,
    device: torch.device,
    workers: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Assessed:
    """Predict the masks of all test images, each at its own size, and compare.

    Args:
        network: Put into evaluation mode.
        pairs: Images and masks that can be read.
        sliding: How images are tested.
        num_classes: Number of classes.
        ignore: Id of pixels without a class.
        resize: Shorter side of the images the network sees, in pixels; 0 leaves them.
        device: Where to compute.
        workers: Processes that read images.
        advance: Told of images that were tested.
    """
    network.eval().to(device)
    shown = {number * len(pairs) // EXAMPLES for number in range(EXAMPLES)}
    counts, examples = [], []
    for i, pair in enumerate(whole_pairs(pairs, resize=resize, workers=workers)):
        height, width = pair.mask.shape
        predicted = predict(network, pair.image, sliding, sides=(height, width), device=device)
        counts.append(count(pair.mask, predicted, num_classes=num_classes, ignore=ignore))
        if i in shown:
            examples.append(Example(pairs.name(i), pair, predicted))
        if advance is not None:
            advance(1)
    return Assessed(torch.stack(counts), tuple(examples))
