"""Classifiers against the classes of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.config import Config

from gersp_mm.engine.options import value_at
from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.utils.model import unwrap

HEAD = "model.natural_head"
AUTO = "auto"
# Parts of the hosts' models that have one output per class of the data.
HEADS = ("auxiliary_head", "bbox_head", "decode_head", "head", "mask_head")


def fill_class_count(cfg: Config, checkpoint: str | None = None) -> None:
    """Replace ``model.natural_head.num_classes='auto'`` by the number of classes of the data.

    A run that is resumed or tested keeps the number of its checkpoint.

    Args:
        cfg: A config of pre-training; changed in place. Others are left alone.
        checkpoint: The checkpoint whose number counts; that of a run that is resumed by default.

    Raises:
        UserError: The natural images cannot be listed, or the checkpoint cannot be read.
    """
    head = value_at(cfg, HEAD)
    if not isinstance(head, Mapping) or head.get("num_classes") != AUTO:
        return
    if checkpoint is None and cfg.get("resume"):
        checkpoint = cfg.get("load_from")
    count = _count_of_checkpoint(checkpoint) if checkpoint else None
    source = value_at(cfg, "train_dataloader.dataset.natural")
    if count is None and isinstance(source, Mapping):
        count = count_classes(source)
    if count is not None:
        cfg.merge_from_dict({f"{HEAD}.num_classes": count})


def _count_of_checkpoint(path: str) -> int | None:
    from gersp_mm.checkpoints.read import read_checkpoint

    data = read_checkpoint(path).data
    state = data.get("state_dict", data)
    weight = state.get("natural_head.fc.weight")
    return None if weight is None else len(weight)


def count_classes(source: Mapping[str, Any]) -> int:
    """Return the number of classes of a labelled data set.

    Args:
        source: Its config. Where the data set counts its classes without listing its images
            (:class:`gersp_mm.LabelledImages`), they are not listed.
    """
    from gersp_mm.datasets.paired import _build_source
    from gersp_mm.datasets.sources import LabelledImages

    types = ("gersp_mm.LabelledImages", "LabelledImages", LabelledImages)
    lazy = {"lazy_init": True} if source.get("type") in types else {}
    dataset = _build_source("natural", {**source, **lazy})
    if hasattr(dataset, "count_classes"):
        return dataset.count_classes()
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    return len(classes) if classes else int(dataset.get_gt_labels().max()) + 1


def check_natural_classes(runner: Any) -> Iterator[Finding]:
    """Compare the labels of the natural images with the classifier, and log both numbers."""
    head = getattr(unwrap(runner.model), "natural_head", None)
    natural = getattr(runner.train_dataloader.dataset, "natural", None)
    num_classes = getattr(head, "num_classes", None)
    if natural is None or num_classes is None or not hasattr(natural, "get_gt_labels"):
        return
    labels = natural.get_gt_labels()
    needed = int(labels.max()) + 1
    runner.logger.info(
        f"{len(labels)} natural images with labels 0 to {needed - 1}, a classifier of "
        f"{num_classes} classes"
    )
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        info = natural.get_data_info(int(outside[0]))
        yield Finding(
            f"{HEAD}.num_classes",
            num_classes,
            f"{outside.size} of {len(labels)} natural images have a label outside 0 to "
            f"{num_classes - 1}, the first being {info['img_path']} with label "
            f"{info['gt_label']}.",
            f"Set {HEAD}.num_classes to {needed}, or correct the labels.",
        )
    elif needed < num_classes:
        yield Finding(
            f"{HEAD}.num_classes",
            num_classes,
            f"{HEAD}.num_classes={num_classes}, but the natural images have {needed} classes, so "
            f"{num_classes - needed} outputs never see an image.",
            f"Set {HEAD}.num_classes to {needed}, or leave it to {AUTO!r}.",
            "warning",
        )


def check_downstream_classes(runner: Any) -> Iterator[Finding]:
    """Compare the heads of a host's model with the classes of its training data."""
    dataset = runner.train_dataloader.dataset
    if hasattr(dataset, "natural"):
        return
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    needed = len(classes) if classes else _needed_outputs(dataset)
    if not needed:
        return
    for name, module in unwrap(runner.model).named_modules():
        parts = [part for part in name.split(".") if not part.isdecimal()]
        num_classes = getattr(module, "num_classes", None)
        if not parts or parts[-1] not in HEADS or not isinstance(num_classes, int):
            continue
        field = f"model.{name}.num_classes"
        if num_classes < needed:
            yield Finding(
                field,
                num_classes,
                f"{field}={num_classes}, but the training data have {needed} classes.",
                f"Set it to {needed}.",
            )
        elif num_classes > needed:
            yield Finding(
                field,
                num_classes,
                f"{field}={num_classes}, but the training data have {needed} classes.",
                f"Set it to {needed}, unless the others come later.",
                "warning",
            )


def _needed_outputs(dataset: Any) -> int:
    try:
        return int(np.max(dataset.get_gt_labels())) + 1
    except (AttributeError, KeyError, TypeError, ValueError):  # without labels of whole images
        return 0


def check_topk(cfg: Config) -> Iterator[Finding]:
    """Find top-k accuracies of more classes than a classifier has."""
    num_classes = value_at(cfg, "model.head.num_classes")
    if not isinstance(num_classes, int):
        return
    fields = {"model.head": value_at(cfg, "model.head")}
    for name in ("val_evaluator", "test_evaluator"):
        held = cfg.get(name)
        entries = enumerate(held) if isinstance(held, (list, tuple)) else [("", held)]
        fields.update({f"{name}.{n}".rstrip("."): entry for n, entry in entries})
    for field, entry in fields.items():
        topk = entry.get("topk") if isinstance(entry, Mapping) else None
        counts = topk if isinstance(topk, (list, tuple)) else [topk] if topk else []
        if any(isinstance(k, int) and k > num_classes for k in counts):
            fitting = tuple(k for k in counts if k <= num_classes) or (1,)
            yield Finding(
                f"{field}.topk",
                topk,
                f"{field}.topk={tuple(counts)} does not work with {num_classes} classes.",
                f"Set it to {fitting}.",
            )
