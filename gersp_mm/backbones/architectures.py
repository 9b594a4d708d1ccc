"""The architecture of a backbone, and the check that tensors are a whole ResNet."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gersp_mm.backbones.own import is_own_type
from gersp_mm.checkpoints.compare import COUNTER, compare
from gersp_mm.checkpoints.read import config_values
from gersp_mm.constants import DEPTHS, RESNETS
from gersp_mm.utils.errors import UserError, listed

TRANSFORMER = re.compile(r"(^|\.)(patch_embed|cls_token|class_token|(blocks|layers)\.\d+)")
OWN = (
    "Only files that this package exported may hold other backbones than ResNets, such as the "
    "<config>_backbone.pth next to a run's checkpoints"
)
# Arguments by which a network would load another file, or MMEngine import a module.
NOT_ARCHITECTURE = (
    "init_cfg", "pretrained", "pretrained_cfg", "checkpoint", "checkpoint_path", "_scope_",
)  # fmt: skip
TYPES = re.compile(r"((mmpretrain|gersp_mm)\.)?\w+")  # types that the config of a file may build
SIZES = ("depth", "arch")  # arguments that hold the size of a backbone
PLAIN = (str, int, float, bool, type(None))

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """The architecture of a network.

    Attributes:
        name: Name for people, such as ``ResNet-50``.
        config: Config from which mmpretrain builds the network; None if only the name is known.
        where: Place that names the architecture, at the start of messages; by default the name.
    """

    name: str
    config: Mapping[str, Any] | None = None
    where: str = field(default="", compare=False)

    @classmethod
    def resnet(cls, depth: int) -> Architecture:
        """Return the standard ResNet of a depth."""
        return cls(f"ResNet-{depth}", dict(type="ResNet", depth=depth))

    @classmethod
    def parse(cls, given: str | Mapping[str, Any], where: str = "") -> Architecture:
        """Return the architecture of a name or a config.

        Args:
            given: ``resnet50``, ``ResNet-50``, another name (without a known config), or the config
                of a backbone.
            where: Place that names the architecture, for messages.
        """
        if not isinstance(given, str):
            name = _named(str(given["type"]).rpartition(".")[2], given)
            return cls(name, dict(given), where)
        known = given.lower().replace("-", "")
        if known in RESNETS:
            standard = cls.resnet(int(known.removeprefix("resnet")))
            return cls(standard.name, standard.config, where)
        return cls(given, None, where)

    @classmethod
    def of(cls, backbone: Any, config: Any = None) -> Architecture:
        """Return the architecture of a module: its class, with its depth or named size.

        Args:
            backbone: The module.
            config: Config that it was built from, for modules that do not keep the size's name.
        """
        given = config if isinstance(config, Mapping) else {}
        kept = {key: getattr(backbone, key, None) for key in SIZES}
        return cls(_named(type(backbone).__name__, kept, given))

    @classmethod
    def stored(cls, meta: Mapping[str, Any], path: str | os.PathLike) -> Architecture:
        """Return the architecture of an exported file.

        New files hold the config as plain data; older files hold the text of their training's
        config, whose code is not run. A converted file of an older release is a standard ResNet.

        Args:
            meta: ``meta`` of the file.
            path: Path of the file, for messages.

        Raises:
            UserError: The config names a type that is not built.
        """
        name, where = str(meta["arch"]), f"{path} is of the arch {meta['arch']}, which"
        config = plain_config(meta.get("backbone"))
        if config is None and not meta.get("source"):
            model = config_values(meta.get("config_text")).get("model")
            config = plain_config(model.get("backbone") if isinstance(model, dict) else None)
        if config is None:
            known = cls.parse(name, where)
            return cls(name, known.config, where)
        for kind in types_in(config):
            if not (TYPES.fullmatch(str(kind)) or is_own_type(str(kind))):
                raise UserError(f"{path}: its config names the type {kind!r}, which is not built")
        return cls(name, config, where)


def plain_config(config: Any) -> dict[str, Any] | None:
    """Return only the architecture in a backbone's config; None if it is not plain data.

    Entries that would load other weights or import a module are removed at any depth.
    """
    if not isinstance(config, Mapping) or "type" not in config:
        return None
    return None if any(not isinstance(v, PLAIN) for v in _leaves(config)) else _alone(config)


def types_in(value: Any) -> list[Any]:
    """Return every ``type`` of a config, its own first."""
    if isinstance(value, Mapping):
        own = [value["type"]] if "type" in value else []
        return own + [kind for item in value.values() for kind in types_in(item)]
    if isinstance(value, (list, tuple)):
        return [kind for item in value for kind in types_in(item)]
    return []


def _alone(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if key not in NOT_ARCHITECTURE}
        return {key: _alone(item) for key, item in kept.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_alone(item) for item in value)
    return value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _named(kind: str, *sources: Mapping[str, Any]) -> str:
    """Return the kind with its size, unless the size is a dict of widths and depths."""
    found = (source.get(key) for source in sources for key in SIZES)
    size = next((size for size in found if size and isinstance(size, (str, int))), None)
    return f"{kind}-{size}" if size else kind


@functools.cache
def resnet_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a ResNet's tensors, without the classifier's.

    mmpretrain's, mmdet's and mmseg's ResNets have the same (a test compares them). torchvision's is
    used because it can be built without memory for the weights.
    """
    import torchvision

    with torch.device("meta"):
        network = getattr(torchvision.models, f"resnet{depth}")()
    state = network.state_dict()
    return {n: tuple(tensor.shape) for n, tensor in state.items() if not n.startswith("fc.")}


