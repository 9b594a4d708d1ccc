"""InfoNCE of queries against one positive key each and a queue of negatives."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.models.heads import ContrastiveHead
from torch.autograd.function import once_differentiable

from gersp_mm.registry import MODELS
from gersp_mm.utils.errors import check_number


class _QueueInfoNCE(torch.autograd.Function):
    """Mean InfoNCE loss whose gradient is computed in the forward pass.

    With s⁺ = q·k⁺ and sᵢ = q·kᵢ, the gradient of one query's loss is
    (p⁺ - 1)·k⁺/T + Σᵢ pᵢ·kᵢ/T with p = softmax([s⁺, s₁, …]/T). Computing it in the forward pass
    frees the N × queue_len probabilities early and lets the caller overwrite the queue before the
    backward pass, so that the queue is never copied.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        queue: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, ...]:
        # One N × queue_len buffer, changed in place: logits, then their exponentials.
        scaled = query / temperature
        positive = (scaled * key).sum(dim=1)
        negatives = scaled @ queue.t()
        hardest = negatives.amax(dim=1)
        mean_negative = negatives.mean()

        shift = torch.maximum(positive, hardest)  # keeps the exponentials below 1
        exp_positive = (positive - shift).exp_()
        exp_negatives = negatives.sub_(shift[:, None]).exp_()
        normaliser = exp_negatives.sum(dim=1).add_(exp_positive)
        loss = (shift + normaliser.log() - positive).mean()

        if ctx.needs_input_grad[0]:
            p_positive = exp_positive / normaliser
            gradient = (exp_negatives @ queue).div_(normaliser[:, None])
            gradient.addcmul_((p_positive - 1)[:, None], key)
            ctx.save_for_backward(gradient.div_(temperature * len(query)))

        accuracy = (positive > hardest).to(loss.dtype).mean() * 100
        stats = (accuracy, positive.mean() * temperature, mean_negative * temperature)
        ctx.mark_non_differentiable(*stats)
        return loss, *stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, None, None, None


@MODELS.register_module()
class InfoNCEHead(BaseModule):
    """L_ct = -log( exp(q·k⁺/T) / (exp(q·k⁺/T) + Σᵢ exp(q·kᵢ/T)) ), averaged over the queries.

    The value is that of the released ``ContrastiveHead``, computed in fp32 (fp64 for fp64 input),
    even under autocast.

    Args:
        temperature: T > 0; the released code uses 0.07. The paper's value was not found.
        init_cfg: See :class:`mmengine.model.BaseModule`.

    Raises:
        UserError: The temperature is not a finite number above 0.
    """

    def __init__(self, temperature: float = 0.07, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        check_number("temperature", temperature, above=0, such_as=0.07)
        self.temperature = temperature

    def loss(
        self, query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the loss, and values for the log.

        Args:
            query: N × feat_dim, unit length; the only input with a gradient.
            key: N × feat_dim, unit length; row i is the positive of query i.
            queue: The negative keys, queue_len × feat_dim, unit length. It may be
                overwritten as soon as this method returns.

        Returns:
            ``loss_ct``; ``acc_ct``, the percentage of queries closer to their positive than to
            every negative; ``sim_pos`` and ``sim_neg``, mean cosine similarities in [-1, 1].
        """
        dtype = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            loss, accuracy, sim_pos, sim_neg = _QueueInfoNCE.apply(
                query.to(dtype), key.to(dtype), queue.to(dtype), self.temperature
            )
        return dict(loss_ct=loss, acc_ct=accuracy, sim_pos=sim_pos, sim_neg=sim_neg)


def contrastive_loss(
    head: Any, query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return L_ct and values for the log for either kind of head.

    Args:
        head: :class:`gersp_mm.InfoNCEHead`, or mmpretrain's ``ContrastiveHead``.
        query: N × feat_dim, unit length.
        key: N × feat_dim, unit length.
        queue: The negative keys, queue_len × feat_dim, unit length.

    Returns:
        The losses of the head, and ``feat_std``, the spread of the queries: 0 if they have
        collapsed, about 1 if they cover the whole sphere.
    """
    if isinstance(head, ContrastiveHead):  # This head keeps the similarities for the backward pass.
        similarity = (query * key).sum(dim=1, keepdim=True)
        losses = dict(loss_ct=head.loss(similarity, query @ queue.clone().t()))
    else:
        losses = head.loss(query, key, queue)
    spread = query.detach().float().std(dim=0, unbiased=False).mean()
    return {**losses, "feat_std": spread * query.shape[1] ** 0.5}
