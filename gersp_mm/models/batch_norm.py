"""BatchNorm of a batch in groups: each is normalised as if another process had it.

Image n of a batch of N belongs to group n mod G, so that the sizes of groups differ by one at most.
How fast that is depends on where the groups lie in memory. In a contiguous batch whose length G
divides they are channels of one batch of N/G images, and one native call normalises all. In
channels_last no such view exists without a copy. There the caller sorts the images by group before
the network (:func:`by_group`), and each group is one native call on a block of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)  # torch 2.1 has none
IMAGES_PER_GROUP = 2  # fewer have no variance after global pooling


class Groups(NamedTuple):
    """The groups of a step.

    Attributes:
        number: G, the number of groups; 1 is ordinary BatchNorm.
        blocked: Whether batches are sorted by group before a network.
    """

    number: int = 1
    blocked: bool = False


class GroupedBatchNorm(_BatchNorm):
    """BatchNorm whose training batches are normalised in groups.

    Weights, buffers and their names are those of the layer that it replaces, and so is everything
    in evaluation mode. Running statistics become the mean of those that G processes would hold,
    each with the images of one group. A batch of fewer than 2G images is one group.

    Attributes:
        groups: The groups, and whether batches come sorted by them.
    """

    groups = Groups()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise N×C×… images."""
        number, blocked = self.groups
        if not self.training or number == 1 or len(images) < IMAGES_PER_GROUP * number:
            return super().forward(images)
        self._check_input_dim(images)
        momentum = self._next_momentum()
        if blocked:
            return self._in_blocks(images, momentum)
        if len(images) % number == 0 and images.is_contiguous():
            return self._as_channels(images, momentum)
        order = by_group(len(images), number, images.device)
        return self._in_blocks(images[order], momentum)[order.argsort()]

    def _next_momentum(self) -> float:
        """Count a batch; return its share in the running statistics."""
        if self.num_batches_tracked is None:
            return self.momentum or 0.0
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    def _as_channels(self, images: torch.Tensor, momentum: float) -> torch.Tensor:
        """Normalise a contiguous batch, in which the groups take turns, in one call."""
        groups, channels = self.groups.number, images.shape[1]
        running = [self.running_mean, self.running_var]
        means, variances = (None if value is None else value.repeat(groups) for value in running)
        weight, bias = (
            None if value is None else value.repeat(groups) for value in (self.weight, self.bias)
        )
        view = images.view(len(images) // groups, groups * channels, *images.shape[2:])
        result = F.batch_norm(view, means, variances, weight, bias, True, momentum, self.eps)
        for value, of_groups in zip(running, (means, variances)):
            if value is not None and of_groups is not None:
                value.copy_(of_groups.view(groups, channels).mean(0))
        # ReLU may overwrite the result, which must not be a view then (under checkpointing).
        return torch.ops.aten._unsafe_view(result, images.shape)

    def _in_blocks(self, images: torch.Tensor, momentum: float) -> torch.Tensor:
        """Normalise a batch that is sorted by group, one call for each group."""
        sizes = group_sizes(len(images), self.groups.number)
        momenta = equal_shares(momentum, self.groups.number)
        arguments = (self.weight, self.bias, self.running_mean, self.running_var)
        if images.device.type in ("cpu", "cuda") and not is_compiling():
            return _BlockNorm.apply(images, *arguments, sizes, momenta, self.eps)
        weight, bias, mean, variance = arguments
        return torch.cat(
            [
                F.batch_norm(block, mean, variance, weight, bias, True, share, self.eps)
                for block, share in zip(images.split(sizes), momenta)
            ]
        )


class GroupedBatchNorm1d(GroupedBatchNorm, nn.BatchNorm1d):
    """Grouped BatchNorm of N×C vectors or N×C×L sequences."""


class GroupedBatchNorm2d(GroupedBatchNorm, nn.BatchNorm2d):
    """Grouped BatchNorm of N×C×H×W maps."""


class GroupedBatchNorm3d(GroupedBatchNorm, nn.BatchNorm3d):
    """Grouped BatchNorm of N×C×D×H×W volumes."""


class GroupedSyncBatchNorm(GroupedBatchNorm, nn.SyncBatchNorm):
    """Grouped SyncBN, whose groups are those of each process; with one group it is SyncBN."""


_GROUPED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: GroupedBatchNorm1d,
    nn.BatchNorm2d: GroupedBatchNorm2d,
    nn.BatchNorm3d: GroupedBatchNorm3d,
    nn.SyncBatchNorm: GroupedSyncBatchNorm,
    SyncBatchNorm: GroupedSyncBatchNorm,  # what dict(type="SyncBN") builds
}


