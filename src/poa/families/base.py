"""What a family of backbones has to say so that any size of it can be cut, trained and handed out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers import DropPath
from torch import Tensor, nn

from poa.elastic.network import SubNetworks
from poa.elastic.plan import even_blocks
from poa.elastic.space import SearchSpace, Size
from poa.elastic.switchable import SwitchableNetworks
from poa.errors import UserError
from poa.families.wide import widen


class Features(NamedTuple):
    """What a backbone makes of a batch of images.

    Attributes:
        cls: One vector an image.
        patches: One vector a patch, row by row.
    """

    cls: Float[Tensor, "batch width"]
    patches: Float[Tensor, "batch patches width"]


class Stage(NamedTuple):
    """Blocks that follow one another at one resolution.

    Attributes:
        prefix: Of their parameters' names, up to the number of the block.
        blocks: How many there are.
    """

    prefix: str
    blocks: int


class Backbone(nn.Module):
    """A plain timm model plus the mask token that stands in for hidden patches.

    Args:
        model: The timm model; all that is handed out.
        hidden_width: Channels where patches are hidden.
    """

    model: nn.Module
    repeated: ClassVar[tuple[type[nn.Module], ...]]
    """The classes of its blocks."""

    def __init__(self, model: nn.Module, *, hidden_width: int) -> None:
        super().__init__()
        self.model = model
        self.mask_token = nn.Parameter(torch.zeros(hidden_width))

    @property
    def num_features(self) -> int:
        """Width of the features."""
        return int(self.model.num_features)  # type: ignore[arg-type]  # timm's models all have it

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The repeated parts of the network in order, worth compiling one by one."""
        return tuple(module for module in self.model.modules() if isinstance(module, self.repeated))

    def forward(
        self, images: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch patches"] | None = None
    ) -> Features:
        """Features of a batch of images, the masked patches hidden."""
        raise NotImplementedError

    def visible(
        self, images: Float[Tensor, "batch channels height width"], kept: Int[Tensor, "batch kept"]
    ) -> Features:
        """Features of a batch of images of which only some patches are computed; zeros for the other patches."""
        raise NotImplementedError

    def hide(
        self, maps: Float[Tensor, "batch rows columns hidden"], mask: Bool[Tensor, "batch patches"] | None
    ) -> Float[Tensor, "batch rows columns hidden"]:
        """Put the mask token where patches are hidden; each cell of a coarser mask covers several of the map."""
        if mask is None:
            return maps
        side = isqrt(mask.shape[1])
        cells = F.interpolate(mask.view(-1, 1, side, side).to(maps.dtype), size=maps.shape[1:3], mode="nearest")
        return torch.where(cells.permute(0, 2, 3, 1) > 0.5, self.mask_token.to(maps.dtype), maps)


def doubled(maps: Float[Tensor, "batch rows columns width"]) -> Float[Tensor, "batch patches width"]:
    """Every cell of a map four times, as the patches of a grid twice as fine (POA official code, Swin and ResNet).

    The last maps of a hierarchical network are too coarse for masks: 7x7 cells at 224 pixels.
    """
    return maps.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)


