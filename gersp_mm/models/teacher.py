"""The EMA teacher: a frozen copy of the student's backbone and projector."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gersp_mm.utils.model import as_tuple


class Teacher(nn.Module):
    """An exponential moving average of a student backbone and projector.

    BatchNorm's running statistics are not averaged. They come from the teacher's own forward
    passes, as in MoCo and in the released code.

    Args:
        backbone: The student backbone, which is copied.
        neck: The student projector, which is copied.
        average_neck: Whether :meth:`update` averages the projector. ``False`` keeps its initial
            weights, as the released code does (``_momentum_update_key_encoder`` in
            ``mmselfsup/models/algorithms/moco_gersp.py``).
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, average_neck: bool = True) -> None:
        super().__init__()
        self.backbone: Any = copy.deepcopy(backbone)
        self.neck: Any = copy.deepcopy(neck)
        self.average_neck = average_neck
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Project images of shape N×3×H×W to a tuple with one N×feat_dim tensor."""
        return as_tuple(self.neck(as_tuple(self.backbone(images))))

    @torch.no_grad()
    def copy_from(self, backbone: nn.Module, neck: nn.Module) -> None:
        """Become an exact copy of the student, BatchNorm statistics included."""
        self.backbone.load_state_dict(backbone.state_dict())
        self.neck.load_state_dict(neck.state_dict())

    @torch.no_grad()
    def update(self, backbone: nn.Module, neck: nn.Module, momentum: float) -> None:
        """Move towards the student: θ_t ← m·θ_t + (1 - m)·θ_s, in one fused call.

        Args:
            backbone: The student backbone.
            neck: The student projector.
            momentum: m, the share of the teacher that is kept, in [0, 1].
        """
        own: list[torch.Tensor] = list(self.backbone.parameters())
        student: list[torch.Tensor] = list(backbone.parameters())
        if self.average_neck:
            own += self.neck.parameters()
            student += neck.parameters()
        torch._foreach_lerp_(own, student, 1.0 - momentum)


def with_teacher(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return entries for the teacher, copied from the student of a file without a teacher.

    Args:
        state_dict: State dict of the file. If it holds a teacher, the result is empty.
        prefix: Prefix of all names.
    """
    if any(name.startswith(f"{prefix}teacher.") for name in state_dict):
        return {}
    parts = (f"{prefix}backbone.", f"{prefix}neck.")
    student = {name: value for name, value in state_dict.items() if name.startswith(parts)}
    return {f"{prefix}teacher.{name[len(prefix) :]}": value for name, value in student.items()}
