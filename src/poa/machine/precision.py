"""Precisions to compute in, and where products of matrices are faster in bf16 than in float32 (ADR 0009)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def has_fast_bf16(capabilities: Mapping[str, Any]) -> bool:
    """Whether a CPU multiplies bf16 faster: with AMX, and with AVX512-BF16 on AMD's processors only."""
    is_amd = any(name in str(capabilities.get("cpu_name", "")) for name in ("AMD", "EPYC", "Ryzen"))
    with_amx = any(capabilities.get(name) for name in ("amx_bf16", "amx_tile"))
    return bool(with_amx or (is_amd and capabilities.get("avx512_bf16")))


def gains_by_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are faster on a device that can make them."""
    return device.type != "cpu" or has_fast_bf16(torch.cpu.get_capabilities())


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32, or in float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def multiplies_in_bf16(device: torch.device) -> bool:
    """Whether heads over prototypes multiply in bf16: where autocast has it and the device gains by it.

    In fp16 small gradients would be lost, since they are not scaled where they are made.
    """
    is_bf16 = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16
    return is_bf16 and gains_by_bf16(device)


def for_products(matrix: Tensor) -> Tensor:
    """Prototypes in the precision in which heads multiply with them."""
    return matrix.bfloat16() if multiplies_in_bf16(matrix.device) else wide(matrix)
