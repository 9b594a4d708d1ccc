"""The linear probe: what it chooses, what it may see, and that it repeats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from gersp_mm.evaluation import linear_probe
from gersp_mm.evaluation.logistic_regression import fit_classifiers
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
    model = LogisticRegression(C=c, max_iter=1000, tol=1e-8).fit((x - mean) / std, y)
    return 100 * float(np.mean(model.predict((x_test - mean) / std) == y_test))


@pytest.mark.parametrize("classes", [2, 10])
def test_every_prediction_is_that_of_another_solver_in_double_precision(classes):
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(classes, 64))
    labels = np.arange(2600) % classes
    noise = rng.normal(size=(2600, 64)) * np.linspace(1, 4, 64)
    features = torch.from_numpy((centres[labels] + noise) @ rng.normal(size=(64, 64))).float()
    x, x_test = features[:600], features[600:]
    y, y_test = torch.from_numpy(labels).split((600, 2000))
    sweep = [1e-3, 1e-2, 1e-1]
    result = linear_probe(x, y, x_test, y_test, sweep)

    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    z, z_test = ((part.double() - mean) / std for part in (x, x_test))
    expected = {}
    for c, own in fit_classifiers(x, y, sweep).items():
        other = LogisticRegression(C=c, solver="newton-cg", tol=1e-10, max_iter=1000)
        expected[c] = torch.from_numpy(other.fit(z, y).predict_log_proba(z_test))
        scores = z_test @ own.weight.double().T + own.bias
        torch.testing.assert_close(scores.log_softmax(1), expected[c], rtol=0, atol=2e-2)
    best = expected[result.chosen_c].topk(2)
    differs = result.predictions != best.indices[:, 0]
    tie = best.values[:, 0] - best.values[:, 1] < 1e-2  # by the solvers' tolerance
    assert not (differs & ~tie).any()
    assert tie.double().mean() < 0.01
    correct = (result.predictions == y_test).double().mean().item()
    assert result.accuracy == pytest.approx(100 * correct)
    assert 100 / classes + 10 < result.accuracy < 99


@pytest.mark.filterwarnings("error")  # of ending too early
def test_nearly_collinear_features_take_few_steps():
    rng = np.random.default_rng(0)
    labels = np.arange(900) % 5
    spectrum = np.arange(1, 129) ** -1.5
    inner = (rng.normal(size=(5, 128))[labels] + 2 * rng.normal(size=(900, 128))) * spectrum
    features = inner @ rng.normal(size=(128, 128)) + 20 * rng.normal(size=(900, 1))
    x, y = torch.from_numpy(features).float(), torch.from_numpy(labels)
    own = fit_classifiers(x, y, [1.0], max_iter=100)[1.0]
    z = ((x.double() - x.double().mean(0)) / x.double().std(0, correction=0)).numpy()
    exact = LogisticRegression(C=1.0, solver="newton-cg", tol=1e-10, max_iter=1000).fit(z, labels)
    slow = LogisticRegression(C=1.0, tol=1e-8, max_iter=10000).fit(z, labels)
    assert slow.n_iter_[0] > 500
    scores = torch.from_numpy(z) @ own.weight.double().T + own.bias
    expected = torch.from_numpy(exact.predict_log_proba(z))
    torch.testing.assert_close(scores.log_softmax(1), expected, rtol=0, atol=5e-2)
    assert (own.predict(x).numpy() == exact.predict(z)).mean() > 0.99


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
    again = linear_probe(train, labels, test, truth)
    assert torch.equal(again.predictions, first.predictions)
    assert again[:3] == first[:3]
    other = linear_probe(train, labels, test, (truth + 1) % 3)
    assert (other.sweep, other.chosen_c) == (first.sweep, first.chosen_c)
    assert other.accuracy < first.accuracy


def test_a_constant_feature_does_no_harm():
    train, labels = data(90, 0)
    test, truth = data(60, 1)
    train[:, 7], test[:, 7] = 3.0, 3.0
    assert np.isfinite(linear_probe(train, labels, test, truth).accuracy)


def test_features_that_repeat_and_hardly_any_penalty():
    train, labels = data(90, 0)
    test, truth = data(60, 1)
    once = linear_probe(train, labels, test, truth, sweep=[1e5])
    twice = linear_probe(train.repeat(1, 2), labels, test.repeat(1, 2), truth, sweep=[1e5])
    assert abs(twice.accuracy - once.accuracy) < 5


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


def test_the_classifier_of_the_result_is_the_one_that_was_tested():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    features = 5 + 4 * torch.randn(90, 6, generator=generator) + labels[:, None]
    result = linear_probe(features, labels, features, labels)
    assert torch.equal(result.classifier.predict(features), result.predictions)
    weight, bias = result.classifier.of_raw_features()
    assert torch.equal((features @ weight.T + bias).argmax(1), result.predictions)
