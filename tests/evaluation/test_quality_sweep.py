import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cyclopts import App
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

import tiny
from features import embedded
from features.embedded import MEAN, SIZES, STD
from poa.cli.evaluate import quality as command
from poa.config import resolve
from poa.data.augment import augment, normalise
from poa.data.images import Preprocessing, decode, image_tensor
from poa.data.index import ImageIndex, open_index
from poa.data.loader import images_for_scoring
from poa.data.resize import centre_crop
from poa.data.views import collate, make_crops, sample_generator
from poa.errors import UserError
from poa.evaluation import quality
from poa.evaluation.quality import alignment, linear_cka, neighbour_stability, uniformity
from poa.evaluation.results import NotScored, Scores, results_file
from poa.evaluation.sweep import SweepOptions
from poa.families.base import Features
from poa.models.source import ModelSource
from poa.plots.tables import quality_table
from poa.training.health import rankme

INTACT = SIZES[-1]
NUM = 40


class Stretched(nn.Module):
    """Features that differ between images, as those of a network without training hardly do."""

    def __init__(self, network: nn.Module, *, scale: float = 1.0) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, images: Tensor) -> Features:
        cls, patches = self.network(images)
        return Features(torch.cat([cls, images.mean((2, 3))], dim=1) * self.scale, patches)


def make_network(name: str) -> nn.Module:
    return Stretched(embedded.make_network(name)).requires_grad_(False).eval()


def source(out: Path, **over: Any) -> ModelSource:
    return embedded.source(**{"out": out, "network": make_network, "timm_model": make_network, **over})


def evaluate(given: ModelSource, data: str = "digits/test", **options: Any) -> Scores:
    usual = {"limit": NUM} | {key: options.pop(key) for key in ("k", "seed", "limit") if key in options}
    return quality.evaluate(given, data, **usual, options=SweepOptions(**options, console=Console(quiet=True))).scores


def colours(root: Path, *, images: int = 12, side: int = 8) -> str:
    """Images of few colours each, in all directions."""
    generator = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for number in range(images):
        pixels = generator.integers(256, size=(4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side + number % 3, side)).save(root / f"{number:02}.png")
    return str(root)


def test_plain_measures_are_those_of_the_features(tmp_path: Path) -> None:
    found = evaluate(source(tmp_path), k=5)
    (batch,) = images_for_scoring(open_index("digits/test", limit=NUM), size=8, resize=8, batch_size=NUM)
    rows = {size: make_network(size)(normalise(batch.images, mean=MEAN, std=STD)).cls for size in SIZES}
    assert list(found) == list(SIZES)
    for size, features in rows.items():
        assert found[size]["rankme"] == pytest.approx(rankme(features), rel=1e-4)
        assert found[size]["uniformity"] == pytest.approx(uniformity(features), abs=1e-5)
        names = ["rankme", "alignment", "uniformity", "views@5"]
        if size == INTACT:
            assert list(found[size]) == names
            continue
        assert list(found[size]) == [*names, "intact@5", "cka"]
        assert found[size]["intact@5"] == pytest.approx(neighbour_stability(features, rows[INTACT], k=5))
        assert found[size]["cka"] == pytest.approx(linear_cka(features, rows[INTACT]), abs=1e-5)


def views_by_hand(index: ImageIndex, given: ModelSource, *, seed: int) -> tuple[Tensor, Tensor]:
    """Every image alone: its central square, cut and coloured twice."""
    views: list[Tensor] = []
    for i in range(len(index)):
        side = given.preprocessing.resize
        square = centre_crop(image_tensor(decode(index.read(i))), size=side, resize_to=side)[0]
        crops = make_crops(
            image_tensor(Image.fromarray(square.permute(1, 2, 0).numpy())),
            augmentation=quality.views_of(given),
            generator=sample_generator(seed, 0, i),
        )
        raw = collate([crops], masks=torch.empty(0, 0, dtype=torch.bool), bad=())
        views.append(augment(raw, augmentation=quality.views_of(given), device="cpu").globals)
    first, second = ((255 * torch.stack(views)[:, view]).round().to(torch.uint8) for view in (0, 1))
    return tuple(normalise(each, mean=MEAN, std=STD) for each in (first, second))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", [0, 1])
