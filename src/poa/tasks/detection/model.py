"""A detector out of any timm model: torchvision's Faster and Mask R-CNN, and a cascade of them, on maps of four levels.

Of a plain transformer the maps come from a simple feature pyramid (ViTDet), of others from their stages; a feature
pyramid network (FPN) is laid over both. What comes out is torchvision's own ``FasterRCNN`` or ``MaskRCNN``.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, log2
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from poa.tasks.detection.cascade import Cascade
from poa.tasks.maps import LEVELS, Maps, Pyramid

RATIOS = (0.5, 1.0, 2.0)
"""Of the height of an anchor to its width."""
_BOX_CELLS, _MASK_CELLS = 7, 14
"""Cells along a side of what is pooled for a box, and for its mask."""
_CANONICAL, _USUAL_CELLS = 224, 8.0
"""A box of so many pixels is pooled from the third level, if anchors have the usual side."""


@dataclass(frozen=True)
class DetectorPlan:
    """A detector except for its weights, as written beside them (JSON).

    Settings of ``config.detection``, where ``sides`` is ``train_sides`` and ``test_side`` is ``side``; the number of
    classes without the background; mean and standard deviation of the channels, of values in 0..1.
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

    Attributes:
        strides: Pixels of the image from one cell to the next, of the five.
    """

    def __init__(self, maps: Maps, channels: int) -> None:
        super().__init__()
        self.maps, self.pyramid, self.out_channels = maps, Pyramid(maps.levels), channels
        levels = self.pyramid.levels
        self.strides = (*(level.stride for level in levels), 2 * levels[-1].stride)
        self.fpn = FeaturePyramidNetwork(
            [level.channels for level in levels], channels, extra_blocks=LastLevelMaxPool()
        )

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        """The maps of normalised images whose sides are multiples of that of ``maps``, the finest first."""
        return self.merge(self.maps(images))

    def merge(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """The five maps out of those of a backbone."""
        numbered = OrderedDict((str(number), each) for number, each in enumerate(self.pyramid(maps)))
        merged: dict[str, Tensor] = self.fpn(numbered)
        return merged


class Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's anchors at strides that are known and need not be whole (3.5 pixels of patches of 14).

    Args:
        strides: Of the levels in pixels.
        cells: Side of the square anchors in strides.
    """

    def __init__(self, strides: Sequence[float], cells: float) -> None:
        super().__init__(tuple((stride * cells,) for stride in strides), (RATIOS,) * len(strides))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Boxes of all levels, for each image."""
        device, dtype = feature_maps[0].device, feature_maps[0].dtype
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        self.set_cell_anchors(dtype, device)
        boxes = torch.cat(self.grid_anchors([list(each.shape[-2:]) for each in feature_maps], strides))
        return [boxes for _ in image_list.image_sizes]


class Resizing(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's preparation of images, except that it resizes with antialiasing.

    The sides of a batch are made multiples of ``multiple`` pixels.
    """

    def __init__(self, plan: DetectorPlan, *, multiple: int) -> None:
        sides, mean, std = list(plan.train_sides), list(plan.mean), list(plan.std)
        super().__init__(sides, plan.longest, mean, std, size_divisible=multiple)
        self.side = plan.side

    def resize(
        self, image: Float[Tensor, "3 _height _width"], target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """A normalised image at the sides of a test, or at drawn ones in training; boxes and masks likewise."""
        height, width = image.shape[1:]
        side = self.torch_choice(self.min_size) if self.training else self.side
        sides = fitted(height, width, shorter=side, longest=self.max_size)
        image = F.interpolate(image[None], size=sides, mode="bilinear", antialias=True, align_corners=False)[0]
        if target is None:
            return image, None
        target = {**target, "boxes": resize_boxes(target["boxes"], (height, width), sides)}
        if "masks" in target:
            masks = target["masks"][:, None].float()
            target["masks"] = F.interpolate(masks, size=sides, mode="nearest-exact")[:, 0].to(torch.uint8)
        return image, target


def fitted(height: int, width: int, *, shorter: int, longest: int) -> tuple[int, int]:
    """Height and width of an image with the shorter side wanted, or else with the longer one allowed."""
    ratio = min(shorter / min(height, width), longest / max(height, width))
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def build_detector(backbone: nn.Module, plan: DetectorPlan) -> Any:
    """A detector on a timm model, which becomes a part of it; new layers are drawn by torch's global generator.

    It takes images, each RGB in 0..1 of its own size. In training it takes targets too and gives losses by name; else
    it gives boxes, labels from 1, scores and masks of each image.
    """
    return detector_on(Maps(backbone, image_size=(plan.side, plan.longest)), plan)


def detector_on(maps: Maps, plan: DetectorPlan) -> Any:
    """A detector as of ``build_detector`` on the maps of its backbone, of which there must be one or four."""
    levels = Levels(maps, plan.channels)
    cascade = _cascade(plan, levels) if plan.is_cascade else None
    heads = _heads(plan, levels) if cascade is None else {"box_head": nn.Identity(), "box_predictor": nn.Identity()}
    network: Any = (MaskRCNN if "mask_head" in heads else FasterRCNN)(
        levels,
        rpn_anchor_generator=Anchors(levels.strides, plan.anchor_cells),
        box_roi_pool=_pool(plan, levels, _BOX_CELLS),
        box_batch_size_per_image=plan.regions,
        box_score_thresh=plan.min_score,
        box_detections_per_img=plan.most,
        **heads,
    )
    if cascade is not None:
        network.roi_heads = cascade
    network.transform = Resizing(plan, multiple=maps.multiple)
    return network


def _heads(plan: DetectorPlan, levels: Levels) -> dict[str, nn.Module]:
    predictor = FastRCNNPredictor(plan.hidden, plan.num_classes + 1)
    heads = {"box_predictor": predictor, "box_head": _box_head(plan)}
    return heads | _mask_heads(plan, levels) if plan.has_masks else heads


def _mask_heads(plan: DetectorPlan, levels: Levels) -> dict[str, nn.Module]:
    return {
        "mask_roi_pool": _pool(plan, levels, _MASK_CELLS),
        "mask_head": MaskRCNNHeads(plan.channels, (plan.channels,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(plan.channels, plan.channels, plan.num_classes + 1),
    }


def _cascade(plan: DetectorPlan, levels: Levels) -> nn.Module:
    return Cascade(
        _pool(plan, levels, _BOX_CELLS),
        lambda: _box_head(plan),
        hidden=plan.hidden,
        num_classes=plan.num_classes,
        box_loss=plan.box_loss,
        masks=_mask_heads(plan, levels) if plan.has_masks else {},
        batch_size_per_image=plan.regions,
        positive_fraction=0.25,
        score_thresh=plan.min_score,
        nms_thresh=0.5,
        detections_per_img=plan.most,
    )


def _box_head(plan: DetectorPlan) -> nn.Module:
    if plan.box_head == "mlp":
        plain: nn.Module = TwoMLPHead(plan.channels * _BOX_CELLS**2, plan.hidden)
        return plain
    size = (plan.channels, _BOX_CELLS, _BOX_CELLS)
    head: nn.Module = FastRCNNConvFCHead(size, [plan.channels] * 4, [plan.hidden], norm_layer=_group_norm)
    return head


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(gcd(32, channels), channels)


def _pool(plan: DetectorPlan, levels: Levels, cells: int) -> nn.Module:
    """RoIAlign on the four finest levels; torchvision would guess strides, powers of two, from the first batch."""
    strides = levels.strides[:LEVELS]
    names, canonical = [str(number) for number in range(LEVELS)], round(_CANONICAL * plan.anchor_cells / _USUAL_CELLS)
    pool: Any = MultiScaleRoIAlign(names, cells, 2, canonical_scale=canonical)
    pool.scales = [1 / stride for stride in strides]
    first, last = (round(log2(stride)) for stride in (strides[0], strides[-1]))
    pool.map_levels = initLevelMapper(first, last, canonical_scale=canonical, canonical_level=4)
    return pool  # type: ignore[no-any-return]
