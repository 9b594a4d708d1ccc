"""Weighted kNN against naive loops and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gersp_mm.evaluation import knn_accuracy, knn_predict
from gersp_mm.utils.errors import UserError


def blobs(
    count: int, seed: int, classes: int = 4, dim: int = 5, spread: float = 1.2
) -> tuple[torch.Tensor, torch.Tensor]:
    centres = np.random.default_rng(0).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    features = centres[labels] + rng.normal(scale=spread, size=(count, dim))
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def naive(train, labels, queries, k: int, temperature: float) -> list[int]:
    """Plain Python numbers, one pair at a time."""
    predicted = []
    for query in queries.double().tolist():
        similarities = []
        for key, label in zip(train.double().tolist(), labels.tolist()):
            dot = sum(a * b for a, b in zip(query, key))
            norm = math.sqrt(sum(a * a for a in query)) * math.sqrt(sum(b * b for b in key))
            similarities.append((dot / norm, label))
        votes: dict[int, float] = {}
        for similarity, label in sorted(similarities, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(similarity / temperature)
        predicted.append(max(votes, key=lambda label: votes[label]))
    return predicted


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0)])
def test_equals_naive_loops(k, temperature):
    train, labels = blobs(60, 1)
    queries, truth = blobs(25, 2)
    expected = naive(train, labels, queries, k, temperature)
    for chunk in (1, 7, 1024):
        assert knn_predict(train, labels, queries, k, temperature, chunk).tolist() == expected
    correct = sum(a == b for a, b in zip(expected, truth.tolist()))
    accuracy = knn_accuracy(train, labels, queries, truth, k, temperature, chunk_size=7)
    assert accuracy == pytest.approx(100 * correct / 25)
    assert 30 < accuracy < 100  # neither chance nor trivial: the comparison means something


@pytest.mark.parametrize(("k", "temperature"), [(5, 0.07), (20, 0.07), (20, 1.0)])
def test_every_prediction_is_scikit_learns(k, temperature):
    from sklearn.neighbors import KNeighborsClassifier

    train, labels = blobs(800, 3, 10, 64, spread=3)
    queries, truth = blobs(600, 4, 10, 64, spread=3)
    train, queries = train + 0.5, queries + 0.5  # not around 0
    x, x_test = (F.normalize(part.double(), dim=1) for part in (train, queries))
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    )
    votes = torch.from_numpy(reference.fit(x, labels).predict_proba(x_test))
    best = votes.topk(2)
    tie = best.values[:, 0] - best.values[:, 1] <= 1e-6 * best.values[:, 0]
    predicted = knn_predict(train, labels, queries, k, temperature)
    assert not ((predicted != best.indices[:, 0]) & ~tie).any()
    assert tie.double().mean() < 0.01
    assert 30 < 100 * (predicted == truth).double().mean() < 95


def test_the_weights_decide():
    # One near neighbour of class 1 against two far ones of class 0.
    train = torch.tensor([[1.0, 0.02], [0.3, 1.0], [0.3, -1.0]])
    labels = torch.tensor([1, 0, 0])
    query = torch.tensor([[2.0, 0.0]])
    assert knn_predict(train, labels, query, k=3, temperature=0.07).item() == 1
    assert knn_predict(train, labels, query, k=3, temperature=100.0).item() == 0
    assert knn_predict(train, labels, query, k=3, temperature=1e-4).item() == 1  # no overflow


def test_more_voters_than_features():
    train, labels = blobs(10, 5)
    queries, _ = blobs(5, 6)
    with pytest.warns(UserWarning, match="k=20 is more than the 10 training features"):
        predicted = knn_predict(train, labels, queries)
    assert predicted.tolist() == naive(train, labels, queries, 10, 0.07)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (dict(train_labels=torch.zeros(3, dtype=torch.long)), "4 training features with 3 labels"),
        (dict(test_features=torch.ones(2, 6)), "N×D and M×D"),
        (dict(k=0), "k cannot be 0"),
        (dict(temperature=0.0), "temperature cannot be 0.0"),
        (dict(test_labels=torch.zeros(1, dtype=torch.long)), "2 test features with 1 labels"),
    ],
)
def test_errors(change, expected):
    arguments = dict(
        train_features=torch.ones(4, 5),
        train_labels=torch.zeros(4, dtype=torch.long),
        test_features=torch.ones(2, 5),
        test_labels=torch.zeros(2, dtype=torch.long),
    )
    with pytest.raises(UserError, match=expected):
        knn_accuracy(**{**arguments, **change})
