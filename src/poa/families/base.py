"""What a family of backbones has to say so that any size of it can be cut, trained and handed out."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from poa.elastic.space import SearchSpace, Size


class Features(NamedTuple):
    """What a backbone makes of a batch of images.

    Attributes:
        cls: One vector an image.
        patches: One vector a patch, row by row.
    """

    cls: Float[Tensor, "batch width"]
    patches: Float[Tensor, "batch patches width"]


class Backbone(nn.Module):
    """A plain timm model plus the mask token that stands in for hidden patches.

    Attributes:
        model: The timm model; all that is handed out.
    """

    model: nn.Module

    @property
    def num_features(self) -> int:
        """Width of the features."""
        raise NotImplementedError

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The repeated parts of the network, worth compiling one by one."""
        raise NotImplementedError

    def forward(
        self, images: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch patches"] | None = None
    ) -> Features:
        """Features of a batch of images, the masked patches hidden."""
        raise NotImplementedError


@runtime_checkable
class Family(Protocol):
    """One kind of backbone. Implementations are frozen dataclasses of the settings that all sizes share."""

    @property
    def space(self) -> SearchSpace:
        """All sizes of the run."""

    @property
    def image_size(self) -> int:
        """Side of the square images the networks are made for, in pixels."""

    def build(self, size: Size, *, drop_path: float = 0.0) -> Backbone:
        """A freshly initialised backbone of that size, on the current default device."""

    def source(self, name: str, size: Size) -> str:
        """Name of the intact network's parameter from which a size's parameter is cut (depth selection)."""

    def groups(self, name: str) -> tuple[int, ...]:
        """Number of equal groups along the leading axes of a parameter; missing axes have one group."""

    def layer(self, name: str) -> int | None:
        """Depth of an intact parameter for layer-wise learning rates, from 0 (input); None beyond the last block."""

    @property
    def num_layers(self) -> int:
        """Number of blocks of the intact network."""

    def mask_grid(self, image_size: int) -> int:
        """Rows (and columns) of the grid on which masks are drawn for square images of that size."""

    def timm_config(self, size: Size) -> tuple[str, Mapping[str, Any]]:
        """Architecture name and keyword arguments with which timm builds the same model."""