@dataclass(frozen=True)
class Family(ABC):
    """One kind of backbone: settings that all sizes share, and how a size differs from the intact network.

    Attributes:
        space: All sizes.
        image_size: Side of the square images the networks are made for, in pixels.
        architecture: A timm architecture; what no setting names is as it has it.
        fused_attention: Use fused attention kernels.
        wide_products: Let linear layers multiply in float32 under autocast.
        in_chans: Channels of the images.
    """

    space: SearchSpace
    image_size: int = 224
    architecture: str = ""
    fused_attention: bool = True
    wide_products: bool = False
    in_chans: int = 3

    smallest_image: ClassVar[int] = 1
    """Side of the smallest images that leave something to see in the last maps, in pixels."""
    width_unit: ClassVar[int]
    """Step between widths where neither it nor a head dimension is set."""
    attention: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Attention layers, which can be fused."""
    network: ClassVar[type[nn.Module]]
    """The class of timm's models of this family."""
    published: ClassVar[Mapping[str, Any]]
    """Settings of the intact network that the family is known for, named as in ``ModelSettings``."""
    elastic: ClassVar[tuple[int, ...]] = (0,)
    """Stages whose depth a size chooses."""
    beyond: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of parameters after the last block."""
    biased_widths: ClassVar[bool] = True
    """Small widths are drawn more often, as small depths are."""

    @property
    def memory_format(self) -> torch.memory_format:
        """How crops lie in memory while networks learn: as is fastest for their layers."""
        return torch.contiguous_format

    def __post_init__(self) -> None:
        self.check_image_size(self.image_size, setting="views.global-size")

    @classmethod
    @abstractmethod
    def read(cls, model: nn.Module) -> dict[str, Any]:
        """Settings of a timm model in shapes only (meta device) as intact network, or why it cannot be cut."""

    @abstractmethod
    def stages(self, size: Size) -> tuple[Stage, ...]:
        """The stages of a size, in order."""

    @abstractmethod
    def arguments(self, size: Size) -> dict[str, Any]:
        """What to tell timm besides the architecture's name to build a size; JSON can hold it."""

    @abstractmethod
    def build(self, size: Size, *, drop_path: float = 0.0) -> Backbone:
        """A freshly initialised backbone of that size, on the current default device."""

    @abstractmethod
    def mask_grid(self, image_size: int) -> int:
        """Rows (and columns) of the grid on which masks are drawn for square images of that size."""

    def sub_networks(
        self, build: Callable[[Size], nn.Module] | None = None, *, castable: Callable[[str], bool] = lambda _: False
    ) -> SubNetworks | SwitchableNetworks:
        """All sizes, to be run in place or handed out.

        Args:
            build: Makes a network of a size around the backbone; the backbone itself if not given.
            castable: Which parameters autocast runs in low precision, see ``SlicePlan.between``.
        """
        return SubNetworks(
            build or self.build, self.space.intact, source=self.source, groups=self.groups, castable=castable
        )

    def groups(self, name: str) -> tuple[int, ...]:  # noqa: ARG002  # families with fused parameters ask for it
        """Number of equal groups along the leading axes of a parameter; missing axes have one group."""
        return ()

    def check_image_size(self, size: int, *, setting: str) -> None:
        """Refuse square images of a size that the networks cannot take, and name the setting that asks for it."""
        if size < self.smallest_image:
            instead = ", or --views.num-locals to 0" if setting == "views.local-size" else ""
            raise UserError(
                f"Images of {size} pixels are too small for the last maps of a {type(self).__name__}. Set "
                f"--{setting} to at least {self.smallest_image}{instead}."
            )

    def timm_config(self, size: Size) -> tuple[str, Mapping[str, Any]]:
        """Architecture name and keyword arguments with which timm builds the same model."""
        of_images = {} if self.in_chans == 3 else {"in_chans": self.in_chans}
        return self.architecture, {"num_classes": 0} | self.arguments(size) | of_images

    def create(self, size: Size, **further: Any) -> Any:
        """The timm model of a size; further arguments matter in training only."""
        architecture, arguments = self.timm_config(size)
        model = timm.create_model(architecture, **arguments, **further)
        for module in model.modules():
            if isinstance(module, self.attention):
                module.fused_attn = bool(module.fused_attn) and self.fused_attention  # type: ignore[assignment]  # untyped
        if self.wide_products:
            widen(model)
        return model

    def source(self, name: str, size: Size) -> str:
        """Name of the intact parameter from which a size's parameter is cut: kept blocks are evenly spread."""
        for whole, part in zip(self.stages(self.space.intact), self.stages(size), strict=True):
            before, found, rest = name.partition(whole.prefix)
            if found and whole.blocks != part.blocks:
                number, _, parameter = rest.partition(".")
                return f"{before}{found}{even_blocks(whole.blocks, part.blocks)[int(number)]}.{parameter}"
        return name

    def layer(self, name: str) -> int | None:
        """Depth of an intact parameter for layer-wise learning rates.

        0 for the input, ``i + 1`` for block i and for what leads to it from the stage before, None beyond the last.
        """
        passed = 0
        for prefix, blocks in self.stages(self.space.intact):
            _, found, rest = name.partition(prefix)
            if found:
                return passed + int(rest.partition(".")[0]) + 1
            parent = prefix.removesuffix("blocks.")
            if parent and f".{parent}" in name:
                return passed + 1
            passed += blocks
        return None if name.removeprefix("backbone.model.").startswith(self.beyond or ("-",)) else 0

    @property
    def num_layers(self) -> int:
        """Layers below the one that learns at the full rate: all blocks, or all but the last where nothing follows."""
        return sum(stage.blocks for stage in self.stages(self.space.intact)) - (0 if self.beyond else 1)

    def drop_path_rates(self, size: Size, rate: float) -> list[float]:
        """Rate of each block: growing evenly to ``rate`` over the intact network, whose rates the kept blocks keep."""
        intact = self.stages(self.space.intact)
        growing = torch.linspace(0.0, rate, sum(stage.blocks for stage in intact), device="cpu").tolist()
        rates, passed = [], 0
        for whole, part in zip(intact, self.stages(size), strict=True):
            rates += [growing[passed + block] for block in even_blocks(whole.blocks, part.blocks)]
            passed += whole.blocks
        return rates


