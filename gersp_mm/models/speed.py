"""Memory layout and compilation, which speed up a step without changing its result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from gersp_mm.utils.errors import UserError


def lay_out(model: nn.Module, channels_last: bool) -> torch.memory_format:
    """Set the memory layout of a model's weights, and return the one that its images need."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    return layout


def compile_forward(modules: Iterable[nn.Module], choice: bool | Mapping[str, Any]) -> None:
    """Compile the forward of modules in place, without changing names in the state dict.

    Args:
        modules: Modules to compile.
        choice: False to compile nothing, True, or options of ``torch.compile``.

    Raises:
        UserError: This PyTorch cannot compile modules.
    """
    if choice is False:
        return
    if not hasattr(nn.Module, "compile"):
        raise UserError(
            f"model.compile needs torch >= 2.2, but this is {torch.__version__}. Set it to False."
        )
    for module in modules:
        module.compile(**(choice if isinstance(choice, Mapping) else {}))
