"""Files of whitened features."""

from pathlib import Path

import pytest
import torch

from features.embedded import READERS, expected, write
from poa.errors import UserError
from poa.features import embed
from poa.features.whitening import whitening_of


@pytest.mark.parametrize("ending", READERS)
def test_whitened_and_then_others_in_the_same_way(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(embed, "_ROWS", 16)
    gallery, queries = tmp_path / f"gallery{ending}", tmp_path / "queries.npy"
    write(gallery, "digits/train", sizes=("32x1", "48x2"), limit=60, whiten=0.1, patches=True)
    write(queries, "digits/test", sizes=("32x1", "48x2"), limit=40, whitened_as=gallery)
    for size in ("32x1", "48x2"):
        rows = expected("digits/train", size, limit=60)
        whitening = whitening_of(rows.cls, damping=0.1)
        found = READERS[ending](tmp_path / f"gallery-{size}{ending}")
        torch.testing.assert_close(torch.from_numpy(found["features"]), whitening(rows.cls), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(torch.from_numpy(found["patches"]), rows.patches)
        assert found["about"]["whitened"] == 0.1
        others = READERS[".npy"](tmp_path / f"queries-{size}.npy")
        wanted = whitening(expected("digits/test", size, limit=40).cls)
        torch.testing.assert_close(torch.from_numpy(others["features"]), wanted, atol=1e-3, rtol=1e-3)
        like = tmp_path / f"gallery-{size}-whitening.safetensors"
        assert others["about"]["whitened_as"] == str(like)
        assert like.is_file()
    write(gallery, "digits/train", sizes=("32x1", "48x2"), limit=60, overwrite=True)
    assert not [*tmp_path.glob("gallery*whitening*")], "that of features that are there no more"


def test_whitenings_that_are_not_possible(tmp_path: Path) -> None:
    for damping in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"--whiten must be above 0 and at most 1, got .*0\.1 suits"):
            write(tmp_path / "a.npy", whiten=damping)
    with pytest.raises(UserError, match="Give one of them"):
        write(tmp_path / "a.npy", whiten=0.1, whitened_as=tmp_path / "b.npy")
    with pytest.raises(UserError, match=r"There is no .*b-whitening\.safetensors\. Give --whitened-as the --out of"):
        write(tmp_path / "a.npy", whitened_as=tmp_path / "b.npy")
    write(tmp_path / "b.npy", sizes=("48x2",), whiten=0.1)
    with pytest.raises(UserError, match="is for features of 48 values, and these have 32"):
        write(tmp_path / "a.npy", whitened_as=tmp_path / "b.npy")
    assert not (tmp_path / "a.npy").exists()
