"""Both sets of operators on the same input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gersp_mm.ops.install import is_compiled
from gersp_mm.ops.swap import our_operators

beside_compiled = pytest.mark.skipif(
    not is_compiled(), reason="this mmcv has no compiled operators (mmcv._ext) to compare with"
)


def values(call: Callable[..., Any], *inputs: Any) -> list[Tensor]:
    """Return what a call gives, and the gradients of its sum by the inputs that have one."""
    inputs = tuple(
        value.detach().clone().requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value
        for value in inputs
    )
    results = call(*inputs)
    results = list(results) if isinstance(results, Sequence) else [results]
    leaves = [v for v in inputs if isinstance(v, Tensor) and v.requires_grad]
    if leaves:
        generator = torch.Generator().manual_seed(1)
        result = results[0]
        weights = torch.rand(result.shape, generator=generator, dtype=torch.float64).to(result)
        (result * weights).sum().backward()
        results += [leaf.grad for leaf in leaves]
    return [r.detach() if isinstance(r, Tensor) else torch.as_tensor(r) for r in results]


def assert_as_compiled(
    call: Callable[..., Any], *inputs: Any, rtol: float = 1e-5, atol: float = 1e-5
) -> list[Tensor]:
    """Check values and gradients of both sets of operators against each other."""
    compiled = values(call, *inputs)
    with our_operators():
        ours = values(call, *inputs)
    assert len(compiled) == len(ours)
    for a, b in zip(compiled, ours):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(b.double().numpy(), a.double().numpy(), rtol=rtol, atol=atol)
    return ours


def upright(count: int, side: float = 100.0, seed: int = 0) -> Tensor:
    """Return random boxes by their corners."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(count, 4, generator=generator)
    low = numbers[:, :2] * side
    return torch.cat([low, low + numbers[:, 2:] * side / 2 + 1], 1)
