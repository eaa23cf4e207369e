import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cyclopts import App
from torch import Tensor, nn

from features.embedded import (
    PATCHES,
    READERS,
    SIZES,
    expected,
    folder,
    make_network,
    npy_content,
    parquet_content,
    safetensors_content,
    source,
    write,
)
from poa.cli.inspect import embed as command
from poa.data.index import ImageIndex, open_index
from poa.data.loader import ScoringImages, images_for_scoring
from poa.errors import UserError
from poa.families.base import Features
from poa.features import embed, extract, formats
from poa.features.formats import Table
from poa.files import one_writer
from poa.models.source import ModelSource


def test_every_format_can_be_read_back() -> None:
    assert READERS.keys() == formats.FORMATS.keys()


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("patches", [False, True])
def test_features_names_and_labels(tmp_path: Path, ending: str, patches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(formats, "AT_ONCE", 4 * (48 + PATCHES * 48) * 7)  # several parts, the last one smaller
    out = tmp_path / "new" / f"features{ending}"
    written = write(out, sizes=("48x2",), limit=40, patches=patches)
    assert written == ({"48x2": out}, {"48x2": (40, 48)}, ())
    found, wanted = READERS[ending](out), expected("digits/test", "48x2", limit=40)
    index = open_index("digits/test", limit=40)
    assert found["names"] == [index.name(i) for i in range(40)]
    assert found["labels"] == [index.classes[label] for label in index.labels()]
    torch.testing.assert_close(torch.from_numpy(found["features"]), wanted.cls)
    assert ("patches" in found) == patches
    if patches:
        torch.testing.assert_close(torch.from_numpy(found["patches"]), wanted.patches)
    about = found["about"]
    assert (about["network"], about["weights"], about["data"]) == ("48x2", "seed 0", "digits/test")
    assert (about["image_size"], about["classes"]) == (8, [str(digit) for digit in range(10)])
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")], "the work is not removed"


@pytest.mark.parametrize("ending", READERS)
def test_images_without_labels(tmp_path: Path, ending: str) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    data = folder(tmp_path / "flat", (".",))
    write(tmp_path / f"flat{ending}", data)
    assert "labels" not in READERS[ending](tmp_path / f"flat{ending}")
    folder(tmp_path / "flat", ("ant",), per_class=2)
    write(tmp_path / f"mixed{ending}", data)
    assert READERS[ending](tmp_path / f"mixed{ending}")["labels"] == [None] * 4 + ["ant"] * 2


def test_several_sizes_share_each_decoded_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = ImageIndex.read
    monkeypatch.setattr(ImageIndex, "read", lambda self, i, /: (read.append(i), plain(self, i))[1])
    written = write(tmp_path / "f.npy", sizes="all", limit=30)
    assert sorted(read) == [0, *range(30)], "one was looked at before"
    assert {name: path.name for name, path in written.paths.items()} == {name: f"f-{name}.npy" for name in SIZES}
    for name, path in written.paths.items():
        torch.testing.assert_close(torch.from_numpy(np.load(path)), expected("digits/test", name, limit=30).cls)
    in_folder = write(tmp_path / "folder", sizes=["32x1,48x2"], limit=30)
    assert [path.relative_to(tmp_path) for path in in_folder.paths.values()] == [
        Path("folder/32x1.npy"), Path("folder/48x2.npy")
    ]  # fmt: skip
    for name, path in in_folder.paths.items():
        assert path.read_bytes() == written.paths[name].read_bytes()


def test_one_network_needs_no_size(tmp_path: Path) -> None:
    single = source(names=("resnet18.tv",), network=lambda _: make_network("32x2"), family=None)
    written = write(tmp_path / "out", sizes=(), source=single, limit=10)
    assert written.paths == {"resnet18.tv": tmp_path / "out" / "resnet18.tv.npy"}
    assert np.load(tmp_path / "out" / "resnet18.tv.npy").shape == (10, 32)
    assert len(json.loads((tmp_path / "out" / "resnet18.tv.json").read_text())["names"]) == 10


def test_bad_images_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "images")
    whole = write(tmp_path / "whole.npy", data)
    for bad in ("ant/1.png", "bee/0.png", "bee/1.png", "bee/3.png"):
        (tmp_path / "images" / bad).write_bytes(b"damaged")
    written = write(tmp_path / "rest.npy", data)
    assert written.bad == ("ant/1.png", "bee/0.png", "bee/1.png", "bee/3.png")
    assert written.shape == {"32x1": (4, 32)}
    assert npy_content(tmp_path / "rest.npy")["names"] == ["ant/0.png", "ant/2.png", "ant/3.png", "bee/2.png"]
    kept = [0, 2, 3, 6]
    np.testing.assert_allclose(np.load(tmp_path / "rest.npy"), np.load(whole.paths["32x1"])[kept], rtol=1e-4, atol=1e-5)
    content = json.loads((tmp_path / "rest.json").read_text())
    assert (content["indices"], content["labels"]) == (kept, [0, 0, 0, 1])


