"""The command as tests use it: in this process, on settings that train in about a second."""

import os
from pathlib import Path
from typing import Any

import yaml

import tiny
from poa import cli


def dashed(content: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): dashed(x) if isinstance(x, dict) else x for key, x in content.items()}


TINY = dashed(tiny.settings(data="digits/train", model={"head_dim": 32}, heads={"prototypes": [16, 32]}))
STEPS = 8
SIZES = ("32x2", "32x3", "64x2", "64x3")


def tiny_file(folder: Path) -> str:
    """Write the settings of a tiny run; keys with dashes, as users may write them."""
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return str(file)


def one_thread() -> dict[str, str]:
    """Environment for a process that shall not take all cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def poa(*words: str | Path) -> int:
    """Run the command; its exit status."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0