def test_two_views_are_drawn_of_each_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(quality, "BATCH", 5)
    data = colours(tmp_path / "images", side=14)
    given = source(tmp_path, preprocessing=Preprocessing(8, 12, MEAN, STD))
    found = evaluate(given, data, limit=None, sizes="32x2", seed=seed, k=3)["32x2"]
    views = views_by_hand(open_index(data), given, seed=seed)
    first, second = (make_network("32x2")(each).cls for each in views)
    assert found["alignment"] == pytest.approx(alignment(first, second), rel=1e-3)
    assert found["views@3"] == pytest.approx(neighbour_stability(first, second, k=3))
    assert found["alignment"] > 0.001
    (batch,) = images_for_scoring(open_index(data), size=8, resize=12, batch_size=NUM)
    plain = make_network("32x2")(normalise(batch.images, mean=MEAN, std=STD)).cls
    assert found["uniformity"] == pytest.approx(uniformity(plain), abs=1e-5)


def test_views_depend_on_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = colours(tmp_path / "images")
    first = evaluate(source(tmp_path / "a"), data, limit=None, sizes="32x1", k=3)
    monkeypatch.setattr(quality, "BATCH", 5)
    again = evaluate(source(tmp_path / "b"), data, limit=None, sizes="32x1", k=3)
    assert again["32x1"] == pytest.approx(first["32x1"], rel=1e-4)
    other = evaluate(source(tmp_path / "c"), data, limit=None, sizes="32x1", k=3, seed=1)
    assert other["32x1"]["alignment"] != pytest.approx(first["32x1"]["alignment"], rel=1e-3)
    assert other["32x1"]["rankme"] == pytest.approx(first["32x1"]["rankme"], rel=1e-4)


def test_files(tmp_path: Path) -> None:
    found = evaluate(source(tmp_path), sizes="32x2,48x2")
    path = tmp_path / "quality" / "quality.json"
    written = json.loads(path.read_text())
    assert written["scores"] == found
    assert written["bad_images"] == {"images": 0}
    assert (written["settings"]["k"], written["settings"]["weights"]) == (10, "seed 0")
    lines = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert [line["size"] for line in lines] == ["32x2", "48x2"]
    assert float(lines[0]["cka"]) == found["32x2"]["cka"]
    assert lines[1]["cka"] == ""
    assert sorted(each.name for each in path.parent.iterdir()) == ["quality.csv", "quality.json"]
    evaluate(source(tmp_path), sizes="32x2", name="one")
    assert list(json.loads((tmp_path / "one" / "quality.json").read_text())["scores"]) == ["32x2"], (
        "nobody asked for it"
    )
    untrained = results_file(source(tmp_path, branch="untrained"), "quality")
    assert untrained == tmp_path / "quality-untrained" / "quality.json"


class Counting:
    """Builds networks and notes which; stops when it has built enough."""

    def __init__(self, most: int = 100) -> None:
        self.built: list[str] = []
        self._most = most

    def __call__(self, name: str) -> nn.Module:
        if len(self.built) == self._most:
            raise KeyboardInterrupt
        self.built.append(name)
        return make_network(name)


