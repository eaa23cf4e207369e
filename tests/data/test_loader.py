import io
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image

from poa.config.pretraining import ViewSettings
from poa.data.images import image_tensor
from poa.data.index import ImageIndex, open_index
from poa.data.loader import Cropping, CropSchedule, batches, images_for_scoring
from poa.data.masks import Masking
from poa.data.resize import centre_crop
from poa.data.sampler import draws
from poa.data.views import RawViews
from poa.errors import UserError

USUAL = Cropping(ViewSettings(global_size=16, local_size=10, num_locals=2), Masking(4))
SMALL = Cropping(ViewSettings(global_size=12, local_size=10, num_locals=2), Masking(3, dropped=0.5))
SETTINGS: dict[str, Any] = {
    "crops": CropSchedule(USUAL, USUAL),
    "batch_size": 4,
    "seed": 3,
    "start_step": 0,
    "num_steps": 4,
}


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Fake:
    """Eleven images in memory, some of them damaged."""

    def __init__(self, *bad: int) -> None:
        self.files = [b"damaged" if number in bad else png(number) for number in range(11)]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        return self.files[index]


@pytest.fixture(scope="module")
def folder_index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    """The same images as files, number 5 damaged: what worker processes can open."""
    folder = tmp_path_factory.mktemp("images")
    for number, encoded in enumerate(Fake(5).files):
        (folder / f"{number:02}.png").write_bytes(encoded)
    return open_index(str(folder), cache=tmp_path_factory.mktemp("cache"))


def test_large_photographs_are_reduced_unless_asked_for_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    photos, files = Fake(), Fake()
    for number in range(11):
        large = Image.open(io.BytesIO(files.files[number])).resize((420, 320), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        large.save(stream, "JPEG", quality=95)
        photos.files[number] = stream.getvalue()
    whole = USUAL._replace(views=USUAL.views.model_copy(update={"full_decode": True}))
    (reduced,), (full,) = (
        next(batches(photos, **SETTINGS | {"crops": CropSchedule(each, each)})) for each in (USUAL, whole)
    )
    assert torch.equal(reduced.global_parameters, full.global_parameters)
    assert 0 < (reduced.globals.int() - full.globals.int()).abs().float().mean() < 5
    monkeypatch.setattr("poa.data.loader.reduction", lambda *_, **__: 1)
    (unreduced,) = next(batches(photos, **SETTINGS))
    assert same(unreduced, full)


def same(first: RawViews, second: RawViews) -> bool:
    alike = first.bad == second.bad and str(first.kept) == str(second.kept)
    return alike and all(torch.equal(one, other) for one, other in zip(first[:5], second[:5], strict=True))


def joined(parts: list[RawViews]) -> RawViews:
    """The batch that consecutive parts make up."""

    def join(name: str, num_crops: int) -> torch.Tensor:
        rows = [getattr(part, name).unflatten(0, (num_crops, -1)) for part in parts]
        return torch.cat(rows, dim=1).flatten(0, 1)

    bad = tuple(number for part in parts for number in part.bad)
    kept = None if parts[0].kept is None else join("kept", 2)
    return RawViews(**{name: join(name, 2) for name in RawViews._fields[:5]}, bad=bad, kept=kept)


def test_workers_change_nothing_and_start_without_warning(folder_index: ImageIndex) -> None:
    alone = list(batches(folder_index, micro_batches=2, **SETTINGS))
    assert [len(step) for step in alone] == [2] * 4
    assert alone[0][0].globals.shape == (4, 3, 16, 16)
    assert alone[0][0].locals.shape == (4, 3, 10, 10)
    assert alone[0][0].masks.shape == (4, 16)
    for workers in (1, 2):
        for mine, theirs in zip(
            alone, batches(folder_index, micro_batches=2, workers=workers, **SETTINGS), strict=True
        ):
            assert all(same(*pair) for pair in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("name", ["script.py", "<stdin>"])
def test_workers_do_not_run_the_script_again(
    folder_index: ImageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "script.py").write_text("raise SystemExit('The script was run by a worker.')")
    script = sys.modules["__main__"]
    monkeypatch.setattr(script, "__spec__", None)
    monkeypatch.setattr(script, "__file__", str(tmp_path / name), raising=False)
    assert len(next(batches(folder_index, workers=1, **SETTINGS))) == 1
    assert sys.modules["__main__"] is script


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. Perhaps"),
            r"Bus error\. Perhaps\)\. Run",
        ),
        (EOFError("unexpected EOF"), r"EOFError: unexpected EOF\)\. Run .* with fewer --workers"),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), None),
    ],
)
def test_a_worker_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str | None) -> None:
    def start(_: object) -> Iterator[RawViews]:
        raise error

    monkeypatch.setattr("poa.data.workers._started", start)
    with pytest.raises(UserError if told else RuntimeError, match=told or "Caught"):
        next(batches(Fake(), **SETTINGS))


@pytest.mark.parametrize("crops", [CropSchedule(USUAL, USUAL), CropSchedule(USUAL, SMALL, 2)])
def test_resuming_at_any_step_changes_nothing(crops: CropSchedule) -> None:
    settings = {**SETTINGS, "crops": crops}
    whole = list(batches(Fake(5), **settings))
    for start in (1, 3):
        rest = list(batches(Fake(5), **{**settings, "start_step": start, "num_steps": 4 - start}))
        assert all(same(one[0], other[0]) for one, other in zip(whole[start:], rest, strict=True))


@pytest.mark.parametrize("crops", [CropSchedule(USUAL, USUAL), CropSchedule(USUAL, SMALL, 2)])
def test_ranks_and_micro_batches_share_the_same_global_batch(crops: CropSchedule) -> None:
    settings = {**SETTINGS, "crops": crops}
    whole = [step[0] for step in batches(Fake(5), **settings)]
    ranks = [list(batches(Fake(5), rank=rank, world_size=2, micro_batches=2, **settings)) for rank in range(2)]
    for number, batch in enumerate(whole):
        assert same(joined([part for rank in ranks for part in rank[number]]), batch)


