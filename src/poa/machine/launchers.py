"""What a launcher (ours, torchrun, Slurm's srun) tells the processes that it has started. Imports no torch."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from poa.errors import UserError
from poa.machine.limits import usable_cores

STOPPED = 75
"""Exit status of a run that was stopped by a scheduler before its end, and that the same command resumes (the
``EX_TEMPFAIL`` of sysexits.h)."""
_PORTS = range(20_000, 32_768)
"""Below those that systems give to outgoing connections."""


class Place(NamedTuple):
    """The place of this process among those that a launcher has started."""

    rank: int
    num_processes: int
    local_rank: int
    """Among the processes of this machine."""
    local_processes: int
    by_srun: bool

    @property
    def num_machines(self) -> int:
        """On how many machines there are processes, if all have as many as this one."""
        return -(-self.num_processes // self.local_processes)


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process, None if it was started alone. torchrun inside a Slurm job counts, not the job."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        local = _number(environment, "LOCAL_RANK", default=0)
        on_machine = _number(environment, "LOCAL_WORLD_SIZE", default=local + 1)
        return Place(_number(environment, "RANK"), _number(environment, "WORLD_SIZE"), local, on_machine, False)
    if "SLURM_PROCID" not in environment or "SLURM_STEP_NODELIST" not in environment:
        return None  # sbatch's script has the first, but only what srun starts has the second
    tasks = _number(environment, "SLURM_NTASKS", default=1)
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", default=tasks)
    if tasks == 1:
        return None
    local = _number(environment, "SLURM_LOCALID")
    by_machine = environment.get("SLURM_STEP_TASKS_PER_NODE", str(local + 1))
    on_machine = _tasks_of(by_machine, machine=_number(environment, "SLURM_NODEID", default=0))
    return Place(_number(environment, "SLURM_PROCID"), tasks, local, on_machine, True)


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of those started, or alone."""
    found = place(environment)
    return found is None or found.rank == 0


def _number(environment: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UserError(
            f"The environment variable {name} must be a number, as torchrun and srun set it, got {text!r}. Set all of "
            "theirs, or unset RANK and WORLD_SIZE to start this process alone."
        )
    return int(text)


def _tasks_of(by_machine: str, *, machine: int) -> int:
    """The tasks of a machine, from numbers as Slurm writes them: ``8(x2),4`` are 8, 8 and 4."""
    numbers: list[int] = []
    for tasks, repeated in re.findall(r"(\d+)(?:\(x(\d+)\))?", by_machine):
        numbers += [int(tasks)] * int(repeated or 1)
    return numbers[min(machine, len(numbers) - 1)]


def first_host(nodes: str) -> str:
    """The first of several machines as Slurm writes them: ``gpu01-a`` of ``gpu[01-03,7]-a,login``."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST names no machine, got {nodes!r}. Set MASTER_ADDR to the first one.")
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", found[0])


def cores_of(local_processes: int, environment: Mapping[str, str] = os.environ) -> int:
    """Cores of one of the processes of this machine: as Slurm gives them, else an equal share."""
    cores = usable_cores() // local_processes
    found = place(environment)
    return _number(environment, "SLURM_CPUS_PER_TASK", default=cores) if found is not None and found.by_srun else cores


def meeting_point(found: Place, environment: Mapping[str, str] = os.environ) -> str:
    """Where the processes of srun meet: at a port of the first machine that follows from job and step.

    ``MASTER_ADDR`` and ``MASTER_PORT`` name another.
    """
    alone = found.num_machines == 1
    host = "127.0.0.1" if alone else first_host(environment["SLURM_STEP_NODELIST"])
    job, step = (_number(environment, f"SLURM_{name}_ID", default=0) for name in ("JOB", "STEP"))
    port = _PORTS[(job * 97 + step) % len(_PORTS)]
    return f"tcp://{environment.get('MASTER_ADDR', host)}:{environment.get('MASTER_PORT', port)}"


def is_restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a scheduler has started the same command before: a requeued job of Slurm, a restart of torchrun."""
    names = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    return any(environment.get(name, "0") not in ("", "0") for name in names)


def requeue(environment: Mapping[str, str] = os.environ) -> str:
    """Ask Slurm to start this job again; returns a sentence on what came of it."""
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return "This is no job of Slurm: start it again by the same command with --resume."
    by_hand = f"Job {job} is not started again by itself"
    command = shutil.which("scontrol", path=environment.get("PATH"))
    if command is None:
        return f"{by_hand}: there is no scontrol here. Submit it again; the same command with --resume goes on."
    done = subprocess.run([command, "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or f"status {done.returncode}").splitlines()[0]
        return f"{by_hand}: scontrol says {said!r}. Submit it again; the same command with --resume goes on."
    return f"Job {job} is requeued: Slurm starts it again, and it goes on from this step."