@dataclass(frozen=True)
class Patches(Family):
    """A family that cuts images into patches and has attention heads of one width; as it stands here, a plain ViT.

    Attributes:
        patch_size: Side of a patch, in pixels.
        head_dim: Channels of an attention head; widths are multiples of it.
    """

    patch_size: int = 16
    head_dim: int = 64

    width_unit = 64
    beyond: ClassVar[tuple[str, ...]] = ("norm.",)

    def __post_init__(self) -> None:
        check_widths(self.space, self.head_dim, what="the head dimension", further=", or --model.head-dim")
        super().__post_init__()

    def check_image_size(self, size: int, *, setting: str) -> None:
        """Images are cut into whole patches."""
        below = size // self.patch_size * self.patch_size
        if size != below:
            choices = " or ".join(str(near) for near in (below, below + self.patch_size) if near)
            raise UserError(
                f"The image size {size} is not a multiple of the patch size {self.patch_size}. "
                f"Set --{setting} to {choices}, or change --model.patch-size."
            )

    def stages(self, size: Size) -> tuple[Stage, ...]:
        """One."""
        return (Stage("blocks.", size.depths[0]),)

    def arguments(self, size: Size) -> dict[str, Any]:
        """Those that all of timm's plain vision transformers have."""
        return {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": size.width,
            "depth": size.depths[0],
            "num_heads": size.width // self.head_dim,
        }

    @classmethod
    def shape_of(cls, model: Any) -> dict[str, Any]:
        """Settings that the shapes of a plain vision transformer show."""
        return {
            "width_max": model.embed_dim,
            "depth_max": (len(model.blocks),),
            "patch_size": model.patch_embed.feat_ratio(),
            "head_dim": model.embed_dim // model.blocks[0].attn.num_heads,
        }

    def groups(self, name: str) -> tuple[int, ...]:
        """Fused rows of q, k, v."""
        return (3,) if ".attn.qkv." in name else ()

    def mask_grid(self, image_size: int) -> int:
        """Patches along a side."""
        return image_size // self.patch_size


@dataclass(frozen=True)
class FourStages(Family):
    """A family whose maps shrink from stage to stage, while the channels double.

    Attributes:
        depths: Blocks of the stages; a size has its own in the ``elastic`` ones.
    """

    depths: tuple[int, ...] = ()

    stage_names: ClassVar[tuple[str, ...]] = tuple(f"stages.{number}.blocks." for number in range(4))
    """Beginnings of the names of their blocks' parameters."""

    def blocks_of(self, size: Size) -> tuple[int, ...]:
        """Blocks of each stage of a size."""
        chosen = dict(zip(self.elastic, size.depths, strict=True))
        return tuple(chosen.get(stage, blocks) for stage, blocks in enumerate(self.depths))

    def stages(self, size: Size) -> tuple[Stage, ...]:
        """Four."""
        return tuple(map(Stage, self.stage_names, self.blocks_of(size)))

    def mask_grid(self, image_size: int) -> int:
        """Twice the cells along a side of the last map."""
        return 2 * -(-image_size // 32)


def published_space(
    *,
    width: tuple[int, int],
    depth: tuple[tuple[int, ...], tuple[int, ...]],
    drop_path: float,
    sampling_bias: float,
    **further: Any,
) -> Mapping[str, Any]:
    """Settings of a family's published search space by the names of ``ModelSettings``: smallest and largest values."""
    ends = {"width_min": width[0], "width_max": width[1], "depth_min": depth[0], "depth_max": depth[1]}
    return MappingProxyType({**ends, "drop_path": drop_path, "sampling_bias": sampling_bias, **further})


def set_drop_path(blocks: Iterable[nn.Module], rates: Iterable[float]) -> None:
    """Give each block its own rate of stochastic depth, where timm has a place for it."""
    for block, rate in zip(blocks, rates, strict=True):
        if rate > 0.0:
            for name in [name for name, _ in block.named_children() if name.startswith("drop_path")]:
                setattr(block, name, DropPath(rate))


def check_widths(space: SearchSpace, step: int, *, what: str, further: str = "") -> None:
    """See that all widths are multiples of a step, such as the head dimension."""
    uneven = [size.width for size in space.sizes if size.width % step]
    if uneven:
        raise UserError(
            f"Widths are multiples of {what} {step}, got {uneven[0]}. "
            f"Change --model.width-min, --model.width-max or --model.width-step{further}."
        )
