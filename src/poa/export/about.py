"""What a user of an exported file has to know, as it is written into the file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from poa.config.channels import RGB, values_in
from poa.data.images import Preprocessing
from poa.errors import UserError, counted
from poa.text import unicode_text

Task = Literal["features", "classification", "segmentation", "detection"]
Precision = Literal["fp32", "fp16", "int8"]
KEY = "poa"
"""Name of the one entry among the metadata of a file."""
OUTPUTS: Mapping[Task, tuple[str, ...]] = {
    "features": ("features",),
    "classification": ("logits",),
    "segmentation": ("scores",),
    "detection": ("boxes", "labels", "scores"),
}
"""Names of what comes out of a file."""
INPUT = "images"
"""Name of what goes in."""


@dataclass(frozen=True, slots=True)
class About:
    """Of one file.

    Attributes:
        name: Of the network, such as ``96x4``.
        task: What comes out, see ``OUTPUTS``: one feature vector an image, logits of the classes, scores of each class
            for each pixel, or boxes.
        classes: Names of the classes in the order of the outputs.
        preprocessing: How images are resized, cropped and normalised.
        pixels: Whether the file takes pixels, uint8 of batch x height x width x 3, and normalises them itself; else it
            takes normalised float32 of batch x 3 x height x width.
        precision: Of the computation inside.
        weights: Where the weights come from, in words.
        windows: Of a segmentation network, how masks are predicted: shorter side of images before they are cut into
            windows (``resize``, 0 for their own), distance between windows (``stride``), and over which scales and
            mirror images scores are averaged (``test_scales``, ``test_flip``).
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    pixels: bool
    precision: Precision
    weights: str
    windows: Mapping[str, Any] = field(default_factory=dict)

    def metadata(self) -> dict[str, str]:
        """For a file: one JSON object, so that any language can read it."""
        content = asdict(self) | {
            "classes": list(map(unicode_text, self.classes)),
            "weights": unicode_text(self.weights),
        }
        fit = "none: the image is made to fit into the square, with zeros to the right and below"
        crop = fit if self.task == "detection" else "centre"
        prepared = {"interpolation": "bicubic, antialiased", "crop": crop, **self.preprocessing.stated()}
        batch = 1 if self.task == "detection" else "batch"
        number = self.preprocessing.values.number
        layout = f"{batch} x height x width x 3" if self.pixels else f"{batch} x {number} x height x width"
        channels = "RGB" if number == RGB else counted(number, "channel")
        entry = {
            **content,
            "preprocessing": prepared,
            "input": f"{INPUT}: {channels}, {'uint8' if self.pixels else 'float32, normalised'}, {layout}",
            "outputs": list(OUTPUTS[self.task]),
        }
        return {KEY: json.dumps(entry)}


def read_about(metadata: Mapping[str, str], *, file: str) -> About:
    """Read what ``About.metadata`` wrote.

    Raises:
        UserError: The file was not written by ``poa export``.
    """
    try:
        entry = json.loads(metadata[KEY])
        prepared = entry["preprocessing"]
        return About(
            str(entry["name"]),
            entry["task"],
            tuple(map(str, entry["classes"])),
            Preprocessing(
                int(prepared["image_size"]),
                int(prepared["resize"]),
                tuple(prepared["mean"]),
                tuple(prepared["std"]),
                values_in(prepared),
            ),
            bool(entry["pixels"]),
            entry["precision"],
            str(entry["weights"]),
            dict(entry.get("windows", {})),
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{file} does not say how images are prepared for it. Give a file that `poa export` wrote."
        ) from None
