"""Checks of metrics that choose the best checkpoint, end a run or lower its learning rate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mmengine.hooks import CheckpointHook, EarlyStoppingHook

from gersp_mm.checkpoints.resume import flat_schedulers
from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.utils.errors import listed, nearest

# Names of the hosts' metrics by class: a pattern, and the names to show.
NAMES = {
    "SingleLabelMetric": (
        r"single-label/(precision|recall|f1-score|support)(_\S+)?",
        ["single-label/precision", "single-label/recall", "single-label/f1-score"],
    ),
    "CocoMetric": (
        r"coco/((bbox|segm|proposal)_mAP(_50|_75|_s|_m|_l)?|.+_precision|AR@\d+|AR_[sml]@\d+"
        r"|mAP_copypaste|(bbox|segm)_mAP_copypaste)",
        ["coco/bbox_mAP", "coco/bbox_mAP_50", "coco/bbox_mAP_75"],
    ),
    "DOTAMetric": (r"dota/(mAP|AP\d+)", ["dota/mAP", "dota/AP50"]),
    "IoUMetric": (r"aAcc|m(IoU|Acc|Dice|Fscore|Precision|Recall)", ["aAcc", "mIoU", "mAcc"]),
}


def check_monitors(runner: Any) -> Iterator[Finding]:
    """Find a monitored metric that no evaluation of the run computes."""
    given = _given(runner)
    for field, name in _monitored(runner):
        if given is None or any(re.fullmatch(pattern, name) for pattern, _ in given):
            continue
        names = [example for _, examples in given for example in examples]
        if not names:
            yield Finding(
                field,
                f"{field}={name!r} monitors a metric, but the run evaluates nothing.",
                "Add a KNNEvalHook (pre-training) or val_dataloader, val_cfg and val_evaluator, or "
                "remove the monitor.",
            )
        elif name != "auto":
            close = nearest(name, names, 0.6)
            hint = f"Did you mean {close}? " if close else ""
            yield Finding(
                field,
                f"{field}={name!r} is computed by no evaluation of the run.",
                f"{hint}Choose one of {listed(names)}.",
            )


def _monitored(runner: Any) -> Iterator[tuple[str, str]]:
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            names = [hook.save_best] if isinstance(hook.save_best, str) else hook.save_best
            yield from (("default_hooks.checkpoint.save_best", str(name)) for name in names)
        if isinstance(hook, EarlyStoppingHook):
            yield "EarlyStoppingHook: monitor", str(hook.monitor)
    for number, scheduler in enumerate(flat_schedulers(runner.param_schedulers)):
        if getattr(scheduler, "need_val_args", False) and hasattr(scheduler, "monitor"):
            yield f"param_scheduler.{number}.monitor", str(scheduler.monitor)


def _accuracies(metric: Any) -> tuple[str, list[str]] | None:
    """Return a pattern and the names of mmpretrain's ``Accuracy``, one for each of its ``topk``."""
    if type(metric).__name__ != "Accuracy":
        return None
    names = [f"accuracy/top{k}" for k in metric.topk]
    return rf"({'|'.join(names)})(_thr-[\d.]+)?", names


def _given(runner: Any) -> list[tuple[str, list[str]]] | None:
    """Return patterns and examples of all metrics' names, or None if they are not known."""
    given = []
    for hook in runner.hooks:
        given += [(re.escape(name), [name]) for name in getattr(hook, "metric_names", ())]
    evaluator = getattr(runner.val_loop, "evaluator", None) if runner.val_loop else None
    for metric in getattr(evaluator, "metrics", ()):
        prefix = getattr(metric, "prefix", None)
        known = _accuracies(metric) or NAMES.get(type(metric).__name__)
        own = known is not None and (prefix is None or known[1][0].startswith(f"{prefix}/"))
        if known is not None and own:
            given.append(known)
        elif prefix:
            given.append((re.escape(prefix) + "/.+", [f"{prefix}/…"]))
        else:
            return None
    return given
