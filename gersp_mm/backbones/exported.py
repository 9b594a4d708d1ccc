"""The backbone alone, as downstream configs load it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import mmengine
import mmpretrain
import torch

from gersp_mm.checkpoints.compare import not_finite
from gersp_mm.constants import CHANNEL_ORDER
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import save_atomically
from gersp_mm.version import __version__

PREFIX = "backbone."


def export_backbone(
    state_dict: Mapping[str, torch.Tensor],
    path: str | os.PathLike,
    arch: str,
    method: str,
    mean: list[float],
    std: list[float],
    epoch: int | None = None,
    config: str | None = None,
    source_sha256: str | None = None,
) -> dict[str, Any]:
    """Write ``{'state_dict': {'backbone.…': tensor}, 'meta': {plain Python}}``.

    The file reads with ``torch.load(weights_only=True)`` and fits
    ``init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.')``.

    Args:
        state_dict: of the whole model; the student's ``backbone.`` entries are taken.
        path: where to write.
        arch: the backbone in words, such as ``ResNet-50``.
        method: the pre-training, such as ``GeRSP``.
        mean: per-channel mean of the input, RGB, range 0 to 255.
        std: per-channel standard deviation of the input, RGB, range 0 to 255.
        epoch: epochs trained.
        config: text of the training config.
        source_sha256: hash of the file that the weights were taken from, None for a run's own.

    Returns:
        The ``meta`` that was written.

    Raises:
        UserError: the state dict holds no ``backbone.`` entry, or one with NaN or infinity.
    """
    backbone = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in state_dict.items()
        if name.startswith(PREFIX)
    }
    if not backbone:
        raise UserError(
            f"nothing to export to {path}: the state dict has no entry starting with {PREFIX!r}"
        )
    broken = not_finite(backbone)
    if broken:
        raise UserError(
            f"{path} was not written, because NaN or infinity is in {listed(broken)}. Export an "
            "earlier checkpoint"
        )
    meta = describe_backbone(backbone, arch, method, mean, std, epoch, config, source_sha256)
    save_atomically(dict(state_dict=backbone, meta=meta), path)
    return meta


def describe_backbone(
    backbone: Mapping[str, torch.Tensor],
    arch: str,
    method: str,
    mean: list[float],
    std: list[float],
    epoch: int | None = None,
    config: str | None = None,
    source_sha256: str | None = None,
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the ``meta`` of an exported file, its arguments being those of its writer.

    Args:
        backbone: what is written.
        arch: see :func:`export_backbone`, and so for those that follow.
        method: the pre-training.
        mean: per channel.
        std: per channel.
        epoch: epochs trained.
        config: text of the training config.
        source_sha256: hash of the file that the weights were taken from.
        source: more about that file, plain Python.
    """
    meta = dict(
        arch=arch,
        method=method,
        epoch=epoch,
        config=config,
        normalisation=dict(mean=mean, std=std, channel_order=CHANNEL_ORDER),
        versions=dict(
            gersp_mm=__version__,
            torch=str(torch.__version__),
            mmengine=mmengine.__version__,
            mmpretrain=mmpretrain.__version__,
        ),
        source_sha256=source_sha256,
        weights_sha256=weights_sha256(backbone),
    )
    return meta if source is None else dict(meta, source=dict(source))


def weights_sha256(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Hash names, types, shapes and values of CPU tensors, whatever file they are stored in."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
