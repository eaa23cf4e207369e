import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cyclopts import App
from PIL import Image
from rich.console import Console

import poa
import tiny
from poa.cli.inspect import pictures
from poa.data.augment import augment, normalise
from poa.data.images import image_tensor
from poa.data.index import open_index
from poa.data.loader import images_for_scoring
from poa.data.resize import resize
from poa.data.views import collate, make_crops, sample_generator
from poa.errors import UserError
from poa.evaluation.quality import views_of
from poa.models.run import Run
from poa.models.source import ModelSource, model_source
from poa.pictures import draw as picturing
from poa.pictures import kinds
from poa.pictures.kinds import KINDS, ImageSet, NetworkOutputs, Section
from poa.pictures.patches import same_point
from poa.pictures.prototypes import heads_of, members
from poa.training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return poa.pretrain(**tiny.settings(out=tmp_path_factory.mktemp("pictures") / "run", epochs=1, views={"flip": 0.5}))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was to be drawn; nothing is."""
    caught: dict[str, Any] = {}

    def section(kind: str) -> Any:
        def note(networks: list[NetworkOutputs], images: ImageSet) -> Section:
            caught.update(networks=networks, images=images, kinds=[*caught.get("kinds", []), kind])
            return Section(kind, kind, "", [], [kinds.Picture("x.png", "")])

        return note

    monkeypatch.setattr(picturing, "KINDS", {kind: section(kind) for kind in KINDS})
    return caught


def source(run: Run) -> ModelSource:
    return model_source(str(run.folder))


def draw(sources: list[ModelSource], out: Path, **options: Any) -> Path:
    images = options.pop("images", "digits/test")
    return picturing.draw(sources, images, out=out, console=Console(quiet=True), **{"limit": 30, **options}).page


def test_pictures_and_page(run: Run, tmp_path: Path) -> None:
    page = draw([source(run)], tmp_path / "out", show=1, limit=12)
    text = page.read_text()
    named = set(re.findall(r'src="([^"]+)"', text))
    assert named == {
        *("attention-00.png", "colours.png", "neighbours-32x2.png", "neighbours-64x3.png", "matches-images-0.png"),
        *("matches-views-0.png", "prototypes-32x2.png", "prototypes-64x3.png"),
    }
    assert {path.name for path in page.parent.iterdir()} == named | {"index.html"}
    assert "12 images from" in text
    assert re.search(r"Right in all images that are shown: 32x2 \d+ % of \d+ patches \(by chance 25.0 %\); 64x3", text)


def test_nothing_is_overwritten_unasked_and_pictures_are_the_same_at_every_call(run: Run, tmp_path: Path) -> None:
    options: dict[str, Any] = {"show": 1, "limit": 12, "kinds": ["colours", "matches"], "sizes": "32x2"}
    page = draw([source(run)], tmp_path / "out", **options)
    before = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    with pytest.raises(UserError, match=r"is not empty.*--overwrite"):
        draw([source(run)], tmp_path / "out", **options)
    (page.parent / "attention-00.png").write_bytes(b"old")
    (page.parent / "mine.png").write_bytes(b"mine")
    draw([source(run)], tmp_path / "out", overwrite=True, **options)
    assert (page.parent / "mine.png").read_bytes() == b"mine"
    (page.parent / "mine.png").unlink()
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == before


def test_what_networks_see(run: Run, tmp_path: Path, seen: dict[str, Any]) -> None:
    draw([source(run)], tmp_path / "out", show=3, sizes="48x2,64x3")
    images, (small, large) = seen["images"], seen["networks"]
    assert seen["kinds"] == list(KINDS)
    assert (small.label, large.label) == ("48x2", "64x3")
    assert len(images.names) == 30
    assert len({images.classes[image] for image in images.shown}) == 3
    assert [images.classes[image] for image in images.partners] == [images.classes[image] for image in images.shown]
    (batch,) = images_for_scoring(open_index("digits/test", limit=30), size=16, resize=16, batch_size=30)
    assert torch.equal(large.crops, batch.images)
    views = run.config.views
    wanted = run.network("64x3")(normalise(batch.images, mean=views.mean, std=views.std))
    assert torch.allclose(large.cls, wanted.cls, atol=1e-4)
    assert torch.allclose(large.shown.patches, wanted.patches[list(images.shown)], atol=1e-4)
    assert torch.allclose(large.partners.patches, wanted.patches[list(images.partners)], atol=1e-4)
    assert large.shown.attention.shape == (3, 4, 4)
    assert small.shown.attention.shape == (3, 3, 4)


def test_views_lie_where_they_are_said_to(run: Run, tmp_path: Path, seen: dict[str, Any]) -> None:
    draw([source(run)], tmp_path / "out", show=8, sizes="32x2", kinds=["matches"], seed=5)
    (network,), images = seen["networks"], seen["images"]
    assert any(region.flipped for both in network.views.regions for region in both)
    assert not all(region.flipped for both in network.views.regions for region in both)
    samples = []
    for place, image in enumerate(images.shown):
        pixels = network.crops[image : image + 1]
        sample = make_crops(
            image_tensor(Image.fromarray(pixels[0].permute(1, 2, 0).numpy())),
            augmentation=views_of(source(run)),
            generator=sample_generator(5, 0, image),
        )
        samples.append(sample)
        for crop, region in zip(sample.globals, network.views.regions[place], strict=True):
            top, left, height, width = (round(16 * value) for value in region[:4])
            cut = resize(pixels[:, :, top : top + height, left : left + width], 16, 16)[0]
            assert torch.equal(cut.flip(-1) if region.flipped else cut, crop)
    assert network.views.first.shape == network.views.second.shape == (8, 3, 16, 16)
    raw = collate(samples, masks=torch.empty(0, 0, dtype=torch.bool), bad=())
    coloured = augment(raw, augmentation=views_of(source(run)), device="cpu").globals.mul(255).round()
    assert torch.equal(torch.cat([network.views.first, network.views.second]), coloured.to(torch.uint8))
    pairs = [kinds._pair_of_views(network, place) for place in range(8)]
    for pair, regions in zip(pairs, network.views.regions, strict=True):
        wanted, is_seen = same_point(*regions, grid=2)
        right = {(first, int(wanted[first])) for first in range(4) if is_seen[first]}
        assert list(pair.is_wrong) == [(match.first, match.second) not in right for match in pair.matches]
    assert {is_wrong for pair in pairs for is_wrong in pair.is_wrong} == {False, True}
    assert network.cls is None, "nobody asked for neighbours"


def test_heads_are_the_teachers(run: Run, tmp_path: Path, seen: dict[str, Any]) -> None:
    state = load_checkpoint(run.checkpoint)["method"]
    (whole,), (small,) = heads_of(run, "64x3"), heads_of(run, "32x2")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, state[f"teacher.heads.0.{name}"])
    assert torch.equal(small.prototypes(), whole.prototypes())
    rows = torch.randn(5, 32)
    padded = torch.cat([rows, torch.zeros(5, 32)], dim=1)
    ratio = small.layers[0].weight / whole.layers[0].weight[:, :32]  # type: ignore[operator, index]
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-3), "the first columns, perhaps scaled"
    assert small(rows).shape == whole(padded).shape
    draw([source(run)], tmp_path / "out", sizes="64x3", kinds=["prototypes"])
    (network,) = seen["networks"]
    assert torch.allclose(network.head.projected, whole(network.cls))
    assert sum(each.num_images for each in members(*network.head, most=16)) == 30


def test_only_what_is_needed_is_read(run: Run, tmp_path: Path, seen: dict[str, Any]) -> None:
    draw([source(run)], tmp_path / "out", show=3, kinds=["colours"], limit=None)
    assert len(seen["images"].names) == 3
    draw([source(run)], tmp_path / "more", show=3, kinds=["neighbours"], limit=None)
    assert len(seen["images"].names) == 445


def test_several_sources(run: Run, tmp_path: Path, seen: dict[str, Any]) -> None:
    model = model_source(str(run.extract("32x3", out=tmp_path / "models" / "32x3")))
    other = model_source("test_resnet", branch="untrained")
    draw([source(run), model, other], tmp_path / "out", sizes="32x2", show=2)
    assert [network.label for network in seen["networks"]] == ["run 32x2", "32x3", "test_resnet"]
    assert [network.crops.shape[-1] for network in seen["networks"]] == [16, 16, 160]
    assert [network.head is None for network in seen["networks"]] == [False, True, True]
    assert [network.shown.attention is None for network in seen["networks"]] == [False, False, True]


def test_what_cannot_be_shown_is_said(run: Run, tmp_path: Path) -> None:
    page = draw(
        [model_source("test_resnet", branch="untrained"), source(run)],
        tmp_path / "out",
        kinds=["attention", "prototypes"],
        sizes="32x2",
        show=1,
        limit=8,
    )
    text = page.read_text()
    assert "test_resnet: these networks have no attention" in text
    assert "test_resnet: no prototypes; only runs of the methods poa and single" in text
    assert (page.parent / "prototypes-run-32x2.png").exists()
    with pytest.raises(UserError, match=r"Nothing could be drawn\. 32x2: 5 neighbours need more than 5 images, got 4"):
        draw([source(run)], tmp_path / "none", kinds=["neighbours"], sizes="32x2", limit=4)


def test_images_without_classes_and_bad_ones(run: Run, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.fromarray(generator.integers(256, size=(20, 16, 3), dtype=np.uint8)).save(
            tmp_path / f"images/{number}.png"
        )
    (tmp_path / "images/3.png").write_bytes(b"damaged")
    options = {"images": str(tmp_path / "images"), "limit": None, "sizes": "32x2", "kinds": ["neighbours", "matches"]}
    page = draw([source(run)], tmp_path / "out", **options)
    text = page.read_text()
    assert "7 images from" in text
    assert "frames" not in text
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"Of 8 images in .* none could be read"):
        draw([source(run)], tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kinds": ["attentoin"]}, "kind 'attentoin'. Did you mean 'attention'"),
        ({"kinds": []}, "No kind of picture is named. Choose from --kinds attention colours"),
        ({"show": 0}, "--show must be at least 1, got 0"),
        ({"sizes": "99x9"}, "99x9"),
        ({"images": "nowhere"}, "nowhere"),
        ({"limit": 100_000}, "more than the number of images"),
    ],
)
def test_wrong_requests(run: Run, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        draw([source(run)], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_wrong_sources_and_folders(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No network is named"):
        draw([], tmp_path / "out")
    with pytest.raises(UserError, match="named twice"):
        draw([source(run), source(run)], tmp_path / "out")
    with pytest.raises(UserError, match="single network and has no size"):
        draw([model_source("test_vit", branch="untrained")], tmp_path / "out", sizes="32x2")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file"):
        draw([source(run)], tmp_path / "file")


def test_runs_without_prototypes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poa.pictures.prototypes.SELF_DISTILLED", ("single",))
    with pytest.raises(UserError, match="Runs of the method poa have no prototypes; runs of the methods single"):
        heads_of(run, "32x2")


def test_command(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = App(name="poa", result_action="return_value")
    app.command(pictures)
    words = ["pictures", str(run.folder), "--images", "digits/test", "--sizes", "32x2", "64x3", "--limit", "20"]
    words += ["--show", "1", "--kinds", "colours", "attention", "--out", str(tmp_path / "out")]
    app(words, exit_on_error=False)
    assert capsys.readouterr().out.splitlines() == [f"Page: {tmp_path}/out/index.html"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "attention-00.png",
        "colours.png",
        "index.html",
    ]
