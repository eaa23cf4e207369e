"""What launchers tell, from their environment variables alone."""

import stat
from pathlib import Path

import pytest

from poa.errors import UserError
from poa.machine import launchers
from poa.machine.launchers import Place

SBATCH = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "12", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
SRUN = SBATCH | {
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "12",
    "SLURM_STEP_NODELIST": "gpu[07-09,3]",
    "SLURM_STEP_TASKS_PER_NODE": "8,4",
    "SLURM_CPUS_PER_TASK": "6",
}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "place", "machines"),
    [
        ({}, None, 0),
        ({"LOCAL_RANK": "1"}, None, 0),
        (SBATCH, None, 0),  # the script itself
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None, 0),  # it starts a process for each GPU itself
        (SRUN, Place(9, 12, 1, 4, by_srun=True), 3),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "6(x2)"}, Place(9, 12, 1, 6, by_srun=True), 2),
        (TORCHRUN, Place(3, 4, 1, 2, by_srun=False), 2),
        (SRUN | TORCHRUN, Place(3, 4, 1, 2, by_srun=False), 2),
        ({"RANK": "2", "WORLD_SIZE": "3"}, Place(2, 3, 0, 1, by_srun=False), 3),  # as Kubernetes operators set them
    ],
)
def test_place(environment: dict[str, str], place: Place | None, machines: int) -> None:
    found = launchers.place(environment)
    assert found == place
    assert found is None or found.num_machines == machines
    assert launchers.is_first(environment) == (place is None)


@pytest.mark.parametrize("wrong", [{"RANK": "one"}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "-1"}])
def test_variables_that_are_no_numbers(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"variable {next(iter(wrong))} must be a number, as torchrun and srun set it"):
        launchers.place(TORCHRUN | wrong)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login", "login"),
        ("a1.cluster.org,b2", "a1.cluster.org"),
        ("node[01-03,7]", "node01"),
        ("node[7,01-03],other", "node7"),
        ("r[2-3]n[04,6]-ib,x", "r2n04-ib"),
    ],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert launchers.first_host(nodes) == first


def test_where_the_processes_of_srun_meet() -> None:
    place = launchers.place(SRUN)
    assert place is not None
    meeting = launchers.meeting_point(place, SRUN)
    host, _, port = meeting.removeprefix("tcp://").partition(":")
    assert host == "gpu07"
    assert 20_000 <= int(port) < 32_768
    other = launchers.meeting_point(place, SRUN | {"SLURM_STEP_ID": "1"})
    assert other != meeting, "two steps of a job would meet"
    assert launchers.meeting_point(place._replace(local_processes=12), SRUN) == f"tcp://127.0.0.1:{port}"
    given = SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "1"}
    assert launchers.meeting_point(place, given) == "tcp://head:1"
    with pytest.raises(UserError, match="names no machine, got ''"):
        launchers.meeting_point(place, SRUN | {"SLURM_STEP_NODELIST": ""})


def test_cores_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "usable_cores", lambda: 96)
    assert launchers.cores_of(8, {}) == 12
    assert launchers.cores_of(8, SRUN) == 6
    assert launchers.cores_of(8, SRUN | TORCHRUN) == 12, "torchrun's processes share the cores of the task"


@pytest.mark.parametrize(
    ("environment", "again"),
    [
        ({}, False),
        ({"SLURM_RESTART_COUNT": "0", "TORCHELASTIC_RESTART_COUNT": "0"}, False),
        ({"SLURM_RESTART_COUNT": "2"}, True),
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, True),
    ],
)
def test_a_command_that_was_started_before(environment: dict[str, str], again: bool) -> None:
    assert launchers.is_restarted(environment) == again


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('[ "$*" = "requeue 4711" ]', "Job 4711 is requeued: Slurm starts it again, and it goes on from this step."),
        ("echo Access denied >&2; exit 1", "Job 4711 is not started again by itself: scontrol says 'Access denied'."),
        (None, "Job 4711 is not started again by itself: there is no scontrol here. Submit it again;"),
    ],
)
def test_requeue(tmp_path: Path, script: str | None, said: str) -> None:
    if script is not None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "scontrol").chmod(stat.S_IRWXU)
    environment = {"PATH": str(tmp_path), **SBATCH}
    assert launchers.requeue(environment).startswith(said)
    assert "no job of Slurm" in launchers.requeue({})
