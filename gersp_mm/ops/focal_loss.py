"""Focal loss on logits and on softmax probabilities, with their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from gersp_mm.ops.precision import wide

TINY = torch.finfo(torch.float32).tiny  # smallest argument of a logarithm


def _terms(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the mask of the target, the probability, its complement, and both logarithms."""
    (scores,) = wide(scores)
    hit = target[:, None] == torch.arange(scores.shape[1], device=scores.device)
    p = scores.sigmoid()
    q = 1 - p
    return hit, p, q, p.clamp(min=TINY).log(), q.clamp(min=TINY).log()


def _weighted(value: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    if not weight.numel():
        return value
    (weight,) = wide(weight)
    # The background is one class above the last and has no weight.
    rows = weight[target.clamp(0, len(weight) - 1)]
    return value * (rows[:, None] if value.dim() == 2 else rows)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss of every logit into ``output``.

    Args:
        input: Logits, of shape (n, classes).
        target: Class of each row, of shape (n,); another number is the background.
        weight: Weight of each class, or empty.
        output: Tensor for the result, of the shape of ``input``.
        gamma: Exponent of the distance from the target.
        alpha: Share of the positives.
    """
    hit, p, q, log_p, log_q = _terms(input, target)
    loss = torch.where(hit, -alpha * q**gamma * log_p, (alpha - 1) * p**gamma * log_q)
    output.copy_(_weighted(loss, target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of :func:`sigmoid_focal_loss_forward` into ``grad_input``."""
    hit, p, q, log_p, log_q = _terms(input, target)
    positive = -alpha * q**gamma * (q - gamma * p * log_p)
    negative = (alpha - 1) * p**gamma * (gamma * q * log_q - p)
    grad_input.copy_(_weighted(torch.where(hit, positive, negative), target, weight))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss of every row into ``output``.

    Args:
        input: Probabilities, of shape (n, classes).
        target: Class of each row, of shape (n,); rows below zero have no loss.
        weight: Weight of each class, or empty.
        output: Tensor for the result, of shape (n,).
        gamma: Exponent of the distance from the target.
        alpha: Factor of the loss.
    """
    (input,) = wide(input)
    p = input.gather(1, target.clamp(min=0)[:, None])[:, 0]
    loss = -alpha * (1 - p) ** gamma * p.clamp(min=TINY).log()
    output.copy_(_weighted(torch.where(target >= 0, loss, 0), target, weight))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative by the logits into ``grad_input``, and that by row into ``buff``."""
    (input,) = wide(input)
    label = target.clamp(min=0)[:, None]
    p = input.gather(1, label)[:, 0]
    log_p = p.clamp(min=TINY).log()
    rows = alpha * (gamma * (1 - p) ** (gamma - 1) * p * log_p - (1 - p) ** gamma)
    rows = _weighted(torch.where(target >= 0, rows, 0), target, weight)
    buff.copy_(rows)
    hit = torch.zeros_like(input).scatter_(1, label, 1)
    grad_input.copy_(rows[:, None] * (hit - input))