class _BlockNorm(torch.autograd.Function):
    """Native BatchNorm of each block of a batch, written into one result.

    ``torch.cat`` of the blocks would copy the result once more, which takes as long as a third of
    the normalisation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        sizes: Sequence[int],
        momenta: Sequence[float],
        eps: float,
    ) -> torch.Tensor:
        result = torch.empty_like(images)
        dtype = _statistics_dtype(images, weight if weight is not None else running_mean)
        saved = images.new_empty((2, len(sizes), images.shape[1]), dtype=dtype)
        blocks = zip(images.split(sizes), result.split(sizes), saved[0], saved[1], momenta)
        for block, out, mean, inverse_std, momentum in blocks:
            torch.native_batch_norm(
                block, weight, bias, running_mean, running_var, True, momentum, eps,
                out=(out, mean, inverse_std),
            )  # fmt: skip
        ctx.save_for_backward(images, weight, saved)
        ctx.sizes, ctx.eps = sizes, eps
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, weight, saved = ctx.saved_tensors
        sizes, wanted = ctx.sizes, ctx.needs_input_grad[:3]
        of_images = torch.empty_like(images) if wanted[0] else None
        outs = of_images.split(sizes) if of_images is not None else [None] * len(sizes)
        of_weights, of_biases = [], []
        blocks = zip(gradient.split(sizes), images.split(sizes), saved[0], saved[1], outs)
        for grad, block, mean, inverse_std, out in blocks:
            of_block, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                grad, block, weight, None, None, mean, inverse_std, True, ctx.eps, wanted
            )
            if out is not None:
                out.copy_(of_block)
            of_weights.append(of_weight)
            of_biases.append(of_bias)
        return (
            of_images,
            torch.stack(of_weights).sum(0) if wanted[1] else None,
            torch.stack(of_biases).sum(0) if wanted[2] else None,
            *[None] * 5,
        )


def _statistics_dtype(images: torch.Tensor, parameter: torch.Tensor | None) -> torch.dtype:
    """Return the dtype in which native BatchNorm keeps a batch's statistics."""
    if images.is_cuda:
        return torch.float64 if images.dtype == torch.float64 else torch.float32
    return images.dtype if parameter is None else parameter.dtype


def group_batch_norms(module: nn.Module) -> None:
    """Make every BatchNorm of a module a :class:`GroupedBatchNorm` of one group, in place.

    Other classes that derive from BatchNorm stay what they are.
    """
    for layer in module.modules():
        if type(layer) in _GROUPED:
            layer.__class__ = _GROUPED[type(layer)]


def grouped_layers(module: nn.Module) -> Iterator[GroupedBatchNorm]:
    """Yield the layers that :func:`group_batch_norms` made."""
    return (layer for layer in module.modules() if isinstance(layer, GroupedBatchNorm))


def set_groups(module: nn.Module, groups: Groups) -> None:
    """Tell every :class:`GroupedBatchNorm` of a module which groups the next batches have."""
    for layer in grouped_layers(module):
        layer.groups = groups


def in_groups(
    function: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
    images: torch.Tensor,
    groups: Groups,
) -> tuple[torch.Tensor, ...]:
    """Apply a network to images in the order that its layers expect, and restore their order.

    Args:
        function: The network, from N×C×H×W images to a tuple of tensors with N rows.
        images: N×C×H×W.
        groups: What :func:`set_groups` told the network's layers.
    """
    if not groups.blocked:
        return function(images)
    order = by_group(len(images), groups.number, images.device)
    restored = order.argsort()
    return tuple(rows[restored] for rows in function(images[order]))


def by_group(n: int, groups: int, device: torch.device | None = None) -> torch.Tensor:
    """Return the order, n int64, that sorts a batch of n images by group."""
    return torch.cat([torch.arange(g, n, groups, device=device) for g in range(groups)])


def group_sizes(n: int, groups: int) -> list[int]:
    """Return how many of n images each group has."""
    return [len(range(g, n, groups)) for g in range(groups)]


def equal_shares(momentum: float, groups: int) -> list[float]:
    """Return the momenta of consecutive updates that give every group momentum/groups.

    After them, running statistics are (1 - momentum)·old + momentum·(mean of the groups').
    """
    return [momentum / (groups - (groups - 1 - g) * momentum) for g in range(groups)]
