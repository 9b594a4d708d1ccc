import pytest
import torch
from mmcv.ops.psa_mask import psa_mask

from gersp_mm.ops.swap import our_operators
from tests.ops.support import assert_as_compiled, beside_compiled, values

DIRECTIONS = (0, 1)  # collect, distribute


def masks(rows: int, columns: int, size: tuple[int, int], dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (2, size[0] * size[1], rows, columns)
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


@beside_compiled
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("size", [(5, 3), (9, 11), (1, 1)])
def test_as_compiled(direction, size):
    assert_as_compiled(lambda x: psa_mask(x, direction, size), masks(5, 6, size), rtol=0, atol=0)
    assert_as_compiled(lambda x: psa_mask(x, direction, size), masks(5, 6, size, torch.float16))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_by_the_definition(direction):
    rows, columns, size = 4, 5, (5, 3)

    def by_definition(x: torch.Tensor) -> torch.Tensor:
        result = x.new_zeros(2, rows * columns, rows * columns)
        cells = [(r, c) for r in range(rows) for c in range(columns)]
        for here, (r, c) in enumerate(cells):
            for there, (other_r, other_c) in enumerate(cells):
                down, across = other_r - r + size[0] // 2, other_c - c + size[1] // 2
                if 0 <= down < size[0] and 0 <= across < size[1]:
                    value = x[:, down * size[1] + across, r, c]
                    at = (here, there) if direction else (there, here)
                    result[:, at[0], at[1]] = value
        return result.view(2, rows * columns, rows, columns)

    x = masks(rows, columns, size)
    with our_operators():
        found = values(lambda x: psa_mask(x, direction, size), x)
    for a, b in zip(found, values(by_definition, x)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck(direction):
    x = masks(3, 4, (5, 3), torch.float64)
    with our_operators():
        assert torch.autograd.gradcheck(lambda x: psa_mask(x, direction, (5, 3)), x, fast_mode=True)
