"""Checks of classifiers against the classes of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.runner import BaseLoop
from mmpretrain.models import BaseSelfSupervisor

from gersp_mm.engine.options import value_at
from gersp_mm.engine.preflight.building import told_in_one_line
from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.model import unwrap

HEAD = "model.natural_head"
AUTO = "auto"
# Parts of the hosts' models that have one output per class of the data.
HEADS = (
    "auxiliary_head", "bbox_head", "decode_head", "head", "mask_head", "mask_iou_head",
    "point_head", "query_head",
)  # fmt: skip
EDGE_HEADS = ("STDCHead",)  # heads of mmseg that learn edges
PARTS = dict(train="training", val="validation", test="test")


def fill_class_count(cfg: Config, checkpoint: str | None = None) -> None:
    """Replace ``model.natural_head.num_classes='auto'`` by the number of classes of the data.

    A run that is resumed or tested keeps the number of its checkpoint.

    Args:
        cfg: A pre-training config, changed in place. Other configs do not change.
        checkpoint: Path of the checkpoint that decides; by default that of a resumed run.

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
        source: Config of the data set. :class:`gersp_mm.LabelledImages` counts its classes without
            listing the images.
    """
    from gersp_mm.datasets.paired import _build_source
    from gersp_mm.datasets.sources import LabelledImages

    types = ("gersp_mm.LabelledImages", "LabelledImages", LabelledImages)
    lazy = {"lazy_init": True} if source.get("type") in types else {}
    dataset = _build_source("natural", {**source, **lazy})
    if hasattr(dataset, "count_classes"):
        count = dataset.count_classes()
        if not count:
            raise UserError(
                f"the natural images in {source.get('data_root')} have no classes. Put the images "
                "of each class into a sub-folder, or train without a natural branch "
                "(train_dataloader.dataset.natural=None; gersp pretrain --natural none)"
            )
        return count
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
            f"{outside.size} of {len(labels)} natural images have a label outside 0 to "
            f"{num_classes - 1}, the first being {info['img_path']} with label "
            f"{info['gt_label']}.",
            f"Set {HEAD}.num_classes to {needed}, or correct the labels.",
        )
    elif needed == 1:
        yield Finding(
            "train_dataloader.dataset.natural",
            "all natural images are of one class, so that the classifier learns nothing from them.",
            "Use a folder with one sub-folder of images per class.",
            "warning",
        )
    elif needed < num_classes:
        yield Finding(
            f"{HEAD}.num_classes",
            f"{HEAD}.num_classes={num_classes}, but the natural images have {needed} classes, so "
            f"{num_classes - needed} outputs never see an image.",
            f"Set {HEAD}.num_classes to {needed}, or leave it to {AUTO!r}.",
            "warning",
        )


def check_downstream_classes(runner: Any) -> Iterator[Finding]:
    """Compare every head of a host's model with the classes of the data of the run's loops."""
    model = unwrap(runner.model)
    if isinstance(model, BaseSelfSupervisor) or hasattr(model, "language_model"):
        return  # Their outputs are not classes of the data, or follow a text prompt.
    counts = {}
    for part, title in PARTS.items():
        if (dataset := _built_dataset(runner, part)) is not None:
            counts[title] = _count_of_dataset(dataset)
    for name, head in model.named_modules():
        if not _has_classes(name, head):
            continue
        field = _field_of_head(runner.cfg, name)
        for title, (needed, named) in counts.items():
            if needed and not _fits(head, needed):
                surplus = head.num_classes > needed
                yield Finding(
                    field,
                    f"{field}={head.num_classes}, but the {title} data have {needed} classes.",
                    f"Set it to {needed}."
                    if named or not surplus
                    else f"Set it to {needed}, unless some classes have no image here.",
                    "error" if named or not surplus else "warning",
                )
                break


def check_class_names(runner: Any) -> Iterator[Finding]:
    """Compare the classes of the validation data with those of the training data, by name."""
    train, val = (_built_dataset(runner, part) for part in ("train", "val"))
    if train is None or val is None:
        return
    problem = difference_of_classes(_classes_of(train), _classes_of(val), val)
    if problem:
        yield Finding(
            "val_dataloader.dataset.metainfo.classes",
            f"The validation data have other classes than the training data: {problem}.",
            "Set metainfo.classes of both to the same classes.",
        )


def difference_of_classes(known: Sequence[str], given: Sequence[str], dataset: Any) -> str | None:
    """Return the first difference between the classes of a training and of a data set, or None.

    Args:
        known: The classes of the training, in the order of their labels.
        given: The classes of the data set.
        dataset: The data set. In mmpretrain, all names may differ.
    """
    if not known or not given or list(known) == list(given):
        return None
    if hasattr(dataset, "get_gt_labels") and not set(known) & set(given):
        return None
    for label, (a, b) in enumerate(zip(known, given)):
        if a != b:
            return f"label {label} is {a!r} in training and {b!r} here"
    return f"{len(known)} classes in training, {len(given)} here"


def require_trained_classes(runner: Any, path: str, meta: Mapping[str, Any]) -> None:
    """Refuse a test whose labels mean other classes than the checkpoint was trained with.

    Args:
        runner: The built run.
        path: Path of the checkpoint, for the message.
        meta: Meta of the checkpoint.

    Raises:
        UserError: The classes differ.
    """
    known = (meta.get("dataset_meta") or {}).get("classes")
    with told_in_one_line(runner.cfg):
        dataset = runner.test_loop.dataloader.dataset
    given = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if problem := difference_of_classes(known or (), given or (), dataset):
        raise UserError(
            f"{path} was trained with other classes: {problem}. Set "
            "test_dataloader.dataset.metainfo.classes to those of the training."
        )


def _built_dataset(runner: Any, part: str) -> Any:
    """Return the data set of a loop, or None if the loop does not exist or is not built."""
    loop = getattr(runner, f"_{part}_loop", None)
    return (
        loop.dataloader.dataset
        if isinstance(loop, BaseLoop) and hasattr(loop, "dataloader")
        else None
    )


def _classes_of(dataset: Any) -> tuple[str, ...]:
    metainfo = getattr(dataset, "metainfo", None)
    classes = metainfo.get("classes") if isinstance(metainfo, Mapping) else None
    return tuple(classes or ())


def _has_classes(name: str, module: Any) -> bool:
    """Return whether a part of a model has one output per class of the data."""
    parts = [part for part in name.split(".") if not part.isdecimal()]
    return (
        bool(parts)
        and parts[-1] in HEADS
        and isinstance(getattr(module, "num_classes", None), int)
        and not getattr(module, "class_agnostic", False)
        and type(module).__name__ not in EDGE_HEADS
    )


def _fits(head: Any, needed: int) -> bool:
    one_output = getattr(head, "out_channels", None) == 1  # background or object
    return head.num_classes == needed or (one_output and needed == 2)


def _field_of_head(cfg: Config, name: str) -> str:
    """Return the key of the config that sets a head's number of classes."""
    field = f"model.{name}.num_classes"
    if value_at(cfg, field) is None:  # Several heads may be built from one section.
        shared = ".".join(part for part in name.split(".") if not part.isdecimal())
        if value_at(cfg, f"model.{shared}.num_classes") is not None:
            field = f"model.{shared}.num_classes"
    return field


def _count_of_dataset(dataset: Any) -> tuple[int, bool]:
    """Return the number of classes of a data set, and whether it names them."""
    if classes := _classes_of(dataset):
        return len(classes), True
    return _needed_outputs(dataset), False


def _needed_outputs(dataset: Any) -> int:
    try:
        return int(np.max(dataset.get_gt_labels())) + 1
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ):  # no labels of whole images
        return 0


def check_topk(cfg: Config) -> Iterator[Finding]:
    """Find top-k accuracies whose k exceeds the number of classes."""
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
                f"{field}.topk={tuple(counts)} does not work with {num_classes} classes.",
                f"Set it to {fitting}.",
            )
