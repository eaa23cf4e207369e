"""Cascade R-CNN: three box heads one after the other, each trained on what the one before made of its boxes.

Cai and Vasconcelos, arXiv 1712.00726, put together from torchvision's parts: matching at IoU 0.5, 0.6 and 0.7, losses
weighted 1, 0.5 and 0.25, boxes that do not depend on the class, scores averaged over the three.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

IOUS = (0.5, 0.6, 0.7)
"""From which overlap on a box counts as that of an object, by stage."""
WEIGHTS = (1.0, 0.5, 0.25)
"""Of the losses of each stage."""
_SCALES = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""Of the changes of a box that each stage predicts: of its centre and of its sides."""
_GIOU_WEIGHT = 10.0
_BETA = 1 / 9
"""Where the smooth L1 loss turns from a square to a line, as of torchvision."""

Boxes = list[Tensor]
"""Of each image, corners in pixels."""
Sides = Sequence[tuple[int, int]]
"""Height and width of each image, in pixels."""
Targets = Sequence[Mapping[str, Tensor]]
"""Boxes, labels from 1 and masks of each image."""


class Predictor(nn.Module):
    """Scores of the classes of a box (with the background), and how to change it whatever its class."""

    def __init__(self, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(hidden, num_classes), nn.Linear(hidden, 4)

    def forward(
        self, pooled: Float[Tensor, "boxes hidden"]
    ) -> tuple[Float[Tensor, "boxes classes"], Float[Tensor, "boxes 4"]]:
        """Scores and changes of boxes."""
        return self.cls_score(pooled), self.bbox_pred(pooled)


class Cascade(nn.Module):
    """Heads of a detector, in the place of torchvision's ``RoIHeads``.

    The mask head is trained on the boxes of the first stage, and is tested on those of the last one (as Detectron2).

    Args:
        box_pool: Pools the maps in a box.
        box_head: Makes the layers of a stage.
        hidden: Width of their output.
        num_classes: Without the background.
        box_loss: ``smooth-l1``, or ``giou``, ten times.
        masks: The parts ``mask_roi_pool``, ``mask_head`` and ``mask_predictor``, or none of them.
        sampling: How boxes are drawn in training and chosen in a test, by the names of ``RoIHeads``.
    """

    def __init__(
        self,
        box_pool: nn.Module,
        box_head: Callable[[], nn.Module],
        *,
        hidden: int,
        num_classes: int,
        box_loss: str,
        masks: Mapping[str, nn.Module],
        **sampling: Any,
    ) -> None:
        super().__init__()
        self._has_giou, self._has_masks = box_loss == "giou", bool(masks)
        self.stages = nn.ModuleList(
            RoIHeads(
                box_pool,
                box_head(),
                Predictor(hidden, num_classes + 1),
                fg_iou_thresh=iou,
                bg_iou_thresh=iou,
                bbox_reg_weights=scales,
                **sampling,
            )
            for iou, scales in zip(IOUS, _SCALES, strict=True)
        )
        for name, part in masks.items():
            self.add_module(name, part)

    def forward(
        self,
        features: Mapping[str, Tensor],
        proposals: Boxes,
        image_shapes: Sides,
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image, or losses by name in training, from maps by name and boxes to begin with."""
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(
        self,
        features: Mapping[str, Tensor],
        proposals: Boxes,
        image_shapes: Sides,
        targets: Targets,
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for number, (stage, weight) in enumerate(zip(self.stages, WEIGHTS, strict=True)):
            heads: Any = stage
            boxes, matched, labels, goals = heads.select_training_samples(list(proposals), targets)
            logits, changes = _predicted(heads, features, boxes, image_shapes)
            all_labels, all_boxes = torch.cat(labels), torch.cat(boxes)
            losses[f"loss_classifier_{number}"] = weight * F.cross_entropy(logits, all_labels)
            losses[f"loss_box_reg_{number}"] = weight * self._box_loss(
                heads.box_coder, changes, torch.cat(goals), all_boxes, all_labels
            )
            if number == 0 and self._has_masks:
                losses["loss_mask"] = self._mask_loss(features, boxes, matched, labels, image_shapes, targets)
            refined = _refined(heads.box_coder, changes.detach(), boxes, image_shapes)
            proposals = [
                _without(new, old, target["boxes"]) for new, old, target in zip(refined, boxes, targets, strict=True)
            ]
        return losses

    def _box_loss(
        self,
        coder: Any,
        changes: Float[Tensor, "boxes 4"],
        goals: Float[Tensor, "boxes 4"],
        boxes: Float[Tensor, "boxes 4"],
        labels: Int[Tensor, " boxes"],
    ) -> Float[Tensor, ""]:
        """Summed over the boxes of objects, divided by the number of all."""
        wanted = labels > 0
        changes, goals, boxes = changes[wanted], goals[wanted], boxes[wanted]
        if self._has_giou:
            predicted, true = (coder.decode_single(each, boxes) for each in (changes, goals))
            total: Tensor = _GIOU_WEIGHT * generalized_box_iou_loss(predicted, true, reduction="sum")
        else:
            total = F.smooth_l1_loss(changes, goals, beta=_BETA, reduction="sum")
        return total / labels.numel()

    def _mask_loss(
        self,
        features: Mapping[str, Tensor],
        boxes: Boxes,
        matched: list[Tensor],
        labels: list[Tensor],
        image_shapes: Sides,
        targets: Targets,
    ) -> Tensor:
        of_objects = [each > 0 for each in labels]
        boxes, matched = (
            [each[kept] for each, kept in zip(of_all, of_objects, strict=True)] for of_all in (boxes, matched)
        )
        logits = self._masks(features, boxes, image_shapes)
        masks, true_labels = ([target[name] for target in targets] for name in ("masks", "labels"))
        loss: Tensor = maskrcnn_loss(logits, boxes, masks, true_labels, matched)
        return loss

    def _masks(self, features: Mapping[str, Tensor], boxes: Boxes, image_shapes: Sides) -> Tensor:
        heads: Any = self
        logits: Tensor = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, image_shapes)))
        return logits

    def _detections(self, features: Mapping[str, Tensor], boxes: Boxes, image_shapes: Sides) -> list[dict[str, Tensor]]:
        likely = []
        for stage in self.stages:
            heads: Any = stage
            before = boxes
            logits, changes = _predicted(heads, features, boxes, image_shapes)
            likely.append(logits.softmax(dim=1))
            boxes = _refined(heads.box_coder, changes, boxes, image_shapes)
        mean = torch.stack(likely).mean(dim=0)
        # torchvision takes the softmax of what it is given, and wants the changes of each class
        chosen = heads.postprocess_detections(mean.log(), changes.repeat(1, mean.shape[1]), before, image_shapes)
        found = [dict(zip(("boxes", "scores", "labels"), each, strict=True)) for each in zip(*chosen, strict=True)]
        if self._has_masks:
            logits = self._masks(features, [each["boxes"] for each in found], image_shapes)
            masks = maskrcnn_inference(logits, [each["labels"] for each in found])
            found = [{**each, "masks": mask} for each, mask in zip(found, masks, strict=True)]
        return found


def _predicted(heads: Any, features: Mapping[str, Tensor], boxes: Boxes, image_shapes: Sides) -> tuple[Tensor, Tensor]:
    """Scores and changes of all boxes, those of the first image first."""
    found: tuple[Tensor, Tensor] = heads.box_predictor(
        heads.box_head(heads.box_roi_pool(features, boxes, image_shapes))
    )
    return found


def _refined(coder: Any, changes: Tensor, boxes: Boxes, image_shapes: Sides) -> Boxes:
    """Boxes as a stage changes them, cut off at the edges of their image."""
    # shapes, unlike lengths, stay numbers of boxes when a network is traced
    changed = coder.decode_single(changes, torch.cat(boxes)).split([each.shape[0] for each in boxes])
    return [clip_boxes_to_image(each, shape) for each, shape in zip(changed, image_shapes, strict=True)]


def _without(
    refined: Float[Tensor, "boxes 4"], before: Float[Tensor, "boxes 4"], true: Float[Tensor, "objects 4"]
) -> Float[Tensor, "_left 4"]:
    """What came of boxes that were not true ones, which join every stage anew."""
    is_true = (before[:, None] == true[None]).all(dim=2).any(dim=1)
    return refined[~is_true]
