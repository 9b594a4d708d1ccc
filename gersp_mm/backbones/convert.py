"""Conversion of a public checkpoint of any known source to a backbone file of this package."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from gersp_mm.backbones import sources
from gersp_mm.backbones.agreement import below
from gersp_mm.backbones.architectures import (
    OWN,
    TRANSFORMER,
    Architecture,
    nearest_depth,
    require_resnet,
    resnet_shapes,
)
from gersp_mm.backbones.exported import BackboneMeta, ExportedBackbone, describe_backbone
from gersp_mm.backbones.normalisation import Normalisation
from gersp_mm.checkpoints.compare import COUNTER
from gersp_mm.checkpoints.integrity import weights_sha256
from gersp_mm.checkpoints.read import (
    HARMLESS,
    StandIn,
    config_values,
    read_checkpoint,
    require_finite,
)
from gersp_mm.constants import CHANNEL_ORDER, PREFIX, RESNETS, TARGETS
from gersp_mm.utils.errors import UserError, check_choice, listed
from gersp_mm.utils.files import file_sha256, save_atomically, write_text

WRAPPERS = ("state_dict", "model", "model_state_dict")
MOST_WRAPPERS = 5  # Largest depth of nested wrappers.
PARALLEL = re.compile(r"(module\.|_orig_mod\.)+")  # DistributedDataParallel, torch.compile
HEAD = re.compile(r"(fc|\w*head|classifier|last_linear|proj\w*)\.")  # of a backbone
GROUPS = {  # groups of skipped tensors by name; the first match decides
    "teacher": r"(encoder_k|teacher|target_net\w*|momentum_encoder|branch_\w+|proj_k|heads_k)\.",
    "queue": r"queue",
    "projector": r"(.*\.)?(proj\w*|\w+_projector|heads_q|neck|predictor|fc\.\d)\.|encoder_q\.fc\.",
    "classifier": r"(.*\.)?(fc|pred_q|\w*head|classifier|last_linear)\.",
}

Tensors = dict[str, torch.Tensor]


class Conversion(NamedTuple):
    """A backbone taken from a file.

    Attributes:
        backbone: Its tensors by mmlab's names, with ``backbone.``.
        meta: The ``meta`` of the written file.
        raw: The same tensors by the source's own names, without the prefix.
        by_position: Whether ``raw`` belongs to an ``nn.Sequential``.
        depth: Depth of the ResNet; None for another backbone exported by this package.
        counts: The file's tensors by group, those that were taken first.
        reasons: Why it is recognised as ``meta`` says, parts of a sentence.
        notes: Other facts about the conversion, parts of a sentence.
        warnings: Sentences on possible faults of the file.
    """

    backbone: Tensors
    meta: dict[str, Any]
    raw: Tensors
    by_position: bool
    depth: int | None
    counts: dict[str, int]
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def take_backbone(
    path: str | os.PathLike,
    source: str = "auto",
    arch: str = "auto",
    teacher: bool = False,
    trust: bool = False,
) -> Conversion:
    """Read the backbone of any known public pre-training.

    Args:
        path: The checkpoint.
        source: One of :data:`gersp_mm.backbones.sources.NAMES`, or ``'auto'``.
        arch: One of :data:`gersp_mm.constants.RESNETS`, or ``'auto'``.
        teacher: Take the EMA teacher in place of the student.
        trust: See :func:`gersp_mm.checkpoints.read.read_checkpoint`.

    Raises:
        UserError: The file is no checkpoint, or does not hold exactly one whole ResNet.
    """
    check_choice("source", source, ("auto", *sources.NAMES))
    check_choice("arch", arch, ("auto", *RESNETS))
    path = Path(path)
    content = read_checkpoint(path, trust)
    state, beside = _unwrap(path, content.data)
    state, chosen = _exported_weights(content.data, state)
    tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors; it has {listed(list(state)) or 'nothing'}")
    exported = _exported(path, content.data, tensors, arch, teacher)
    if exported is not None:
        return exported

    tensors, notes = _without_wrappers(path, tensors)
    if chosen is not None:
        kind = "averaged weights of EMAHook" if chosen == "ema" else "weights without averaging"
        notes.append(f"taken are the {kind}")
    facts = _config_facts(content.data.get("meta"))
    _refuse_other_input(path, facts)
    layout, prefix = _find(path, tensors, teacher)
    lines = sources.inventory(path.name, beside, tensors)
    row, reasons, warnings = sources.recognise(layout, lines, path.name, source)

    raw = {n[len(prefix) :]: v for n, v in tensors.items() if _belongs(n, prefix, layout)}
    renamed = {_by_name(n) if layout.by_position else n: v for n, v in raw.items()}
    depth = nearest_depth(renamed) if arch == "auto" else int(arch[len("resnet") :])
    role = "teacher" if teacher else "student"
    shapes = {name: tuple(tensor.shape) for name, tensor in renamed.items()}
    require_resnet(shapes, depth, f"{path}: its {role} ({prefix or 'no prefix'})")
    if layout.name == "backbone" and not teacher:
        _refuse_differing_copies(path, tensors, renamed)
    backbone, more = _cleaned(path, renamed, depth)
    notes += more
    if unread := [name for name in content.stand_ins if name not in HARMLESS]:
        notes.append(f"left unread: {listed(unread)}")
    scale = facts.get("scale")
    if scale is not None:
        notes.append("mean and std are those of the config in the file")
    if row.quirk:
        notes.append(row.quirk)

    method = row.method or facts.get("type", "unknown")
    if method == "unknown" and not warnings:
        warnings = ("the file does not say which pre-training it is of; --source does",)
    network = Architecture.resnet(depth)
    meta = describe_backbone(
        backbone,
        arch=network.name,
        method=f"{method} (teacher)" if teacher else method,
        mean=list(scale.mean if scale else row.mean),
        std=list(scale.std if scale else row.std),
        epoch=_epoch(content.data, row.first_epoch),
        config=facts.get("config"),
        source=dict(name=row.name, file=path.name, images=row.images or None),
        source_sha256=file_sha256(path),
        backbone=network.config,
        weights=chosen,
    )
    counts = _counts(tensors, raw, prefix, layout, role)
    return Conversion(
        backbone, meta, raw, layout.by_position, depth, counts, reasons, tuple(notes), warnings
    )


def write_backbone(conversion: Conversion, path: str | os.PathLike, to: str = "mmlab") -> None:
    """Write a converted backbone.

    ``mmlab`` is the format of :func:`gersp_mm.backbones.export_backbone`. ``torchvision`` and
    ``timm``, whose ResNets have the same names, get the bare state dict, which a ResNet without
    classifier loads strictly, and next to it ``<path>.json`` with what mmlab's ``meta`` holds.

    Raises:
        UserError: The backbone is not one of torchvision's ResNets.
    """
    check_choice("to", to, TARGETS)
    if to == "mmlab":
        tensors = below(conversion.backbone, PREFIX)
        ExportedBackbone(BackboneMeta.of(conversion.meta), tensors=tensors).save(path)
        return
    if conversion.depth is None:
        arch = str(conversion.meta["arch"])
        if arch.startswith("ResNet"):
            raise UserError(
                f"--to {to} is for standard ResNets, and this {arch} has other channels or layers "
                "than those. Keep the format of this package: --to mmlab"
            )
        raise UserError(
            f"--to {to} is for standard ResNets, this is a {arch}. A hub folder can hold vision "
            "transformers and Swin transformers: gersp export SRC OUT --to hub"
        )
    bare = {name[len(PREFIX) :]: tensor for name, tensor in conversion.backbone.items()}
    save_atomically(bare, path)
    write_text(_side_file(path), json.dumps(conversion.meta, indent=2) + "\n")


def _side_file(path: str | os.PathLike) -> Path:
    return Path(f"{os.fspath(path)}.json")


def _unwrap(path: Path, data: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    beside: list[str] = []
    for _ in range(MOST_WRAPPERS):
        key = next((key for key in WRAPPERS if isinstance(data.get(key), Mapping)), None)
        if key is None:
            break
        beside += [str(name) for name in data if name != key]
        data = data[key]
    whole = next((key for key in WRAPPERS if isinstance(data.get(key), StandIn)), None)
    if whole is not None:
        raise UserError(
            f"{path} holds a whole pickled {type(data[whole]).__name__} as {whole!r}, no dict of "
            "weights: save its state_dict() instead"
        )
    return data, beside


def _exported_weights(
    data: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str | None]:
    """Return the weights that were exported with a checkpoint of ``EMAHook``, and their kind.

    MMEngine's ``EMAHook`` swaps both: ``state_dict`` holds the averaged weights, and
    ``ema_state_dict`` those that the optimizer moves. For other files, the state is returned
    unchanged, with None.
    """
    other, meta = data.get("ema_state_dict"), data.get("meta")
    if not isinstance(other, Mapping) or "state_dict" not in data or not isinstance(meta, Mapping):
        return state, None
    if "mmengine_version" not in meta:
        return state, None
    if meta.get("weights") != "raw":
        return state, "ema"
    return {**state, **below(other, "module.")}, "raw"


def _exported(
    path: Path, data: Mapping[str, Any], tensors: Tensors, arch: str, teacher: bool
) -> Conversion | None:
    """Return a file that this package wrote before without changes, or None for other files."""
    meta, named, stale = data.get("meta"), tensors, ""
    if not isinstance(meta, Mapping) and _side_file(path).is_file():
        named = {PREFIX + name: tensor for name, tensor in tensors.items()}
        stale = f", or {_side_file(path).name} belongs to another one: then remove that"
        try:
            meta = json.loads(_side_file(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{_side_file(path)} is no JSON ({error}): remove it") from error
    if not isinstance(meta, Mapping) or "weights_sha256" not in meta:
        return None
    if not all(name.startswith(PREFIX) for name in named):
        return None  # renamed since
    if weights_sha256(named) != meta["weights_sha256"]:
        raise UserError(
            f"the weights of {path} are not those that were exported: their hash is not the "
            f"weights_sha256 of its meta. The file was damaged or changed{stale}"
        )
    require_finite(path, named)
    unread: list[str] = []
    meta = _plain(meta, "meta", unread)
    lacking = [key for key in ("arch", "method", "epoch", "normalisation") if key not in meta]
    if lacking:
        raise UserError(f"{path} has a meta without {listed(lacking)}: export or convert it again")
    if teacher:
        raise UserError(f"{path} is an exported backbone: it holds no teacher")
    bare = {name[len(PREFIX) :]: tensor for name, tensor in named.items()}
    nearest = nearest_depth(bare)
    shapes = {name: tuple(tensor.shape) for name, tensor in bare.items()}
    depth = nearest if shapes == resnet_shapes(nearest) else None
    if arch not in ("auto", f"resnet{depth}"):
        raise UserError(f"{path} holds a {meta['arch']}, not --arch {arch}")
    return Conversion(
        named, meta, bare, False, depth, {"backbone": len(named)},
        reasons=("this package exported or converted it: its meta says so and its hash fits",),
        notes=(f"left unread: {listed(unread)}",) if unread else (),
    )  # fmt: skip


def _plain(value: Any, name: str, unread: list[str]) -> Any:
    """Return ``meta`` as plain Python without stand-ins; their keys are added to ``unread``."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if not _left_out(k, v, f"{name}.{k}", unread)}
        return {
            "config" if k == "config_text" else k: _plain(v, f"{name}.{k}", unread)
            for k, v in kept.items()
        }
    if isinstance(value, (list, tuple, set)):
        kept_items = [v for v in value if not _left_out(None, v, name, unread)]
        return type(value)(_plain(v, name, unread) for v in kept_items)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return value


