"""What commands of the documents name, but tiny: images, and runs of a few steps."""

import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from sklearn import datasets

from command import poa
from poa.choice import measure
from poa.choice.timing import Times
from poa.export import runner
from poa.export.apart import Reply
from poa.models.run import Run
from poa.planning import run_plan
from poa.pretraining.dry_run import Measured
from poa.shipping import export as shipping

SIDE = 32
NUM_DIGITS = 120
NUM_IMAGES = 16
"""Of each class."""
CLASSES = ("cat", "dog")
SHORT = "--device cpu --batch-size 8 --limit 16"
EPOCH = "--epochs 1 --views.global-size"
SIDES = {
    "": f"{SIDE} --views.small-epochs 0 --views.local-size 16",
    "vit-small": "32",
    "convnext": "32",
    "slimclr": "32",
}
"""Of the crops of recipes, by how their names begin."""
SHORTER = {
    "pretrain": SHORT,
    "compare": f"{SHORT} --seeds 0 --num-sizes 1",
    "finetune": "--epochs 1 --limit 8 --batch-size 8",
    "segment": "--epochs 1 --batch-size 4 --image-size 32 --resize 32 --sizes 64x3",
    "predict": "--limit 4",
    "polish": "--epochs 1",
    "pictures": "--show 1 --limit 8 --kinds colours",
    "evaluate finetune": "--epochs 1 --limit 16 --batch-size 2",
    "evaluate segmentation": "--epochs 1 --batch-size 4 --image-size 32 --resize 32 --sizes 64x3",
    "evaluate few-shot": "--draws 1",
    "evaluate robustness": "--workers 0 --test-limit 4 --kinds occlusion --occlusion 0.5",
    "evaluate disturbances": "--number 1 --image-size 48",
}
"""Flags that commands get in place of their own, so that they take tenths of a second."""
SOME_SIZES = (
    *("evaluate knn", "evaluate linear", "evaluate few-shot", "evaluate cluster", "evaluate quality"),
    *("evaluate robustness", "evaluate finetune", "measure"),
)
"""Commands that score or measure one size where they name none."""
RUN = "poa pretrain --data digits/train --out runs/digits --recipe demo --optimizer.schedule constant"
"""The run of the quick start, which can go on; its sizes are those of the recipe vit-96 too."""
OTHERS = {
    "photos": "poa pretrain --data IMAGES --out runs/photos --recipe vit-small-data --model.depth-step 3",
    "adapted": f"{RUN.replace('digits ', 'adapted ')} --init made/digits",
}
"""Runs that are not like it: what is planned for photographs on a CPU, and one that started from trained weights."""


