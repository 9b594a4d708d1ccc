"""Backbones to look at and to measure: from exported files, or at random initialisation."""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from torch import nn

from gersp_mm.backbones.agreement import likely_reason, require_same_tensors
from gersp_mm.backbones.architectures import arch_name
from gersp_mm.backbones.exported import PREFIX
from gersp_mm.checkpoints.read import (
    CONVERTER,
    UNREAD,
    config_values,
    read_checkpoint,
    require_finite,
    tensors_of,
)
from gersp_mm.constants import CHANNEL_ORDER
from gersp_mm.results.row import RANDOM
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import file_sha256
from gersp_mm.utils.randomness import preserved_rng_state, seed_everything

TYPES = re.compile(r"((mmpretrain|gersp_mm)\.)?\w+")  # what a file's config may have built
# Arguments by which a network would load another file, or MMEngine import a module.
NOT_ARCHITECTURE = (
    "init_cfg", "pretrained", "pretrained_cfg", "checkpoint", "checkpoint_path", "_scope_",
)  # fmt: skip
# Where classes may come from that a file names: what else is registered may load other files.
NETWORKS = ("mmpretrain.models.backbones.",)
PARTS = (
    *NETWORKS, "torch.nn.", "mmcv.cnn.", "mmcv.ops.", "mmpretrain.models.utils.attention",
    "mmpretrain.models.utils.ema", "mmpretrain.models.utils.norm",
    "mmpretrain.models.utils.res_layer_extra_norm", "mmpretrain.models.utils.sparse_modules",
)  # fmt: skip


class Backbone(NamedTuple):
    """A network with what its input needs.

    Attributes:
        name: what it is called in pictures and tables.
        network: in eval mode.
        mean: per channel, RGB, 0 to 255.
        std: per channel, RGB, 0 to 255.
    """

    name: str
    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Weights(NamedTuple):
    """What is known of an exported file before it is used.

    Attributes:
        sha256: of the file.
        arch: config of the network, None if the file does not tell.
        mean: per channel, RGB, 0 to 255.
        std: per channel, RGB, 0 to 255.
    """

    sha256: str
    arch: dict[str, Any] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_backbones(
    specs: Sequence[str], device: str | torch.device = "cpu", seed: int = 0
) -> list[Backbone]:
    """Build the networks of ``NAME=FILE``, ``FILE``, ``NAME=random`` or ``random``.

    A file without a name is called after its method, and after the file where two have the same.
    ``random`` is the network of the first file at random initialisation, with its normalisation.

    Args:
        specs: at least one; one of them has to name a file.
        device: where the networks are put.
        seed: of the random initialisation; a second ``random`` gets ``seed + 1``, and so on.

    Raises:
        UserError: a file is no exported backbone or cannot be built, or two have the same name.
    """
    pairs = [_split(spec) for spec in specs]
    contents = {path: read_exported(path) for _, path in pairs if path != RANDOM}
    if not contents:
        raise UserError(
            f"{RANDOM} is the network of the first checkpoint at random initialisation: name at "
            "least one file"
        )
    first = next(iter(contents))
    methods = [str(contents[path][1].get("method")) for _, path in pairs if path != RANDOM]
    backbones: list[Backbone] = []
    draws = 0
    for name, path in pairs:
        state, meta = contents[first if path == RANDOM else path]
        if path == RANDOM:
            network = build_random(_own_arch(first, meta), _built(first, meta), seed + draws)
            draws += 1
            name = name or RANDOM
        else:
            network = build_exported(path, state, meta)
            method = str(meta.get("method"))
            name = name or (method if methods.count(method) == 1 else Path(path).stem)
        scale = meta["normalisation"]
        backbones.append(
            Backbone(name, network.to(device), tuple(scale["mean"]), tuple(scale["std"]))
        )
    names = [backbone.name for backbone in backbones]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two checkpoints are called {name}: name them, as NAME=FILE")
    return backbones


def _split(spec: str) -> tuple[str, str]:
    name, equals, path = spec.partition("=")
    return (name, path) if equals and not os.path.exists(spec) else ("", spec)


