"""What an image costs in shards and in a folder: CPU time of reading it, and of making a batch's crops of it.

The same images lie in a folder and in tars of 10,000 each; both are read in the order of a training, taking turns.

    python benchmarks/shards.py [--images 100000] [--steps 20] [--rounds 5]
"""

import argparse
import io
import os
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from measure import machine
from poa.config.pretraining import ViewSettings
from poa.data.index import ImageIndex, open_index
from poa.data.loader import Cropping, CropSchedule, batches
from poa.data.masks import Masking

PER_SHARD, DIFFERENT, BATCH = 10_000, 100, 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        os.environ["POA_CACHE"] = str(root / "cache")
        fill(root, arguments.images)
        sources = {}
        for name in ("folder", "shards"):
            begun = time.process_time()
            sources[name] = open_index(root / name)
            print(f"{name:8}{len(sources[name]):9,} images indexed in {time.process_time() - begun:6.2f} s of CPU")
        assert sources["folder"].fingerprint == sources["shards"].fingerprint
        for work, measure in {"read": reading, "crops": cropping}.items():
            found: dict[str, list[float]] = {name: [] for name in sources}
            for number in range(arguments.rounds):
                for name, index in sources.items():
                    found[name].append(measure(index, number, arguments.steps))
            times = {name: statistics.median(each) for name, each in found.items()}
            micros = ", ".join(f"{name} {1e6 * each:7.1f} us" for name, each in times.items())
            print(f"{work:8}{micros} of CPU an image: {times['shards'] / times['folder']:.3f} times", flush=True)


def fill(root: Path, number: int) -> None:
    """Write the images to both; names of one content are links to one file."""
    encoded = []
    for seed in range(DIFFERENT):
        file = io.BytesIO()
        coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((256, 192), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
        (root / f"{seed}.jpg").write_bytes(file.getvalue())
    (root / "shards").mkdir()
    for first in range(0, number, PER_SHARD):
        with tarfile.open(root / f"shards/{first // PER_SHARD:03}.tar", "w") as shard:
            for image in range(first, min(first + PER_SHARD, number)):
                name = f"class{image % 10}/{image:08}.jpg"
                info = tarfile.TarInfo(name)
                info.size = len(encoded[image % DIFFERENT])
                shard.addfile(info, io.BytesIO(encoded[image % DIFFERENT]))
                (root / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
                (root / "folder" / name).hardlink_to(root / f"{image % DIFFERENT}.jpg")


def reading(index: ImageIndex, seed: int, steps: int) -> float:
    """CPU seconds of reading an image, at random places."""
    rows = np.random.default_rng(seed).integers(0, len(index), steps * BATCH).tolist()
    begun = time.process_time()
    for row in rows:
        index.read(row)
    return (time.process_time() - begun) / len(rows)


def cropping(index: ImageIndex, seed: int, steps: int) -> float:
    """CPU seconds of all that is done for an image before it is on the device."""
    crop = Cropping(ViewSettings(global_size=96, local_size=48, num_locals=4), Masking(6))
    begun = time.process_time()
    made = batches(index, crops=CropSchedule(crop, crop), batch_size=BATCH, seed=seed, start_step=0, num_steps=steps)
    for _ in made:
        pass
    return (time.process_time() - begun) / (steps * BATCH)


if __name__ == "__main__":
    main()