def test_what_is_written_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality.Quality, "at_once", 2)
    whole = evaluate(source(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        evaluate(source(tmp_path / "out", network=Counting(4)))
    known = json.loads((tmp_path / "out/quality/quality.json").read_text())["scores"]
    assert known == {size: whole[size] for size in SIZES[:2]}
    networks = Counting()
    assert evaluate(source(tmp_path / "out", network=networks)) == whole
    assert networks.built == [SIZES[2], INTACT]
    assert evaluate(source(tmp_path / "out", network=Counting(0))) == whole


def test_an_interrupted_pass_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "BATCH", 8)
    whole = evaluate(source(tmp_path / "whole"))
    plain, starts = quality.extract_features, []

    def saving(networks: Any, batches: Callable[[int], Any], **options: Any) -> Any:
        def noted(start: int) -> Any:
            starts.append(start)
            for batch in batches(start):
                if len(starts) == 1 and batch.indices[0] >= 3 * 24:
                    raise KeyboardInterrupt
                yield batch

        return plain(networks, noted, **options, save_every=1)

    monkeypatch.setattr(quality, "extract_features", saving)
    with pytest.raises(KeyboardInterrupt):
        evaluate(source(tmp_path / "out"))
    assert evaluate(source(tmp_path / "out")) == whole
    assert starts == [0, 72], "all networks, and again from image 24 on"


def test_a_network_that_is_no_size(tmp_path: Path) -> None:
    single = source(tmp_path, name="resnet18", names=("resnet18",), network=lambda _: make_network("32x2"), family=None)
    found = evaluate(single)
    assert list(found["resnet18"]) == ["rankme", "alignment", "uniformity", "views@10"]


def test_bad_images_are_left_out_of_all_views(tmp_path: Path) -> None:
    data = colours(tmp_path / "images")
    (tmp_path / "images" / "03.png").write_bytes(b"damaged")
    (tmp_path / "images" / "11.png").write_bytes(b"")
    given = source(tmp_path)
    found = evaluate(given, data, limit=None, sizes="32x2", k=3, max_bad_share=0.2)["32x2"]
    assert json.loads((tmp_path / "quality/quality.json").read_text())["bad_images"] == {"images": 2}
    kept = [i for i in range(12) if i not in (3, 11)]
    index = open_index(data)
    (tmp_path / "images" / "03.png").write_bytes(index.read(0))
    (tmp_path / "images" / "11.png").write_bytes(index.read(0))
    rows = [make_network("32x2")(view).cls[kept] for view in views_by_hand(open_index(data), given, seed=0)]
    assert found["alignment"] == pytest.approx(alignment(*rows), rel=1e-3)


def test_a_network_that_cannot_be_measured_does_not_keep_others_from_it(tmp_path: Path) -> None:
    def network(name: str) -> nn.Module:
        return Stretched(make_network(name), scale=math.nan if name == "32x2" else 1.0)

    whole = evaluate(source(tmp_path / "whole", network=lambda name: Stretched(make_network(name))))
    with pytest.raises(
        NotScored, match=r"1 of 4 networks could not be measured; the others are in .* 32x2: .* contain NaN or infinity"
    ) as caught:
        evaluate(source(tmp_path / "out", network=network))
    assert caught.value.results.scores == {size: whole[size] for size in SIZES if size != "32x2"}
    assert len((tmp_path / "out/quality/quality.csv").read_text().splitlines()) == 4


def test_others_are_measured_where_the_intact_network_is_not_finite(tmp_path: Path) -> None:
    def network(name: str) -> nn.Module:
        return Stretched(make_network(name), scale=math.nan if name == SIZES[-1] else 1.0)

    with pytest.raises(NotScored, match=r"1 of 4 networks could not be measured") as caught:
        evaluate(source(tmp_path / "out", network=network))
    found = caught.value.results.scores
    assert found.keys() == set(SIZES[:-1])
    assert all("rankme" in scores and "cka" not in scores for scores in found.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "--k must be between 1 and the number of other images, here 39, got 0"),
        ({"k": 40}, "here 39, got 40"),
        ({"sizes": "32x9"}, "32x9"),
        ({"name": "a/b"}, "without slashes, got 'a/b'"),
        ({"data": "nowhere"}, "nowhere"),
        ({"limit": 10_000}, "more than the number of images"),
    ],
)
def test_wrong_requests(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(source(tmp_path, network=Counting(0)), **options)
    assert not list(tmp_path.iterdir())


def test_other_settings_are_refused(tmp_path: Path) -> None:
    evaluate(source(tmp_path), sizes="32x1")
    for given, options, words in (
        (source(tmp_path, weights="seed 1"), {}, r"weights \(seed 0 before, seed 1 now\)"),
        (source(tmp_path), {"k": 5}, r"k \(10 before, 5 now\)"),
        (source(tmp_path), {"seed": 1}, r"seed \(0 before, 1 now\)"),
        (source(tmp_path), {"limit": 41}, r"images \(40 images [\w, ]+ before, 41 images [\w, ]+ now\)"),
    ):
        with pytest.raises(UserError, match=words + ".*--overwrite"):
            evaluate(given, sizes="32x1", **options)
    assert evaluate(source(tmp_path), sizes="32x1", k=5, overwrite=True)


def test_views_of_a_run_are_its_own(tmp_path: Path) -> None:
    config = tiny.config(views={"flip": 0.25, "global_scale": (0.5, 1.0), "blur_kernel": 5, "mean": (0.3, 0.3, 0.3)})
    (tmp_path / "config.yaml").write_text(resolve.to_yaml(config))
    views = quality.views_of(source(tmp_path, name=str(tmp_path), preprocessing=Preprocessing(4, 8, MEAN, STD)))
    assert (views.flip, views.global_scale, views.crop_sizes) == (0.25, (0.5, 1.0), (4, 4))
    assert (views.blur_kernel, views.mean, views.std) == (3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(("size", "blur", "kernel"), [(224, (0.0, 0.9, 0.5), 9), (8, (0.0, 0.0, 0.0), 1)])
def test_views_of_other_networks_are_as_published(
    tmp_path: Path, size: int, blur: tuple[float, ...], kernel: int
) -> None:
    views = quality.views_of(source(tmp_path, preprocessing=Preprocessing(size, 8, MEAN, STD)))
    assert (views.crop_sizes, views.blur_probabilities, views.blur_kernel) == ((size, size), blur, kernel)
    assert (views.flip, views.global_scale) == (0.5, (0.32, 1.0))


def test_table_marks_the_best() -> None:
    measures = {"32x1": {"rankme": 3.21, "alignment": 0.5}, "48x1": {"rankme": 4.26, "alignment": 0.25, "cka": 0.5}}
    table = quality_table(measures)
    assert [column.header for column in table.columns] == ["size", "rankme", "alignment ↓", "cka"]
    cells = [list(column.cells) for column in table.columns]
    assert [[str(cell) for cell in column] for column in cells] == [
        ["32x1", "48x1"],
        ["3.2", "4.3"],
        ["0.500", "0.250"],
        ["-", "0.500"],
    ]
    bold = [[cell.style == "bold green" for cell in column] for column in cells[1:]]
    assert bold == [[False, True], [False, True], [False, True]]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    networks: dict[str, Any] = {"network": make_network}
    monkeypatch.setattr("poa.models.source.model_source", lambda *_, **__: source(tmp_path, **networks))
    app = App(name="poa", result_action="return_value")
    app.command(command)
    words = ["quality", "runs/mine", "--data", "digits/test", "--limit", "40"]
    app([*words, "--sizes", "32x1", "48x2"], exit_on_error=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["size", "rankme", "alignment"]
    assert [line.split()[0] for line in lines[2:4]] == ["32x1", "48x2"]
    assert lines[3].split()[-2:] == ["-", "-"]
    assert lines[-1] == f"Measures: {tmp_path}/quality/quality.csv"
    assert all(len(line) <= 80 for line in lines[:-1])
    networks["network"] = lambda name: Stretched(make_network(name), scale=math.nan)
    with pytest.raises(NotScored, match="32x2: The"):
        app([*words, "--sizes", "32x1", "32x2"], exit_on_error=False)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:3]] == ["32x1"]
