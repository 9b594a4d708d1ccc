"""Who sends how many images to whom; the exchange itself runs in test_dist.py."""

from __future__ import annotations

import pytest
import torch

from gersp_mm.models import key_exchange


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_shares_fit_together(monkeypatch, world_size, n):
    plans = []
    for rank in range(world_size):
        monkeypatch.setattr(key_exchange, "get_dist_info", lambda rank=rank: (rank, world_size))
        plans.append(key_exchange._shares(n))
    for rank, (send, receive) in enumerate(plans):
        assert sum(send) == sum(receive) == n
        assert max(send) - min(send) <= 1
        assert receive == [plans[other][0][rank] for other in range(world_size)]


@pytest.mark.parametrize(("autocast", "size"), [(False, 4), (True, 2)])
def test_bytes_of_an_exchange(monkeypatch, autocast, size):
    images = torch.zeros(8, 3, 10, 12)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert key_exchange.exchanged_bytes(images) == 0  # one rank
        monkeypatch.setattr(key_exchange, "get_dist_info", lambda: (1, 4))
        assert key_exchange.exchanged_bytes(images) == 6 * 3 * 10 * 12 * size


def test_autocast_dtype():
    assert key_exchange.autocast_dtype("cpu") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert key_exchange.autocast_dtype("cpu") is torch.bfloat16


def test_keys_of_one_rank_are_not_touched():
    keys = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert key_exchange.gather_keys(keys) is keys
