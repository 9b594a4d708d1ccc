"""The linear probe: what it chooses, what it may see, and that it repeats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from gersp_mm.evaluation import linear_probe
from gersp_mm.utils.errors import UserError


def data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes told apart by two of 30 features, which have very unlike scales."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    features = rng.normal(size=(count, 30))
    features[:, 0] += labels * 1.5
    features[:, 1] -= (labels == 1) * 2
    features *= np.logspace(-3, 3, 30)
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def by_hand(x, y, x_test, y_test, c: float) -> float:
    mean, std = x.mean(0), x.std(0)
    model = LogisticRegression(C=c, max_iter=1000).fit((x - mean) / std, y)
    return 100 * float(np.mean(model.predict((x_test - mean) / std) == y_test))


def test_sweep_choice_and_accuracy_are_those_by_hand():
    train, labels = data(90, 0)
    test, truth = data(60, 1)
    sweep = (1e-3, 1e-1, 10.0)
    result = linear_probe(train, labels, test, truth, sweep=sweep, seed=4)
    x, y = train.double().numpy(), labels.numpy()
    a, b, ya, yb = train_test_split(x, y, test_size=0.2, random_state=4, stratify=y)
    expected = {c: by_hand(a, ya, b, yb, c) for c in sweep}
    assert result.sweep == pytest.approx(expected)
    best = max(expected.values())
    assert result.chosen_c == min(c for c, value in expected.items() if value == best)
    by_hand_accuracy = by_hand(x, y, test.double().numpy(), truth.numpy(), result.chosen_c)
    assert result.accuracy == pytest.approx(by_hand_accuracy)
    assert 50 < result.accuracy < 100


def test_it_repeats_and_test_labels_choose_nothing():
    train, labels = data(90, 0)
    test, truth = data(60, 1)
    first = linear_probe(train, labels, test, truth)
    assert linear_probe(train, labels, test, truth) == first
    other = linear_probe(train, labels, test, (truth + 1) % 3)
    assert (other.sweep, other.chosen_c) == (first.sweep, first.chosen_c)
    assert other.accuracy < first.accuracy


def test_a_constant_feature_does_no_harm():
    train, labels = data(90, 0)
    test, truth = data(60, 1)
    train[:, 7], test[:, 7] = 3.0, 3.0
    assert np.isfinite(linear_probe(train, labels, test, truth).accuracy)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.zeros(6, dtype=torch.long), "all training labels are the same"),
        (torch.tensor([0, 0, 0, 0, 0, 1]), "cannot split its 6 training features"),
        (torch.zeros(5, dtype=torch.long), "6 training features with 5 labels"),
    ],
)
def test_errors(labels, expected):
    features = torch.randn(6, 4)
    with pytest.raises(UserError, match=expected):
        linear_probe(features, labels, features, torch.zeros(6, dtype=torch.long))
