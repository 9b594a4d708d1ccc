"""gersp_mm/checkpoints/compare.py: what differs between two state dicts."""

import torch

from gersp_mm.checkpoints.compare import compare, not_finite


def test_each_kind_of_difference_is_named():
    given = dict(a=torch.zeros(2), b=torch.zeros(3), d=torch.ones(1), e=torch.zeros(1).half())
    expected = dict(a=torch.zeros(2), b=torch.zeros(2, 3), c=torch.zeros(1), e=torch.zeros(1))
    found = compare(given, expected, types=True)
    assert found
    assert str(found) == (
        "1 missing: c; 1 unexpected: d; 1 of another shape: b is 3 instead of 2x3; "
        "1 of another type: e is torch.float16 instead of torch.float32"
    )


def test_values_and_counters():
    one = {"bn.weight": torch.ones(2), "bn.num_batches_tracked": torch.tensor(3)}
    assert not compare({"bn.weight": torch.ones(2)}, one, values=True)  # old files lack counters
    assert not compare(one, {"bn.weight": torch.ones(2)})
    other = {"bn.weight": torch.tensor([1.0, 1.0000001])}
    assert compare(other, one, values=True).changed == ("bn.weight",)
    assert compare(other, one, values=False).changed == ()


def test_long_lists_are_cut():
    many = {f"w{number}": torch.zeros(1) for number in range(8)}
    assert str(compare({}, many)) == "8 missing: w0, w1, w2, w3, w4 and 3 more"


def test_not_finite():
    state = dict(
        fine=torch.ones(2), counts=torch.tensor([1]), nan=torch.tensor([1.0, float("nan")]),
        inf=torch.tensor([float("-inf")]).half(),
    )  # fmt: skip
    assert not_finite(state) == ["nan", "inf"]