def _left_out(key: Any, value: Any, name: str, unread: list[str]) -> bool:
    found = isinstance(key, StandIn) or isinstance(value, (StandIn, HistoryBuffer))
    found = found or isinstance(value, type) and issubclass(value, StandIn)
    if found:
        unread.append(name)
    return found


def _without_wrappers(path: Path, tensors: Tensors) -> tuple[Tensors, list[str]]:
    bare: Tensors = {}
    for name, tensor in tensors.items():
        match = PARALLEL.match(name)
        short = name[match.end() :] if match else name
        if short in bare:
            raise UserError(f"{path} holds {short} twice, with and without 'module.'")
        bare[short] = tensor
    if bare.keys() == tensors.keys():
        return bare, []
    return bare, ["the prefix of DistributedDataParallel or torch.compile is taken off"]


def _find(path: Path, tensors: Tensors, teacher: bool) -> tuple[sources.Layout, str]:
    found = sources.find_layout(tensors, teacher)
    if found:
        return found
    other = sources.find_layout(tensors, not teacher)
    matches = (re.match(r"(.+\.)layer1\.0\.conv1\.weight", name) for name in tensors)
    inner = next((match.group(1) for match in matches if match), None)
    if other and teacher:
        reason = "it holds no teacher: leave --teacher out"
    elif other:
        reason = f"it holds the teacher alone ({other[1]}*): --teacher takes that"
    elif inner:
        reason = (
            f"it has a ResNet below {inner!r}, where no known source has its backbone. "
            f"Start a training from it with init_cfg.prefix={inner!r}, or save its "
            f"tensors with names that start with {PREFIX!r}"
        )
    elif any(TRANSFORMER.search(name) for name in tensors):
        reason = f"it is a transformer. {OWN}"
    elif any(re.search(r"(^|\.)res2\.", name) for name in tensors):
        reason = (
            "it has Detectron's names and so the caffe style, with its strides elsewhere: this is "
            "another network"
        )
    elif all(_group(name) != "other" for name in tensors):
        groups = sorted({_group(name) for name in tensors})
        reason = f"it holds {' and '.join(groups)} alone"
    else:
        reason = f"its tensors are called {listed(tensors)}"
    raise UserError(f"{path} has no backbone that could be converted: {reason}")


