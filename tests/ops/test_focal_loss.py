import pytest
import torch
from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss
from torch.nn import functional as F

from gersp_mm.ops.swap import our_operators
from tests.ops.support import values

# The compiled ones are for GPUs alone, so these are compared with the definition.


def by_definition(logits, target, gamma, alpha, weight):
    one_hot = F.one_hot(target, logits.shape[1] + 1)[:, :-1].to(logits)
    p = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    distance = one_hot * (1 - p) + (1 - one_hot) * p
    share = one_hot * alpha + (1 - one_hot) * (1 - alpha)
    loss = share * distance**gamma * cross_entropy
    return loss if weight is None else loss * weight[target][:, None]


def softmax_by_definition(logits, target, gamma, alpha, weight):
    log_p = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    loss = -alpha * (1 - log_p.exp()) ** gamma * log_p
    return loss if weight is None else loss * weight[target]


@pytest.mark.parametrize(
    "operator, definition",
    [(sigmoid_focal_loss, by_definition), (softmax_focal_loss, softmax_by_definition)],
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_as_defined(operator, definition, weighted, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(40, 5, generator=generator) * 2).to(dtype).requires_grad_()
    has_background = operator is sigmoid_focal_loss and not weighted
    target = torch.randint(0, 5 + has_background, (40,), generator=generator)
    weight = torch.rand(5, generator=generator).to(dtype) if weighted else None
    expected = values(lambda x: definition(x, target, 1.5, 0.3, weight).sum(), logits)
    with our_operators():
        # mmcv's softmax has no gradient of single rows.
        ours = values(lambda x: operator(x, target, 1.5, 0.3, weight, "sum"), logits)
        rows = operator(logits.detach(), target, 1.5, 0.3, weight, "none")
        nothing = operator(logits[:0], target[:0], 1.5, 0.3, weight, "sum")
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(rows, definition(logits, target, 1.5, 0.3, weight).detach(),
                               rtol=tolerance, atol=tolerance)  # fmt: skip
    assert float(nothing) == 0


def test_certain_logits_stay_finite_and_halves_are_taken():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    with our_operators():
        loss, gradient = values(
            lambda x: sigmoid_focal_loss(x, torch.tensor([1, 1]), 2.0, 0.25, None, "none"), logits
        )
        half = sigmoid_focal_loss(torch.zeros(2, 2).half(), torch.tensor([0, 1]), 2.0, 0.25)
    assert loss.isfinite().all() and gradient.isfinite().all()
    assert loss[1].tolist() == [0, 0] and half.dtype == torch.float16


@pytest.mark.parametrize("operator", [sigmoid_focal_loss, softmax_focal_loss])
def test_gradcheck(operator):
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    with our_operators():
        assert torch.autograd.gradcheck(lambda x: operator(x, target, 2.0, 0.25), logits)
