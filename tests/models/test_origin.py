"""What model cards say about where weights come from."""

from pathlib import Path
from typing import get_args

import pytest

import tiny
from poa.config.pretraining import Config
from poa.models.origin import METHODS, base_name, facts_of, how_scored, inherited_by, licence_of, places


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("digits/train", "digits/train"),
        ("/home/me/photos", "photos"),
        ("/home/me/cifar10.zip/train", "cifar10.zip/train"),
        ("../photos/..", "HERE"),
        ("a/b/c", "c"),
        ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2.lvd142m"),
        ("hf-hub:me/model", "hf-hub:me/model"),
        ("local-dir:/home/me/model", "model"),
    ],
)
def test_paths_are_left_out(name: str, shown: str) -> None:
    assert base_name(name) == (Path(name).resolve().name if shown == "HERE" else shown)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/data/a.zip/train, limited to 9 images", "a.zip/train, limited to 9 images"),
        ("/data/images with masks /data/masks", "images with masks masks"),
        ("5 images of /data/images with /data/objects.json", "5 images of images with objects.json"),
    ],
)
def test_places_of_images(source: str, shown: str) -> None:
    assert places(source) == shown


def test_how_scores_were_taken() -> None:
    settings = {"weights": "teacher", "image_size": 16, "test": "445 images 1f, labels 2e", "ks": [10], "limit": None}
    assert how_scored(settings, {"test": "/data/digits"}) == "test: digits (445 images); ks [10]"


def test_licences_of_weights_begun_from(tmp_path: Path) -> None:
    for number, line in enumerate(("license: mit", "license: 'my own'", "license: unknown", "tags: [license]")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "README.md").write_text(f"---\nlibrary_name: timm\n{line}\n---\n# x\nlicense: of a line below\n")
    found = [licence_of(str(tmp_path / name)) for name in "0123"]
    assert found == ["mit", "my own", None, None]
    assert licence_of("vit_small_patch14_dinov2.lvd142m") == "apache-2.0"
    assert licence_of("vit_small_patch16_dinov3.lvd1689m") == "dinov3-license"
    assert licence_of("nothing") is None
    config = tiny.config(init=str(tmp_path / "0"), distill={"teacher": "vit_small_patch14_dinov2.lvd142m"})
    assert inherited_by(config) == {"0": "mit", "vit_small_patch14_dinov2.lvd142m": "apache-2.0"}
    assert inherited_by(tiny.config(init=str(tmp_path / "0"), distill={"teacher": "init"})) == {"0": "mit"}


def test_each_method_is_told() -> None:
    assert METHODS.keys() == set(get_args(Config.model_fields["method"].annotation))


def test_facts_of_an_earlier_version() -> None:
    """Whose checkpoints do not tell how many images there were."""
    facts = facts_of(tiny.config(data="/data/photos", epochs=3), step=1, state={"images": "1f"})
    assert facts["images"] == "photos, digest 1f; labels were not used"
    assert facts["length"] == "1 step of 16 images, of a training of 3 epochs"
