"""The first-in-first-out queue of negative keys."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gersp_mm.utils.errors import UserError


def random_queue(queue_len: int, feat_dim: int) -> torch.Tensor:
    """Return the queue before the first step: queue_len × feat_dim random keys of unit length."""
    return F.normalize(torch.randn(queue_len, feat_dim), dim=1)


@torch.no_grad()
def enqueue(queue: torch.Tensor, queue_ptr: torch.Tensor, keys: torch.Tensor) -> None:
    """Replace the oldest keys of the queue in place, wrapping around its end.

    Any number of keys is accepted; of more than ``queue_len`` keys, the newest remain. The function
    does not wait for the device.

    Args:
        queue: The negative keys, queue_len × feat_dim; row i holds key i.
        queue_ptr: One int64, the row that is overwritten next.
        keys: N × feat_dim, oldest first.

    Raises:
        UserError: The keys' dimension is not the queue's.
    """
    queue_len, feat_dim = queue.shape
    if keys.shape[1] != feat_dim:
        raise UserError(
            f"the projector gives keys of dimension {keys.shape[1]}, but feat_dim={feat_dim}. "
            "Set feat_dim to the projector's out_channels."
        )
    overwritten = max(len(keys) - queue_len, 0)
    rows = torch.arange(overwritten, len(keys), device=queue.device).add_(queue_ptr)
    queue.index_copy_(0, rows.remainder_(queue_len), keys[overwritten:].to(queue.dtype))
    queue_ptr.add_(len(keys)).remainder_(queue_len)
