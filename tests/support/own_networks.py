"""A backbone of a user's own, registered as ``custom_imports`` and ``--import`` do it."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module(force=True)
class BareNetwork(BaseModule):
    """A convolution, a normalisation and a pooling that return a bare N×C tensor."""

    def __init__(self, channels: int = 24, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.convolution = nn.Conv2d(3, channels, 3, stride=2)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return N×C for N×3×H×W."""
        return self.norm(self.convolution(images)).relu().mean((2, 3))


@MODELS.register_module(force=True)
class MovingNetwork(BareNetwork):
    """A network whose every forward draws random numbers and moves its buffers."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__(channels)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("noise", torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return N×C for N×3×H×W."""
        self.calls += 1
        self.noise = torch.rand(1)
        return super().forward(images)


@MODELS.register_module(force=True)
class DictNetwork(BareNetwork):
    """A network that returns a dict."""

    def forward(self, images: torch.Tensor) -> dict:
        """Return a dict of N×C."""
        return dict(features=super().forward(images))
