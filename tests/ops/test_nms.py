import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms, nms, nms_match, soft_nms

from gersp_mm.ops.swap import our_operators
from tests.ops.support import assert_as_compiled, beside_compiled, upright

THRESHOLD = 0.5


def cases() -> dict[str, torch.Tensor]:
    boxes = upright(300)
    return {
        "random": boxes,
        "empty": boxes[:0],
        "one": boxes[:1],
        "identical": boxes[:1].repeat(7, 1),
        "touching": torch.tensor([[0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20.0]]),
        "no area": torch.tensor([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10.0]]),
        "huge": boxes * 1e6,
        "on the threshold": torch.tensor([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 5, 10.0]]),
    }


def scores_of(boxes: torch.Tensor) -> torch.Tensor:
    return torch.rand(len(boxes), generator=torch.Generator().manual_seed(3))


@beside_compiled
@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("offset", [0, 1])
def test_nms_is_as_compiled(name, offset):
    boxes = cases()[name]
    assert_as_compiled(lambda b, s: nms(b, s, THRESHOLD, offset=offset), boxes, scores_of(boxes))


@beside_compiled
@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_is_as_compiled(name, method):
    boxes = cases()[name]
    for scores in (scores_of(boxes), torch.full((len(boxes),), 0.5)):
        assert_as_compiled(
            lambda b, s: soft_nms(b, s, 0.3, min_score=0.1, method=method), boxes, scores
        )


@beside_compiled
def test_groups_are_as_compiled():
    boxes = upright(80)
    dets = torch.cat([boxes, scores_of(boxes)[:, None]], 1)
    compiled = nms_match(dets, THRESHOLD)
    with our_operators():
        ours = nms_match(dets, THRESHOLD)
    assert [group.tolist() for group in ours] == [group.tolist() for group in compiled]


def greedy(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    """Keep boxes one by one, in Python."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        low = np.maximum(boxes[kept, :2], boxes[i, :2])
        high = np.minimum(boxes[kept, 2:], boxes[i, 2:])
        shared = np.clip(high - low, 0, None).prod(1)
        area = lambda b: (b[..., 2:] - b[..., :2]).prod(-1)  # noqa: E731
        iou = shared / (area(boxes[kept]) + area(boxes[i]) - shared)
        if not (iou > threshold).any():
            kept.append(i)
    return kept


def test_nms_keeps_what_the_rule_keeps():
    boxes, scores = upright(120), scores_of(upright(120))
    labels = torch.arange(120) % 3
    with our_operators():
        _, kept = nms(boxes, scores, THRESHOLD)
        _, by_class = batched_nms(boxes, scores, labels, dict(type="nms", iou_threshold=THRESHOLD))
        groups = nms_match(torch.cat([boxes, scores[:, None]], 1), THRESHOLD)
        _, halves = nms(boxes.half(), scores.half(), THRESHOLD)
    expected = greedy(boxes.double().numpy(), scores.numpy(), THRESHOLD)
    assert kept.tolist() == expected == [int(group[0]) for group in groups]
    assert sorted(i for group in groups for i in group.tolist()) == list(range(120))
    parts = [np.flatnonzero(labels == label) for label in range(3)]
    each = [part[greedy(boxes.double().numpy()[part], scores.numpy()[part], THRESHOLD)]
            for part in parts]  # fmt: skip
    assert sorted(by_class.tolist()) == sorted(np.concatenate(each).tolist())
    expected = greedy(boxes.half().double().numpy(), scores.half().numpy(), THRESHOLD)
    assert set(halves.tolist()) == set(expected)


def test_soft_nms_by_hand():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30.0]])
    with our_operators():
        dets, order = soft_nms(boxes, torch.tensor([0.9, 0.8, 0.3]), 0.4, min_score=0.05)
    assert order.tolist() == [0, 1, 2]
    assert dets[:, 4].tolist() == pytest.approx([0.9, 0.4, 0.3])  # 0.8 x (1 - IoU of a half)
