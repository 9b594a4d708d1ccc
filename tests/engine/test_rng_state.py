from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import torch

from gersp_mm.engine.hooks import RNGStateHook


def draws(seed, iteration, rank):
    RNGStateHook().before_train_iter(SimpleNamespace(seed=seed, iter=iteration, rank=rank), 0)
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_draws_are_a_function_of_seed_iteration_and_rank():
    first = draws(3, 10, 1)
    random.random(), np.random.rand(), torch.rand(5)
    assert draws(3, 10, 1) == first


def test_every_neighbour_draws_something_else():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**31, 10**6, 255)]
    for generator in zip(*(draws(*key) for key in keys)):
        assert len(set(generator)) == len(keys)
