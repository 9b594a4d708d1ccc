import pytest
import torch
from mmcv.ops import (
    DeformConv2dPack,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
)
from torch.nn import functional as F

from gersp_mm.ops.swap import our_operators
from tests.ops.support import assert_as_compiled, beside_compiled, values


def inputs(groups: int, offsets: int, dtype: torch.dtype = torch.float32, shift: float = 2.0):
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    x, weight, bias = random(2, 4, 7, 6), random(6, 4 // groups, 3, 2), random(6)
    taps = offsets * 6
    offset, mask = random(2, 2 * taps, 4, 4) * shift, random(2, taps, 4, 4).sigmoid()
    return x, offset.detach().requires_grad_(), mask.detach().requires_grad_(), weight, bias


SHAPE = (2, 1, (1, 1))  # stride, padding, dilation


@beside_compiled
@pytest.mark.parametrize("groups, offsets", [(1, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("shift", [2.0, 0.0, 1e4])
def test_as_compiled(groups, offsets, shift):
    x, offset, mask, weight, bias = inputs(groups, offsets, shift=shift)
    size = dict(rtol=1e-5, atol=2e-5)  # sums of up to 72 products
    for b in (bias, None):
        assert_as_compiled(
            lambda *t: modulated_deform_conv2d(*t, 2, 1, (1, 1), groups, offsets),
            x, offset, mask, weight, b, **size,
        )  # fmt: skip
    assert_as_compiled(
        lambda *t: deform_conv2d(*t, 2, 1, (1, 1), groups, offsets), x, offset, weight, **size
    )


@beside_compiled
def test_offsets_of_a_finer_level_are_as_compiled():
    """DyHead gives a coarser level the offsets of its neighbour."""
    x, _, _, weight, bias = inputs(1, 1)
    generator = torch.Generator().manual_seed(1)
    offset, mask = (torch.randn(2, n, 9, 7, generator=generator) for n in (12, 6))
    both = torch.cat([offset, mask], 1).requires_grad_()
    assert_as_compiled(
        lambda x, both, w, b: modulated_deform_conv2d(
            x, both[:, :12], both[:, 12:].sigmoid(), w, b, 2, 1, 1, 1, 1
        ),
        x, both, weight, bias, atol=2e-5,
    )  # fmt: skip


@beside_compiled
def test_halves_are_as_compiled():
    assert_as_compiled(
        lambda *t: modulated_deform_conv2d(*t, 2, 1, (1, 1), 1, 1),
        *inputs(1, 1, torch.float16), rtol=1e-2, atol=1e-2,
    )  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2])
def test_without_offsets_it_is_a_convolution(groups):
    x, offset, mask, weight, bias = inputs(groups, 1)
    nothing, half = torch.zeros_like(offset), torch.full_like(mask, 0.5)
    with our_operators():
        modulated = values(
            lambda x, w, b: modulated_deform_conv2d(x, nothing, half, w, b, 2, 1, 1, groups, 1),
            x, weight, bias,
        )  # fmt: skip
        plain = values(lambda x, w: deform_conv2d(x, nothing, w, 2, 1, 1, groups, 1), x, weight)
    halved = values(
        lambda x, w, b: F.conv2d(x, w / 2, b, 2, 1, groups=groups), x, weight, bias
    )  # fmt: skip
    whole = values(lambda x, w: F.conv2d(x, w, None, 2, 1, groups=groups), x, weight)
    for found, expected in ((modulated, halved), (plain, whole)):
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("pack", [ModulatedDeformConv2dPack, DeformConv2dPack])
def test_a_channels_last_model_has_the_gradients_of_a_contiguous_one(pack):
    torch.manual_seed(0)
    model, x = pack(4, 6, 3, padding=1), torch.randn(2, 4, 7, 6)
    torch.nn.init.normal_(model.conv_offset.weight, std=0.1)
    gradients = []
    with our_operators():
        for form in (torch.contiguous_format, torch.channels_last):
            model.to(memory_format=form).zero_grad()
            given = x.clone(memory_format=form).requires_grad_()
            model(given).square().sum().backward()
            gradients.append([given.grad, *(p.grad.clone() for p in model.parameters())])
    assert all(gradient.abs().max() > 0.01 for gradient in gradients[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_rounded_float32():
    tensors = [t.detach().bfloat16() for t in inputs(1, 1)]
    with our_operators():
        low = modulated_deform_conv2d(*tensors, *SHAPE, 1, 1)
        high = modulated_deform_conv2d(*(t.float() for t in tensors), *SHAPE, 1, 1)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low, high.bfloat16())


def test_gradcheck():
    x, offset, mask, weight, bias = inputs(1, 1, torch.float64, shift=0.7)
    with our_operators():
        assert torch.autograd.gradcheck(
            lambda *t: modulated_deform_conv2d(*t, 2, 1, 1, 1, 1),
            (x, offset, mask, weight, bias), fast_mode=True,
        )  # fmt: skip
        assert torch.autograd.gradcheck(
            lambda *t: deform_conv2d(*t, 2, 1, 1, 1, 1), (x, offset, weight), fast_mode=True
        )
