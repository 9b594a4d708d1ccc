"""IoU and non-maximum suppression of rotated boxes and of quadrilaterals.

Only pairs whose upright bounding boxes overlap are intersected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gersp_mm.ops.nms import as_float32
from gersp_mm.ops.precision import wide
from gersp_mm.ops.quadrilaterals import shared_area

CELLS_AT_ONCE = 1 << 21  # cells of the table of all pairs
BOXES_AT_ONCE = 128  # boxes that suppress others in one step
NO_AREA = 1e-14  # a smaller box overlaps nothing
SLACK = 1e-5  # margin of a bound for rounding errors

# The corners x1, y1, x2, y2 of pairs, each of shape (4, n), and the areas of both, of shape (n,).
Pairs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _rotated_pairs(first: Tensor, second: Tensor) -> Pairs:
    """Return corners around the middle of each pair of boxes x, y, width, height, angle."""
    middle = (first[:, :2] + second[:, :2]).double() / 2
    corners = []
    for boxes in (first, second):
        x, y = (boxes[:, :2] - middle).to(boxes.dtype).unbind(1)
        width, height = boxes[:, 2], boxes[:, 3]
        angle = boxes[:, 4].double()
        cos, sin = angle.cos().to(x.dtype) * 0.5, angle.sin().to(x.dtype) * 0.5
        xs = [x - sin * height - cos * width, x + sin * height - cos * width]
        ys = [y + cos * height - sin * width, y - cos * height - sin * width]
        corners.append(torch.stack(xs + [2 * x - value for value in xs]))
        corners.append(torch.stack(ys + [2 * y - value for value in ys]))
    return (*corners, first[:, 2] * first[:, 3], second[:, 2] * second[:, 3])  # type: ignore


def _quadrilateral_pairs(first: Tensor, second: Tensor) -> Pairs:
    """Return corners around the middle of each pair of quadrilaterals x, y, x, y, …."""
    corners, areas = [], []
    middles = []
    for axis in (0, 1):
        total = torch.zeros_like(first[:, 0])
        for corner in range(axis, 8, 2):
            total = total + first[:, corner] + second[:, corner]
        middles.append(total.double()[:, None] / 8)
    for shapes in (first, second):
        x, y = ((shapes[:, axis::2] - middles[axis]).to(shapes.dtype).t() for axis in (0, 1))
        dx, dy = x[1:] - x[0], y[1:] - y[0]
        areas.append((dx[:2] * dy[1:] - dx[1:] * dy[:2]).abs().sum(0) / 2)
        corners += [x.contiguous(), y.contiguous()]
    return (*corners, *areas)  # type: ignore[return-value]


def _rotated_bounds(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower and upper ends of the upright bounding boxes, of shape (n, 2)."""
    cos, sin = boxes[:, 4].cos().abs(), boxes[:, 4].sin().abs()
    width, height = boxes[:, 2] / 2, boxes[:, 3] / 2
    half = torch.stack([cos * width + sin * height, sin * width + cos * height], 1)
    return boxes[:, :2] - half, boxes[:, :2] + half


def _quadrilateral_bounds(shapes: Tensor) -> tuple[Tensor, Tensor]:
    corners = shapes.reshape(-1, 4, 2)
    return corners.amin(1), corners.amax(1)


def _is_rotated(shapes: Tensor) -> bool:
    return shapes.shape[1] < 8


def _bounds(shapes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (_rotated_bounds if _is_rotated(shapes) else _quadrilateral_bounds)(shapes)
    slack = SLACK * (high - low + torch.maximum(low.abs(), high.abs()))
    return low - slack, high + slack


def _paired_iou(first: Tensor, second: Tensor, over_first: bool = False) -> Tensor:
    """Return the IoU of each pair of shapes, or the share of the first that is covered."""
    pairs = _rotated_pairs if _is_rotated(first) else _quadrilateral_pairs
    *corners, area1, area2 = pairs(first, second)
    shared = shared_area(*corners)
    whole = area1 if over_first else area1 + area2 - shared
    return torch.where((area1 < NO_AREA) | (area2 < NO_AREA), 0, shared / whole)


def _iou_table(first: Tensor, second: Tensor, over_first: bool = False) -> Tensor:
    """Return the IoU of all pairs, of shape (n, m).

    Args:
        first: Shapes of (n, 5) or (n, 8) numbers.
        second: Shapes of (m, 5) or (m, 8) numbers.
        over_first: Whether to divide by the area of the first shape instead of the union.
    """
    table = first.new_zeros(len(first), len(second))
    if not table.numel():
        return table
    low2, high2 = (t.t().contiguous() for t in _bounds(second))
    rows = max(1, CELLS_AT_ONCE // len(second))
    for start in range(0, len(first), rows):
        low1, high1 = (t.t()[..., None] for t in _bounds(first[start : start + rows]))
        near = (low1[0] <= high2[0]) & (low2[0] <= high1[0])
        near &= (low1[1] <= high2[1]) & (low2[1] <= high1[1])
        row, column = near.nonzero(as_tuple=True)
        row += start
        table[row, column] = _paired_iou(first[row], second[column], over_first)
    return table


def box_iou_rotated(
    boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool
) -> None:
    """Write the IoU of rotated boxes or of quadrilaterals into ``ious``.

    Args:
        boxes1: Centre x and y, width, height and angle in radians, of shape (n, 5), or four
            corners in order, of shape (n, 8).
        boxes2: Boxes of shape (m, 5) or (m, 8).
        ious: Tensor for the result: n x m elements, or n if boxes are compared one by one.
        mode_flag: 0 divides by the area of the union, 1 by that of the first box.
        aligned: Whether box i is compared only with box i.
    """
    first, second = wide(boxes1, boxes2)
    compute = _paired_iou if aligned else _iou_table
    ious.copy_(compute(first, second.to(first), bool(mode_flag)).view(ious.shape))


box_iou_quadri = box_iou_rotated


def _greedy(shapes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of the shapes that no better shape overlaps by the threshold or more."""
    threshold = as_float32(iou_threshold)
    left = scores.sort(descending=True, stable=True)[1]
    kept = [left[:0]]
    while len(left):
        block, left = left[:BOXES_AT_ONCE], left[BOXES_AT_ONCE:]
        close = (_iou_table(shapes[block], shapes[block]) >= threshold).cpu().numpy()
        alive = [True] * len(block)
        for number in range(len(block)):
            if alive[number]:
                for other in close[number, number + 1 :].nonzero()[0]:
                    alive[number + 1 + other] = False
        block = block[torch.tensor(alive, device=block.device)]
        kept.append(block)
        if len(left):
            left = left[(_iou_table(shapes[block], shapes[left]) < threshold).all(0)]
    return torch.cat(kept)


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: int,
) -> Tensor:
    """Return the indices of the rotated boxes that no better box overlaps too much.

    Args:
        dets: Boxes as in :func:`box_iou_rotated`, of shape (n, 5), or (n, 6) with labels.
        scores: Scores of shape (n,).
        order: Not used.
        dets_sorted: Not used.
        labels: Not used, as in mmcv's operator for CPUs.
        iou_threshold: IoU from which the worse box is removed.
        multi_label: Not used.
    """
    dets, scores = wide(dets[:, :5], scores)
    return _greedy(dets, scores, iou_threshold)


def nms_quadri(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    iou_threshold: float,
    multi_label: int,
) -> Tensor:
    """Return the indices of the kept quadrilaterals; see :func:`nms_rotated`."""
    dets, scores = wide(dets[:, :8], scores)
    return _greedy(dets, scores, iou_threshold)
