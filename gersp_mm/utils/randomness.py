"""Random states as a function of a few numbers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_everything(*numbers: int, cpu_only: bool = False) -> None:
    """Seed Python, NumPy and PyTorch from a few non-negative numbers.

    Neighbouring numbers give unrelated states.

    Args:
        *numbers: any non-negative integers.
        cpu_only: leave the random states of accelerators alone.
    """
    state = np.random.SeedSequence(numbers).generate_state(3, np.uint64)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]) % 2**32)
    seed_torch = torch.default_generator.manual_seed if cpu_only else torch.manual_seed
    seed_torch(int(state[2]) % 2**63)


@contextlib.contextmanager
def preserved_rng_state() -> Iterator[None]:
    """Put back the CPU random states of Python, NumPy and PyTorch on leaving."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
