"""A check on two black images that the parts of a model fit together."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from gersp_mm.engine.preflight.building import PASSED_ON
from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.engine.preflight.names import find_types, parameters
from gersp_mm.evaluation.features import evaluating
from gersp_mm.utils.errors import first_line
from gersp_mm.utils.model import as_tuple, unwrap
from gersp_mm.utils.randomness import preserved_rng_state

IMAGES = 2
GUESSED_SIZE = (224, 224)  # of views, if their pipeline does not say it
SIZES = ("size", "crop_size", "scale")  # attributes of transforms that hold the size of views


class Parts(NamedTuple):
    """The parts of a model through which its two branches pass.

    Attributes:
        backbone: The student's backbone.
        neck: The projector, or None without the contrastive branch.
        head: The classification head, or None without the natural-image branch.
    """

    backbone: nn.Module
    neck: nn.Module | None
    head: nn.Module | None


def check_shapes(runner: Runner) -> Iterator[Finding]:
    """Run the backbone, the neck and the heads on two images."""
    model: Any = unwrap(runner.model)
    if isinstance(getattr(getattr(model, "head", None), "fc", None), nn.Linear):
        yield from _check_classifier(model)
        return
    if not hasattr(model, "natural_head") or not hasattr(model, "neck"):
        return
    parts = Parts(model.backbone, model.neck, model.natural_head)
    sizes = _view_sizes(runner.train_dataloader.dataset)
    for size in sizes or [GUESSED_SIZE]:
        images = _black_images(model, size)
        output, problem = _run(parts.backbone, images)
        if problem is not None and not sizes:  # The guessed size may be wrong.
            return
        found = _misfit(parts, images, output, problem)
        if found is None:
            continue
        settings = _settings(runner.cfg.get("model"), parts, images)
        yield Finding(
            next(iter(settings), "model.backbone"),
            f"{found}.",
            _words_of(settings)
            or (
                "Change the size of the views, or the backbone."
                if problem is not None
                else "The backbone has to give one N×C×H×W map or N×C vector. Change the backbone, "
                "or the part that gets its output."
            ),
        )
        return
    if parts.neck is None:
        vector = as_tuple(output)[-1]
        yield from _compare_channels("model.natural_head", parts.head, vector.shape[1])
        return
    projected = as_tuple(_run(parts.neck, as_tuple(output))[0])[0]
    if projected.shape != (IMAGES, model.queue.shape[1]):
        yield Finding(
            "model.feat_dim",
            f"model.feat_dim={model.queue.shape[1]}, but model.neck gives "
            f"{_words([projected])} for {IMAGES} images.",
            f"Set model.feat_dim to {projected.shape[-1]}.",
        )
    yield from _compare_channels("model.natural_head", parts.head, as_tuple(output)[-1].shape[1])


def _misfit(parts: Parts, images: torch.Tensor, output: Any, problem: str | None) -> str | None:
    """Return a text on the first part of the model that does not fit; None if all fit."""
    name = _named("model.backbone", parts.backbone)
    if problem is not None:
        height, width = images.shape[2:]
        size = height if height == width else f"{height}×{width}"
        return f"{name} cannot take views of {size} px{_because(problem)}"
    features = as_tuple(output)
    if not isinstance(features, tuple) or not features:
        return f"{name} gives a {type(output).__name__}, not a tensor"
    if not all(isinstance(feature, torch.Tensor) for feature in features):
        kinds = sorted({type(feature).__name__ for feature in features})
        return f"{name} gives a tuple of {' and '.join(kinds)}, not of tensors alone"
    shapes = _words(features)
    if parts.neck is not None:
        _, problem = _run(parts.neck, features)
        if problem is not None:
            neck = _named("model.neck", parts.neck)
            return f"{name} gives {shapes}, which {neck} does not take{_because(problem)}"
    if parts.head is not None and features[-1].ndim not in (2, 4):
        head = _named("model.natural_head", parts.head)
        return f"{name} gives {shapes}, from which {head} gets no N×C vector"
    return None


def _settings(cfg: Any, built: Parts, images: torch.Tensor) -> dict[str, Any]:
    """Return options of the config with which the parts were found to fit; empty if none was found.

    Args:
        cfg: ``model`` of the config.
        built: The parts as built from ``cfg``.
        images: The images on which options are tried.
    """
    if not isinstance(cfg, Mapping) or not isinstance(cfg.get("backbone"), Mapping):
        return {}
    for change in _backbone_changes(cfg["backbone"], built.backbone, images):
        backbone = _rebuilt(cfg["backbone"], change, images) if change else built.backbone
        output = None if backbone is None else _run(backbone, images)[0]
        features = as_tuple(output)
        if not isinstance(features, tuple) or len(features) != 1:
            continue
        (feature,) = features
        if not isinstance(feature, torch.Tensor) or feature.ndim not in (2, 4):
            continue
        channels = feature.shape[1]
        found = {f"model.backbone.{key}": value for key, value in change.items()}
        if built.neck is not None:
            inner = _neck_changes(cfg.get("neck"), built.neck, features, images)
            if inner is None:
                continue
            found.update({f"model.neck.{key}": value for key, value in inner.items()})
        if _in_channels(built.head) not in (None, channels):
            found["model.natural_head.in_channels"] = channels
        return found
    return {}


def _backbone_changes(
    cfg: Mapping[str, Any], backbone: Any, images: torch.Tensor
) -> Iterator[dict[str, Any]]:
    yield {}
    taken = _taken(cfg)
    outputs = getattr(backbone, "out_indices", None)
    last = [outputs[-1]] if isinstance(outputs, Sequence) and outputs else [-1]
    for key, value in (
        ("in_channels", images.shape[1]),
        ("img_size", images.shape[2]),
        ("pad_small_map", True),
        ("out_indices", last),
        ("multiscale_output", False),
        ("out_type", "cls_token"),
        ("out_type", "avg_featmap"),
    ):
        if key in taken and cfg.get(key) != value:
            yield {key: value}


def _neck_changes(
    cfg: Any, neck: nn.Module, features: tuple[torch.Tensor, ...], images: torch.Tensor
) -> dict[str, Any] | None:
    """Return the options of a neck with which it takes these features, None if there are none."""
    if _run(neck, features)[1] is None:
        return {}
    if not isinstance(cfg, Mapping):
        return None
    taken, channels = _taken(cfg), features[0].shape[1]
    pools = dict(with_avg_pool=features[0].ndim == 4)
    for change in (dict(in_channels=channels), pools, dict(in_channels=channels, **pools)):
        if not set(change) <= taken:
            continue
        other = _rebuilt(cfg, change, images)
        if other is not None and _run(other, features)[1] is None:
            return {key: value for key, value in change.items() if cfg.get(key) != value}
    return None


def _taken(cfg: Mapping[str, Any]) -> set[str]:
    kinds = find_types(cfg.get("type"), "model", cfg)
    return set().union(*(parameters(kind)[0] for kind in kinds))


def _rebuilt(
    cfg: Mapping[str, Any], change: Mapping[str, Any], images: torch.Tensor
) -> nn.Module | None:
    """Build a part with other options and initial weights; None if it cannot be built."""
    own = {key: copy.deepcopy(value) for key, value in cfg.items() if key != "init_cfg"}
    try:
        with preserved_rng_state():
            return MODELS.build({**own, **change}).to(images.device)
    except PASSED_ON:
        raise
    except Exception:  # The class may raise any error.
        return None


def _check_classifier(model: Any) -> Iterator[Finding]:
    """Compare the head of mmpretrain's classifiers with the features before it."""
    features, _ = _run(model.backbone, _black_images(model, GUESSED_SIZE))
    if features is not None and getattr(model, "neck", None) is not None:
        features, _ = _run(model.neck, features)
    vector = features[-1] if isinstance(features, tuple) else features
    if isinstance(vector, torch.Tensor) and vector.ndim == 2:
        yield from _compare_channels("model.head", model.head, vector.shape[1])


