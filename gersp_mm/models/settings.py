"""Checks of the arguments and inputs of :class:`gersp_mm.GeRSP`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from gersp_mm.models.batch_norm import IMAGES_PER_GROUP
from gersp_mm.models.key_norm import KEY_NORMS, SPLIT_SIZE
from gersp_mm.utils.errors import UserError, check_choice, check_flag, check_number

IMAGENET_CLASSES = 1000


def check_values(
    *,
    queue_len: int,
    feat_dim: int,
    teacher_momentum: float,
    alpha: float,
    key_bn: str,
    split_size: int,
    teacher_init: str,
    teacher_projector: str,
    **flags: bool,
) -> None:
    """Raise a :class:`UserError` unless each argument is in its range."""
    check_choice("key_bn", key_bn, (*KEY_NORMS, "auto"))
    check_choice("teacher_init", teacher_init, ("copy", "separate"))
    check_choice("teacher_projector", teacher_projector, ("ema", "frozen"))
    check_number("teacher_momentum", teacher_momentum, 0, 1, such_as=0.996)
    check_number("alpha", alpha, 0, such_as=1.0)
    check_number("queue_len", queue_len, 1, whole=True, such_as=65536)
    check_number("feat_dim", feat_dim, 1, whole=True, such_as=128)
    check_number("split_size", split_size, IMAGES_PER_GROUP, whole=True, such_as=SPLIT_SIZE)
    for name, value in flags.items():
        check_flag(name, value)


def check_parts(
    neck: dict | nn.Module | None,
    head: dict | nn.Module | None,
    natural_head: dict | nn.Module | None,
    feat_dim: int,
    joint_forward: bool,
    natural_statistics: bool,
) -> None:
    """Raise a :class:`UserError` unless the parts form at least one complete branch."""
    if (neck is None) != (head is None):
        raise UserError(
            "the contrastive branch needs both neck and head. Give both, or set both to None "
            "for supervised pre-training on natural images alone."
        )
    if isinstance(neck, dict) and neck.get("out_channels", feat_dim) != feat_dim:
        raise UserError(
            f"neck.out_channels={neck['out_channels']}, but feat_dim={feat_dim}. Make them equal."
        )
    if head is None and natural_head is None:
        raise UserError(
            "the model has no branch to train. Give neck and head (contrastive branch), "
            "natural_head with alpha > 0 (natural-image branch), or all of them."
        )
    if not natural_statistics and (joint_forward or head is None):
        raise UserError(
            "natural_statistics=False needs joint_forward=False and the contrastive branch, "
            "because BatchNorm's running statistics then come from a separate forward pass."
        )


def complete_head(head: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a classification head with its number of classes and valid top-k.

    Raises:
        UserError: ``num_classes`` is neither a whole number of at least 1 nor ``'auto'``.
    """
    head = dict(head)
    if head.get("num_classes") == "auto":
        head["num_classes"] = IMAGENET_CLASSES
    if "num_classes" in head:
        classes, example = head["num_classes"], "1000, or to 'auto'"
        check_number("natural_head.num_classes", classes, 1, whole=True, such_as=example)
        topk = head.get("topk")
        if isinstance(topk, (list, tuple)):
            head["topk"] = tuple(k for k in topk if k <= classes) or (1,)
    return head


def check_inputs(inputs: Mapping[str, Any], contrastive: bool, natural: bool) -> None:
    """Raise a :class:`UserError` unless the inputs hold the images of every branch."""
    names = []
    if contrastive:
        names += ["rs_query", "rs_key"]
    if natural:
        names.append("natural")
    for name in names:
        if name not in inputs:
            raise UserError(
                f"inputs hold {sorted(inputs)} but not {name!r}. Give the dataset the images of "
                "every branch of the model."
            )


def check_labels(data_samples: Sequence[Any] | None) -> None:
    """Raise a :class:`UserError` unless the samples of the natural images have labels."""
    if not data_samples or "gt_label" not in data_samples[0]:
        raise UserError(
            "the natural-image branch needs data_samples with gt_label. Give PairedDataset a "
            "labelled `natural` dataset, or set natural_head=None."
        )
