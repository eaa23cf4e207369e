"""Several processes share the sizes of a sweep; with few imports, since each process waits for them."""

import json
from pathlib import Path

from evaluation.sweeps import SIZES, Counting, Diverged, score
from poa.evaluation.results import NotScored, Scores
from processes import run_processes


def score_in_process(out: str) -> tuple[Scores, list[str], str]:
    networks, told = Counting(), ""
    scores = score(Path(out), networks=networks)
    try:
        score(Path(out).parent / "failing", networks=Diverged("32x2"))
    except NotScored as error:
        told = str(error)
    assert score(Path(out).parent / "failing", names=["32x1"])
    assert score(Path(out).parent / "failing") == scores
    return scores, networks.built, told


def test_processes_share_the_sizes(tmp_path: Path, whole: Scores) -> None:
    score(tmp_path / "out", names=SIZES[2:3])
    (first, built, told), (second, also_built, also_told) = run_processes(score_in_process, 2, str(tmp_path / "out"))
    assert first == second == whole
    assert (built, also_built) == (["32x1"], ["32x2", "48x2"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["knn.csv", "knn.json"]
    assert told == also_told
    assert "32x2: The features" in told
    written = json.loads((tmp_path / "failing/knn.json").read_text())
    assert (written["scores"], written["failed"]) == (whole, {})
