"""The backbone alone, as downstream configs load it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import mmengine
import mmpretrain
import torch

from gersp_mm.checkpoints.compare import not_finite
from gersp_mm.checkpoints.integrity import weights_sha256
from gersp_mm.checkpoints.read import config_values
from gersp_mm.constants import CHANNEL_ORDER
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import save_atomically
from gersp_mm.version import __version__

PREFIX = "backbone."


class Normalisation(NamedTuple):
    """How the images that a network takes are normalised.

    Attributes:
        mean: For each channel, in the network's channel order, range 0 to 255.
        std: Likewise.
        channel_order: ``RGB`` or ``BGR``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str

    @classmethod
    def of(cls, preprocessor: Any) -> Normalisation | None:
        """Return the normalisation of a model's data preprocessor, None if it has none."""
        if not hasattr(preprocessor, "mean") or not hasattr(preprocessor, "std"):
            return None
        names = ("to_rgb", "bgr_to_rgb", "channel_conversion", "_channel_conversion")
        converts = any(getattr(preprocessor, name, False) for name in names)
        # MMCV reads images as BGR; our own preprocessor gets them as it says
        order = getattr(preprocessor, "channel_order", "RGB" if converts else "BGR")
        mean, std = preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()
        return cls(tuple(mean), tuple(std), order)

    @classmethod
    def in_config(cls, values: Mapping[str, Any]) -> Normalisation | None:
        """Return the normalisation that a config's :func:`config_values` name, if they do."""
        model = values.get("model")
        inner = model.get("data_preprocessor") if isinstance(model, Mapping) else None
        inputs = inner or values.get("data_preprocessor")
        if not isinstance(inputs, Mapping) or not (inputs.get("mean") and inputs.get("std")):
            return None
        ours = str(inputs.get("type")).startswith("gersp_mm.")  # which is RGB always
        rgb = ours or inputs.get("to_rgb", inputs.get("bgr_to_rgb", False))
        try:
            mean, std = (tuple(float(value) for value in inputs[key]) for key in ("mean", "std"))
        except (TypeError, ValueError):
            return None
        return cls(mean, std, "RGB" if rgb else "BGR")

    @classmethod
    def stored(cls, meta: Any) -> Normalisation | None:
        """Return what a file's ``meta`` says: by itself, or by the text of its config."""
        if not isinstance(meta, Mapping):
            return None
        found = meta.get("normalisation")
        if not isinstance(found, Mapping) or not {"mean", "std"} <= set(found):
            return cls.in_config(config_values(meta.get("cfg") or meta.get("config_text")))
        order = found.get("channel_order", CHANNEL_ORDER)
        return cls(tuple(found["mean"]), tuple(found["std"]), order)

    def as_dict(self) -> dict[str, Any]:
        """Return it as a file's ``meta`` holds it, in plain Python."""
        return dict(mean=list(self.mean), std=list(self.std), channel_order=self.channel_order)


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
    **facts: str | None,
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
        facts: more for ``meta``, such as ``run_id`` and ``weights``; None is left out.

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
    meta.update({name: fact for name, fact in facts.items() if fact is not None})
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
