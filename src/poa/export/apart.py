"""Runs an exported file in a process that cannot import this package."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from poa.errors import UserError
from poa.export import runner


class Reply(NamedTuple):
    """What came out for all images, and the median milliseconds of one image on one thread; nan if not timed."""

    outputs: tuple[Float[Tensor, "images *_"], ...]
    milliseconds: float


def run_apart(
    file: Path, images: npt.NDArray[Any], *, batches: Sequence[int] = (), batch: int = 32, is_timed: bool = False
) -> Reply:
    """Run a file on images, first in batches of the sizes of ``batches``, then of ``batch``.

    Raises:
        UserError: The file does not run.
    """
    with tempfile.TemporaryDirectory(prefix="poa-") as folder:
        given, request, outputs = (Path(folder, name) for name in ("images.npy", "request.json", "outputs.npz"))
        np.save(given, images)
        asked = {
            "file": str(file.absolute()),
            "images": str(given),
            "batches": list(batches),
            "batch": batch,
            "outputs": str(outputs),
            "is_timed": is_timed,
        }
        request.write_text(json.dumps(asked), encoding="utf-8")
        program = [sys.executable, "-P", str(Path(runner.__file__)), str(request)]
        done = subprocess.run(program, capture_output=True, text=True, check=False, errors="replace", cwd=folder)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            raise UserError(
                f"{file.name} was written but does not run in a process of its own ({last}). It is not kept; choose "
                "another --format or --precision."
            )
        with np.load(outputs) as found:
            arrays = [found[name] for name in found.files]
        milliseconds = float(done.stdout.strip().splitlines()[-1]) if is_timed else float("nan")
        return Reply(tuple(map(torch.from_numpy, arrays)), milliseconds)
