"""What grows with the number of sizes and of images: memory and CPU time, of this commit and of another.

Each work is a process of its own, and the commits take turns. Memory is the highest resident memory less what was
resident after the imports.

    git worktree add ../before COMMIT
    python benchmarks/growth.py [--before ../before] [--images 1000000] [--works resnet vit index again tars unchanged]
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from measure import machine

IMAGE = b"\xff\xd8\xff" + bytes(1000)
HERE = Path(__file__).resolve().parent.parent
WORKS = {
    "resnet": "plans and skeletons of all 465 sizes of a published ResNet",
    "vit": "costs of all 143 sizes of a published ViT, as `poa sizes --model vit` counts them",
    "index": "listing a folder of images for the first time",
    "again": "listing it again after a change",
    "tars": "listing ten tars of images for the first time",
    "unchanged": "opening them again",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="work tree of another commit")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(measured(*arguments.work)))
        return
    trees = {"now": HERE} | ({} if arguments.before is None else {"before": arguments.before.resolve()})
    print(machine(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        if {"index", "again"} & set(arguments.works):
            fill(Path(folder) / "images", arguments.images)
        if {"tars", "unchanged"} & set(arguments.works):
            fill_tars(Path(folder) / "tars", arguments.images)
        for work in arguments.works:
            print(f"{WORKS[work]}{f' ({arguments.images:,} images)' if work not in ('resnet', 'vit') else ''}")
            for name, tree in trees.items():
                found = in_new_process(work, folder, tree, cache=Path(folder) / name)
                print(f"  {name:8}{found['mebibytes']:8,.0f} MiB {found['seconds']:8.2f} s of CPU", flush=True)


def fill(folder: Path, number: int) -> None:
    """So many names of one file, in folders of a thousand."""
    for first in range(0, number, 1000):
        part = folder / f"n{first // 1000:08}"
        part.mkdir(parents=True)
        for image in range(min(1000, number - first)):
            place = part / f"n{first // 1000:08}_{image:05}.JPEG"
            if image:
                os.link(part / f"n{first // 1000:08}_00000.JPEG", place)
            else:
                place.write_bytes(IMAGE)


def fill_tars(folder: Path, number: int) -> None:
    """The same in ten tars."""
    folder.mkdir()
    content = IMAGE + bytes(-len(IMAGE) % tarfile.BLOCKSIZE)
    for shard in range(10):
        with (folder / f"{shard}.tar").open("wb") as file:
            for image in range(shard * number // 10, (shard + 1) * number // 10):
                info = tarfile.TarInfo(f"n{image // 1000:08}/n{image // 1000:08}_{image % 1000:05}.JPEG")
                info.size = len(IMAGE)
                file.write(info.tobuf(tarfile.USTAR_FORMAT) + content)
            file.write(bytes(2 * tarfile.BLOCKSIZE))


def in_new_process(work: str, folder: str, tree: Path, *, cache: Path) -> dict[str, Any]:
    """What a work needs."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "POA_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--work", work, folder]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(work: str, folder: str) -> dict[str, float]:
    """Do a work here."""
    if work in ("resnet", "vit"):
        from poa.config import resolve
        from poa.evaluation.cost import costs_of
        from poa.models.registry import family_of

        family = family_of(resolve.resolve({"model": {"name": work}, "views": {"num_locals": 0}}))
        networks = family.sub_networks()
    else:
        from poa.data.index import open_index

        if work == "again":
            (Path(folder) / "images/n00000000/new.jpg").write_bytes(os.urandom(100))
    resident, began = memory("VmRSS"), time.process_time()
    if work == "resnet":
        for size in family.space.sizes:
            networks.plan(size)
    elif work == "vit":
        costs_of(family, 224)
    else:
        open_index(Path(folder) / ("images" if work in ("index", "again") else "tars"))
    return {"mebibytes": memory("VmHWM") - resident, "seconds": time.process_time() - began}


def memory(name: str) -> float:
    """Resident memory of this process in MiB: now (``VmRSS``), or the most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


if __name__ == "__main__":
    main()
