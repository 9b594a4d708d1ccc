import math

import numpy as np
import pytest
import torch
from mmcv.ops import box_iou_quadri, box_iou_rotated, nms_quadri, nms_rotated

from gersp_mm.ops.swap import our_operators
from tests.ops.support import assert_as_compiled, beside_compiled


def rotated(count: int, span: float = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(count, 5, generator=generator)
    angles = (numbers[:, 4:] - 0.5) * math.pi
    return torch.cat([numbers[:, :2] * span, 5 + numbers[:, 2:4] * span / 3, angles], 1)


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Return the corners of rotated boxes in order, of shape (n, 8)."""
    cos, sin = boxes[:, 4].cos()[:, None], boxes[:, 4].sin()[:, None]
    right = boxes[:, 2:3] / 2 * torch.cat([cos, sin], 1)
    down = boxes[:, 3:4] / 2 * torch.cat([-sin, cos], 1)
    center = boxes[:, :2]
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return torch.cat([center + a * right + b * down for a, b in signs], 1)


def moved(boxes: torch.Tensor, share: float) -> torch.Tensor:
    """Move boxes along their own first side."""
    boxes = boxes.clone()
    boxes[:, 0] += share * boxes[:, 2] * boxes[:, 4].cos()
    boxes[:, 1] += share * boxes[:, 2] * boxes[:, 4].sin()
    return boxes


def cases() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    boxes = rotated(60)
    upright = boxes * torch.tensor([1, 1, 1, 1, 0.0])
    inner = boxes * torch.tensor([1, 1, 0.5, 0.5, 1])
    flat = boxes * torch.tensor([1, 1, 1, 0.0, 1])
    return {
        "random": (boxes, rotated(50, seed=1)),
        "empty": (boxes[:0], boxes),
        "one": (boxes[:1], boxes[:1]),
        "identical": (boxes, boxes),
        "touching": (boxes, moved(boxes, 1)),
        "on one line": (boxes, moved(boxes, 0.5)),
        "upright": (upright, moved(upright, 0.5)),
        "inner": (boxes, inner),
        "no area": (boxes, flat),
        "huge": (rotated(60, 1e6), rotated(50, 1e6, seed=1)),
    }


@beside_compiled
@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_iou_is_as_compiled(name, mode):
    first, second = cases()[name]
    assert_as_compiled(lambda a, b: box_iou_rotated(a, b, mode), first, second)
    assert_as_compiled(lambda a, b: box_iou_rotated(a, b, mode, clockwise=False), first, second)
    assert_as_compiled(lambda a, b: box_iou_quadri(a, b, mode), corners(first), corners(second))
    count = min(len(first), len(second))
    for operator, kind in ((box_iou_rotated, lambda boxes: boxes), (box_iou_quadri, corners)):
        assert_as_compiled(lambda a, b, operator=operator: operator(a, b, mode, aligned=True),
                           kind(first[:count]), kind(second[:count]))  # fmt: skip


@beside_compiled
@pytest.mark.parametrize("name", cases())
def test_nms_is_as_compiled(name):
    boxes = torch.cat(cases()[name])
    scores = torch.rand(len(boxes), generator=torch.Generator().manual_seed(2))
    for threshold in (0.1, 0.5):
        assert_as_compiled(lambda b, s, t=threshold: nms_rotated(b, s, t), boxes, scores)
        assert_as_compiled(lambda b, s, t=threshold: nms_rotated(b, s, t),
                           boxes.double(), scores.double())  # fmt: skip
        assert_as_compiled(lambda b, s, t=threshold: nms_quadri(b, s, t), corners(boxes), scores)


@pytest.mark.parametrize("angle", [0.0, 0.3, -1.2])
def test_iou_by_hand(angle):
    box = torch.tensor([[50, 40, 20, 10, 0.0]])
    others = torch.tensor([
        [50, 40, 20, 10, 0],  # the same
        [50, 40, 10, 20, 0],  # a cross
        [50, 40, 10, 5, 0.5],  # inside
        [50, 40, 10, 10, math.pi / 4],  # a square on its corner: two of these are cut off
        [90, 40, 20, 10, 0],  # apart
        [50, 40, 20, 0, 0],  # without area
    ])  # fmt: skip
    cut = 2 * (5 * math.sqrt(2) - 5) ** 2
    expected = [1, 100 / 300, 50 / 200, (100 - cut) / (200 + cut), 0, 0]
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    for boxes in (box, others):
        boxes[:, :2] = boxes[:, :2] @ turn
        boxes[:, 4] += angle
    with our_operators():
        iou = box_iou_rotated(box, others)[0]
        covered = box_iou_rotated(others, box, mode="iof")[:, 0]
        mirrored = box_iou_rotated(*(b * torch.tensor([1, -1, 1, 1, 1]) for b in (box, others)),
                                   clockwise=False)[0]  # fmt: skip
        by_corners = box_iou_quadri(corners(box), corners(others))[0]
        half = box_iou_rotated(box.double(), others.double(), aligned=False)[0]
    for found in (iou, mirrored, by_corners, half):
        assert found.tolist() == pytest.approx(expected, abs=2e-6)
    assert covered.tolist() == pytest.approx([1, 0.5, 1, 1 - cut / 100, 0, 0], abs=2e-6)


def test_boxes_far_from_each_other_are_not_cut(monkeypatch):
    from gersp_mm.ops import rotated_boxes

    cut = []
    monkeypatch.setattr(
        rotated_boxes, "shared_area", lambda *c: cut.append(c[0].shape[1]) or c[0][0] * 0
    )
    boxes = torch.tensor([[x, 0, 10, 4, 0.5] for x in range(0, 1000, 20)])
    with our_operators():
        box_iou_rotated(boxes, boxes)
    assert cut == [50]


def test_nms_keeps_what_the_rule_keeps():
    boxes = rotated(300)  # in more than two blocks
    scores = torch.rand(300, generator=torch.Generator().manual_seed(5))
    with our_operators():
        table = box_iou_rotated(boxes, boxes).numpy()
        dets, kept = nms_rotated(boxes, scores, 0.3)
        _, by_corners = nms_quadri(corners(boxes), scores, 0.3)
    expected: list[int] = []
    for i in np.argsort(-scores.numpy(), kind="stable"):
        if not (table[i, expected] >= np.float32(0.3)).any():
            expected.append(int(i))
    assert kept.tolist() == expected == by_corners.tolist()
    assert torch.equal(dets, torch.cat([boxes[kept], scores[kept, None]], 1))
