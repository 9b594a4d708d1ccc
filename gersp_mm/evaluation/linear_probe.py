"""A linear classifier on frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gersp_mm.evaluation.logistic_regression import Classifier, fit_classifiers
from gersp_mm.utils.errors import UserError

# From strong to hardly any regularisation of standardised features.
DEFAULT_SWEEP = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class LinearProbeResult(NamedTuple):
    """Outcome of :func:`linear_probe`.

    Attributes:
        accuracy: Top-1 on the test features in per cent.
        chosen_c: Inverse regularisation strength that was used.
        sweep: Validation accuracy in per cent of every C that was tried.
        predictions: The class of each test feature, M integers.
        classifier: The classifier that was tested, trained on all training features.
    """

    accuracy: float
    chosen_c: float
    sweep: dict[float, float]
    predictions: torch.Tensor
    classifier: Classifier


def linear_probe(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    sweep: Sequence[float] = DEFAULT_SWEEP,
    val_share: float = 0.2,
    seed: int = 0,
    max_iter: int = 1000,
    val: tuple[torch.Tensor, torch.Tensor] | None = None,
    progress: str | None = None,
) -> LinearProbeResult:
    """Train a logistic regression on frozen features and test it.

    Features are standardised with the mean and standard deviation of the training features. C is
    chosen on validation features, or, if there are none, on a stratified part of the training
    features; of equally good values, the strongest regularisation is taken. The classifier is then
    trained on all training features. The test features influence no choice. The same input and seed
    give the same result.

    Args:
        train_features: N×D.
        train_labels: N integers.
        test_features: M×D.
        test_labels: M integers.
        sweep: Values of C, the inverse strength of the L2 penalty, above 0.
        val_share: Share of the training features that C is chosen on, between 0 and 1.
        seed: Seed of that split.
        max_iter: Greatest number of iterations of L-BFGS for one classifier.
        val: Features and labels to choose C on; they replace ``val_share`` and ``seed``.
        progress: Text next to a progress bar, None for no bar.

    Raises:
        UserError: Numbers of features and labels differ, there are fewer than two classes or two
            images in a class, too few images to split, or ``sweep`` is empty.
    """
    from sklearn.model_selection import train_test_split

    x, y = train_features.cpu().float(), train_labels.cpu()
    x_test, y_test = test_features.cpu().float(), test_labels.cpu()
    if len(x) != len(y) or len(x_test) != len(y_test) or not len(y_test):
        raise UserError(
            f"the linear probe got {len(x)} training features with {len(y)} labels and "
            f"{len(x_test)} test features with {len(y_test)}: one label for each is needed"
        )
    if not sweep:
        raise UserError("sweep must name at least one value of C")

    try:
        if len(set(y.tolist())) < 2:
            raise ValueError("all training labels are the same")
        if val is None:
            fit, held_out = train_test_split(
                torch.arange(len(y)).numpy(), test_size=val_share, random_state=seed, stratify=y
            )
            x_fit, y_fit, x_val, y_val = x[fit], y[fit], x[held_out], y[held_out]
        else:
            x_fit, y_fit, x_val, y_val = x, y, val[0].cpu().float(), val[1].cpu()
    except ValueError as error:
        raise UserError(
            f"the linear probe cannot split its {len(y)} training features ({error}): give at "
            "least two classes and a few images of each"
        ) from None
    probes = fit_classifiers(x_fit, y_fit, sorted(sweep), max_iter, progress=progress)
    accuracies = {c: _percent(probe.predict(x_val) == y_val) for c, probe in probes.items()}
    chosen = max(accuracies, key=lambda c: (accuracies[c], -c))
    final = probes[chosen]
    if val is None:
        final = fit_classifiers(x, y, [chosen], max_iter, start=final)[chosen]
    predictions = final.predict(x_test)
    accuracy = _percent(predictions == y_test)
    return LinearProbeResult(accuracy, chosen, accuracies, predictions, final)


def _percent(correct: torch.Tensor) -> float:
    return 100 * correct.double().mean().item()
