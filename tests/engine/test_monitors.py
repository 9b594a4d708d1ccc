"""Monitored metrics against the evaluations of a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook, EarlyStoppingHook

from gersp_mm.engine.preflight.monitors import check_monitors


def metric(name, default_prefix, **more):
    body = dict(default_prefix=default_prefix, process=None, compute_metrics=None, **more)
    return type(name, (BaseMetric,), body)()


METRICS = dict(
    classification=metric("Accuracy", "accuracy", topk=(1, 3)),
    detection=metric("CocoMetric", "coco"),
    rotated=metric("DOTAMetric", "dota"),
    segmentation=metric("IoUMetric", None),
    own=metric("MyMetric", "mine"),
    unknown=metric("MyMetric", None),
)
CASES = [
    ("classification", "accuracy/top1", None),
    ("classification", "accuracy/top3_thr-0.50", None),
    ("classification", "accuracy/top5", "Choose one of accuracy/top1, accuracy/top3"),
    ("classification", "acc/top1", "Did you mean accuracy/top1"),
    ("detection", "coco/bbox_mAP_50", None),
    ("detection", "bbox_mAP", "Did you mean coco/bbox_mAP?"),
    ("rotated", "dota/AP50", None),
    ("rotated", "mAP", "Choose one of dota/mAP, dota/AP50"),
    ("segmentation", "mIoU", None),
    ("segmentation", "mIou", "Did you mean mIoU"),
    ("own", "mine/a", None),
    ("own", "a", "Choose one of mine/…"),
    ("unknown", "anything", None),
]


@pytest.mark.parametrize("kind, name, text", CASES)
def test_names_of_the_hosts_metrics(kind, name, text):
    stop = EarlyStoppingHook(name, rule="greater")
    best = CheckpointHook(save_best=[name], rule="greater")
    loop = SimpleNamespace(evaluator=Evaluator([METRICS[kind]]))
    runner = SimpleNamespace(hooks=[stop, best], val_loop=loop, param_schedulers=None)
    found = list(check_monitors(runner))
    assert len(found) == (0 if text is None else 2)
    assert all(text in finding.text and repr(name) in finding.text for finding in found)
