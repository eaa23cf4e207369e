"""A detector out of any timm model: torchvision's Faster and Mask R-CNN, and a cascade of them, on maps of four levels.

Of a plain transformer the maps come from a simple feature pyramid (ViTDet), of others from their stages; a feature
pyramid network (FPN) is laid over both. What comes out is torchvision's own ``GeneralizedRCNN``.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, log2
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from poa.tasks.detection.cascade import Cascade, Masking
from poa.tasks.maps import LEVELS, Maps, Pyramid

RATIOS = (0.5, 1.0, 2.0)
"""Of the height of an anchor to its width."""
_BOX_CELLS, _MASK_CELLS = 7, 14
"""Cells along a side of what is pooled for a box, and for its mask."""
_CANONICAL, _USUAL_CELLS = 224, 8.0
"""A box of so many pixels is pooled from the third level, if anchors have the usual side."""


@dataclass(frozen=True)
class DetectorPlan:
    """What a detector is besides its weights; JSON can hold it.

    Attributes:
        head: ``faster-rcnn``, ``mask-rcnn``, ``cascade-rcnn`` or ``cascade-mask-rcnn``.
        num_classes: Number of classes, without the background.
        mean: Of the channels, of values in 0..1.
        std: Of the channels.
        side: Shorter side of test images in pixels.
        longest: Images are made smaller than that where their longer side were above it, in pixels.
        train_sides: Shorter sides of training images, one of which is drawn for each, in pixels.
        channels: Of the FPN and of the mask head.
        box_head: ``mlp`` (two linear layers), or ``convolutions`` (four and a linear layer).
        box_loss: ``smooth-l1``, or ``giou`` of a cascade.
        hidden: Width of the linear layers.
        anchor_cells: Side of the square anchors in strides of their level.
        regions: Boxes of an image that the heads are trained on.
        min_score: Detections below it are dropped.
        most: Detections of an image.
    """

    head: str
    num_classes: int
    mean: Sequence[float]
    std: Sequence[float]
    side: int
    longest: int
    train_sides: Sequence[int]
    channels: int
    box_head: str
    box_loss: str
    hidden: int
    anchor_cells: float
    regions: int
    min_score: float
    most: int

    @property
    def has_masks(self) -> bool:
        """Whether it predicts masks besides boxes."""
        return "mask" in self.head

    @property
    def is_cascade(self) -> bool:
        """Whether boxes are refined three times."""
        return self.head.startswith("cascade")


class Levels(nn.Module):
    """Five maps of a batch of images, of one number of channels, by name as torchvision's detectors want them.

    Args:
        maps: Of a backbone.
        channels: Of what comes out.

    Attributes:
        strides: Pixels of the image from one cell to the next, of the five.
    """

    def __init__(self, maps: Maps, channels: int) -> None:
        super().__init__()
        self.maps, self.pyramid = maps, Pyramid(maps.levels)
        levels = self.pyramid.levels
        self.strides = (*(level.stride for level in levels), 2 * levels[-1].stride)
        self.fpn = FeaturePyramidNetwork(
            [level.channels for level in levels], channels, extra_blocks=LastLevelMaxPool()
        )

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        """The maps, the finest first.

        Args:
            images: Normalised; sides are multiples of that of ``maps``.
        """
        found = self.pyramid(self.maps(images))
        named: dict[str, Tensor] = self.fpn(OrderedDict((str(number), each) for number, each in enumerate(found)))
        return named


class Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's anchors at strides that are known and need not be whole (3.5 pixels of patches of 14).

    Args:
        strides: Of the levels in pixels.
        cells: Side of the square ones in strides.
    """

    def __init__(self, strides: Sequence[float], cells: float) -> None:
        super().__init__(tuple((stride * cells,) for stride in strides), (RATIOS,) * len(strides))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Boxes of all levels, for each image.

        Args:
            image_list: The batch.
            feature_maps: Of each level.
        """
        device, dtype = feature_maps[0].device, feature_maps[0].dtype
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        self.set_cell_anchors(dtype, device)
        boxes = torch.cat(self.grid_anchors([list(each.shape[-2:]) for each in feature_maps], strides))
        return [boxes for _ in image_list.image_sizes]


class Resizing(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's preparation of images, but for a resize that does not alias where it makes images much smaller.

    Args:
        plan: Mean, standard deviation and sides.
        multiple: Of the sides of the batch, in pixels.
    """

    def __init__(self, plan: DetectorPlan, *, multiple: int) -> None:
        sides, mean, std = list(plan.train_sides), list(plan.mean), list(plan.std)
        super().__init__(sides, plan.longest, mean, std, size_divisible=multiple)
        self.side = plan.side

    def resize(
        self, image: Float[Tensor, "3 _height _width"], target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The image at the sides of a test, or at drawn ones in training; boxes and masks likewise.

        Args:
            image: Normalised.
            target: Its objects.
        """
        height, width = image.shape[1:]
        side = self.torch_choice(self.min_size) if self.training else self.side
        sides = fitted(height, width, shorter=side, longest=self.max_size)
        image = F.interpolate(image[None], size=sides, mode="bilinear", antialias=True, align_corners=False)[0]
        if target is None:
            return image, None
        target = {**target, "boxes": resize_boxes(target["boxes"], (height, width), sides)}
        if "masks" in target:
            target["masks"] = _resized_masks(target["masks"], sides)
        return image, target


def fitted(height: int, width: int, *, shorter: int, longest: int) -> tuple[int, int]:
    """Height and width of an image with the shorter side wanted, or else with the longer one allowed.

    Args:
        height: Before, in pixels.
        width: Before, in pixels.
        shorter: Wanted, in pixels.
        longest: Allowed, in pixels.
    """
    ratio = min(shorter / min(height, width), longest / max(height, width))
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def _resized_masks(masks: UInt8[Tensor, "things height width"], sides: tuple[int, int]) -> Tensor:
    return F.interpolate(masks[:, None].float(), size=sides, mode="nearest-exact")[:, 0].to(torch.uint8)


def build_detector(backbone: nn.Module, plan: DetectorPlan) -> Any:
    """Put a detector together; its new layers are drawn by torch's global generator.

    Args:
        backbone: A timm model; becomes a part of it.
        plan: What to build.

    Returns:
        torchvision's ``GeneralizedRCNN``: images, each RGB in 0..1 of its own size, in; in training with targets, which
        give losses by name, else boxes, labels from 1, scores and masks for each image.

    Raises:
        UserError: The backbone has no maps for a detector.
    """
    return detector_on(Maps(backbone, image_size=(plan.side, plan.longest)), plan)


def detector_on(maps: Maps, plan: DetectorPlan) -> Any:
    """Put a detector together, as ``build_detector``.

    Args:
        maps: Of its backbone.
        plan: What to build.

    Raises:
        UserError: There are neither one nor four maps.
    """
    levels = Levels(maps, plan.channels)
    heads = _cascade(plan, levels) if plan.is_cascade else _heads(plan, levels)
    return GeneralizedRCNN(levels, _proposals(plan, levels), heads, Resizing(plan, multiple=maps.multiple))


def _proposals(plan: DetectorPlan, levels: Levels) -> nn.Module:
    """The network that proposes boxes, with torchvision's settings."""
    anchors = Anchors(levels.strides, plan.anchor_cells)
    network: nn.Module = RegionProposalNetwork(
        anchors,
        RPNHead(plan.channels, len(RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2000, "testing": 1000},
        post_nms_top_n={"training": 2000, "testing": 1000},
        nms_thresh=0.7,
    )
    return network


def _heads(plan: DetectorPlan, levels: Levels) -> nn.Module:
    predictor = FastRCNNPredictor(plan.hidden, plan.num_classes + 1)
    heads: Any = RoIHeads(
        _pool(plan, levels, _BOX_CELLS),
        _box_head(plan),
        predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        bbox_reg_weights=None,
        **_sampling(plan),
    )
    if plan.has_masks:
        heads.mask_roi_pool, heads.mask_head, heads.mask_predictor = _masking(plan, levels)
    return heads  # type: ignore[no-any-return]


def _cascade(plan: DetectorPlan, levels: Levels) -> nn.Module:
    return Cascade(
        _pool(plan, levels, _BOX_CELLS),
        lambda: _box_head(plan),
        hidden=plan.hidden,
        num_classes=plan.num_classes,
        box_loss=plan.box_loss,
        masking=_masking(plan, levels) if plan.has_masks else None,
        **_sampling(plan),
    )


def _sampling(plan: DetectorPlan) -> dict[str, Any]:
    return {
        "batch_size_per_image": plan.regions,
        "positive_fraction": 0.25,
        "score_thresh": plan.min_score,
        "nms_thresh": 0.5,
        "detections_per_img": plan.most,
    }


def _box_head(plan: DetectorPlan) -> nn.Module:
    if plan.box_head == "mlp":
        plain: nn.Module = TwoMLPHead(plan.channels * _BOX_CELLS**2, plan.hidden)
        return plain
    size = (plan.channels, _BOX_CELLS, _BOX_CELLS)
    head: nn.Module = FastRCNNConvFCHead(size, [plan.channels] * 4, [plan.hidden], norm_layer=_group_norm)
    return head


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(gcd(32, channels), channels)


def _masking(plan: DetectorPlan, levels: Levels) -> Masking:
    return Masking(
        _pool(plan, levels, _MASK_CELLS),
        MaskRCNNHeads(plan.channels, (plan.channels,) * 4, 1),
        MaskRCNNPredictor(plan.channels, plan.channels, plan.num_classes + 1),
    )


def _pool(plan: DetectorPlan, levels: Levels, cells: int) -> nn.Module:
    """RoIAlign on the four finest levels; torchvision would guess strides, powers of two, from the first batch."""
    strides = levels.strides[:LEVELS]
    names, canonical = [str(number) for number in range(LEVELS)], round(_CANONICAL * plan.anchor_cells / _USUAL_CELLS)
    pool: Any = MultiScaleRoIAlign(names, cells, 2, canonical_scale=canonical)
    pool.scales = [1 / stride for stride in strides]
    first, last = (round(log2(stride)) for stride in (strides[0], strides[-1]))
    pool.map_levels = initLevelMapper(first, last, canonical_scale=canonical, canonical_level=4)
    return pool  # type: ignore[no-any-return]
