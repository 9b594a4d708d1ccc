"""Logistic regression with scikit-learn's optimum, fast even if features are nearly collinear.

Features of a network often are nearly collinear: those of a ResNet-50 after a few hundred steps on
EuroSAT have 91 % of their variance in one direction. This module exists because scikit-learn's
L-BFGS took more than five times as long on these features (docs/guide/benchmarks.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from gersp_mm.utils import console

TOLERANCE = 5e-5  # L-BFGS ends when no entry of the gradient is larger.


class Classifier(NamedTuple):
    """A linear classifier: the class with the highest score, weight · standardised features + bias.

    Attributes:
        mean: Mean of the training features, D.
        std: Standard deviation of the training features, D.
        weight: Weights for standardised features, K×D.
        bias: Biases, K.
        classes: Labels, K.
    """

    mean: torch.Tensor
    std: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    classes: torch.Tensor

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """Return M labels for M×D features."""
        scores = (features - self.mean) / self.std @ self.weight.T + self.bias
        return self.classes[scores.argmax(1)]

    def of_raw_features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight K×D and bias K for features that are not standardised."""
        weight = self.weight.double() / self.std
        return weight.float(), (self.bias - weight @ self.mean.double()).float()


def fit_classifiers(
    features: torch.Tensor,
    labels: torch.Tensor,
    sweep: Sequence[float],
    max_iter: int = 1000,
    start: Classifier | None = None,
    progress: str | None = None,
) -> dict[float, Classifier]:
    """Train a logistic regression on standardised features for each C, starting from the last one.

    Each minimises scikit-learn's objective ``mean cross-entropy + |W|² / (2 C N)``, without a
    penalty on the bias.

    Args:
        features: N×D, fp32.
        labels: N integers, of at least two classes.
        sweep: Values of C.
        max_iter: Greatest number of iterations of L-BFGS for each C.
        start: Classifier from which the training starts.
        progress: Text next to a progress bar, None for no bar.
    """
    std, mean = torch.std_mean(features, 0, correction=0)
    std[std <= 1e-6 * mean.abs()] = 1  # Constant features stay at 0.
    x = (features - mean) / std
    classes, targets = labels.unique(return_inverse=True)
    n, k = len(x), len(classes)
    one_hot = F.one_hot(targets, k).float().T.contiguous()
    covariance = (x.T @ x).double() / n
    weight, bias = torch.zeros(k, x.shape[1]), torch.zeros(k)
    if start is not None and len(start.bias) == k:
        weight, bias = start.weight, start.bias
    found = {}
    for c in console.progress(sweep, progress or "", "C", shown=progress is not None):
        # With two classes, scikit-learn penalises the difference of the two weights.
        penalty = (2 if k == 2 else 1) / (c * n)
        weight, bias, steps = _minimise(x, one_hot, penalty, covariance, weight, bias, max_iter)
        if steps >= max_iter:
            warnings.warn(f"the logistic regression of C={c:g} ended too early", stacklevel=2)
        found[c] = Classifier(mean, std, weight, bias, classes)
    return found


def _minimise(
    x: torch.Tensor,
    one_hot: torch.Tensor,
    penalty: float,
    covariance: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    max_iter: int,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Minimise mean cross-entropy + ``penalty`` / 2 · |W|², and return also the number of steps.

    Features of a network vary much in few directions and little in all others, so that L-BFGS takes
    many steps in W. The variable is therefore V = W L with L Lᵀ = h Xᵀ X / N + ``penalty``, which
    is close to the Hessian if h is the mean of p (1 - p). The optimum is the same.
    """
    from scipy.optimize import minimize

    (n, d), k = x.shape, len(bias)
    p = (weight @ x.T + bias[:, None]).softmax(0)
    h = max((p * (1 - p)).mean().item(), 1e-4)
    hessian = h * covariance
    hessian.diagonal().add_(max(penalty, 1e-6 * h * d))  # The floor is larger than rounding errors.
    factor = torch.linalg.cholesky(hessian)
    lower = factor.float()

    def unscaled(flat: Any) -> tuple[torch.Tensor, torch.Tensor]:
        v = torch.from_numpy(flat).view(k, d + 1).float()
        w = torch.linalg.solve_triangular(lower, v[:, :d], upper=False, left=False)
        return w, v[:, d] / h**0.5

    def loss_and_gradient(flat: Any) -> tuple[float, Any]:
        weight, bias = unscaled(flat)
        log_p = (weight @ x.T + bias[:, None]).log_softmax(0)
        loss = penalty / 2 * weight.double().square().sum()
        loss -= (log_p * one_hot).sum(0).double().mean()
        error = (log_p.exp() - one_hot) / n
        slope = error @ x + penalty * weight
        slope = torch.linalg.solve_triangular(lower.T, slope, upper=True, left=False)
        gradient = torch.cat([slope, error.sum(1, keepdim=True) / h**0.5], 1)
        return loss.item(), gradient.double().flatten().numpy()

    first = torch.cat([weight.double() @ factor, bias[:, None].double() * h**0.5], 1)
    options = dict(maxiter=max_iter, gtol=TOLERANCE, ftol=0)
    result = minimize(
        loss_and_gradient, first.flatten().numpy(), jac=True, method="L-BFGS-B", options=options
    )
    return *unscaled(result.x), result.nit
