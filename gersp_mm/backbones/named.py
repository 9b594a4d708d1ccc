"""Backbones that a command line names, for pictures and tables that compare them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from gersp_mm.backbones.exported import ExportedBackbone
from gersp_mm.images.pixels import PixelScale
from gersp_mm.results.row import RANDOM
from gersp_mm.utils.errors import UserError


class Backbone(NamedTuple):
    """A network with the normalisation of its input.

    Attributes:
        name: Its name in pictures and tables.
        network: The network, in eval mode.
        mean: Mean of its input per channel, RGB, 0 to 255.
        std: Standard deviation of its input per channel, RGB, 0 to 255.
        pixel_scale: Scale of rasters; None stretches each raster by its own values.
    """

    name: str
    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_scale: PixelScale | None = None


def load_backbones(
    specs: Sequence[str], device: str | torch.device = "cpu", seed: int = 0
) -> list[Backbone]:
    """Build the networks of ``NAME=FILE``, ``FILE``, ``NAME=random`` or ``random``.

    A file without a name is named after its method, or after the file if two have the same method.
    ``random`` is the network of the first file at random initialisation, with its normalisation.

    Args:
        specs: The texts, at least one of which has to name a file.
        device: Device of the networks.
        seed: Seed of the random initialisation; a second ``random`` gets ``seed + 1``, and so on.

    Raises:
        UserError: A file is not an exported backbone or cannot be built, or two have the same name.
    """
    pairs = [_split(spec) for spec in specs]
    files = {path: ExportedBackbone.read(path) for _, path in pairs if path != RANDOM}
    if not files:
        raise UserError(
            f"{RANDOM} is the network of the first checkpoint at random initialisation: name at "
            "least one file"
        )
    first = next(iter(files.values()))
    methods = [files[path].meta.method for _, path in pairs if path != RANDOM]
    backbones: list[Backbone] = []
    draws = 0
    for name, path in pairs:
        if path == RANDOM:
            drawn = ExportedBackbone.random(first.architecture, seed + draws)
            network, meta = drawn.build(device), first.meta
            draws += 1
            name = name or RANDOM
        else:
            network, meta = files[path].build(device), files[path].meta
            method = meta.method
            name = name or (method if method and methods.count(method) == 1 else Path(path).stem)
        mean, std, _ = meta.normalisation
        backbones.append(Backbone(name, network, mean, std, meta.pixel_scale))
    names = [backbone.name for backbone in backbones]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two checkpoints are called {name}: name them, as NAME=FILE")
    return backbones


def _split(spec: str) -> tuple[str, str]:
    name, equals, path = spec.partition("=")
    return (name, path) if equals and not os.path.exists(spec) else ("", spec)
