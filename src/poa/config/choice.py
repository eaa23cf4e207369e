"""Settings of measuring networks and of choosing one: at once flags and arguments. Imports no torch."""

from typing import Literal

from poa.config.values import Count, Finite, Positive, Settings
from poa.errors import UserError


class MeasureSettings(Settings):
    """How networks are timed."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where networks run."""
    runtime: Literal["torch", "onnx"] = "torch"
    """What runs them: PyTorch, or ONNX Runtime, for which each is exported first."""
    threads: Count = 1
    """Threads of the processor that a network computes with."""
    batch: Count = 1
    """Images in one pass."""
    seconds: Positive = 60.0
    """Time for all passes of all networks; at least three rounds are made, however long they take."""

    def check(self) -> None:
        """ONNX Runtime runs on the processor."""
        if self.runtime == "onnx" and self.device == "cuda":
            raise UserError("--runtime onnx runs on the CPU. Leave out --device cuda, or choose --runtime torch.")


class Limits(Settings):
    """What the size has to keep to."""

    max_ms: Positive | None = None
    """Most milliseconds that a batch may take."""
    max_mb: Positive | None = None
    """Most megabytes of the file."""
    max_memory_mb: Positive | None = None
    """Most megabytes of weights and intermediate results while the network runs."""
    max_gmacs: Positive | None = None
    """Most multiply-adds for one image, in thousand millions (half the FLOPs)."""
    max_million_parameters: Positive | None = None
    """Most parameters, in millions."""
    min_score: Finite | None = None
    """Least score, in percent. With no other limit, the fastest size that reaches it is chosen."""
