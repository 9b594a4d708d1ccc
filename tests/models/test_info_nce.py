"""The loss on the queue: values, gradients, precision."""

from __future__ import annotations

import pytest
import torch
from mmpretrain.models.heads import ContrastiveHead
from torch.nn import functional as F

from gersp_mm.models.info_nce import InfoNCEHead
from gersp_mm.utils.errors import UserError


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=1)


def reference_loss(query, key, queue, temperature):
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.t()], dim=1)
    return F.cross_entropy(logits / temperature, torch.zeros(len(query), dtype=torch.long))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_value_and_gradient_equal_cross_entropy(temperature):
    query, key, queue = unit(6, 8).requires_grad_(), unit(6, 8), unit(50, 8)
    expected = reference_loss(query, key, queue, temperature)
    (expected_gradient,) = torch.autograd.grad(expected * 3, query)
    loss = InfoNCEHead(temperature).loss(query, key, queue)["loss_ct"]
    (gradient,) = torch.autograd.grad(loss * 3, query)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)


def test_value_equals_the_host_library():
    query, key, queue = unit(6, 8), unit(6, 8), unit(50, 8)
    similarity = (query * key).sum(1, keepdim=True)
    expected = ContrastiveHead(dict(type="CrossEntropyLoss"), 0.07).loss(
        similarity, query @ queue.t()
    )
    torch.testing.assert_close(InfoNCEHead(0.07).loss(query, key, queue)["loss_ct"], expected)


def test_queue_may_be_overwritten_before_backward():
    query, key, queue = unit(6, 8).requires_grad_(), unit(6, 8), unit(50, 8)
    (expected,) = torch.autograd.grad(reference_loss(query, key, queue, 0.07), query)
    loss = InfoNCEHead(0.07).loss(query, key, queue)["loss_ct"]
    queue[:6] = key
    (gradient,) = torch.autograd.grad(loss, query)
    torch.testing.assert_close(gradient, expected)


def test_only_the_query_gets_a_gradient():
    query, key, queue = (unit(6, 8).requires_grad_() for _ in range(3))
    InfoNCEHead().loss(query, key, queue)["loss_ct"].backward()
    assert query.grad is not None
    assert key.grad is None and queue.grad is None


def test_logged_values_on_a_case_done_by_hand():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    key = torch.tensor([[1.0, 0.0], [0.0, -1.0]])  # the first is found, the second is not
    queue = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    values = InfoNCEHead(1.0).loss(query, key, queue)
    assert values["acc_ct"] == 50
    assert values["sim_pos"] == 0
    torch.testing.assert_close(values["sim_neg"], torch.tensor((0 + 0.6 + 1 + 0.8) / 4))
    e = torch.e
    first = torch.tensor(e / (e + 1 + e**0.6)).log()
    second = torch.tensor(e**-1 / (e**-1 + e + e**0.8)).log()
    torch.testing.assert_close(values["loss_ct"], -(first + second) / 2)


def test_single_precision_is_exact_to_one_in_a_million():
    query, key, queue = unit(32, 128), unit(32, 128), unit(4096, 128)
    exact = reference_loss(query, key, queue, 0.07)
    loss = InfoNCEHead(0.07).loss(query.float(), key.float(), queue.float())["loss_ct"]
    assert abs(float(loss) / float(exact) - 1) < 1e-6


def test_half_precision_queries_get_a_loss_of_full_precision():
    query, key, queue = unit(32, 128), unit(32, 128), unit(4096, 128)
    exact = reference_loss(query, key, queue, 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = InfoNCEHead(0.07).loss(query.bfloat16(), key.bfloat16(), queue.float())["loss_ct"]
    assert loss.dtype == torch.float32
    assert abs(float(loss) - float(exact)) < 1e-2


def test_no_gradient_is_prepared_where_none_is_wanted():
    with torch.no_grad():
        loss = InfoNCEHead().loss(unit(4, 8), unit(4, 8), unit(10, 8))["loss_ct"]
    assert not loss.requires_grad and torch.isfinite(loss)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(UserError, match=f"temperature cannot be {temperature}. Set it to"):
        InfoNCEHead(temperature)
