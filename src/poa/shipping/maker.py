"""Writes the files of one network; what several of them start from is made once."""

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from poa.config.channels import USUAL
from poa.errors import UserError, counted
from poa.export.about import OUTPUTS, Precision
from poa.export.onnx import write_int8, write_onnx, write_onnx_of_one
from poa.export.openvino import write_openvino
from poa.export.program import example, portable, traced, write_executorch, write_program
from poa.shipping.networks import Exportable

ENDINGS: Mapping[str, str] = {"onnx": ".onnx", "program": ".pt2", "executorch": ".pte", "openvino": ".xml"}
"""Of the files of each format."""


class Maker:
    """Files of a network in a folder of their own.

    Args:
        network: The network.
        folder: Where they are written.
        pixels: Whether they take pixels and normalise them themselves.
        calibration: Images that give the ranges of int8, as the files take them.
    """

    def __init__(
        self, network: Exportable, folder: Path, *, pixels: bool, calibration: npt.NDArray[Any] | None
    ) -> None:
        self._network, self._folder, self._pixels, self._calibration = network, folder, pixels, calibration
        self._program, self._onnx = cache(self._traced), cache(self._as_onnx)

    def make(self, kind: str, precision: Precision, name: str) -> tuple[Path, ...]:
        """Write a file of that name in a format, and those that belong to it; the one that is run comes first."""
        file, metadata = self._folder / name, self._metadata(precision)
        if kind == "program":
            write_program(self._program(precision == "fp16"), file, metadata)
        elif kind == "executorch":
            write_executorch(self._traced(half=False, any_batch=False), file)
            beside = file.with_suffix(".json")
            beside.write_text(json.dumps(metadata) + "\n", encoding="utf-8")
            return file, beside
        elif kind == "openvino":
            write_openvino(
                self._onnx("int8" if precision == "int8" else "fp32"), file, metadata, half=precision == "fp16"
            )
            return file, file.with_suffix(".bin")
        else:
            shutil.copyfile(self._onnx(precision), file)
        return (file,)

    def _metadata(self, precision: Precision) -> dict[str, str]:
        return self._network.about(precision, pixels=self._pixels).metadata()

    def _traced(self, half: bool, any_batch: bool = True) -> torch.export.ExportedProgram:
        module, images = self._parts(half=half, batch=2 if any_batch else 1)
        return traced(module, images, name=self._network.name, any_batch=any_batch)

    def _parts(self, *, half: bool, batch: int) -> tuple[nn.Module, Tensor]:
        """What is written, and images that it can be traced with."""
        prepared = self._network.preprocessing
        if self._pixels and prepared.values != USUAL:
            raise UserError(
                f"files that take pixels take 8-bit RGB, but {self._network.name} sees "
                f"{counted(prepared.values.number, 'channel')} with all their bits. Leave out --with-preprocessing"
            )
        module = portable(self._network.network, prepared, half=half, pixels=self._pixels)
        return module, example(prepared, pixels=self._pixels, batch=batch)

    def _as_onnx(self, precision: Precision) -> Path:
        file, metadata = self._folder / f"base-{precision}.onnx", self._metadata(precision)
        if precision == "int8":
            assert self._calibration is not None
            write_int8(self._onnx("fp32"), file, images=self._calibration, metadata=metadata)
        else:
            self._write(file, half=precision == "fp16", metadata=metadata)
        return file

    def _write(self, file: Path, *, half: bool, metadata: Mapping[str, str]) -> None:
        outputs = OUTPUTS[self._network.task]
        if self._network.task == "detection":
            module, image = self._parts(half=half, batch=1)
            write_onnx_of_one(module, image, file, outputs=outputs, metadata=metadata)
        else:
            write_onnx(self._program(half), file, outputs=outputs, metadata=metadata)
