"""Our own experiments, which are neither in the paper nor in the released code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def both_ways(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return inputs in which each of the two views is once the query and once the key.

    Args:
        inputs: ``rs_query`` and ``rs_key``, N×3×H×W each, which become 2N×3×H×W. Other entries do
            not change.
    """
    query, key = inputs["rs_query"], inputs["rs_key"]
    return {**inputs, "rs_query": torch.cat([query, key]), "rs_key": torch.cat([key, query])}


@contextmanager
def running_statistics(module: nn.Module, moved: bool) -> Iterator[None]:
    """Update the running statistics of every BatchNorm inside ``module``, or keep them.

    Args:
        module: A module in training mode, whose BatchNorms normalise by their batch in both cases.
        moved: Whether the batch enters the running means and variances.
    """
    layers = [] if moved else [m for m in module.modules() if isinstance(m, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0  # the share of the new batch
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum
