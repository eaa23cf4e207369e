"""Settings of the elastic network and of its heads. Imports no torch."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from poa.config.values import Count, NotNegative, Pixels, Positive, Settings, ShareBelowOne

_listed = BeforeValidator(lambda x: (x,) if isinstance(x, int) else x)
Channels = Annotated[int, Field(ge=1, le=2**16)]
Blocks = Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...] | None, _listed]


class ModelSettings(Settings):
    """The elastic network: its sizes and what all of them share. What is not given is as in the named network."""

    name: str = "vit"
    """The intact network: a family as published (vit, swin, resnet, convnext), a timm model such as
    swin_tiny_patch4_window7_224, a folder that timm loads, or your own family, MODULE:CLASS. Short: --model NAME."""
    width_min: Channels | None = None
    """Smallest width, in channels (ResNet: inside the first stage's blocks); by default half the largest."""
    width_max: Channels | None = None
    """Width of the intact network, in channels."""
    width_step: Channels | None = None
    """Step between widths; by default the head dimension (ResNet: 32, ConvNeXt: 16)."""
    widths: Annotated[tuple[Channels, ...] | None, _listed] = None
    """All widths, at any distance from each other, instead of the three settings above."""
    depth_min: Blocks = None
    """Fewest blocks, a number for each elastic stage (ResNet: second and third); by default half of the most."""
    depth_max: Blocks = None
    """Most blocks, those of the intact network; a number for each elastic stage."""
    depth_step: Count = 1
    """Step between depths."""
    depths: Blocks = None
    """Blocks of all four stages of the intact network (all but ViT)."""
    sampling_bias: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] | None = None
    """How much more often the smallest width (and depth) is drawn than the largest; by default 3 for ViT, 2 for the
    others."""
    patch_size: Pixels | None = None
    """Side of a patch, in pixels."""
    head_dim: Channels | None = None
    """Channels of an attention head; widths are multiples of it."""
    window_size: Pixels | None = None
    """Side of an attention window, in patches (Swin)."""
    channels: Channels | None = None
    """A quarter of the output channels of the first stage (ResNet)."""
    norm_groups: Count | None = None
    """Groups of channels that are normalised together (ResNet): 32 as published, or 1, with which small networks learn
    more and widths need not be multiples of 32."""
    avg_down: bool | None = None
    """Shortcuts between a ResNet's stages take the mean of four cells instead of every fourth one (ResNet-D), with
    which small networks learn more."""
    mlp_ratio: Annotated[Positive, Field(le=1000)] | None = None
    """Hidden width of an MLP over the width of its block."""
    layer_scale: NotNegative | None = None
    """Initial LayerScale; 0 for none."""
    register_tokens: Annotated[int, Field(ge=0, le=2**16)] | None = None
    """Number of register tokens (ViT)."""
    swiglu: bool | None = None
    """Gated SiLU instead of GELU in the MLPs (ViT)."""
    global_pool: Literal["token", "avg"] | None = None
    """The feature of an image: the class token, or (avg) the mean of the patches of a ViT without one."""
    fc_norm: bool | None = None
    """The final norm is after the mean of the patches instead of before it (ViT), with which it learns faster."""
    drop_path: ShareBelowOne | None = None
    """Rate of stochastic depth in the students; by default 0.2, and 0 for ResNet."""
    stem: Literal["patch", "conv"] | None = None
    """What a ViT cuts into patches: the image (patch, the default), or the map of a 7x7 convolution and pooling, with a
    quarter of the image's side (conv), with which small ViTs learn more from few small images."""
    stem_init: Literal["random", "whitening"] | None = None
    """First filters of a network that does not start from trained weights: random (the default), or whitening, the
    principal components of the images' patches at equal variance, with which a ViT learns faster that has no
    convolution as its stem."""
    resize_positions: Literal["timm", "official"] | None = None
    """How position tables are resized for other image sizes: as timm does it (extracted sizes then equal the trained
    ones at every image size), or as POA's official code does it."""


class HeadSettings(Settings):
    """The projection heads, one for each number of prototypes."""

    prototypes: Annotated[tuple[Count, ...], Field(min_length=1)] = (8192, 16384, 32768, 65536)
    """Prototypes of each head."""
    layers: Annotated[int, Field(ge=1, le=8)] = 3
    """Linear layers of a head, three as published. One is a linear head, with which small ViTs learn more by the coding
    rate."""
    hidden: Count = 2048
    """Width of the hidden layers."""
    bottleneck: Count = 256
    """Width of the outputs, and so of the prototypes."""
    memory: Literal["normal", "low"] = "normal"
    """Low: the teacher's logits are made again whenever they are needed, instead of being kept for one head at a time.
    It takes more time."""