class Stopping(nn.Module):
    """Fails at a batch."""

    def __init__(self, network: nn.Module, *, at: int) -> None:
        super().__init__()
        self.network, self.left = network, at

    def forward(self, images: Tensor) -> Features:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        features: Features = self.network(images)
        return features


@pytest.mark.parametrize("patches", [False, True])
def test_an_interrupted_pass_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patches: bool) -> None:
    monkeypatch.setattr(embed, "BATCH", 16)
    monkeypatch.setattr(embed, "SAVE_EVERY", 1)
    whole = write(tmp_path / "whole.npy", limit=50, patches=patches)
    stopping = source(network=lambda name: Stopping(make_network(name), at=3))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out.npy", limit=50, patches=patches, source=stopping)
    assert [path.name for path in tmp_path.glob("*out*")] == [".out.npy.unfinished"]
    starts = []

    def counted(*arguments: Any, start: int, **options: Any) -> Iterator[ScoringImages]:
        starts.append(start)
        return images_for_scoring(*arguments, start=start, **options)

    monkeypatch.setattr(extract, "images_for_scoring", counted)
    again = write(tmp_path / "out.npy", limit=50, patches=patches)
    assert starts == [32]  # one batch went by to see how wide the features are
    for name in ("", "-patches") if patches else ("",):
        assert (tmp_path / f"out{name}.npy").read_bytes() == (tmp_path / f"whole{name}.npy").read_bytes()
    assert again.shape == whole.shape
    assert not list(tmp_path.glob(".*"))


def test_other_weights_do_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "BATCH", 16)
    monkeypatch.setattr(embed, "SAVE_EVERY", 1)
    stopping = source(network=lambda _: Stopping(make_network("48x1"), at=3), weights="seed 1")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out.npy", limit=50, source=stopping)
    write(tmp_path / "out.npy", limit=50)
    torch.testing.assert_close(
        torch.from_numpy(np.load(tmp_path / "out.npy")), expected("digits/test", "32x1", limit=50).cls
    )


def test_nothing_is_written_before_all_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "f.npy", sizes=SIZES[:2], limit=20)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full: list[str] = []

    def fail_second(table: Table, path: Path) -> None:
        formats.write_npy(table, path)
        full.append(path.name)
        if len(full) == 2:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(embed, "FORMATS", {".npy": fail_second})
        with pytest.raises(OSError, match="No space"):
            write(tmp_path / "f.npy", sizes=SIZES[:2], limit=30, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    write(tmp_path / "f.npy", sizes=SIZES[:2], limit=30, overwrite=True)
    assert np.load(tmp_path / "f-32x2.npy").shape == (30, 32)


def test_two_at_once_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "one_writer", partial(one_writer, patience=0))
    monkeypatch.chdir(tmp_path)
    told: list[str] = []

    def network(name: str) -> nn.Module:
        for out in (tmp_path, Path()):
            with pytest.raises(UserError, match=r"\.unfinished is in use by process .* wait until") as caught:
                write(out, limit=20)
            told.append(str(caught.value))
        write(tmp_path / "other.npy", limit=20)
        return make_network(name)

    write(tmp_path, limit=20, source=source(network=network))
    assert len(told) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["32x1.json", "32x1.npy", "other.json", "other.npy"]


