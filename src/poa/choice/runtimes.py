"""One pass through a network: by torch on a device, or by ONNX Runtime."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from poa.choice.memory import file_bytes, memory_bytes
from poa.choice.timing import Pass
from poa.config.choice import MeasureSettings
from poa.data.images import Preprocessing
from poa.errors import UserError
from poa.export.onnx import check_onnx, write_onnx
from poa.export.program import example, traced
from poa.machine.limits import usable_cores


@dataclass(frozen=True, slots=True)
class Runnable:
    """A network that is ready to run.

    Attributes:
        run: A pass with a batch of images.
        file_bytes: Of its file.
        memory_bytes: The most that is taken in a pass; None where it is not known.
    """

    run: Pass
    file_bytes: int
    memory_bytes: int | None


def check_runtime(how: MeasureSettings) -> None:
    """See that a runtime and its device are there, and cores for its threads.

    Raises:
        UserError: They are not.
    """
    if how.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that PyTorch can use, and there is none. Leave it out.")
    cores = usable_cores()
    if how.threads > cores:  # they would only wait for one another, for hours if there are thousands
        raise UserError(
            f"--threads must be at most the number of cores that this process may use, {cores}, got {how.threads}."
        )
    if how.runtime == "onnx":
        check_onnx(what="--runtime onnx")


def version_of(runtime: str) -> str:
    """Of the library that runs networks."""
    if runtime == "torch":
        return str(torch.__version__)
    import onnxruntime

    return str(onnxruntime.__version__)


def runnable(model: nn.Module, how: MeasureSettings, own: Preprocessing, *, name: str) -> Runnable:
    """Make a timm model, which may be moved, ready to run; times do not depend on what is in the images."""
    if how.runtime == "onnx":
        return _by_onnx(model, how, own, name=name)
    return _by_torch(model, how, own)


def _by_torch(model: nn.Module, how: MeasureSettings, own: Preprocessing) -> Runnable:
    model, images = model.to(how.device).eval(), example(own, pixels=False, batch=how.batch).to(how.device)

    @torch.inference_mode()
    def run() -> None:
        model(images)
        if how.device == "cuda":
            torch.cuda.synchronize()

    return Runnable(run, file_bytes(model), memory_bytes(model, run, inputs=[images]))


def _by_onnx(model: nn.Module, how: MeasureSettings, own: Preprocessing, *, name: str) -> Runnable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = how.threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would slow down the next network
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        program = traced(model.cpu().eval(), example(own, pixels=False), name=name)
        write_onnx(program, file, outputs=["features"], metadata={})
        size = file.stat().st_size
        session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    images = {session.get_inputs()[0].name: example(own, pixels=False, batch=how.batch).numpy()}
    return Runnable(lambda: session.run(None, images), size, None)


@contextmanager
def threads_of(how: MeasureSettings) -> Iterator[None]:
    """Let torch compute with so many threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(how.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
