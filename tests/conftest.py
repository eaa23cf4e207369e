"""Shape annotations are checked while the tests run, and nothing is written outside the tests' own folders."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("poa", "beartype.beartype")
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
