import pytest

import tiny
from poa.models.registry import family_of
from poa.pretraining.method import method_of


@pytest.mark.parametrize("name", ["poa", "single"])
def test_settings_name_the_branch_that_is_exported(name: str) -> None:
    config = tiny.config(method=name)
    method = method_of(config, family_of(config))
    assert method.exported is method.get_submodule(config.exported_branch)
