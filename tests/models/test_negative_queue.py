"""The queue over many steps."""

from __future__ import annotations

import pytest
import torch

from gersp_mm.models.negative_queue import enqueue, random_queue
from gersp_mm.utils.errors import UserError


@pytest.mark.parametrize(
    "sizes", [[4, 4, 4], [3, 3, 3, 3, 3], [7, 1, 5], [10], [11], [25], [3, 23]]
)
def test_content_equals_writing_keys_one_by_one(sizes):
    queue, pointer = random_queue(10, 4), torch.zeros(1, dtype=torch.long)
    expected, oldest = queue.clone(), 0
    for size in sizes:
        keys = torch.randn(size, 4)
        enqueue(queue, pointer, keys)
        for key in keys:
            expected[oldest] = key
            oldest = (oldest + 1) % 10
        assert torch.equal(queue, expected)
        assert int(pointer) == oldest


def test_starts_with_different_unit_keys():
    queue = random_queue(64, 16)
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(64))
    assert (queue @ queue.t() - torch.eye(64)).abs().max() < 0.95


def test_half_precision_keys_are_stored_in_the_precision_of_the_queue():
    queue, pointer = random_queue(10, 4), torch.zeros(1, dtype=torch.long)
    keys = torch.randn(3, 4).bfloat16()
    enqueue(queue, pointer, keys)
    assert queue.dtype == torch.float32 and torch.equal(queue[:3], keys.float())


def test_another_dimension_is_refused_with_the_numbers():
    with pytest.raises(UserError, match="dimension 5, but feat_dim=4"):
        enqueue(random_queue(10, 4), torch.zeros(1, dtype=torch.long), torch.randn(3, 5))
