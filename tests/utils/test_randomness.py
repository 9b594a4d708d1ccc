"""Random states from numbers, and putting them back."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from gersp_mm.utils.randomness import preserved_rng_state, seed_everything


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_same_numbers_same_draws_and_others_others():
    def after(*numbers: int, **kwargs: bool) -> tuple[float, float, float]:
        seed_everything(*numbers, **kwargs)
        return draw()

    first = after(7, 3)
    assert after(7, 3) == first
    assert after(7, 3, cpu_only=True) == first
    for other in [(7, 4), (8, 3), (3, 7), (7, 3, 1), (2**63 - 1,), (0,)]:
        assert all(a != b for a, b in zip(after(*other), first)), other


def test_neighbouring_seeds_are_unrelated():
    draws = []
    for seed in range(1000):
        seed_everything(seed)
        draws.append(draw())
    values = np.array(draws)
    assert np.abs(values.mean(0) - 0.5).max() < 0.04
    neighbours = [np.corrcoef(values[:-1, i], values[1:, i])[0, 1] for i in range(3)]
    libraries = np.corrcoef(values.T)[np.triu_indices(3, 1)]
    assert np.abs([*neighbours, *libraries]).max() < 0.13


def test_negative_number_is_refused():
    with pytest.raises(ValueError, match="negative"):
        seed_everything(-1)


def test_states_are_put_back_also_after_an_error():
    seed_everything(1)
    expected = [draw(), draw()]
    seed_everything(1)
    assert draw() == expected[0]
    with pytest.raises(KeyError), preserved_rng_state():
        seed_everything(2)
        draw()
        raise KeyError
    assert draw() == expected[1]