def test_a_stop_between_two_files_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = (write(tmp_path / name, sizes=SIZES[:2], limit=20) for name in ("whole", "out"))
    second = out.paths[SIZES[1]]
    second.unlink()
    replaced = Path.replace

    def stop(self: Path, target: Path) -> Path:
        if target == second:
            raise KeyboardInterrupt
        return replaced(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out", sizes=SIZES[:2], limit=20, overwrite=True)
    with pytest.raises(UserError, match="already exists"):
        write(tmp_path / "out", sizes=SIZES[:2], limit=21)  # other features
    write(tmp_path / "out", sizes=SIZES[:2], limit=20)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in whole.paths[SIZES[0]].parent.iterdir()
    }


def test_files_are_not_replaced_unasked(tmp_path: Path) -> None:
    write(tmp_path / "f.npy", limit=10, patches=True)
    with pytest.raises(UserError, match=r"f-patches\.npy already exists.*--overwrite"):
        write(tmp_path / "f.npy", limit=12, source=source(network=lambda _: pytest.fail("images were read")))
    write(tmp_path / "f.npy", limit=12, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.json", "f.npy"], "patches of other images are left"
    assert np.load(tmp_path / "f.npy").shape == (12, 32)


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("f.csv", {}, r"--out must be a folder or end in \.parquet, \.npy, \.safetensors, got .*f\.csv"),
        ("f.npy", {"sizes": ()}, r"has 4 sizes.*--sizes all, or names such as --sizes 32x1 48x2"),
        ("f.npy", {"sizes": ("32x7",)}, "32x7"),
        ("f.npy", {"data": "nowhere"}, "nowhere"),
        ("f.npy", {"limit": 0}, "at least 1, got 0"),
        ("file/f.npy", {}, "cannot be written to"),
    ],
)
def test_wrong_requests(tmp_path: Path, out: str, options: dict[str, Any], words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=words):
        write(tmp_path / out, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_reported_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2000})
    monkeypatch.setattr(embed.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr("poa.features.extract._Store._check_room", lambda *_: None)
    with pytest.raises(UserError, match=r"0\.0 GB are free\. Free some space and run the same command again"):
        write(tmp_path / "f.npy", limit=20)
    assert not (tmp_path / "f.npy").exists()


def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'poa-ssl\[parquet\]'"):
        write(tmp_path / "f.parquet", source=source(network=lambda _: pytest.fail("told too late")))


def test_patches_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(embed, "FORMATS", {".npy": lambda given, _: seen.append(given)})
    write(tmp_path / "f.npy", limit=10, patches=True)
    row = 4 * 32 * (1 + PATCHES)  # bytes; copies would lie close together
    assert seen[0].features.strides == (row, 4)
    assert seen[0].patches.strides == (row, 4 * 32, 4)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    data = folder(tmp_path / "images", (os.fsdecode(b"caf\xe9"), "a\nb"), per_class=1)
    for file, content in (
        ("f.safetensors", safetensors_content),
        ("f.parquet", parquet_content),
        ("f.npy", npy_content),
    ):
        write(tmp_path / file, data)
        found = content(tmp_path / file)
        assert found["names"] == ["a\nb/0.png", r"caf\xe9/0.png"]
        assert found["labels"] == ["a\nb", r"caf\xe9"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> App:
    asked = []

    def model_source(name: str, **options: Any) -> ModelSource:
        asked.append((name, options))
        return source()

    monkeypatch.setattr("poa.models.source.model_source", model_source)
    app = App(name="poa", result_action="return_value")
    app.command(command)
    return app


def test_command(run: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "images")
    words = ["embed", "runs/mine", "--data", data, "--sizes", "32x1", "48x2", "--out", str(tmp_path / "f.npy")]
    run(words, exit_on_error=False)
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        f"{tmp_path}/f-32x1.npy: 8 images, 32 values each",
        f"{tmp_path}/f-48x2.npy: 8 images, 48 values each",
    ]
    assert "images: 8/8" in shown.err
    for bad in ("ant/1.png", "bee/0.png", "bee/1.png", "bee/3.png"):
        (tmp_path / "images" / bad).unlink()
        (tmp_path / "images" / bad).write_bytes(b"damaged")
    run([*words, "--overwrite", "--patches"], exit_on_error=False)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Left out, since they could not be read: 4 images: ant/1.png, bee/0.png, bee/1.png and 1 more"
    )
    assert np.load(tmp_path / "f-32x1-patches.npy").shape == (4, PATCHES, 32)
