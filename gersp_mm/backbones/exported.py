"""Exported backbones: files with a backbone's weights and the facts about them."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmengine
import mmpretrain
import torch
from torch import nn

from gersp_mm.backbones.agreement import below, likely_reason, require_same_tensors
from gersp_mm.backbones.architectures import Architecture, plain_config
from gersp_mm.backbones.build import build_network
from gersp_mm.backbones.normalisation import Normalisation
from gersp_mm.checkpoints.compare import not_finite
from gersp_mm.checkpoints.integrity import weights_sha256
from gersp_mm.checkpoints.read import CONVERTER, read_checkpoint, require_finite, tensors_of
from gersp_mm.constants import CHANNEL_ORDER, PREFIX, RGB_MEAN, RGB_STD
from gersp_mm.images.pixels import PixelScale
from gersp_mm.results.row import RANDOM
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import file_sha256, save_atomically
from gersp_mm.utils.randomness import preserved_rng_state, seed_everything
from gersp_mm.version import __version__

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class BackboneMeta:
    """Facts about a backbone.

    Attributes:
        arch: The network in words, such as ``ResNet-50``.
        method: The pre-training, such as ``GeRSP``; ``random`` for random weights; None if unknown.
        normalisation: Normalisation of its input images.
        epoch: Epochs trained, None if unknown.
        weights_sha256: Hash of names, types, shapes and values of the tensors in the file.
        stored: The whole ``meta`` of the file, plain Python.
    """

    arch: str
    method: str | None
    normalisation: Normalisation
    epoch: int | None = None
    weights_sha256: str | None = None
    stored: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> BackboneMeta:
        """Return the facts in the ``meta`` of a file, which has an arch and a normalisation."""
        scale = Normalisation.stored(stored)
        if scale is None:
            raise UserError("the meta of the backbone has no mean and std. Export it again")
        method, hashed = stored.get("method"), stored.get("weights_sha256")
        return cls(str(stored["arch"]), method, scale, stored.get("epoch"), hashed, stored)

    @property
    def pixel_scale(self) -> PixelScale | None:
        """How rasters were read in the pre-training; None where it was on photographs."""
        return PixelScale.stored(self.stored.get("pixel_scale"))


def _train(network: nn.Module, mode: bool = True) -> nn.Module:
    """Set the mode and return the network, where mmpretrain's own ``train`` returns None."""
    type(network).train(network, mode)
    return network


class ExportedBackbone:
    """One backbone: exported or converted weights of a file, or random weights.

    Attributes:
        meta: Facts about the backbone.
        path: Path of the file, None if there is none.
    """

    def __init__(
        self,
        meta: BackboneMeta,
        architecture: Architecture | None = None,
        path: Path | None = None,
        tensors: Tensors | None = None,
        seed: int | None = None,
    ) -> None:
        self.meta = meta
        self.path = path
        self._architecture = architecture
        self._tensors = tensors
        self._seed = seed

    @classmethod
    def read(
        cls, path: str | os.PathLike, architecture: Architecture | None = None
    ) -> ExportedBackbone:
        """Read an exported backbone.

        Args:
            path: Path of the file.
            architecture: Architecture of the network; by default that in the file.

        Raises:
            UserError: The file cannot be read, is not an exported backbone, holds NaN or infinity,
                or takes other images than RGB.
        """
        tensors, meta = _read(path)
        return cls(meta, architecture, Path(path), tensors)

    @classmethod
    def random(cls, architecture: Architecture, seed: int) -> ExportedBackbone:
        """Return an untrained backbone with random weights of a seed."""
        scale = Normalisation(RGB_MEAN, RGB_STD, CHANNEL_ORDER)
        return cls(BackboneMeta(architecture.name, RANDOM, scale), architecture, seed=seed)

    @functools.cached_property
    def architecture(self) -> Architecture:
        """The architecture of the network.

        Raises:
            UserError: The config in the file is not accepted.
        """
        return self._architecture or Architecture.stored(self.meta.stored, self.path or "this file")

    @functools.cached_property
    def sha256(self) -> str | None:
        """SHA-256 of the file, None if there is none."""
        return None if self.path is None else file_sha256(self.path)

    @property
    def tensors(self) -> Tensors:
        """The tensors by their names in the backbone, read again after :meth:`release`.

        Raises:
            UserError: The file was replaced since it was read first.
        """
        if self._tensors is None:
            if self.path is None:  # random weights
                return self.build().state_dict()
            self._tensors, meta = _read(self.path)
            if meta != self.meta:
                raise UserError(f"{self.path} was replaced while it was in use. Start again")
        return self._tensors

    def release(self) -> None:
        """Free the memory of the tensors, for lists of many backbones."""
        self._tensors = None

    def build(self, device: str | torch.device = "cpu") -> nn.Module:
        """Build the network, in eval mode; its ``train`` and ``eval`` return it, as torch's do.

        Raises:
            UserError: The architecture cannot be built, or the file does not hold exactly its
                tensors.
        """
        if self._seed is not None:
            with preserved_rng_state():
                seed_everything(self._seed)
                network: Any = build_network(self.architecture)
                network.init_weights()
        else:
            network = build_network(self.architecture)
            own, path = network.state_dict(), str(self.path)
            name = Architecture.of(network, self.architecture.config).name
            advice = likely_reason(own, self.tensors)
            require_same_tensors(f"the {name}", path, own, self.tensors, advice=advice)
            try:
                # Not strict, because old files lack counters of batches.
                network.load_state_dict(dict(self.tensors), strict=False)
            except RuntimeError as error:  # Some networks check states in their own hooks.
                raise UserError(f"{path} cannot be loaded: {error}") from error
        network.train = functools.partial(_train, network)
        return network.eval().to(device)

    def save(self, path: str | os.PathLike) -> None:
        """Write ``{'state_dict': {'backbone.…': tensor}, 'meta': {plain Python}}``."""
        meta = {"config" if k == "config_text" else k: v for k, v in self.meta.stored.items()}
        state = {PREFIX + name: tensor for name, tensor in self.tensors.items()}
        save_atomically(dict(state_dict=state, meta=meta), path)


