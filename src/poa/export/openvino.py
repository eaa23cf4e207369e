"""OpenVINO: an ONNX file translated for Intel's runtime."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from poa.errors import UserError, first_line, lacking


def check_openvino() -> None:
    """See that OpenVINO is installed.

    Raises:
        UserError: It is not.
    """
    if find_spec("openvino") is None:
        raise lacking("--format openvino", "openvino", extra="openvino")


def write_openvino(onnx_file: Path, file: Path, metadata: Mapping[str, str], *, half: bool) -> None:
    """Write FILE.xml, with the metadata as its ``rt_info``, and FILE.bin; ``half`` keeps weights of 16 bits.

    Raises:
        UserError: It has an operation that OpenVINO lacks.
    """
    import openvino

    try:
        model: Any = openvino.convert_model(onnx_file)
        for name, value in metadata.items():
            model.set_rt_info(value, name)
        openvino.save_model(model, file, compress_to_fp16=half)
    except Exception as error:  # of a converter that meets what it does not know
        raise UserError(
            f"{file.name} cannot be written: OpenVINO cannot translate the network ({first_line(error)}). Choose "
            "another --format."
        ) from error
