"""A check that the parts of a model fit each other, run on one black image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn

from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.utils.model import unwrap


def check_shapes(runner: Runner) -> Iterator[Finding]:
    """Run the backbone, the neck and the heads on one image."""
    model: Any = unwrap(runner.model)
    if isinstance(getattr(getattr(model, "head", None), "fc", None), nn.Linear):
        yield from _check_classifier(model)
        return
    size = _view_size(runner.train_dataloader.dataset)
    if size is None or not hasattr(model, "natural_head") or not hasattr(model, "neck"):
        return
    features, problem = _try(model.backbone, _one_image(model, size))
    if problem:
        yield Finding(
            "model.backbone",
            size,
            f"model.backbone cannot take views of {size} px: {problem}.",
            "Change the size of the views, or the backbone.",
        )
    if not isinstance(features, tuple) or not isinstance(features[-1], torch.Tensor):
        return
    channels = features[-1].shape[1]
    if model.neck is not None:
        _, problem = _try(model.neck, features)
        if problem:
            yield Finding(
                "model.neck.in_channels",
                None,
                f"model.neck does not take the backbone's {channels} channels: {problem}.",
                f"Set model.neck.in_channels to {channels}.",
            )
    yield from _compare_channels("model.natural_head", model.natural_head, channels)


def _check_classifier(model: Any) -> Iterator[Finding]:
    """Compare the head of mmpretrain's classifiers with the features before it."""
    features, _ = _try(model.backbone, _one_image(model, 224))
    if features is not None and getattr(model, "neck", None) is not None:
        features, _ = _try(model.neck, features)
    vector = features[-1] if isinstance(features, tuple) else features
    if isinstance(vector, torch.Tensor) and vector.ndim == 2:
        yield from _compare_channels("model.head", model.head, vector.shape[1])


def _compare_channels(field: str, head: Any, channels: int) -> Iterator[Finding]:
    layer = getattr(head, "fc", None)
    if isinstance(layer, nn.Linear) and layer.in_features != channels:
        yield Finding(
            f"{field}.in_channels",
            layer.in_features,
            f"{field}.in_channels={layer.in_features}, but the backbone gives {channels} channels.",
            f"Set {field}.in_channels to {channels}.",
        )


def _view_size(dataset: Any) -> int | None:
    for name in ("rs_pipeline", "natural_pipeline"):
        for transform in getattr(getattr(dataset, name, None), "transforms", ()):
            if isinstance(getattr(transform, "size", None), int):
                return transform.size
    return None


def _try(module: nn.Module, value: Any) -> tuple[Any, str]:
    """Return the output of a module, and the problem if the shape does not fit.

    The module runs in evaluation mode, so that no random state and no statistics change.
    """
    if getattr(module, "_compiled_call_impl", None) is not None:  # Compiling takes minutes.
        return None, ""
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad():
            module.eval()
            return module(value), ""
    except (AssertionError, RuntimeError, ValueError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        about_shapes = ("size", "shape", "dim", "channel", "expected")
        return None, text.rstrip(".") if any(w in text.lower() for w in about_shapes) else ""
    finally:
        for part, mode in modes:
            part.training = mode


def _one_image(model: nn.Module, size: int) -> torch.Tensor:
    return torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
