"""``poa doctor`` on a folder in which much is wrong."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import poa as library
from command import poa
from poa.config.examination import Examination
from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.errors import UserError
from poa.examination import examine as examining
from poa.examination.alike import FIRST
from poa.examination.examine import Comparison, examine
from poa.examination.findings import Findings
from poa.examination.summary import facts
from poa.families.base import Features
from poa.models.source import ModelSource
from refusals import refused

QUIET = Console(quiet=True)


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(30, 220, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "set"
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
    for i in range(4):
        picture(i).save(root / "ant" / f"{i}.png")
    whole = (root / "ant" / "3.png").read_bytes()
    (root / "bee" / "copy.png").write_bytes(whole)
    (root / "bee" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "bee" / "empty.png").write_bytes(b"")
    picture(2).resize((128, 96)).save(root / "bee" / "large.jpg")
    picture(9).convert("CMYK").save(root / "bee" / "print.jpg")
    picture(8).convert("L").save(root / "bee" / "=grey & <b>.png")
    Image.new("RGB", (200, 20), "red").save(root / "bee" / "red.png")
    (root / "notes.txt").write_text("notes")
    return root


FOUND = {
    "unreadable": ["bee/empty.png"],
    "truncated": ["bee/cut.png"],
    "duplicate": ["bee/copy.png"],
    "near-duplicate": ["bee/large.jpg"],
    "constant": ["bee/red.png"],
    "tiny": ["bee/red.png"],
    "elongated": ["bee/red.png"],
    "grey": ["bee/=grey & <b>.png"],
    "other-mode": ["bee/print.jpg"],
}


def state(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """What a change of a file or folder would change."""
    found = {path: path.stat() for path in folder.rglob("*")}
    return {path: (each.st_size, each.st_mtime_ns, each.st_ctime_ns) for path, each in found.items()}


def names(found: Findings, rows: np.ndarray) -> list[str]:  # type: ignore[type-arg]
    return [found.index.name(i) for i in rows.tolist()]


def test_everything_is_found_and_listed(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(images)
    assert poa("doctor", "set", "--out", "report.csv", "--write-list", "lists/keep.txt") == 0
    told = capsys.readouterr().out
    found = examine("set", Examination(), console=QUIET)
    assert {kind: names(found, rows) for kind, rows in found.rows.items()} == FOUND
    assert "classes: 2 classes, from 4 images (ant) to 7 (bee)" in told
    assert "duplicates with another label: 1\n" in told
    assert re.search(r"near-duplicate +1 +9\.1% +bee/large\.jpg", told)
    assert "modes: RGB (7), CMYK (1), L (1)" in told
    assert "left out: .txt (1)" in told
    kept = open_index("lists/keep.txt")
    dropped = {name for kind in Examination().drop for name in FOUND[kind]}
    left = [i for i in range(len(found.index)) if found.index.name(i) not in dropped]
    assert [kept.read(i) for i in range(len(kept))] == [found.index.read(i) for i in left]
    assert [kept.classes[label] for label in kept.labels()] == [found.label_name(found.index.label(i)) for i in left]
    rows = list(csv.reader(Path("report.csv").read_text(encoding="utf-8").splitlines()))
    assert ["bee/copy.png", "duplicate", "of ant/3.png, which is labelled 'ant'", "bee"] in rows
    assert ["bee/empty.png", "unreadable", "the file is empty", "bee"] in rows
    assert len(rows) == 1 + sum(map(len, FOUND.values()))
    assert state(images) == before


def test_a_size_is_that_of_a_model() -> None:
    with pytest.raises(UserError, match="size chooses a network of model"):
        library.doctor("digits", size="96x4")


def test_channels_are_those_of_all_pixels_of_images_of_one_size(images: Path) -> None:
    for i in range(3):
        (images.parent / "lone" / f"class {i}").mkdir(parents=True)
        picture(i).save(images.parent / "lone" / f"class {i}" / "it.png")
    found = library.doctor(images.parent / "lone")
    mean, spread = found.channels()
    pixels = np.stack([np.asarray(picture(i)) for i in range(3)]).reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(spread, pixels.std(0), rtol=1e-5)
    assert facts(found)["classes"] == "3 classes of 1 image"
    both = library.doctor(["lone", "set"], write_list="both.csv")
    assert len(open_index("both.csv")) == len(both.kept) == 3 + 4  # three of set are copies of lone
    with pytest.raises(UserError, match="the images of digits lie in one file"):
        library.doctor(["lone", "digits"], write_list="again.csv")


def test_what_is_left_out_can_be_chosen(images: Path) -> None:
    assert poa("doctor", "set", "--write-list", "set/../keep.csv", "--drop", "near-duplicate", "grey") == 0
    kept = open_index("keep.csv")
    assert kept.name(0) == "set/ant/0.png"
    assert len(kept) == 9
    found = examine("keep.csv", Examination(min_side=50, max_ratio=20), write_list=Path("again.tsv"), console=QUIET)
    assert len(found.rows["tiny"]) == 7  # red.png, and 64 x 48 pixels
    assert not len(found.rows["elongated"])
    assert len(open_index("again.tsv")) == len(found.kept) == 5


def test_the_page_shows_the_pictures_and_runs_nothing(images: Path) -> None:
    examine("set", Examination(), out=Path("report.html"), console=QUIET)
    page = Path("report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2 + 2 + 5  # copies beside the images that they are copies of
    assert "=grey &amp; &lt;b&gt;.png" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", page)


class Brightness(nn.Module):
    """Features that know nothing but how bright the three channels are."""

    def forward(self, images: torch.Tensor) -> Features:
        return Features(images.mean((2, 3)), images.flatten(2)[:, :, :1])


def source(*sizes: str) -> ModelSource:
    preparing = Preprocessing(8, 8, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    network = {size: Brightness() for size in sizes}.__getitem__
    return ModelSource("runs/mine", sizes, network, network, "none", preparing, Path("eval"))


def test_near_duplicates_by_features(images: Path) -> None:
    picture(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(images / "ant" / "mirrored.png")
    found = examine("set", Examination(similarity=0.9999), comparison=Comparison(source("8x1")), console=QUIET)
    assert names(found, found.rows["near-duplicate"]) == ["ant/mirrored.png", "bee/large.jpg"]
    first = found.of[found.rows["near-duplicate"]]
    assert names(found, first) == ["ant/0.png", "ant/2.png"]
    assert (found.of == FIRST).sum() == len(found.index) - 3
    with pytest.raises(UserError, match=r"has 2 sizes\. Choose one to compare images by: --size 8x1"):
        examine("set", Examination(), comparison=Comparison(source("8x1", "8x2")), console=QUIET)


def test_a_stop_says_how_to_go_on(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(examining, "scan", stopped)
    text = io.StringIO()
    console = Console(file=text, width=200)
    with pytest.raises(KeyboardInterrupt):
        examine("set", Examination(), out=Path("report.csv"), console=console)
    assert "the same command goes on from there" in text.getvalue()
    assert not Path("report.csv").exists()


def test_without_one_readable_image(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = images.parent / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"")
    assert poa("doctor", "bad", "--out", "bad.html") == 0
    told = capsys.readouterr().out
    assert "modes: none, since no image can be read" in told
    assert "classes: none: the images have no labels" in told
    assert "--views.mean" not in told
    assert "cannot be read: the file is empty (1 image)" in told


def test_why_images_cannot_be_read_is_told_and_what_is_read_of_16_bits(images: Path) -> None:
    Image.fromarray(16 * np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(images / "ant/deep.png")
    told = facts(examine("set", Examination(), console=QUIET))
    assert told["cannot be read"].startswith("the file is empty (1 image); damaged: ")
    assert told["bits"].startswith("of 16 the highest 8 are examined")


REFUSED = {
    "no data": ("nowhere", "nowhere does not exist"),
    "report of another kind": ("set --out report.pdf", "--out must end in .html or .csv, got report.pdf"),
    "list of another kind": ("set --write-list keep.html", "--write-list must end in .txt or .csv or .tsv"),
    "report is there": ("set --out there.csv", "there.csv already exists", "--overwrite"),
    "list is there": ("set --write-list there.csv", "there.csv already exists", "--overwrite"),
    "embedded set": ("digits --out there.csv", "there.csv already exists", "--overwrite"),
    "report is a folder": ("set --out folder.csv", "folder.csv is a folder", "the name of a file"),
    "the data itself": ("there.csv --write-list there.csv --overwrite", "is the data itself, which is never changed"),
    "one file twice": ("set --out a.csv --write-list a.csv", "--out and --write-list name the same file", "a.csv"),
    "list of an archive": ("digits --limit 10 --write-list keep.txt", "the images of digits lie in one file"),
    "nothing left": (
        "set --drop grey unreadable truncated tiny --min-side 500 --write-list keep.txt",
        "No image would be kept",
    ),
    "unknown finding": ("set --drop gray --write-list keep.txt", "drop", "Did you mean 'grey'?"),
    "side": ("set --min-side 0", "min-side cannot be '0'", "greater than or equal to 1"),
    "ratio": ("set --max-ratio 0.5", "max-ratio cannot be '0.5'", "greater than or equal to 1"),
    "similarity": ("set --similarity 1.5", "similarity cannot be '1.5'", "less than or equal to 1"),
    "workers": ("set --workers -1", "--workers must be at least 0, got -1"),
    "limit": ("set --limit 0", "A limit of images must be at least 1"),
    "size without model": ("set --size 32x2", "--size and --checkpoint choose a network of --model"),
    "no such model": ("set --model nothing_here", "nothing_here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(images: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    Path("there.csv").write_text("path\nset/ant/0.png\nset/ant/1.png\n")
    Path("folder.csv").mkdir()
    words, *told = REFUSED[case]
    sentence = refused(capsys, "doctor", *words.split())
    assert all(part in sentence for part in told), sentence
    assert not Path("keep.txt").exists()
