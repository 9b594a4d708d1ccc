"""Which ResNet a set of tensors is, and what is wrong with it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from gersp_mm.checkpoints.compare import COUNTER, compare
from gersp_mm.utils.errors import UserError, listed

DEPTHS = (18, 34, 50, 101, 152)
TRANSFORMER = re.compile(r"(^|\.)(patch_embed|cls_token|class_token|(blocks|layers)\.\d+)")
OWN = (
    "Of other backbones than ResNets only exported files of this package are taken, such as the "
    "<config>_backbone.pth beside a run's checkpoints"
)

Shapes = Mapping[str, tuple[int, ...]]


@functools.cache
def resnet_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a ResNet's tensors, without the classifier's.

    They are those of mmpretrain's, mmdet's and mmseg's ResNet too (a test compares), but
    torchvision's can be built without memory for the weights.
    """
    import torchvision

    with torch.device("meta"):
        network = getattr(torchvision.models, f"resnet{depth}")()
    state = network.state_dict()
    return {n: tuple(tensor.shape) for n, tensor in state.items() if not n.startswith("fc.")}


def nearest_depth(names: Iterable[str]) -> int:
    """Return the depth of the ResNet that has most names in common with these."""
    own = {name for name in names if not name.endswith(COUNTER)}
    return min(
        DEPTHS,
        key=lambda depth: len(own ^ {n for n in resnet_shapes(depth) if not n.endswith(COUNTER)}),
    )


def arch_words(depth: int) -> str:
    """Return the name of an architecture in words, as exported files note it."""
    return f"ResNet-{depth}"


def require_resnet(shapes: Shapes, depth: int, what: str) -> None:
    """Raise a :class:`UserError` unless the tensors are the whole ResNet and nothing else.

    Args:
        shapes: names without prefix, and shapes.
        depth: of the ResNet that they have to be.
        what: what is looked at, the start of the message.
    """
    reference = resnet_shapes(depth)
    found = compare(_without_values(shapes), _without_values(reference))
    counters = [n for n in shapes if n.endswith(COUNTER) and n not in reference]
    if found or counters:
        text = found or f"{len(counters)} unexpected: {listed(counters)}"
        raise UserError(
            f"{what} is no complete {arch_words(depth)}: {text}. {_reason(shapes, depth)}".rstrip()
        )


def _without_values(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _reason(shapes: Shapes, depth: int) -> str:
    names = list(shapes)
    conv1, conv2 = shapes.get("conv1.weight"), shapes.get("layer1.0.conv2.weight")
    expected = resnet_shapes(depth)["layer1.0.conv2.weight"]
    if any(name.startswith(("stem.0.", "conv1.0.")) for name in names):
        return (
            "It has the deep stem of ResNetV1c, V1d or timm's resnet50d, three convolutions in "
            "place of one, so it is another network"
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
        return f"It is a {arch_words(fitting)}"
    blocks = _blocks(names)
    return f"Its stages have {blocks} blocks" if blocks != _blocks(resnet_shapes(depth)) else ""


def _blocks(names: Iterable[str]) -> str:
    found = {tuple(name.split(".")[:2]) for name in names if name.startswith("layer")}
    return "-".join(str(sum(layer == f"layer{i}" for layer, *_ in found)) for i in (1, 2, 3, 4))


def arch_name(backbone: Any) -> str:
    """Return the backbone in words: its class, and its depth or named size where it has one."""
    size = getattr(backbone, "depth", None) or getattr(backbone, "arch", None)
    return f"{type(backbone).__name__}-{size}" if size else type(backbone).__name__
