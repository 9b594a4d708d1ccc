"""A linear classifier on the frozen features of a few images per class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from gersp_mm.datasets.splits import few_shot
from gersp_mm.utils.errors import UserError


def few_shot_accuracies(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    names: Sequence[str],
    shots: int,
    draws: Sequence[int],
) -> list[float]:
    """Fit a classifier on ``shots`` images per class and return its test accuracy for each draw.

    The images are chosen by :func:`gersp_mm.datasets.splits.few_shot`. The classifier is
    scikit-learn's logistic regression with C = 1 on L2-normalised features, as in Tian et al.,
    "Rethinking few-shot image classification" (ECCV 2020).

    Args:
        train_features: N×D, of the images to choose from.
        train_labels: N integers.
        test_features: M×D.
        test_labels: M integers.
        names: Paths of the training images, of which the last two components are used.
        shots: Number of images per class.
        draws: Seeds of the random subsets; each one selects other training images.

    Returns:
        Top-1 accuracy in percent of each draw.

    Raises:
        UserError: Numbers of features, labels and names differ, or a class has too few images.
    """
    if not len(train_features) == len(train_labels) == len(names):
        raise UserError(
            f"{len(train_features)} training features with {len(train_labels)} labels and "
            f"{len(names)} names. Few-shot needs one "
            "label and one name for each feature."
        )
    if len(test_features) != len(test_labels) or not len(test_labels):
        raise UserError(
            f"{len(test_features)} test features with {len(test_labels)} labels: few-shot needs "
            "one label for each, and at least one"
        )
    return [
        100 * (predicted == test_labels.cpu()).double().mean().item()
        for predicted in few_shot_predictions(
            train_features, train_labels, test_features, names, shots, draws
        )
    ]


def few_shot_predictions(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    names: Sequence[str],
    shots: int,
    draws: Iterable[int],
) -> Iterator[torch.Tensor]:
    """Yield the predicted classes of the test features for each draw, M labels on the CPU.

    The arguments are those of :func:`few_shot_accuracies`.
    """
    for draw in draws:
        chosen = few_shot(names, train_labels.tolist(), shots, draw)
        yield _predict(train_features[chosen], train_labels[chosen], test_features)


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation of the draws, 0 for a single draw."""
    return float(np.mean(values)), float(np.std(values, ddof=len(values) > 1))


def _predict(
    features: torch.Tensor, labels: torch.Tensor, test_features: torch.Tensor
) -> torch.Tensor:
    """Classify M×D test features by a classifier of a few labelled features."""
    from sklearn.linear_model import LogisticRegression

    x, x_test = (F.normalize(f, dim=1).cpu().numpy() for f in (features, test_features))
    classifier = LogisticRegression(max_iter=1000).fit(x, labels.cpu().numpy())
    return torch.from_numpy(classifier.predict(x_test))