def read_exported(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read an exported backbone.

    Returns:
        The tensors by their names in the backbone, and the file's ``meta``.

    Raises:
        UserError: the file cannot be read, or is something else.
    """
    remedy = f"Make an exported backbone of it: {CONVERTER} {path} OUT.pth --trust"
    data = read_checkpoint(path, remedy=remedy).data
    state, meta = tensors_of(path, data), data.get("meta")
    scale = meta.get("normalisation") if isinstance(meta, Mapping) else None
    if not (
        all(name.startswith(PREFIX) for name in state)
        and isinstance(meta, Mapping)
        and isinstance(scale, Mapping)
        and {"mean", "std"} <= set(scale)
        and "arch" in meta
    ):
        raise UserError(
            f"{path} is no exported backbone ({PREFIX}… alone, and meta with arch and "
            f"normalisation): {CONVERTER} {path} OUT.pth makes one of it"
        )
    require_finite(path, state)
    if scale.get("channel_order", CHANNEL_ORDER) != CHANNEL_ORDER:
        raise UserError(f"{path} takes {scale['channel_order']} images, not {CHANNEL_ORDER}")
    return {name[len(PREFIX) :]: tensor for name, tensor in state.items()}, dict(meta)


def inspect(path: str) -> Weights:
    """Read what an exported file is of; once, as long as it does not change.

    Raises:
        UserError: as :func:`read_exported`.
    """
    state = os.stat(path)
    return _inspected(path, os.path.realpath(path), state.st_size, state.st_mtime_ns)


@functools.lru_cache(None)
def _inspected(path: str, *state: Any) -> Weights:
    meta = read_exported(path)[1]
    scale = meta["normalisation"]
    arch = architecture(path, meta)
    return Weights(file_sha256(path), arch, tuple(scale["mean"]), tuple(scale["std"]))


def architecture(path: str | os.PathLike, meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the config of the network that an exported file is of.

    A run's own file holds its config, of which no code is run; of a converted one the architecture
    is known to be a standard ResNet.

    Args:
        path: of the file, for messages.
        meta: of the file.

    Returns:
        None if the file does not tell.

    Raises:
        UserError: the file's config is not taken.
    """
    cfg = None if meta.get("source") else _backbone_config(meta.get("config_text"))
    if cfg is None:
        resnet = re.fullmatch(r"ResNet-(\d+)", str(meta["arch"]))
        return dict(type="ResNet", depth=int(resnet[1])) if resnet else None
    for kind in _types(cfg):
        if not TYPES.fullmatch(str(kind)):
            raise UserError(f"{path}: its config names the type {kind!r}, which is not built")
    return _architecture_alone(cfg)


def _own_arch(path: str | os.PathLike, meta: Mapping[str, Any]) -> dict[str, Any]:
    arch = architecture(path, meta)
    if arch is None:
        raise UserError(
            f"{path} is of the arch {meta['arch']} and holds no config to build it from: only "
            "standard ResNets can be built by name"
        )
    return arch


def _built(path: str | os.PathLike, meta: Mapping[str, Any]) -> str:
    return f"{path} is of the arch {meta['arch']}, which"


def build_random(arch: Mapping[str, Any], what: str, seed: int) -> nn.Module:
    """Build a network at random initialisation, in eval mode.

    Args:
        arch: config of a backbone of mmpretrain.
        what: it is, for messages.
        seed: that the weights are drawn with.

    Raises:
        UserError: it cannot be built.
    """
    with preserved_rng_state():
        seed_everything(seed)
        network: Any = _build(arch, what)
        network.init_weights()
    network.eval()  # returns None in mmpretrain
    return network


def build_exported(
    path: str | os.PathLike,
    state: Mapping[str, torch.Tensor],
    meta: Mapping[str, Any],
    arch: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the network of an exported file, in eval mode. All tensors have to fit.

    Args:
        path: of the file, for messages.
        state: what :func:`read_exported` gives.
        meta: likewise.
        arch: config of the network, by default the file's own.

    Raises:
        UserError: the architecture is none that mmpretrain has, or the config does not describe it.
    """
    network = _build(arch or _own_arch(path, meta), _built(path, meta))
    own = network.state_dict()
    advice = likely_reason(own, state)
    require_same_tensors(f"the {arch_name(network)}", str(path), own, state, advice=advice)
    try:
        network.load_state_dict(dict(state), strict=False)  # old files lack counters of batches
    except RuntimeError as error:  # of a network's own hooks
        raise UserError(f"{path} cannot be loaded: {error}") from error
    network.eval()
    return network


def _build(arch: Mapping[str, Any], what: str) -> nn.Module:
    from mmpretrain.registry import MODELS

    init_default_scope("mmpretrain")
    kinds = _types(dict(arch))
    if "Pretrained" in kinds:
        raise UserError(f"{what} names other weights in its init_cfg. Remove that")
    classes = [MODELS.get(kind) if isinstance(kind, str) else kind for kind in kinds]
    if isinstance(classes[0], type) and issubclass(classes[0], BaseModel):
        raise UserError(f"{what} cannot be built: {kinds[0]} is a whole model, no backbone")
    for number, (kind, found) in enumerate(zip(kinds, classes)):
        if found is not None and not _is_allowed(found, PARTS if number else NETWORKS):
            raise UserError(f"{what} cannot be built: {kind} is no backbone of mmpretrain")
    if ":" in str(arch.get("model_name", "")):  # timm takes addresses there
        raise UserError(f"{what} cannot be built: model_name={arch['model_name']} is an address")
    MMLogger.get_current_instance().setLevel("WARNING")  # how every tensor was initialised
    try:
        return MODELS.build(copy.deepcopy(dict(arch)))
    except Exception as error:  # of whatever class the config names
        text = str(error).strip().split("\n")[0]
        raise UserError(f"{what} cannot be built: {text}") from error


def _is_allowed(found: Any, rooms: tuple[str, ...]) -> bool:
    """Return whether a class, and not a function, comes from one of some packages."""
    return isinstance(found, type) and f"{found.__module__}.".startswith(rooms)


def _backbone_config(text: Any) -> dict[str, Any] | None:
    model = config_values(text).get("model")
    backbone = model.get("backbone") if isinstance(model, dict) else None
    if not isinstance(backbone, dict) or "type" not in backbone:
        return None
    return None if any(value is UNREAD for value in _leaves(backbone)) else backbone


def _architecture_alone(value: Any) -> Any:
    """Return a copy of a config without what would load another file, at any depth."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in NOT_ARCHITECTURE}
        return {key: _architecture_alone(item) for key, item in kept.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_architecture_alone(item) for item in value)
    return value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _types(value: Any) -> list[Any]:
    if isinstance(value, dict):
        own = [value["type"]] if "type" in value else []
        return own + [kind for item in value.values() for kind in _types(item)]
    if isinstance(value, (list, tuple)):
        return [kind for item in value for kind in _types(item)]
    return []