class Objects:
    """In place of torchvision's CIFAR-10."""

    classes = CLASSES

    def __init__(self, root: str, *, train: bool = True, download: bool = False) -> None:
        self.images = np.random.default_rng(0 if train else 1).integers(0, 256, (32, SIDE, SIDE, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[npt.NDArray[np.uint8], int]:
        return self.images[number], number % len(CLASSES)


def run_here(
    file: Path, images: npt.NDArray[Any], *, batches: Sequence[int] = (), batch: int = 32, is_timed: bool = False
) -> Reply:
    """An exported file's outputs, without a process of its own."""
    run = runner.RUNTIMES[file.suffix](str(file))
    parts = [run(images[each]) for each in runner.slices(len(images), batches, batch)]
    return Reply(tuple(torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True)), 1.0)


def timed() -> Iterator[Times]:
    """Few of the sizes are fast: those that are within the limits of a choice are scored."""
    for number in itertools.count():
        seconds = 0.1 if number % 6 else 0.001
        yield Times(seconds, seconds, 9, 0)


def replace(patch: pytest.MonkeyPatch) -> None:
    """Take some of the digits, plan without trying steps, and time nothing, so that nothing depends on the machine."""
    digits = datasets.load_digits()
    some = type(digits)(images=digits.images[:NUM_DIGITS], target=digits.target[:NUM_DIGITS])
    patch.setattr(datasets, "load_digits", lambda: some)
    patch.setenv("POA_CACHE", str(Path("cache").absolute()))
    measured = Measured(64, 12, 10**6, 10**7, 8, 0, 0.1, 0.0, 0.1, 10**8, "of the process")
    patch.setattr(run_plan, "measure", lambda *_, **__: measured)
    patch.setattr("torchvision.datasets.CIFAR10", Objects)
    patch.setattr(shipping, "run_apart", run_here)
    patch.setattr(measure, "times_of", lambda passes, **_: dict(zip(passes, timed(), strict=False)))


def write() -> None:
    """Images and runs, in the current folder."""
    generator = np.random.default_rng(0)

    def drawn(*shape: int) -> npt.NDArray[np.uint8]:
        return generator.integers(0, 256, (SIDE, SIDE, *shape), dtype=np.uint8)

    def save(values: npt.NDArray[Any], *place: str) -> None:
        file = Path(*place)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, values) if file.suffix == ".npy" else Image.fromarray(values).save(file)

    for number in range(NUM_IMAGES):
        for name in CLASSES:
            for part in ("train", "test"):
                save(drawn(3), "IMAGES", part, name, f"{number}.png")
            save(drawn() // 128, "MASKS", name, f"{number}.png")
        for part in ("train", "val", "test"):
            save(drawn(3), "camvid", part, f"{number}.png")
            save(drawn() // 32, "camvid", f"{part}annot", f"{number}.png")
        save(drawn(3), "PHOTOS", f"{number}.jpg")
        save(drawn().astype(np.uint16) * 256, "SCANS", f"{number}.png")
        save(drawn(13), "SCENES", f"{number}.npy")
        save(drawn(1).astype(np.int16) * 8 - 1000, "SLICES", f"{number}.npy")
    save(drawn(3), "photo.jpg")
    save(drawn().astype(np.uint16) * 16, "scan.tif")
    paths = [f"{name}/{number}.png" for name in CLASSES for number in range(NUM_IMAGES)]
    Path("paths.csv").write_text("".join(f"IMAGES/train/{path}\n" for path in paths), encoding="utf-8")
    shutil.copytree("IMAGES/train", "caltech101")
    for part, some in (("train", paths[::2]), ("test", paths[1::2])):
        Path("caltech101", f"{part}.txt").write_text("".join(f"{path}\n" for path in some), encoding="utf-8")
    Path("camvid.txt").write_text("sky\nroad\n" + "\n".join(map(str, range(2, 12))), encoding="utf-8")
    for copy in ("LABELLED", "QUERIES", "cifar10", "coco128"):
        shutil.copytree("IMAGES", copy)
    for part in ("train", "val"):
        shutil.copytree("PHOTOS", f"coco128/{part}2017")
    for name in ("cifar10", "caltech101", "camvid", "coco128"):
        shutil.make_archive(name, "zip", name)
    assert poa(*shortened(words_of(RUN), trains=True)) == 0
    assert poa("extract", "runs/digits", "--size", "64x3") == 0
    for copy in ("models/64x3", "FOLDER"):
        shutil.copytree("runs/digits/models/64x3", copy)
    Path("runs").rename("made")
    Path("runs").mkdir()


def words_of(line: str) -> list[str]:
    return line.split()[1:]


def tidy(there: set[Path]) -> None:
    """Remove what a page has made: all but what was there."""
    for path in {*Path().iterdir()} - there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree("runs")
    Path("runs").mkdir()


def provide(text: str) -> None:
    """Make the runs that a command or a program names."""
    for run in dict.fromkeys(re.findall(r"\b(?:runs/|other-)[\w-]+", text)):
        made = Path("made", name if (name := Path(run).name) in OTHERS else "digits")
        if not made.exists():
            assert poa(*shortened(words_of(OTHERS[name]), trains=True)) == 0
            shutil.move(run, made)
        if not Path(run).exists():
            shutil.copytree(made, run, copy_function=os.link)


def shortened(words: list[str], *, trains: bool = False) -> list[str]:
    """A command that takes less time. A run is not begun, but for two steps."""
    name = next((name for name in SHORTER if begins(words, name)), "")
    if "--limit" in words:
        words = with_flags(words, ["--limit", "16"])
    words = with_flags(words, SHORTER.get(name, "").split())
    if any(begins(words, some) for some in SOME_SIZES) and "--sizes" not in words:
        words += ["--sizes", "64x3"] if any(re.fullmatch(r"runs/[\w-]+", word) for word in words) else []
    if words[0] == "export":  # the last of several sizes
        size = words[words.index("--size") + 1 :]
        *_, last = itertools.takewhile(lambda word: not word.startswith("--"), size)
        words = with_flags(words, ["--size", last])
    is_run = words[0] in ("pretrain", "compare") and "--print-config" not in words
    if is_run and ("--recipe" in words or "--config" in words):
        recipe = words[words.index("--recipe") + 1] if "--recipe" in words else ""
        words = with_flags(words, f"{EPOCH} {side_of(recipe)}".split())
    if "--resume" in words and "--epochs" in words:
        return with_flags(words, ["--limit", "16", "--epochs", "2", "--dry-run"])
    if not is_run or trains or "--resume" in words:
        return words
    return with_flags([word for word in words if word != "--dry-run"], ["--out", "new", "--dry-run"])


def begins(words: list[str], name: str) -> bool:
    return words[: name.count(" ") + 1] == name.split()


def with_flags(words: list[str], flags: list[str]) -> list[str]:
    """Words with these flags, in place of the same flags with other values."""
    given = {flag for flag in flags if flag.startswith("--")}
    kept, flag = [], ""
    for word in words:
        flag = word if word.startswith("--") else flag
        if flag not in given:
            kept.append(word)
    return [*kept, *flags]


def side_of(recipe: str) -> str:
    """The sides of a recipe's crops, as flags have them."""
    return next(side for kind, side in reversed(SIDES.items()) if recipe.startswith(kind))


def pretrain(train: Callable[..., Run]) -> Callable[..., Run]:
    """``poa.pretrain`` of a few steps, into a folder of its own."""

    def short(**given: Any) -> Run:
        out = Path("runs", f"from-python-{len(list(Path('runs').iterdir()))}")
        side = int(side_of(given["recipe"]).split()[0])
        views = {} if given["recipe"] == "demo" else {"global_size": side, "small_epochs": 0, "local_size": side // 2}
        return train(**{"views": views, **given, "out": out, "epochs": 1, "limit": 16, "batch_size": 8})

    return short