def test_crops_are_small_up_to_their_last_step() -> None:
    found = [step[0] for step in batches(Fake(), **{**SETTINGS, "crops": CropSchedule(USUAL, SMALL, 2)})]
    assert [batch.globals.shape[-1] for batch in found] == [12, 12, 16, 16]
    assert [batch.masks.shape[1] for batch in found] == [9, 9, 16, 16]
    assert [None if batch.kept is None else batch.kept.shape for batch in found] == [(8, 4), (8, 4), None, None]


def test_seeds_and_epochs_differ() -> None:
    first, *_, third = (step[0] for step in batches(Fake(), **{**SETTINGS, "num_steps": 3}))  # two steps an epoch
    other = next(batches(Fake(), **{**SETTINGS, "seed": 4}))[0]
    assert not torch.equal(first.globals, other.globals)
    assert not torch.equal(first.globals, third.globals)


def test_a_bad_image_is_replaced_by_the_next_good_one_and_named() -> None:
    without = Cropping(ViewSettings(global_size=16, local_size=10, num_locals=0), Masking(4))
    settings = {**SETTINGS, "crops": CropSchedule(without, without), "num_steps": 2}
    damaged = (draws(0, num_images=11, batch_size=4, seed=3)[1].index,)
    damaged += ((damaged[0] + 1) % 11,)
    found = [step[0] for step in batches(Fake(*damaged), **settings)]
    clean = [step[0] for step in batches(Fake(), **settings)]
    assert found[0].bad[:2] == damaged
    assert set(found[0].bad + found[1].bad) == set(damaged)
    assert torch.equal(found[0].globals[0], clean[0].globals[0])
    assert not torch.equal(found[0].globals[1], clean[0].globals[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_of_bad_images_stops_with_a_sentence(
    workers: int, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    for number in range(11):
        (tmp_path / f"{number:02}.png").write_bytes(b"damaged")
    index = open_index(str(tmp_path), cache=tmp_path_factory.mktemp("cache"))
    with pytest.raises(UserError, match=r"^Of 11 images from number \d+ on, .* of the first: not supported: [^\n]*$"):
        next(batches(index, workers=workers, **SETTINGS))


@pytest.mark.parametrize(("batch_size", "nearest"), [(7, "4 or 8"), (2, "4 or 8"), (0, "4 or 8"), (13, "12 or 16")])
def test_a_batch_that_cannot_be_divided_names_the_nearest(batch_size: int, nearest: str) -> None:
    with pytest.raises(UserError, match=nearest):
        batches(Fake(), world_size=2, micro_batches=2, **{**SETTINGS, "batch_size": batch_size})


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(batches(Fake(), **SETTINGS))
    assert torch.equal(before, torch.get_rng_state())


def test_closing_early_ends_the_workers(folder_index: ImageIndex) -> None:
    loading: Iterator[list[RawViews]] = batches(folder_index, workers=2, **SETTINGS)
    next(loading)
    del loading
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("size", [16, 20])
def test_scoring_reads_all_images_as_torchvision_crops_them(size: int) -> None:
    index = Fake(2, 10)
    found = list(images_for_scoring(index, size=size, resize=20, batch_size=4, start=1))
    assert [part.indices for part in found] == [(1, 3, 4), (5, 6, 7, 8), (9,)]
    assert [part.bad for part in found] == [(2,), (), (10,)]
    for part in found:
        for number, crop in zip(part.indices, part.images, strict=True):
            pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(index.files[number])))).permute(2, 0, 1)
            resized = tv.resize(pixels, [20], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
            assert torch.equal(crop, tv.center_crop(resized, [size, size]))


def test_scoring_with_workers_changes_nothing(folder_index: ImageIndex) -> None:
    alone = list(images_for_scoring(folder_index, size=16, resize=20, batch_size=3))
    shared = list(images_for_scoring(folder_index, size=16, resize=20, batch_size=3, workers=2))
    assert [part.indices for part in alone] == [(0, 1, 2), (3, 4), (6, 7, 8), (9, 10)]
    for one, other in zip(alone, shared, strict=True):
        assert one.indices == other.indices
        assert one.bad == other.bad
        assert torch.equal(one.images, other.images)


def test_scoring_a_batch_of_bad_images_has_no_rows() -> None:
    [part] = images_for_scoring(Fake(*range(11)), size=16, resize=16, batch_size=11)
    assert part.indices == ()
    assert part.images.shape == (0, 3, 16, 16)
    assert part.bad == tuple(range(11))


def test_scoring_survives_a_line_of_pixels() -> None:
    line = np.zeros((1, 60_000, 3), dtype=np.uint8)
    line[:, 30_000:] = 255
    crop = centre_crop(image_tensor(Image.fromarray(line)), size=224, resize_to=256)  # whole, it would fill 12 GB
    assert crop.shape == (1, 3, 224, 224)
    assert crop[..., 0].max() < 100  # dark on the left, bright on the right, alike about the middle
    assert ((crop.int() + crop.flip(-1).int()) - 255).abs().max() <= 1


@pytest.mark.parametrize("start", [11, 40])
def test_scoring_from_the_end_on_gives_nothing(start: int) -> None:
    assert not list(images_for_scoring(Fake(), size=16, resize=16, batch_size=4, start=start))


def test_scoring_refuses_crops_larger_than_the_resized_image() -> None:
    with pytest.raises(UserError, match="Resize to 32 pixels or more"):
        images_for_scoring(Fake(), size=32, resize=20, batch_size=4)
