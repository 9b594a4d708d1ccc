"""A linear classifier on the frozen features of a few images a class."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Train on ``shots`` images a class, chosen anew for each draw, and test.

    The images are chosen by :func:`gersp_mm.datasets.splits.few_shot`. The classifier is
    scikit-learn's logistic regression with C = 1 on L2-normalised features, as in Tian et al.,
    "Rethinking few-shot image classification" (ECCV 2020).

    Args:
        train_features: N×D, of the images to choose from.
        train_labels: N integers.
        test_features: M×D.
        test_labels: M integers.
        names: paths of the training images; the last two components count.
        shots: images a class.
        draws: numbers of the choices.

    Returns:
        Top-1 accuracy in percent of each draw.

    Raises:
        UserError: numbers of features, labels and names differ, or a class has too few images.
    """
    if not len(train_features) == len(train_labels) == len(names):
        raise UserError(
            f"{len(train_features)} training features with {len(train_labels)} labels and "
            f"{len(names)} names: few-shot needs one of each"
        )
    if len(test_features) != len(test_labels) or not len(test_labels):
        raise UserError(
            f"{len(test_features)} test features with {len(test_labels)} labels: few-shot needs "
            "one label for each, and at least one"
        )
    accuracies = []
    for draw in draws:
        chosen = few_shot(names, train_labels.tolist(), shots, draw)
        predicted = few_shot_predict(train_features[chosen], train_labels[chosen], test_features)
        accuracies.append(100 * (predicted == test_labels.cpu()).double().mean().item())
    return accuracies


def few_shot_predict(
    features: torch.Tensor, labels: torch.Tensor, test_features: torch.Tensor
) -> torch.Tensor:
    """Classify M×D test features by a few labelled ones; returns M labels on the CPU."""
    from sklearn.linear_model import LogisticRegression

    x, x_test = (F.normalize(f, dim=1).cpu().numpy() for f in (features, test_features))
    classifier = LogisticRegression(max_iter=1000).fit(x, labels.cpu().numpy())
    return torch.from_numpy(classifier.predict(x_test))
