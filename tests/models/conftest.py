from collections.abc import Iterator

import pytest

from poa.models import hub


@pytest.fixture(autouse=True)
def servers_are_unknown() -> Iterator[None]:
    """No test knows from another whether a server answers."""
    hub._why_silent.cache_clear()
    yield
    hub._why_silent.cache_clear()