def _belongs(name: str, prefix: str, layout: sources.Layout) -> bool:
    if not name.startswith(prefix):
        return False
    rest = name[len(prefix) :]
    if layout.by_position:
        return rest[:1].isdigit()
    return not HEAD.match(rest) if prefix else bool(sources.BY_NAME.match(rest))


def _by_name(name: str) -> str:
    position, _, rest = name.partition(".")
    return f"{sources.POSITIONS.get(position, position)}.{rest}"


def _refuse_differing_copies(path: Path, tensors: Tensors, backbone: Tensors) -> None:
    for prefix in ("encoder_q.", "encoder_q.0."):
        differ = [n for n, v in backbone.items() if not _equal(tensors.get(prefix + n, v), v)]
        if differ:
            raise UserError(
                f"{path}: backbone.* and {prefix}* are two names of one network, but differ "
                f"({listed(differ)}): the file was changed"
            )


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or torch.equal(one, other) or bool(one.isnan().any())


def _cleaned(path: Path, tensors: Tensors, depth: int) -> tuple[Tensors, list[str]]:
    clean: Tensors = {}
    changed: Counter[str] = Counter()
    for name, shape in resnet_shapes(depth).items():
        tensor = tensors.get(name)
        counter = name.endswith(COUNTER)
        if tensor is None:
            tensor = torch.zeros(shape, dtype=torch.int64)
            changed["batch counters are not in the file and are set to 0"] += 1
        elif not counter and not tensor.is_floating_point():
            raise UserError(f"{path}: {name} is of type {tensor.dtype}, no floating point")
        elif not counter and tensor.dtype != torch.float32:
            changed[f"tensors of type {str(tensor.dtype)[6:]} are stored as float32"] += 1
        target = torch.int64 if counter else torch.float32
        clean[PREFIX + name] = tensor.detach().to(target).contiguous().clone()
    require_finite(path, clean)
    return clean, [f"{number} {change}" for change, number in changed.items()]