def _read(path: str | os.PathLike) -> tuple[Tensors, BackboneMeta]:
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
            "normalisation). Use the <config>_backbone.pth next to its run's checkpoints, or "
            f"convert a standard ResNet: {CONVERTER} {path} OUT.pth"
        )
    require_finite(path, state)
    found = BackboneMeta.of(dict(meta))
    if (order := found.normalisation.channel_order) != CHANNEL_ORDER:
        raise UserError(f"{path} takes {order} images, not {CHANNEL_ORDER}")
    return below(state, PREFIX), found


def export_backbone(
    state_dict: Mapping[str, torch.Tensor],
    path: str | os.PathLike,
    arch: str,
    method: str | None,
    mean: Sequence[float],
    std: Sequence[float],
    epoch: int | None = None,
    config: str | None = None,
    source_sha256: str | None = None,
    backbone: Mapping[str, Any] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write ``{'state_dict': {'backbone.…': tensor}, 'meta': {plain Python}}``.

    The file reads with ``torch.load(weights_only=True)`` and fits
    ``init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.')``.

    Args:
        state_dict: State dict of the whole model; the student's ``backbone.`` entries are taken.
        path: Path of the file to write.
        arch: The backbone in words, such as ``ResNet-50``.
        method: The pre-training, such as ``GeRSP``; None if unknown.
        mean: Mean of the input per channel, RGB, range 0 to 255.
        std: Standard deviation of the input per channel, RGB, range 0 to 255.
        epoch: Epochs trained.
        config: Text of the training config.
        source_sha256: Hash of the file that the weights were taken from, None for a run.
        backbone: Config from which the network is built later. It is only stored if it is plain
            data.
        **facts: Further entries of ``meta``, such as ``iterations``, ``frozen``, ``run_id``,
            ``weights``, ``precision`` and ``pixel_scale``; None is left out.

    Returns:
        The ``meta`` that was written.

    Raises:
        UserError: The state dict holds no ``backbone.`` entry, or one with NaN or infinity.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in state_dict.items()
        if name.startswith(PREFIX)
    }
    if not tensors:
        raise UserError(
            f"nothing to export to {path}: the state dict has no entry starting with {PREFIX!r}"
        )
    broken = not_finite(tensors)
    if broken:
        raise UserError(
            f"{path} was not written, because NaN or infinity is in {listed(broken)}. Export an "
            "earlier checkpoint"
        )
    facts = dict(facts, backbone=plain_config(backbone))
    meta = describe_backbone(
        tensors, arch, method, mean, std, epoch, config, source_sha256, **facts
    )
    ExportedBackbone(BackboneMeta.of(meta), None, None, below(tensors, PREFIX)).save(path)
    return meta


def describe_backbone(
    tensors: Mapping[str, torch.Tensor],
    arch: str,
    method: str | None,
    mean: Sequence[float],
    std: Sequence[float],
    epoch: int | None = None,
    config: str | None = None,
    source_sha256: str | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Return the ``meta`` of an exported file; see :func:`export_backbone` for the arguments.

    The ``tensors`` have the names of the file.
    """
    return dict(
        arch=arch,
        method=method,
        epoch=epoch,
        config=config,
        normalisation=Normalisation(tuple(mean), tuple(std), CHANNEL_ORDER).as_dict(),
        versions=dict(
            gersp_mm=__version__,
            torch=str(torch.__version__),
            mmengine=mmengine.__version__,
            mmpretrain=mmpretrain.__version__,
        ),
        source_sha256=source_sha256,
        weights_sha256=weights_sha256(tensors),
        **{name: fact for name, fact in facts.items() if fact is not None},
    )