def _compare_channels(field: str, head: Any, channels: int) -> Iterator[Finding]:
    given = _in_channels(head)
    if given not in (None, channels):
        yield Finding(
            f"{field}.in_channels",
            f"{field}.in_channels={given}, but the backbone gives {channels} channels.",
            f"Set {field}.in_channels to {channels}.",
        )


def _in_channels(head: Any) -> int | None:
    layer = getattr(head, "fc", None)
    return layer.in_features if isinstance(layer, nn.Linear) else None


def _view_sizes(dataset: Any) -> list[tuple[int, int]]:
    """Return the different sizes of views that the pipelines state."""
    sizes: dict[tuple[int, int], None] = {}
    for name in ("rs_pipeline", "natural_pipeline"):
        transforms = getattr(getattr(dataset, name, None), "transforms", ())
        found = [size for one in transforms if (size := _size_of(one)) is not None]
        sizes.update(dict.fromkeys(found[-1:]))
    return list(sizes)


def _size_of(transform: Any) -> tuple[int, int] | None:
    for name in SIZES:
        given = getattr(transform, name, None)
        numbers = [given, given] if type(given) is int else given
        if not isinstance(numbers, (list, tuple)) or len(numbers) != 2:
            continue
        if all(type(number) is int and number > 0 for number in numbers):
            return tuple(numbers)
    return None


def _run(module: nn.Module, value: Any) -> tuple[Any, str | None]:
    """Return the output of a module, and the first line of its error, None if there is none.

    The module runs in evaluation mode and without gradients; its buffers and all random states are
    restored. ``forward`` is called directly, because compiling takes minutes.
    """
    try:
        with evaluating(module), _untouched(module), torch.no_grad():
            return module.forward(value), None
    except PASSED_ON:
        raise
    except Exception as error:  # The class may raise any error.
        return None, first_line(error, named=False)


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    buffers = [
        (part, name, buffer, buffer.clone())
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    devices = {buffer.device for buffer in itertools.chain(module.parameters(), module.buffers())}
    cuda = [device for device in devices if device.type == "cuda"]
    try:
        with preserved_rng_state(), torch.random.fork_rng(devices=cuda):
            yield
    finally:
        for part, name, buffer, before in buffers:
            if getattr(part, name) is not buffer:
                setattr(part, name, buffer)
            if not torch.equal(buffer, before):
                buffer.copy_(before)


def _black_images(model: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    return torch.zeros(IMAGES, 3, *size, device=next(model.parameters()).device)


def _named(field: str, module: nn.Module) -> str:
    return f"{field} ({type(module).__name__})"


def _because(problem: str) -> str:
    return f": {problem}" if problem else ""


def _words(tensors: Sequence[torch.Tensor]) -> str:
    shapes = ["×".join(map(str, tensor.shape)) for tensor in tensors]
    return shapes[0] if len(shapes) == 1 else f"{len(shapes)} outputs ({', '.join(shapes)})"


def _words_of(settings: Mapping[str, Any]) -> str:
    parts = [f"{key}={value!r}" for key, value in settings.items()]
    if not parts:
        return ""
    return f"Set {', '.join(parts[:-1])}{' and ' if parts[:-1] else ''}{parts[-1]}."
