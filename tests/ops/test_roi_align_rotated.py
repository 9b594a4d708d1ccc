import math

import pytest
import torch
from mmcv.ops import roi_align, roi_align_rotated

from gersp_mm.ops.swap import our_operators
from tests.ops.support import assert_as_compiled, beside_compiled
from tests.ops.test_roi_align import features


def regions(count: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    numbers = torch.rand(count, 5, generator=generator)
    scale, low = torch.tensor([90, 80, 60, 40, math.pi]), torch.tensor([0, 0, 2, 2, -math.pi / 2])
    rois = torch.cat([(torch.arange(count) % 2)[:, None].float(), low + numbers * scale], 1)
    if count > 3:
        rois[0, 1:] = torch.tensor([50, 40, 400, 300, 0.4])  # beyond the image
        rois[1, 1:] = torch.tensor([900, 900, 10, 10, 0.4])  # outside
        rois[2, 1:] = torch.tensor([40, 30, 0, 0, 0.4])  # without area
    return rois


@beside_compiled
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("clockwise", [True, False])
@pytest.mark.parametrize("count", [12, 1, 0])
def test_as_compiled(ratio, aligned, clockwise, count):
    assert_as_compiled(
        lambda x, r: roi_align_rotated(x, r, (4, 3), 0.25, ratio, aligned, clockwise),
        features(),
        regions(count),
    )


@beside_compiled
def test_halves_are_as_compiled():
    every_sum_of_the_compiled_is_rounded = 8e-3
    assert_as_compiled(
        lambda x, r: roi_align_rotated(x, r, (4, 3), 0.25, 2, True, True),
        features(torch.float16),
        regions().half(),
        rtol=every_sum_of_the_compiled_is_rounded,
        atol=every_sum_of_the_compiled_is_rounded,
    )


@pytest.mark.parametrize("ratio", [0, 2])
def test_without_rotation_it_is_roi_align(ratio):
    rois = regions()
    rois[:, 5] = 0
    low, high = rois[:, 1:3] - rois[:, 3:5] / 2, rois[:, 1:3] + rois[:, 3:5] / 2
    upright = torch.cat([rois[:, :1], low, high], 1)
    with our_operators():
        pooled = roi_align_rotated(features(), rois, (4, 3), 0.25, ratio, True, True)
        expected = roi_align(features(), upright, (4, 3), 0.25, ratio, "avg", True)
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)


def test_a_quarter_turn_turns_the_bins():
    with our_operators():
        flat, turned = (
            roi_align_rotated(features(), torch.tensor([[0, 12, 10, 8, 8, angle]]), 4, 1.0, 2)
            for angle in (0.0, math.pi / 2)
        )
    torch.testing.assert_close(turned, flat.rot90(-1, (2, 3)), rtol=1e-4, atol=1e-4)


def test_gradcheck():
    x = features(torch.float64)[:, :2, :8, :8].detach().requires_grad_()
    rois = regions(6)[3:].double() * torch.tensor([1, 0.3, 0.3, 0.3, 0.3, 1]).double()
    with our_operators():
        assert torch.autograd.gradcheck(lambda x: roi_align_rotated(x, rois, 2, 0.5, 0), x)
