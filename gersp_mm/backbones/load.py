"""One call for a pre-trained backbone: from any known file, for any library."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gersp_mm.backbones.agreement import below
from gersp_mm.backbones.convert import take_backbone
from gersp_mm.backbones.exported import BackboneMeta, ExportedBackbone
from gersp_mm.backbones.libraries import LIBRARIES, Network, image_side
from gersp_mm.constants import PREFIX
from gersp_mm.images.transform import BackboneTransform
from gersp_mm.utils.errors import UserError, check_choice, first_line, listed

HUB, LOCAL = "hf-hub:", "local-dir:"
# A hub folder's file of this package, and the export next to a run's checkpoints.
IN_FOLDERS = ("*_mmlab.pth", "*_backbone.pth")


def load_backbone(
    source: str | os.PathLike,
    library: str | None = None,
    *,
    device: str | torch.device = "cpu",
    size: int | None = None,
    trust: bool = False,
) -> Any:
    """Load a pre-trained backbone with all of its weights, in eval mode.

    Args:
        source: An exported backbone, a checkpoint that ``convert_checkpoint.py`` knows, the folder
            of a run or of ``gersp export --to hub``, or ``hf-hub:organisation/name``.
        library: Library whose module is returned: None for mmpretrain, ``'torchvision'``,
            ``'timm'``, or ``'transformers'`` (its wrapper of timm's models). ResNets, vision
            transformers and Swin transformers can be had from all of them.
        device: Device of the module.
        size: Side of the images that ``transform`` gives, in pixels; by default that of the
            position embedding, or 224.
        trust: Accept a file with objects of unknown classes, which are left unread.

    Returns:
        The module, without classifier, with two more attributes: ``meta``
        (:class:`gersp_mm.backbones.exported.BackboneMeta`) and ``transform``
        (:class:`gersp_mm.images.transform.BackboneTransform`), which turns a path, a PIL image or
        an array into the input. For N×3×H×W images, mmpretrain's module returns a tuple whose last
        entry is N×C×H'×W' (ResNet, Swin) or N×C (ViT); torchvision's and timm's return N×C, timm's
        ``forward_features`` the map or tokens; transformers' has ``last_hidden_state`` and
        ``pooler_output``.

    Raises:
        UserError: The file cannot be read or holds no known backbone, the library is not installed
            or does not have this network, or not all tensors fit.
    """
    if library is not None:
        check_choice("library", library, LIBRARIES)
    backbone = read_backbone(source, trust)
    module: Any = backbone.build()
    size = size or image_side(module)
    if library is not None:
        module = Network(module, str(source)).build(library)
    mean, std, _ = backbone.meta.normalisation
    module.meta = backbone.meta
    module.transform = BackboneTransform(mean, std, backbone.meta.pixel_scale, size)
    assert isinstance(module, nn.Module)
    return module.to(device)


def read_backbone(source: str | os.PathLike, trust: bool = False) -> ExportedBackbone:
    """Read a backbone of any source that :func:`load_backbone` takes.

    Raises:
        UserError: See :func:`load_backbone`.
    """
    path = find_file(source)
    conversion = take_backbone(path, trust=trust)
    tensors = below(conversion.backbone, PREFIX)
    meta = {"config_text" if k == "config" else k: v for k, v in conversion.meta.items()}
    return ExportedBackbone(BackboneMeta.of(meta), path=path, tensors=tensors)


def find_file(source: str | os.PathLike) -> Path:
    """Return the file of a source, which is downloaded from the hub if that is named.

    Raises:
        UserError: The file does not exist, or the folder holds none or several.
    """
    source = os.fspath(source)
    if source.startswith(HUB):
        source = _download(source.removeprefix(HUB))
    path = Path(source.removeprefix(LOCAL))
    if not path.is_dir():
        if not path.exists():
            raise UserError(
                f"{path} does not exist. Give a file, the folder of a run or of an export, or "
                f"{HUB}organisation/name"
            )
        return path
    for pattern in IN_FOLDERS:
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{path} holds {listed([f.name for f in found])}. Name one of them")
    raise UserError(
        f"{path} holds no exported backbone ({' or '.join(IN_FOLDERS)}). Name the file to load"
    )


def _download(name: str) -> str:
    if find_spec("huggingface_hub") is None:
        raise UserError(f"{HUB}{name} needs huggingface_hub: pip install huggingface_hub")
    import huggingface_hub

    name, _, revision = name.partition("@")
    try:
        return str(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=[IN_FOLDERS[0]]
            )
        )
    except Exception as error:  # of the network, of the hub, of the name
        text = first_line(error, named=False)
        raise UserError(f"{HUB}{name} cannot be downloaded: {text}") from error
