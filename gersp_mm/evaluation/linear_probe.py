"""A linear classifier on frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from gersp_mm.utils.errors import UserError

# From strong to hardly any regularisation of standardised features.
DEFAULT_SWEEP = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class LinearProbeResult(NamedTuple):
    """Outcome of :func:`linear_probe`.

    Attributes:
        accuracy: top-1 on the test features in percent.
        chosen_c: inverse regularisation strength that was used.
        sweep: validation accuracy in percent of every C that was tried.
    """

    accuracy: float
    chosen_c: float
    sweep: dict[float, float]


def linear_probe(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    sweep: Sequence[float] = DEFAULT_SWEEP,
    val_share: float = 0.2,
    seed: int = 0,
    max_iter: int = 1000,
) -> LinearProbeResult:
    """Train a logistic regression on frozen features and test it.

    Features are standardised with the mean and standard deviation of the training features. C is
    chosen on a stratified part of the training features (the strongest regularisation of equally
    good ones); the classifier is then trained on all of them. The test features take no part in
    any choice. The same input and seed give the same result.

    Args:
        train_features: N×D.
        train_labels: N integers.
        test_features: M×D.
        test_labels: M integers.
        sweep: values of C, the inverse strength of the L2 penalty, above 0.
        val_share: share of the training features that C is chosen on, between 0 and 1.
        seed: of that split.
        max_iter: most iterations of L-BFGS for one classifier.

    Raises:
        UserError: numbers of features and labels differ, there are fewer than two classes or two
            images in a class, too few images to split, or ``sweep`` is empty.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = train_features.cpu().double().numpy(), train_labels.cpu().numpy()
    x_test, y_test = test_features.cpu().double().numpy(), test_labels.cpu().numpy()
    if len(x) != len(y) or len(x_test) != len(y_test) or not len(y_test):
        raise UserError(
            f"the linear probe got {len(x)} training features with {len(y)} labels and "
            f"{len(x_test)} test features with {len(y_test)}: one label for each is needed"
        )
    if not sweep:
        raise UserError("sweep must name at least one value of C")

    def fitted(c: float, features: Any, labels: Any) -> Any:
        regression = LogisticRegression(C=c, max_iter=max_iter)
        return make_pipeline(StandardScaler(), regression).fit(features, labels)

    try:
        if len(set(y.tolist())) < 2:
            raise ValueError("all training labels are the same")
        x_fit, x_val, y_fit, y_val = train_test_split(
            x, y, test_size=val_share, random_state=seed, stratify=y
        )
    except ValueError as error:
        raise UserError(
            f"the linear probe cannot split its {len(y)} training features ({error}): give at "
            "least two classes and a few images of each"
        ) from None
    accuracies = {c: 100 * fitted(c, x_fit, y_fit).score(x_val, y_val) for c in sorted(sweep)}
    chosen = max(accuracies, key=lambda c: (accuracies[c], -c))
    accuracy = 100 * fitted(chosen, x, y).score(x_test, y_test)
    return LinearProbeResult(float(accuracy), chosen, accuracies)
