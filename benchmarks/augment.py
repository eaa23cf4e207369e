"""Time of the data work for one image, ours against the torchvision pipeline of DINOv2, on one thread.

Both decode the same JPEGs with Pillow and cut the same regions, in turns, so that what else the machine does falls on
both alike. Ours leaves colour, blur and normalisation to the training device; that part is timed on this CPU on a line
of its own.

    python benchmarks/augment.py [--data PATH] [--images 64] [--rounds 3]
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional

from measure import machine
from poa.config.pretraining import ViewSettings
from poa.data.augment import augment
from poa.data.images import decode, image_tensor
from poa.data.index import open_index
from poa.data.views import (
    BOX,
    FLIP,
    NUM_UNIFORMS,
    RATIO,
    Box,
    SampleCrops,
    collate,
    crop_box,
    make_crops,
    sample_generator,
)

AUGMENTATION = ViewSettings(global_size=224, local_size=96, num_locals=8)
Result = TypeVar("Result")


class Cut(NamedTuple):
    """A crop both sides make: where, how large, mirrored or not."""

    box: Box
    size: int
    mirrored: bool


class Times(NamedTuple):
    """Seconds of work for one image, a number for each time it was measured."""

    worker: list[float]
    collate: list[float]
    theirs: list[float]
    device: list[float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="images to use; default: parts of the photos that come with scikit-learn")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = read_files(arguments.data, arguments.images) if arguments.data else make_files(arguments.images)
    print(describe(files, arguments.data or "parts of scikit-learn's sample photos, 500x375, quality 90"))
    times = measure(files, num_rounds=arguments.rounds)
    worker, layout, theirs, device = (1000 * statistics.median(each) for each in times)
    ours = worker + layout
    print(f"ours, worker: decode, crop, flip   {ours:8.2f} ms an image   {1000 / ours:8.0f} images/s a core")
    print(f"DINOv2 with torchvision and Pillow {theirs:8.2f} ms an image   {1000 / theirs:8.0f} images/s a core")
    print(f"ratio                              {ours / theirs:8.3f}   (1/{theirs / ours:.1f})")
    print(f"ours, device part on this CPU      {device:8.2f} ms an image")
    print(f"ratio with the device part         {(ours + device) / theirs:8.3f}   (1/{theirs / (ours + device):.1f})")


def describe(files: Sequence[bytes], source: str) -> str:
    """Where and on what this was measured."""
    return (
        f"{machine(torch.device('cpu'))}, torchvision {torchvision.__version__}\n"
        f"{len(files)} images from {source}; 2x224 + 8x96 crops; medians"
    )


def read_files(data: str, num_images: int) -> list[bytes]:
    """The encoded images of a source, evenly spread."""
    index = open_index(data)
    return [index.read(int(each)) for each in np.linspace(0, len(index) - 1, num_images)]


def make_files(num_images: int) -> list[bytes]:
    """JPEGs of 500x375 pixels: random parts of two real photos."""
    generator = np.random.default_rng(0)
    photos = load_sample_images().images
    files = []
    for number in range(num_images):
        photo = photos[number % len(photos)]
        top, left = generator.integers(0, photo.shape[0] - 375), generator.integers(0, photo.shape[1] - 500)
        stream = io.BytesIO()
        Image.fromarray(photo[top : top + 375, left : left + 500]).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def measure(files: Sequence[bytes], *, num_rounds: int, batch_size: int = 16) -> Times:
    """Time both sides image by image, in turns; a first round warms up and does not count."""
    pipelines = dinov2_pipelines()
    times = Times([], [], [], [])
    for step in range(num_rounds + 1):
        if step == 1:
            times = Times([], [], [], [])
        for first in range(0, len(files), batch_size):
            batch = files[first : first + batch_size]
            samples = []
            for position, file in enumerate(batch, start=first):
                cuts = same_cuts(file, step=step, position=position)
                samples.append(timed(times.worker, partial(crop, file, step=step, position=position)))
                timed(times.theirs, partial(dinov2, file, cuts=cuts, pipelines=pipelines))
            masks = torch.zeros(2 * len(batch), 196, dtype=torch.bool)
            raw = timed(times.collate, partial(collate, samples, masks=masks, bad=()), num_images=len(batch))
            finish = partial(augment, raw, augmentation=AUGMENTATION, device="cpu")
            timed(times.device, finish, num_images=len(batch))
    return times


def timed(seconds: list[float], work: Callable[[], Result], *, num_images: int = 1) -> Result:
    """Do the work and note how long it took for one image."""
    start = time.perf_counter()
    result = work()
    seconds.append((time.perf_counter() - start) / num_images)
    return result


def crop(file: bytes, *, step: int, position: int) -> SampleCrops:
    """What our worker does with one image."""
    return make_crops(
        image_tensor(decode(file)), augmentation=AUGMENTATION, generator=sample_generator(0, step, position)
    )


def same_cuts(file: bytes, *, step: int, position: int) -> list[Cut]:
    """The crops that `crop` makes of an image."""
    width, height = Image.open(io.BytesIO(file)).size
    uniforms = sample_generator(0, step, position).random((2 + AUGMENTATION.num_locals, NUM_UNIFORMS))
    crops = zip(AUGMENTATION.crop_sizes, AUGMENTATION.crop_scales, uniforms.tolist(), strict=True)
    return [
        Cut(crop_box(height, width, scale=scale, ratio=RATIO, uniforms=row[BOX:]), size, row[FLIP] < 0.5)
        for size, scale, row in crops
    ]


def dinov2(file: bytes, *, cuts: Sequence[Cut], pipelines: Sequence[Callable[[Image.Image], Tensor]]) -> list[Tensor]:
    """What DINOv2's data set and transforms do with one image, but for drawing regions."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    crops = []
    for cut, pipeline in zip(cuts, pipelines, strict=True):
        bicubic = transforms.InterpolationMode.BICUBIC
        part = functional.resized_crop(image, *cut.box, [cut.size] * 2, interpolation=bicubic)
        crops.append(pipeline(functional.hflip(part) if cut.mirrored else part))
    return crops


def dinov2_pipelines() -> list[Callable[[Image.Image], Tensor]]:
    """Colour and normalisation of each of the crops, with the probabilities that DINOv2's code runs with."""
    return [
        transforms.Compose(
            [
                transforms.RandomApply([transforms.ColorJitter(*AUGMENTATION.jitter)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([transforms.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))], p=blur),
                transforms.RandomSolarize(threshold=128, p=solarize),
                transforms.ToTensor(),
                transforms.Normalize(AUGMENTATION.mean, AUGMENTATION.std),
            ]
        )
        for blur, solarize in [(0.0, 0.0), (0.9, 0.2)] + [(0.5, 0.0)] * AUGMENTATION.num_locals
    ]


if __name__ == "__main__":
    main()
