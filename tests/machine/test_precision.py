from typing import Any

import pytest
import torch

from poa.machine import precision
from poa.machine.precision import for_products, gains_by_bf16, has_fast_bf16, multiplies_in_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "gains"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True}, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_tile": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_processors_that_gain_by_bf16(
    capabilities: dict[str, Any], gains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_fast_bf16(capabilities) is gains
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert gains_by_bf16(CPU) is gains
    assert gains_by_bf16(torch.device("cuda"))


@pytest.mark.parametrize(
    ("autocast", "gains", "expected"),
    [
        (None, True, torch.float32),
        (torch.bfloat16, True, torch.bfloat16),
        (torch.bfloat16, False, torch.float32),
        (torch.float16, True, torch.float32),
    ],
)
def test_products_are_bf16_where_autocast_and_the_device_say_so(
    autocast: torch.dtype | None, gains: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "gains_by_bf16", lambda _: gains)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        assert multiplies_in_bf16(CPU) is (expected == torch.bfloat16)
        assert for_products(torch.ones(2, 2, dtype=torch.float16)).dtype == expected
    assert for_products(torch.ones(2, 2, dtype=torch.float64)).dtype == torch.float64
