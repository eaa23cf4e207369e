"""Shape annotations are checked while the tests run, and nothing is written outside the tests' own folders."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

SOURCES = Path(__file__).parents[1] / "src"
WITH_SHAPES = [path for path in sorted(SOURCES.rglob("*.py")) if "jaxtyping" in path.read_text()]
# of modules without shapes mypy checks the types; checking them here as well would take a third of the time
install_import_hook(
    [".".join(path.relative_to(SOURCES).with_suffix("").parts) for path in WITH_SHAPES], "beartype.beartype"
)
torch.set_num_threads(1)  # so that results do not depend on the machine


@pytest.fixture(autouse=True, scope="session")
def index_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("index")
    old = os.environ.get("POA_CACHE")
    os.environ["POA_CACHE"] = str(folder)
    yield folder
    if old is None:
        del os.environ["POA_CACHE"]
    else:
        os.environ["POA_CACHE"] = old
