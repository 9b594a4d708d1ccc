"""Deformable convolution, with and without modulation, with torchvision's kernels."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor

from gersp_mm.ops.precision import as_torchvision_takes

# Names in mmcv of the geometry: stride, padding and dilation, each first vertical, then groups of
# channels, and groups of channels that share offsets.
SIZES = ("dH", "dW", "padH", "padW", "dilationH", "dilationW", "group", "deformable_group")
MODULATED_SIZES = (
    "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "group",
    "deformable_group",
)  # fmt: skip


def _gradients(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    geometry: tuple[int, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to the input, the weight, the offset and the mask.

    Args:
        gradient: Gradient of the output.
        input: Features of shape (n, channels, height, width).
        weight: Weights of shape (outputs, channels / groups, height, width).
        offset: Rows and columns in turn, of shape (n, 2 x groups of offsets x taps, ...).
        mask: Factors of the taps, of shape (n, groups of offsets x taps, ...), or None.
        geometry: Stride, padding and dilation, each first vertical and then horizontal, groups, and
            groups of offsets.
    """
    has_mask = mask is not None
    if mask is None:
        mask = input.new_zeros(len(input), 1)
    bias = weight.new_zeros(len(weight))
    tensors = as_torchvision_takes(gradient, input, weight, offset, mask, bias)
    gradients = torch.ops.torchvision._deform_conv2d_backward(*tensors, *geometry, has_mask)
    by_input, by_weight, by_offset, by_mask, _ = gradients
    edge = _on_the_edge(offset, weight.shape[2:], geometry)
    return by_input, by_weight, by_offset.masked_fill(edge, 0), by_mask


def _on_the_edge(offset: Tensor, kernel: torch.Size, geometry: tuple[int, ...]) -> Tensor:
    """Return whether samples lie exactly one pixel before the image, where mmcv's gradient is 0.

    An offset of 0 puts taps there, on the padding. torchvision returns the one-sided gradient.
    """
    axes = []
    for axis in (0, 1):
        stride, pad, dilation = geometry[axis], geometry[2 + axis], geometry[4 + axis]
        outputs = torch.arange(offset.shape[2 + axis], device=offset.device) * stride - pad
        axes.append(outputs + torch.arange(kernel[axis], device=offset.device)[:, None] * dilation)
    places = offset.unflatten(1, (-1, kernel[0], kernel[1], 2))
    before = (places[:, :, :, :, 0] + axes[0][:, None, :, None] == -1) | (
        places[:, :, :, :, 1] + axes[1][:, None, :] == -1
    )
    return before.unsqueeze(4).expand_as(places).flatten(1, 4)


def _convolved(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> Tensor:
    """Return the convolution; the arguments are those of :func:`_gradients`."""
    given = [input, offset, weight, *(t for t in (bias, mask) if t is not None)]
    input, offset, weight, *others = as_torchvision_takes(*given)
    return torchvision.ops.deform_conv2d(
        input,
        offset,
        weight,
        others.pop(0) if bias is not None else None,
        geometry[0:2],
        geometry[2:4],
        geometry[4:6],
        others.pop(0) if mask is not None else None,
    )


def _read(values: Tensor, outputs: torch.Size) -> Tensor:
    """Return offsets or masks for an output of some size, read in memory order.

    mmcv reads them in this order, and DyHead gives the larger offsets of one level to the next
    coarser level.
    """
    if values.shape[2:] == outputs:
        return values
    count = values.shape[1] * outputs.numel()
    return values.flatten(1)[:, :count].reshape(*values.shape[:2], *outputs)


def _write(target: Tensor, values: Tensor) -> None:
    """Write the gradients of the elements that :func:`_read` returned into ``target``.

    The target may have any memory format; a channels-last tensor cannot be viewed flat.
    """
    values = values.flatten(1)
    whole = target.contiguous()
    whole.view(len(target), -1)[:, : values.shape[1]] = values
    target.copy_(whole)


def _geometry(sizes: dict[str, Any]) -> tuple[int, ...]:
    """Return the geometry of :func:`_gradients` from the arguments of either convolution."""
    names = MODULATED_SIZES if "stride_h" in sizes else SIZES
    return tuple(sizes[name] for name in names)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Write the modulated deformable convolution (DCNv2) into ``output``.

    Args:
        input: Features of shape (n, channels, height, width).
        weight: Weights of shape (outputs, channels / group, kernel_h, kernel_w).
        bias: Biases of shape (outputs,).
        ones: Not used.
        offset: Rows and columns in turn, of shape (n, 2 x deformable_group x taps, ...).
        mask: Factors of the taps, of shape (n, deformable_group x taps, ...).
        output: Tensor for the result, of shape (n, outputs, ...).
        columns: Not used.
        with_bias: Whether the bias is added.
        **sizes: :data:`MODULATED_SIZES`, and others that are not used.
    """
    offset, mask = (_read(values, output.shape[2:]) for values in (offset, mask))
    used = bias if with_bias else None
    output.copy_(_convolved(input, weight, offset, mask, used, _geometry(sizes)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward` into the ``grad_`` tensors."""
    offset, mask = (_read(values, grad_output.shape[2:]) for values in (offset, mask))
    gradients = _gradients(grad_output, input, weight, offset, mask, _geometry(sizes))
    for target, gradient in zip((grad_input, grad_weight, grad_offset, grad_mask), gradients):
        _write(target, gradient)
    if with_bias:
        grad_bias.copy_(grad_output.sum((0, 2, 3)))


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **sizes: int,
) -> None:
    """Write the deformable convolution (DCNv1) into ``output``.

    Args:
        input: See :func:`modulated_deform_conv_forward`.
        weight: See :func:`modulated_deform_conv_forward`.
        offset: See :func:`modulated_deform_conv_forward`.
        output: See :func:`modulated_deform_conv_forward`.
        columns: Not used.
        ones: Not used.
        **sizes: :data:`SIZES`, and others that are not used.
    """
    output.copy_(_convolved(input, weight, offset, None, None, _geometry(sizes)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Write the gradients of :func:`deform_conv_forward` with respect to input and offset."""
    gradients = _gradients(gradOutput, input, weight, offset, None, _geometry(sizes))
    gradInput.copy_(gradients[0])
    gradOffset.copy_(gradients[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **sizes: int,
) -> None:
    """Add the weight's gradient of :func:`deform_conv_forward`, times a scale."""
    shape = gradWeight.shape
    group = sizes["group"]
    weight = input.new_zeros(shape[0], input.shape[1] // group, *shape[2:])
    gradient = _gradients(gradOutput, input, weight, offset, None, _geometry(sizes))[1]
    gradWeight.add_(gradient.to(gradWeight.dtype), alpha=scale)
