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


class Gloo21:
    """Gloo of torch 2.1 with one process, which sends to itself and knows no bfloat16."""

    def __init__(self) -> None:
        self.sent: list[torch.dtype] = []

    def all_to_all_single(self, result, rows, receive, send):
        self.note(rows, result)
        result.copy_(rows)

    def all_gather(self, keys):
        self.note(keys)
        return [keys.clone(), keys.clone()]

    def note(self, *tensors):
        for tensor in tensors:
            if tensor.dtype == torch.bfloat16:
                raise RuntimeError("Invalid scalar type")
            self.sent.append(tensor.dtype)


@pytest.mark.parametrize(("backend", "sent"), [("gloo", torch.uint8), ("nccl", torch.bfloat16)])
def test_bfloat16_travels_as_bytes_where_gloo_carries_it(monkeypatch, backend, sent):
    group = Gloo21()
    if backend == "nccl":
        group.note = lambda *tensors: group.sent.extend(tensor.dtype for tensor in tensors)
    monkeypatch.setattr(key_exchange, "get_backend", lambda: backend)
    monkeypatch.setattr(key_exchange, "get_dist_info", lambda: (0, 2))
    monkeypatch.setattr(key_exchange, "all_gather", group.all_gather)
    monkeypatch.setattr(key_exchange, "distributed", group)
    images = torch.randn(6, 3, 4, 5)
    images[0, 0, 0, :3] = torch.tensor([float("inf"), -0.0, 1e-40])
    with torch.autocast("cpu", torch.bfloat16):
        received, order = key_exchange.send_away(images)
        keys = key_exchange.bring_back(received.flatten(1).contiguous(), order)
        gathered = key_exchange.gather_keys(keys)
    expected = images.to(torch.bfloat16)
    assert received.dtype == keys.dtype == gathered.dtype == torch.bfloat16
    assert torch.equal(received, expected[order])
    assert torch.equal(keys, expected.flatten(1))
    assert torch.equal(gathered, torch.cat([keys, keys]))
    assert set(group.sent) == {sent}
    fp32 = key_exchange.gather_keys(images.flatten(1))  # without autocast as it was
    assert fp32.dtype == torch.float32 and group.sent[-1] == torch.float32
