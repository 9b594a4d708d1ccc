"""Shuffle-BN: exchange of key images and keys between ranks.

MoCo's ``batch_shuffle_ddp`` gathers the images of all ranks on every rank and keeps one rank's
share. Here every rank sends each other rank an equal, random part of its images. The statistics
that normalise a key come from the images of all ranks in both cases; this exchange sends
1/world_size of the bytes, and the ranks need not agree on an order.
"""

from __future__ import annotations

import torch
from mmengine.dist import all_gather, get_backend, get_dist_info
from torch import distributed


def send_away(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Exchange images with all other ranks.

    Args:
        images: N×C×H×W, the same N on every rank. Under autocast they are sent in its dtype, to
            which the first convolution would convert them.

    Returns:
        N×C×H×W images from all ranks, channels last in memory; and the order that
        :func:`bring_back` needs, N int64.
    """
    dtype = autocast_dtype(images.device.type)
    order = torch.randperm(len(images), device=images.device)
    outgoing = images.permute(0, 2, 3, 1)[order].to(dtype or images.dtype).contiguous()
    send, receive = _shares(len(images))
    return _exchange(outgoing, send, receive).permute(0, 3, 1, 2), order


def bring_back(keys: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return every key to the rank that sent its image, in the original order.

    Args:
        keys: N×D; row i is the key of image i that :func:`send_away` returned.
        order: The order that :func:`send_away` returned.

    Returns:
        N×D; row i is the key of image i that :func:`send_away` was given.
    """
    send, receive = _shares(len(keys))
    returned = _exchange(keys.contiguous(), receive, send)
    return torch.empty_like(returned).index_copy_(0, order, returned)


def gather_keys(keys: torch.Tensor) -> torch.Tensor:
    """Collect the keys of all ranks in rank order, in the dtype of autocast if it is on.

    Args:
        keys: N×D.

    Returns:
        (world_size·N)×D, the same on every rank; ``keys`` itself on a single rank.
    """
    if get_dist_info()[1] == 1:
        return keys
    dtype = autocast_dtype(keys.device.type) or keys.dtype
    parts = all_gather(_sendable(keys.to(dtype).contiguous()))
    return torch.cat([part.view(dtype) for part in parts])


def exchanged_bytes(images: torch.Tensor) -> int:
    """Return the bytes of images that one :func:`send_away` sends to other ranks."""
    rank, world_size = get_dist_info()
    sent = len(images) - _shares(len(images))[0][rank] if world_size > 1 else 0
    dtype = autocast_dtype(images.device.type) or images.dtype
    return sent * images[0].numel() * torch.empty((), dtype=dtype).element_size()


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of autocast on a kind of device, or None if it is off."""
    try:
        enabled = torch.is_autocast_enabled(device_type)
    except TypeError:  # torch < 2.4
        if device_type == "cpu":
            return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_dtype(device_type) if enabled else None


def _shares(n: int) -> tuple[list[int], list[int]]:
    """Return how many of n images this rank sends to and receives from each rank."""
    rank, world_size = get_dist_info()
    share, rest = divmod(n, world_size)
    send = [share + ((other - rank) % world_size < rest) for other in range(world_size)]
    receive = [share + ((rank - other) % world_size < rest) for other in range(world_size)]
    return send, receive


def _exchange(rows: torch.Tensor, send: list[int], receive: list[int]) -> torch.Tensor:
    result = torch.empty_like(rows)
    distributed.all_to_all_single(_sendable(result), _sendable(rows), receive, send)
    return result


def _sendable(rows: torch.Tensor) -> torch.Tensor:
    """Return a view of contiguous rows in a type that the process group can send.

    Gloo of torch 2.1 does not support bfloat16, so bfloat16 tensors are sent as bytes, which
    changes no value.
    """
    bytewise = rows.dtype == torch.bfloat16 and get_backend() == "gloo"
    return rows.view(torch.uint8) if bytewise else rows
