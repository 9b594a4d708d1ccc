"""Classification by a weighted vote of the nearest training features."""

from __future__ import annotations

import warnings

import torch
from torch.nn import functional as F

from gersp_mm.constants import KNN_K, KNN_TEMPERATURE
from gersp_mm.utils.errors import UserError, check_number


@torch.no_grad()
def knn_predict(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    k: int = KNN_K,
    temperature: float = KNN_TEMPERATURE,
    chunk_size: int = 1024,
) -> torch.Tensor:
    """Return the labels that the k most similar training features vote for.

    Each vote has the weight exp(similarity / T).

    Similarity is the cosine. The protocol is that of Wu et al., "Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination" (CVPR 2018), who use k = 200 and T = 0.07.

    Args:
        train_features: N×D, on the device that computes the similarities.
        train_labels: N, integers from 0.
        test_features: M×D.
        k: Number of voters. If there are fewer training features, all of them vote and a warning
            is issued.
        temperature: T, above 0.
        chunk_size: Test features compared at a time; at most chunk_size × N similarities are held.

    Returns:
        Predicted labels, M, int64, on the device of ``train_features``.

    Raises:
        UserError: Shapes do not fit, there are no features, or k or T is not positive.
    """
    if train_features.dim() != 2 or train_features.shape[1:] != test_features.shape[1:]:
        raise UserError(
            f"training features {tuple(train_features.shape)} and test features "
            f"{tuple(test_features.shape)} must be N×D and M×D"
        )
    if len(train_features) != len(train_labels) or not len(train_labels):
        raise UserError(
            f"{len(train_features)} training features with {len(train_labels)} labels: kNN needs "
            "one label for each, and at least one"
        )
    check_number("k", k, 1, whole=True, such_as=KNN_K)
    check_number("temperature", temperature, above=0, such_as=KNN_TEMPERATURE)
    if k > len(train_features):
        warnings.warn(
            f"k={k} is more than the {len(train_features)} training features: all of them vote",
            stacklevel=2,
        )
        k = len(train_features)

    keys = F.normalize(train_features.float(), dim=1).T
    labels = train_labels.to(keys.device, torch.long)
    classes = int(labels.max()) + 1
    predicted = [torch.empty(0, dtype=torch.long, device=keys.device)]
    for queries in test_features.split(chunk_size):
        similarity = F.normalize(queries.to(keys.device).float(), dim=1) @ keys
        nearest, index = similarity.topk(k, dim=1)
        # Relative to the nearest one, whose weight is then 1: no overflow at a small temperature.
        weights = nearest.sub(nearest[:, :1]).div(temperature).exp()
        votes = torch.zeros(len(queries), classes, device=keys.device)
        votes.scatter_add_(1, labels[index], weights)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    k: int = KNN_K,
    temperature: float = KNN_TEMPERATURE,
    chunk_size: int = 1024,
) -> float:
    """Return the top-1 accuracy of :func:`knn_predict` in per cent.

    Raises:
        UserError: k or T is not positive, shapes do not fit, there are no test features, or their
            number differs from that of the labels.
    """
    if len(test_features) != len(test_labels) or not len(test_labels):
        raise UserError(
            f"{len(test_features)} test features with {len(test_labels)} labels: kNN needs one "
            "label for each, and at least one"
        )
    predicted = knn_predict(train_features, train_labels, test_features, k, temperature, chunk_size)
    correct = predicted == test_labels.to(predicted.device)
    return correct.double().mean().item() * 100
