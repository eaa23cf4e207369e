"""What this Python, its packages and its machine are: a run keeps it, and `poa --version` prints it."""

import os
import platform
from importlib import metadata
from typing import Any

import torch

from poa.machine.devices import device_of, found


def environment() -> dict[str, Any]:
    """Versions and hardware, by name."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,  # with its build, such as +cu130, which its metadata do not have
        "torchvision": metadata.version("torchvision"),
        "timm": metadata.version("timm"),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }


def versions(own: str) -> str:
    """What a report of a fault needs, a line each: versions of POA and its packages, and the device that is used.

    Args:
        own: The version of POA.
    """
    here = environment()
    device = device_of("auto", found(), None, float64=False).type
    is_gpu = device == "cuda"
    where = ", ".join(here["gpus"]) if is_gpu else f"{here['cores']} cores"
    packages = [f"{name} {here[name]}" for name in ("python", "torch", "torchvision", "timm", "platform")]
    return "\n".join([f"poa {own}", *packages, f"device {device} ({where})"])
