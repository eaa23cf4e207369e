"""Start one process for each device of this machine."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from poa import config as settings
from poa.config import Config
from poa.errors import UserError


def is_needed(config: Config) -> bool:
    """Whether processes have to be started: several devices are asked for, and no launcher has started us."""
    return config.devices > 1 and "LOCAL_RANK" not in os.environ


def launch(config: Config, *, resume: bool) -> None:
    """Run ``poa pretrain`` in as many processes as there shall be devices, and wait for them.

    Args:
        config: Settings, complete.
        resume: Go on with the run in ``config.out``.

    Raises:
        UserError: There are fewer GPUs than asked for, or a process failed (it has said why).
    """
    available = torch.cuda.device_count()
    if config.device != "cpu" and 0 < available < config.devices:
        raise UserError(f"--devices {config.devices}: there are {available} GPUs. Lower it to at most {available}.")
    if config.num_nodes > 1:
        raise UserError(
            "A run on several machines is started with torchrun, once on each: "
            f"torchrun --nnodes {config.num_nodes} --nproc-per-node {config.devices} --rdzv-backend c10d "
            "--rdzv-endpoint HOST:PORT -m poa pretrain ..."
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(settings.to_yaml(config))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(config.devices)]
        command = [sys.executable, *launcher, "-m", "poa", "pretrain", "--config", str(file)]
        threads = max(1, (os.cpu_count() or 1) // config.devices)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        done = subprocess.run([*command, *(["--resume"] if resume else [])], env=environment, check=False)
    if done.returncode != 0:
        raise UserError(f"One of {config.devices} processes failed; its message stands above.")
