"""A program of its own, which has to do without this package: it runs an exported file on images and times it.

``python -P runner.py REQUEST.json``, where the request names the ``file``, the ``images`` (.npy) and the ``outputs``
(.npz), the sizes of the ``batches`` to begin with, of the ``batch`` after them, and whether the program ``is_timed``;
then its one line of output is the median time of one image in milliseconds.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP, MOST_RUNS, SECONDS = 2, 50, 1.0
"""Of the timing: runs before it, the most runs, and the time after which it ends."""

Run = Callable[[Any], Sequence[Any]]
"""From a batch of images to the outputs, as arrays."""


def onnx_session(file: str) -> Run:
    """A file for ONNX Runtime, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def torch_program(file: str) -> Run:
    """A program of torch, with one thread."""
    import torch

    torch.set_num_threads(1)
    program: Any = torch.export.load(file).module()

    def run(images: Any) -> Sequence[Any]:
        with torch.inference_mode():
            found = program(torch.from_numpy(images))
        return [each.numpy() for each in (found if isinstance(found, tuple | list) else [found])]

    return run


def executorch_program(file: str) -> Run:
    """A program for devices; the number of its threads is its own."""
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(file).load_method("forward")
    return lambda images: [each.numpy() for each in method.execute([torch.from_numpy(images)])]


def openvino_model(file: str) -> Run:
    """A model for OpenVINO, with one thread and without its own change to 16 bits."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda images: [compiled([images])[port] for port in compiled.outputs]


RUNTIMES: dict[str, Callable[[str], Run]] = {
    ".onnx": onnx_session,
    ".pt2": torch_program,
    ".pte": executorch_program,
    ".xml": openvino_model,
}


def slices(num_images: int, batches: Sequence[int], batch: int) -> Iterator[slice]:
    """Of the images: the batches to begin with, then those of one size."""
    start, sizes = 0, iter(batches)
    while start < num_images:
        end = start + next(sizes, batch)
        yield slice(start, end)
        start = end


def milliseconds(run: Run, image: Any) -> float:
    """Median time of one image."""
    for _ in range(WARM_UP):
        run(image)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < MOST_RUNS and (len(times) < 3 or time.perf_counter() - began < SECONDS):
        before = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - before)
    return 1000 * float(np.median(times))


def main() -> None:
    """Answer the request."""
    sys.modules["poa"] = None  # type: ignore[assignment]  # an import of it fails
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    images = np.load(request["images"], mmap_mode="c")
    run = RUNTIMES[Path(request["file"]).suffix](request["file"])
    places = slices(len(images), request["batches"], request["batch"])
    parts = [run(np.ascontiguousarray(images[each])) for each in places]
    joined = [np.concatenate(of_output) for of_output in zip(*parts, strict=True)]
    np.savez(request["outputs"], *joined)
    if request["is_timed"]:
        sys.stdout.write(f"{milliseconds(run, np.ascontiguousarray(images[:1]))}\n")


if __name__ == "__main__":
    main()