def nearest_depth(names: Iterable[str]) -> int:
    """Return the depth of the ResNet that shares most names with the given names."""
    own = {name for name in names if not name.endswith(COUNTER)}
    return min(
        DEPTHS,
        key=lambda depth: len(own ^ {n for n in resnet_shapes(depth) if not n.endswith(COUNTER)}),
    )


def require_resnet(shapes: Shapes, depth: int, what: str) -> None:
    """Raise a :class:`UserError` unless the tensors are exactly those of a ResNet.

    Args:
        shapes: Shapes of the tensors by their names without prefix.
        depth: Depth of the ResNet.
        what: Name of the compared weights, at the start of the message.
    """
    reference = resnet_shapes(depth)
    found = compare(_without_values(shapes), _without_values(reference))
    counters = [n for n in shapes if n.endswith(COUNTER) and n not in reference]
    if found or counters:
        text = found or f"{len(counters)} unexpected: {listed(counters)}"
        name, reason = Architecture.resnet(depth).name, _reason(shapes, depth)
        raise UserError(f"{what} is not a complete {name}: {text}. {reason}".rstrip())


def _without_values(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _reason(shapes: Shapes, depth: int) -> str:
    names = list(shapes)
    conv1, conv2 = shapes.get("conv1.weight"), shapes.get("layer1.0.conv2.weight")
    expected = resnet_shapes(depth)["layer1.0.conv2.weight"]
    if any(name.startswith(("stem.0.", "conv1.0.")) for name in names):
        return (
            "It has the deep stem of ResNetV1c, V1d or timm's resnet50d, three convolutions "
            "instead of one, so it is another network"
        )
    if any(name.startswith("res2.") for name in names):
        return (
            "It has Detectron's names and so the caffe style, with its strides elsewhere: this is "
            "another network"
        )
    if any(TRANSFORMER.search(name) for name in names):
        return f"It is a transformer. {OWN}"
    if conv1 and conv1[1] != 3:
        return f"It takes {conv1[1]} bands, not three: look for the RGB version"
    if conv2 and conv2[1] < conv2[0]:
        return "Its convolutions are grouped: it is a ResNeXt"
    if conv2 and conv2[0] != expected[0]:
        return "It is wider or narrower than the standard network, such as a Wide ResNet"
    fitting = nearest_depth(names)
    if fitting != depth and not set(resnet_shapes(fitting)) - set(names):
        return f"It is a {Architecture.resnet(fitting).name}"
    blocks = _blocks(names)
    return f"Its stages have {blocks} blocks" if blocks != _blocks(resnet_shapes(depth)) else ""


def _blocks(names: Iterable[str]) -> str:
    found = {tuple(name.split(".")[:2]) for name in names if name.startswith("layer")}
    return "-".join(str(sum(layer == f"layer{i}" for layer, *_ in found)) for i in (1, 2, 3, 4))
