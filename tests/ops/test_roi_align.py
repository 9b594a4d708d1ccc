import pytest
import torch
from mmcv.ops import roi_align

from gersp_mm.ops.swap import our_operators
from tests.ops.support import assert_as_compiled, beside_compiled, upright, values


def features(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 20, 24, generator=generator).to(dtype).requires_grad_()


def regions(count: int = 12) -> torch.Tensor:
    image = torch.arange(count) % 2
    rois = torch.cat([image[:, None].float(), upright(count, 90)], 1)
    if count > 3:
        rois[0, 1:] = torch.tensor([-30, -30, 400, 300.0])  # beyond the image
        rois[1, 1:] = torch.tensor([500, 500, 510, 510.0])  # outside
        rois[2, 1:] = torch.tensor([8, 8, 8, 8.0])  # without area
    return rois


@beside_compiled
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("count", [12, 1, 0])
def test_as_compiled(mode, ratio, aligned, count):
    assert_as_compiled(
        lambda x, r: roi_align(x, r, (4, 3), 0.25, ratio, mode, aligned), features(), regions(count)
    )


@beside_compiled
def test_halves_are_as_compiled():
    assert_as_compiled(
        lambda x, r: roi_align(x, r, (4, 3), 0.25, 2, "avg", True),
        features(torch.float16),
        regions().half(),
    )


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_a_ramp_is_sampled_where_it_is(mode):
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    ramp = torch.stack([rows, columns])[None]
    with our_operators():
        pooled = roi_align(ramp, torch.tensor([[0, 4, 4, 12, 12.0]]), 2, 1.0, 2, mode, True)[0]
    # Bins of 4 pixels with samples at 1 and 3; pixel centres are at halves.
    expected = torch.tensor([5.5, 9.5]) if mode == "avg" else torch.tensor([6.5, 10.5])
    torch.testing.assert_close(pooled[0], expected[:, None].expand(2, 2))
    torch.testing.assert_close(pooled[1], expected[None].expand(2, 2))


def test_bfloat16_is_rounded_float32():
    call = lambda x, r: roi_align(x, r, (4, 3), 0.25, 2, "avg", True)  # noqa: E731
    x = features().detach().bfloat16()
    with our_operators():
        low, high = (values(call, t.requires_grad_(), regions().bfloat16().to(t))
                     for t in (x, x.float()))  # fmt: skip
    for a, b in zip(low, high):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b.bfloat16())


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_gradcheck(mode):
    x = features(torch.float64)[:, :1, :8, :8].detach().requires_grad_()
    rois = regions(6)[3:].double() * torch.tensor([1, 0.3, 0.3, 0.3, 0.3]).double()
    with our_operators():
        assert torch.autograd.gradcheck(
            lambda x: roi_align(x, rois, 2, 0.5, 2, mode, True), x, fast_mode=False
        )