def _counts(
    tensors: Tensors, raw: Tensors, prefix: str, layout: sources.Layout, role: str
) -> dict[str, int]:
    counts: Counter[str] = Counter({role: 0})
    for name in tensors:
        if name.startswith(prefix) and name[len(prefix) :] in raw:
            counts[role] += 1
        elif name.startswith(layout.student) and _belongs(name, layout.student, layout):
            counts["student"] += 1
        elif layout.name == "backbone" and name.startswith("encoder_q."):
            counts["second name of the student"] += 1
        else:
            counts[_group(name)] += 1
    return dict(counts)


def _group(name: str) -> str:
    return next((group for group, pattern in GROUPS.items() if re.match(pattern, name)), "other")


def _config_facts(meta: Any) -> dict[str, Any]:
    """Return the facts about the model in the config of a checkpoint, without running it."""
    text = (meta.get("cfg") or meta.get("config_text")) if isinstance(meta, Mapping) else None
    values = config_values(text)
    model, facts = _table(values.get("model")), dict[str, Any](config=text) if values else {}
    if model.get("type"):
        facts["type"] = str(model["type"]).rpartition(".")[2]
    facts["style"] = _table(model.get("backbone")).get("style")
    facts["scale"] = Normalisation.in_config(values)
    return facts


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _refuse_other_input(path: Path, facts: Mapping[str, Any]) -> None:
    if facts.get("style") == "caffe" or "caffe" in path.name.lower():
        raise UserError(
            f"{path} is of the caffe style: its strides are elsewhere and its images BGR, although "
            "the tensors look the same. It is another network"
        )
    scale = facts.get("scale")
    if scale is not None and scale.channel_order != CHANNEL_ORDER:
        raise UserError(f"{path} was trained on BGR images: backbones here take RGB")


def _epoch(data: Mapping[str, Any], first: int) -> int | None:
    meta = data.get("meta")
    epoch = meta.get("epoch") if isinstance(meta, Mapping) else data.get("epoch")
    return epoch + first if isinstance(epoch, int) else None
