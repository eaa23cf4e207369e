"""ONNX: a network as one file for ONNX Runtime and others, in float32, with weights of 16 bits, or in int8."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from poa.errors import UserError, first_line, lacking
from poa.export.about import INPUT
from poa.export.program import quiet_exporters

MOST_BYTES = 2**31 - 2**20
"""Of one ONNX file, which is a protobuf message."""
CALIBRATED_AT_ONCE = 8
"""Images of a batch in calibration."""
QUANTISED = ("Conv", "MatMul", "Gemm")
"""Operations computed in int8. Attention itself and norms, a few percent of the time, stay in float32."""


_OPSET_OF_ONE = 17


def check_onnx(*, what: str = "--format onnx") -> None:
    """See that the libraries for ONNX files are installed.

    Raises:
        UserError: They are not.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise lacking(what, package, extra="export")


def write_onnx(
    program: torch.export.ExportedProgram, file: Path, *, outputs: Sequence[str], metadata: Mapping[str, str]
) -> None:
    """Write a program with ``images`` as its input, named ``outputs``, and some metadata.

    Raises:
        UserError: It is too large, or has an operation that ONNX lacks.
    """
    num_bytes = sum(value.nbytes for value in program.state_dict.values())
    if num_bytes > MOST_BYTES:
        raise UserError(
            f"{file.name} would have {num_bytes / 1e9:.1f} GB, and an ONNX file has at most {MOST_BYTES / 1e9:.1f}. "
            "Choose a smaller size, --precision fp16, or --format program."
        )
    try:
        with quiet_exporters():
            written: Any = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            model = written.model_proto
    except Exception as error:  # of an exporter that meets what it does not know
        raise UserError(
            f"{file.name} cannot be written: torch.onnx cannot translate the network ({first_line(error)}). Choose "
            "--format program, or another network."
        ) from error
    _tidy(model)
    _save(model, file, metadata)


@torch.no_grad()
def write_onnx_of_one(
    network: nn.Module, image: Tensor, file: Path, *, outputs: Sequence[str], metadata: Mapping[str, str]
) -> None:
    """Write a network that takes one image, and gives any number of rows in each output, such as a detector.

    torch's older exporter traces it, since the newer one cannot follow what depends on the objects that are found.

    Raises:
        UserError: It cannot either.
    """
    import onnx

    rows = {name: {0: "objects"} for name in outputs}
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": list(outputs), "dynamic_axes": rows}
    try:
        with quiet_exporters():
            torch.onnx.export(network, (image,), file, dynamo=False, opset_version=_OPSET_OF_ONE, **names)
    except Exception as error:  # as above
        raise UserError(
            f"{file.name} cannot be written: torch.onnx cannot translate the network ({first_line(error)}). Use its "
            "folder; the README.md there says how."
        ) from error
    model = onnx.load(file)
    _tidy(model)
    _save(model, file, metadata)


def _tidy(model: Any) -> None:
    """Take out what says where on this machine the network was built, and name the axis of the batch."""
    graph = model.graph
    functions = chain.from_iterable(function.node for function in model.functions)
    for each in chain(graph.node, functions, graph.value_info, graph.input, graph.output, graph.initializer):
        del each.metadata_props[:]
        each.doc_string = ""
    del graph.metadata_props[:]
    axis = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in chain(graph.value_info, graph.input, graph.output) if axis else ():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == axis:
                dim.dim_param = "batch"


def _save(model: Any, file: Path, metadata: Mapping[str, str]) -> None:
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name, model.producer_version = "poa", ""
    file.write_bytes(model.SerializeToString())


class _Calibration:
    """Batches of images as ONNX Runtime's calibration asks for them."""

    def __init__(self, images: npt.NDArray[Any]) -> None:
        self._batches = iter(
            images[first : first + CALIBRATED_AT_ONCE] for first in range(0, len(images), CALIBRATED_AT_ONCE)
        )

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next batch, or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def write_int8(float32: Path, file: Path, *, images: npt.NDArray[Any], metadata: Mapping[str, str]) -> None:
    """Quantise an ONNX file statically: int8 weights with a scale for each channel, uint8 activations (QDQ).

    The ranges of activations are the smallest and largest values that ``images``, as the file takes them, give. Only
    products with weights are quantised; what comes out of them goes on in float32. The first convolution, which sees
    the image, stays in float32: small outputs of some filters, which a norm raises afterwards, would be rounded away.

    Raises:
        UserError: ONNX Runtime cannot quantise the network.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(float32)
    add_pre_process_metadata(model)  # torch.onnx did: shapes are known and constants folded
    try:
        with quiet_exporters():
            quantize_static(
                model,
                file,
                _Calibration(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                nodes_to_exclude=[node.name for node in model.graph.node if node.op_type == "Conv"][:1],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
            )
    except Exception as error:  # of a library that meets what it does not know
        raise UserError(
            f"{file.name} cannot be written: ONNX Runtime cannot quantise the network ({first_line(error)}). Choose "
            "--precision fp16, or another network."
        ) from error
    _save(onnx.load(file), file, metadata)
