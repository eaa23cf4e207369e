"""What several tests of sweeps compare with."""

import pytest

from evaluation.sweeps import score
from poa.evaluation.results import Scores


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Scores of all sizes by one sweep that nothing stops."""
    return score(tmp_path_factory.mktemp("sweep") / "out")
