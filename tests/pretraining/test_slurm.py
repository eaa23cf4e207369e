"""A job of Slurm: two tasks of srun train together, are asked to stop, and go on when the job is started again."""

import os
import stat
from pathlib import Path

import yaml

import tiny
from command import dashed
from poa.training.metrics import read_metrics
from processes import start_command

STEPS, ASKED_AT = 8, 3
JOB = str(os.getpid())
"""Its port follows from the job: suites that run at the same time must not meet."""
STEP = {
    "SLURM_JOB_ID": JOB,
    "SLURM_NTASKS": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "no-such-machine",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_NODEID": "0",
}


def run_job(folder: Path, **environment: str) -> list[int | None]:
    """Start the command of a job as srun does; both tasks of a first start get SIGUSR1 in one of its steps."""
    words = ["pretrain", "--config", str(folder / "tiny.yaml"), "--out", str(folder / "run")]
    places = [{"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(2)]
    said = [folder / f"{len(environment)}-{task}.err" for task in range(2)]
    asked_at = None if environment.get("SLURM_RESTART_COUNT") else ASKED_AT
    tasks = [
        start_command(words, STEP | environment | own, said=to, asked_at=asked_at)
        for own, to in zip(places, said, strict=True)
    ]
    for task in tasks:
        task.join(120)
    return [task.exitcode for task in tasks]


def test_a_job_is_requeued_and_goes_on(tmp_path: Path) -> None:
    settings = tiny.settings(epochs=STEPS // 4, saving={"every_epochs": 5.0}, monitor={"every_epochs": 5.0})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(dashed(settings)))
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(stat.S_IRWXU)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert run_job(tmp_path, **path) == [75, 75], (tmp_path / "1-0.err").read_text()
    assert (tmp_path / "asked").read_text() == f"requeue {JOB}\n"
    first, second = ((tmp_path / f"1-{task}.err").read_text() for task in range(2))
    assert "Training in 2 processes on the CPU: 8 of the 16 images of a step on each." in first
    assert f"Job {JOB} is requeued: Slurm starts it again, and it goes on from this step." in first
    assert second == ""
    before = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in before] == list(range(1, ASKED_AT + 3)), "not stopped by the signal"
    assert run_job(tmp_path, SLURM_RESTART_COUNT="1", **path) == [0, 0], (tmp_path / "2-0.err").read_text()
    after = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in after] == list(range(1, STEPS + 1))
    assert after[: len(before)] == before, "it began again"
    assert "run finished" in (tmp_path / "2-0.err").read_text()
    stored = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (stored["devices"], stored["num_nodes"]) == (2, 1)
