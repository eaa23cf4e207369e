"""Which device a process takes, and how many processes there are, from what torch and the launcher report."""

import pytest
import torch

from poa import distributed
from poa.errors import UserError
from poa.machine import devices
from poa.machine.devices import Found, Kind
from poa.machine.launchers import Place

NONE, ONE, EIGHT, MAC = Found(0, False), Found(1, False), Found(8, False), Found(0, True)
LAST = Place(rank=15, num_processes=16, local_rank=7, local_processes=8, by_srun=False)


@pytest.mark.parametrize(
    ("kind", "here", "place", "device"),
    [
        ("auto", NONE, None, "cpu"),
        ("auto", ONE, None, "cuda:0"),
        ("auto", EIGHT, None, "cuda:0"),
        ("auto", MAC, None, "mps"),
        ("cpu", EIGHT, None, "cpu"),
        ("cpu", MAC, None, "cpu"),
        ("cuda", EIGHT, None, "cuda:0"),
        ("mps", MAC, None, "mps"),
        ("auto", EIGHT, LAST, "cuda:7"),
        ("cpu", EIGHT, LAST, "cpu"),
        ("auto", NONE, LAST, "cpu"),
        ("auto", EIGHT, LAST._replace(by_srun=True), "cuda:7"),
        ("auto", ONE, LAST._replace(by_srun=True), "cuda:0"),  # its own, by --gpus-per-task
        ("auto", MAC, Place(0, 1, 0, 1, by_srun=False), "mps"),
    ],
)
def test_device_of_a_process(kind: Kind, here: Found, place: Place | None, device: str) -> None:
    assert devices.device_of(kind, here, place, float64=False) == torch.device(device)
    exact = devices.device_of(kind, here, place, float64=True)
    assert exact == torch.device("cpu" if (kind, device) == ("auto", "mps") else device)


@pytest.mark.parametrize(
    ("kind", "here", "place", "said"),
    [
        ("cuda", NONE, None, "--device cuda: PyTorch finds no GPU here. Use --device cpu"),
        ("cuda", MAC, None, "--device cuda: PyTorch finds no GPU here."),
        ("mps", EIGHT, None, "--device mps: PyTorch finds no GPU of a Mac here."),
        ("auto", Found(7, False), LAST, "more processes than GPUs (7). Start at most 7 on this machine."),
        ("auto", Found(7, False), LAST._replace(local_rank=0, by_srun=True), "more processes than GPUs (7)"),
        ("auto", ONE, LAST, "more processes than GPUs (1)"),
        ("auto", MAC, LAST, "MPS trains in one process, got 16."),
    ],
)
def test_devices_that_are_not_there(kind: Kind, here: Found, place: Place | None, said: str) -> None:
    with pytest.raises(UserError) as told:
        devices.device_of(kind, here, place, float64=False)
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("asked", "kind", "here", "batch", "parts", "number"),
    [
        (None, "auto", NONE, 16, 1, 1),
        (None, "auto", MAC, 16, 1, 1),
        (None, "auto", ONE, 16, 1, 1),
        (None, "auto", EIGHT, 16, 1, 8),
        (None, "auto", EIGHT, 16, 2, 8),
        (None, "auto", EIGHT, 16, 4, 4),
        (None, "auto", EIGHT, 100, 1, 5),
        (None, "auto", EIGHT, 13, 1, 1),
        (None, "cpu", EIGHT, 16, 1, 1),
        (3, "auto", EIGHT, 16, 1, 3),  # the batch is refused later, by name
        (2, "auto", NONE, 16, 1, 2),
        (2, "cpu", ONE, 16, 1, 2),
        (1, "mps", MAC, 16, 1, 1),
    ],
)
def test_processes_of_a_machine(
    asked: int | None, kind: Kind, here: Found, batch: int, parts: int, number: int
) -> None:
    assert devices.processes_here(asked, kind, here, batch_size=batch, parts=parts) == number


@pytest.mark.parametrize(
    ("asked", "kind", "here", "said"),
    [
        (9, "auto", EIGHT, "--devices 9 is more than the number of GPUs here, 8. Lower it to 8."),
        (2, "auto", MAC, "--devices 2: MPS trains in one process. Leave --devices out, or use --device cpu."),
        (None, "cuda", NONE, "finds no GPU"),
    ],
)
def test_processes_that_cannot_be(asked: int | None, kind: Kind, here: Found, said: str) -> None:
    with pytest.raises(UserError) as told:
        devices.processes_here(asked, kind, here, batch_size=16)
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("device", "here", "local", "processes", "sentence"),
    [
        ("cpu", NONE, 1, 1, None),
        ("cpu", NONE, 2, 2, "Training in 2 processes on the CPU: 800 of the 1,600 images of a step on each."),
        ("mps", MAC, 1, 1, "Training on the GPU of this Mac (MPS)."),
        ("cuda", ONE, 1, 1, "Training on 1 GPU (H200)."),
        ("cuda", ONE, 8, 8, "Training on 8 GPUs (H200), one process each: 200 of the 1,600 images of a step on each."),
        ("cuda", EIGHT, 1, 1, "Training on 1 GPU (H200). 7 of the 8 GPUs of this machine are not used."),
        (
            "cuda",
            EIGHT,
            7,
            14,
            "Training on 14 GPUs (H200) of 2 machines, one process each: 114 of the 1,600 images of a step on each. "
            "1 of the 8 GPUs of this machine is not used.",
        ),
    ],
)
def test_what_is_said_of_them(device: str, here: Found, local: int, processes: int, sentence: str | None) -> None:
    assert devices.told(device, "H200", here, local=local, processes=processes, batch_size=1600) == sentence


def test_all_commands_ask_torch_and_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert distributed.this_device() == torch.device("cuda:1")
    assert distributed.this_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # as CUDA_VISIBLE_DEVICES="" makes it
    monkeypatch.delenv("WORLD_SIZE")
    assert distributed.this_device() == torch.device("cpu")
    assert distributed.this_device(float64=False) == torch.device("mps")


@pytest.mark.parametrize(
    ("given", "before", "after"), [({}, 64, 2), ({}, 1, 1), ({"OMP_NUM_THREADS": "64"}, 64, 64)], ids=str
)
def test_pytorch_takes_no_more_threads_than_there_are_cores(
    given: dict[str, str], before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = [before]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    distributed.this_device()
    assert threads[-1] == after
