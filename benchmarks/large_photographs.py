"""Time of the data work for one large photograph: decoded whole, and reduced as far as its crops allow.

The photograph is laid out of scikit-learn's sample photos, so that it is as sharp as a small one, which is the hard
case for the reduction. Both ways take turns on one thread.

    python benchmarks/large_photographs.py [--sides 4000 3000] [--rounds 5]
"""

import argparse
import io
import statistics
from functools import partial

import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from measure import in_turns, machine, ratio
from poa.config.pretraining import ViewSettings
from poa.data.images import decode, decode_reduced, image_tensor
from poa.data.resize import resize
from poa.data.views import SPARE, make_crops, reduction, sample_generator

AUGMENTATION = ViewSettings()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs=2, default=(4000, 3000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quality", type=int, default=90)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = photograph(*arguments.sides, quality=arguments.quality)
    by = partial(reduction, augmentation=AUGMENTATION)
    print(machine(torch.device("cpu")))
    print(f"{arguments.sides[0]}x{arguments.sides[1]}, {len(file):,} bytes, 2x224 + 8x96 crops; medians")
    whole, reduced = decode(file), decode_reduced(file, by)
    works = {
        "whole, decode": lambda _: decode(file),
        "whole, crops": lambda step: crops(whole, step),
        "reduced, decode": lambda _: decode_reduced(file, by),
        "reduced, crops": lambda step: crops(reduced, step),
    }
    seconds = in_turns(works, rounds=arguments.rounds, device=torch.device("cpu"))
    for name, each in seconds.items():
        print(f"{name:16}{1000 * statistics.median(each):8.1f} ms")
    before, after = (
        [sum(parts) for parts in zip(seconds[f"{way}, decode"], seconds[f"{way}, crops"], strict=True)]
        for way in ("whole", "reduced")
    )
    print(
        f"ratio {ratio(after, before):.2f}; {within_a_step(whole, reduced):.1%} of the values of crops within one step"
    )


def photograph(width: int, height: int, *, quality: int) -> bytes:
    """A JPEG of many sample photos, every second one mirrored."""
    sheet = Image.new("RGB", (width, height))
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    photos += [photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for photo in photos]
    step = photos[0].size
    places = [(x, y) for y in range(0, height, step[1]) for x in range(0, width, step[0])]
    for number, place in enumerate(places):
        sheet.paste(photos[number % len(photos)], place)
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=quality)
    return file.getvalue()


def crops(image: Image.Image, step: int) -> object:
    """What a worker makes of a decoded image."""
    return make_crops(image_tensor(image), augmentation=AUGMENTATION, generator=sample_generator(0, step, 0))


def within_a_step(whole: Image.Image, reduced: Image.Image) -> float:
    """Share of equal values, but for rounding, in crops of the same regions with as few pixels as there may be."""
    divisor = round(whole.width / reduced.width)
    side = round(SPARE * AUGMENTATION.local_size)
    regions = [(x, y) for x in range(0, reduced.width - side, side) for y in range(0, reduced.height - side, side)]
    steps = [
        (region(whole, x * divisor, y * divisor, side * divisor) - region(reduced, x, y, side)).abs()
        for x, y in regions
    ]
    return (torch.stack(steps) <= 1).float().mean().item()


def region(image: Image.Image, x: int, y: int, side: int) -> torch.Tensor:
    """A local crop of a region."""
    size = AUGMENTATION.local_size
    return resize(image_tensor(image.crop((x, y, x + side, y + side))), size, size).int()


if __name__ == "__main__":
    main()
