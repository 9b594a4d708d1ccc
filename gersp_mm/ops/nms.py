"""Non-maximum suppression of upright boxes."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from gersp_mm.ops.precision import wide


def as_float32(value: float) -> float:
    """Round a threshold to float32, as the compiled operators do."""
    return torch.tensor(value, dtype=torch.float32).item()


def _shifted(boxes: Tensor, offset: int) -> Tensor:
    """Return boxes whose sides are longer by the offset, which is 1 if pixels are counted."""
    return boxes + boxes.new_tensor([0, 0, offset, offset]) if offset else boxes


def _overlaps(box: Tensor, boxes: Tensor) -> Tensor:
    """Return the IoU of one box of shape (4,) with boxes of shape (n, 4)."""
    low = torch.maximum(box[:2], boxes[:, :2])
    high = torch.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    area = (box[2:] - box[:2]).prod()
    return shared / (area + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that no better box overlaps by more than the threshold.

    Args:
        boxes: Corners x1, y1, x2, y2, of shape (n, 4).
        scores: Scores of shape (n,).
        iou_threshold: Largest IoU of two boxes that are both kept.
        offset: 1 if a side is x2 - x1 + 1 long, else 0.
    """
    boxes, scores = wide(boxes, scores)
    return torchvision.ops.nms(_shifted(boxes, offset), scores, as_float32(iou_threshold))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap better ones; drop those that fall too low.

    Args:
        boxes: Corners, of shape (n, 4).
        scores: Scores of shape (n,).
        dets: Tensor for boxes and scores in their new order, of shape (n, 5).
        iou_threshold: IoU from which a score is lowered; the Gaussian lowers all scores.
        sigma: Width of the Gaussian.
        min_score: Score below which boxes are dropped.
        method: 0 sets scores to 0, 1 multiplies by 1 - IoU, 2 by a Gaussian of the IoU.
        offset: See :func:`nms`.

    Returns:
        Indices of the kept boxes, in the order of ``dets``.
    """
    sides = _shifted(boxes, offset)
    order = torch.arange(len(boxes), device=boxes.device)
    scores = scores.clone()
    place = 0
    while place < len(order):
        best = place + int(scores[place:].argmax())
        swap = torch.tensor([best, place], device=order.device)
        order[[place, best]], scores[[place, best]] = order[swap], scores[swap]
        chosen = order[place]
        dets[place, :4], dets[place, 4] = boxes[chosen], scores[place]
        place += 1
        rest, left = order[place:], scores[place:]
        iou = _overlaps(sides[chosen], sides[rest])
        if method == 2:
            left = left * torch.exp(-(iou * iou) / sigma)
        else:
            lowered = left * (1 - iou) if method == 1 else torch.zeros_like(left)
            left = torch.where(iou >= as_float32(iou_threshold), lowered, left)
        # The last box takes the place of a dropped box, which decides between equal scores.
        stays = ~(left < as_float32(min_score))
        count = int(stays.sum())
        moved = torch.arange(count, device=order.device)
        moved[~stays[:count]] = stays[count:].nonzero()[:, 0].flip(0) + count
        order = torch.cat([order[:place], rest[moved]])
        scores = torch.cat([scores[:place], left[moved]])
    return order


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group every kept box with the boxes that it suppresses.

    Args:
        dets: Corners and score, of shape (n, 5).
        iou_threshold: IoU from which a box is suppressed.

    Returns:
        For each kept box its index and those of its suppressed boxes, by falling score.
    """
    order = dets[:, 4].sort(descending=True, stable=True)[1]
    groups = []
    while len(order):
        first, rest = order[0], order[1:]
        close = _overlaps(dets[first, :4], dets[rest, :4]) >= as_float32(iou_threshold)
        groups.append([int(first), *rest[close].tolist()])
        order = rest[~close]
    return groups
