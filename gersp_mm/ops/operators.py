"""The operators of this package by their names in ``mmcv._ext``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gersp_mm.ops import (
    deform_conv,
    focal_loss,
    nms,
    psa_mask,
    roi_align,
    roi_align_rotated,
    rotated_boxes,
)

_MODULES: dict[Any, tuple[str, ...]] = {
    nms: ("nms", "softnms", "nms_match"),
    focal_loss: (
        "sigmoid_focal_loss_forward", "sigmoid_focal_loss_backward",
        "softmax_focal_loss_forward", "softmax_focal_loss_backward",
    ),
    roi_align: ("roi_align_forward", "roi_align_backward"),
    roi_align_rotated: ("roi_align_rotated_forward", "roi_align_rotated_backward"),
    rotated_boxes: ("box_iou_rotated", "box_iou_quadri", "nms_rotated", "nms_quadri"),
    deform_conv: (
        "modulated_deform_conv_forward", "modulated_deform_conv_backward", "deform_conv_forward",
        "deform_conv_backward_input", "deform_conv_backward_parameters",
    ),
    psa_mask: ("psamask_forward", "psamask_backward"),
}  # fmt: skip

#: Functions with the arguments of mmcv's C++ functions. They write into tensors of the caller.
OPERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(module, name) for module, names in _MODULES.items() for name in names
}
