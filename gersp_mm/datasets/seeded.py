"""Random numbers of a sample that depend on its place in a run alone, around any host's dataset."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset, get_worker_info

from gersp_mm.datasets.sampler import PairedSampler
from gersp_mm.utils.randomness import preserved_rng_state, seed_everything

# Transforms that keep earlier images in the worker process, or draw from generators of their own.
CACHES = ("results_cache",)
GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)


class SampleIndex(int):
    """The index of a sample, and the numbers that its random state is made of."""

    numbers: tuple[int, ...]

    def __new__(cls, index: int, numbers: tuple[int, ...]) -> SampleIndex:
        """Return ``index`` with its numbers, none of which may be negative."""
        self = super().__new__(cls, index)
        self.numbers = numbers
        return self

    def __reduce__(self) -> tuple[type, tuple[int, tuple[int, ...]]]:
        """Let pickle make the same index again."""
        return SampleIndex, (int(self), self.numbers)


class SeededDataset(Dataset):
    """A dataset whose sample is a function of its :class:`SampleIndex`, in whichever process.

    Python's, NumPy's and PyTorch's random states are set before the host's transforms run, and
    before another image is drawn in place of one that cannot be used. In the main process they are
    put back. Everything else is the wrapped dataset's: its attributes are read, and set, there.

    Args:
        dataset: Any dataset with numbered samples.
    """

    _wrapped: Any

    def __init__(self, dataset: Any) -> None:
        self.__dict__["_wrapped"] = dataset

    def __getitem__(self, index: Any) -> Any:
        """Return the sample; an index without numbers is passed on as it is."""
        if not isinstance(index, SampleIndex):
            return self._wrapped[index]
        # A worker process belongs to the dataset; the main process has random states of its own.
        guard = preserved_rng_state() if get_worker_info() is None else contextlib.nullcontext()
        with guard:
            seed_everything(*index.numbers, cpu_only=True)
            return self._wrapped[int(index)]

    def __len__(self) -> int:
        return len(self._wrapped)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the language and PyTorch look for
            raise AttributeError(name)
        return getattr(self.__dict__["_wrapped"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._wrapped, name, value)

    def __reduce__(self) -> tuple[type, tuple[Any]]:
        return SeededDataset, (self._wrapped,)


class SeededBatches:
    """A batch sampler that numbers its samples, and that can start in the middle of a pass.

    Nothing is decoded for the batches that are left out.

    Args:
        batches: The batch sampler of a data loader.
    """

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self._numbers: tuple[int, ...] = ()
        self._done = 0
        self._opened: tuple[Iterator[Sequence[Any]], int] | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_batches" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    def begin(self, seed: int, number: int, done: int) -> None:
        """Choose what the next iteration gives.

        Args:
            seed: Of the run.
            number: Of the pass.
            done: Batches of the pass that are left out, this once.
        """
        self._numbers = (seed, number, get_rank())
        self._done = done

    def locate(self, done: int) -> tuple[int, int]:
        """Return the pass and the batch in it that follow ``done`` batches of a run."""
        number = 0
        while done:
            set_epoch(number, self._batches)
            batches = iter(self._batches)
            count, samples = _consume(batches, done)
            if count == done:
                # A sampler without an end has one stream, which cannot be opened again.
                self._opened = batches, samples
                break
            number, done = number + 1, done - count
        return number, done

    def __iter__(self) -> Iterator[list[Any]]:
        if self._opened is not None:
            (batches, position), self._opened = self._opened, None
        else:
            batches = iter(self._batches)
            done, self._done = self._done, 0
            _, position = _consume(batches, done)
        for batch in batches:
            yield [self._seeded(index, position + place) for place, index in enumerate(batch)]
            position += len(batch)

    def _seeded(self, index: Any, position: int) -> Any:
        if isinstance(index, (int, np.integer)):
            return SampleIndex(int(index), (*self._numbers, position))
        return index  # of a sampler that gives samples seeds of its own


def seed_samples(loader: DataLoader) -> SeededBatches | None:
    """Make each sample of a data loader a function of the seed and its place in the run.

    Args:
        loader: Changed in place. A dataset with :class:`gersp_mm.PairedSampler` stays as it is,
            because that sampler gives each sample a seed.

    Returns:
        The loader's batch sampler, or None where it has none.
    """
    if loader.batch_sampler is None:
        return None
    batches = SeededBatches(loader.batch_sampler)
    # PyTorch lets nobody exchange these parts, and a new loader would lose batch size and sampler.
    vars(loader)["batch_sampler"] = batches
    if not isinstance(loader.sampler, PairedSampler):
        vars(loader)["dataset"] = SeededDataset(loader.dataset)
    return batches


def find_private_randomness(dataset: Any) -> list[str]:
    """Return the transforms of a dataset that keep images or generators of their own, in words."""
    found = {}
    for transform in _parts(dataset):
        name = type(transform).__name__
        if any(hasattr(transform, cache) for cache in CACHES):
            found[name] = f"{name} keeps images of earlier samples"
        elif _has_generator(transform):
            found[name] = f"{name} has a random generator of its own"
    return list(found.values())


def _parts(root: Any) -> Iterator[Any]:
    """Give the transforms of a dataset and of those that it wraps."""
    waiting, seen = [root], set()
    while waiting:
        part = waiting.pop()
        if part is None or isinstance(part, (str, int, float, dict)) or id(part) in seen:
            continue
        seen.add(id(part))
        if callable(part):
            yield part
        for name in ("dataset", "datasets", "_dataset", "pipeline", "transforms", "rs_pipeline",
                     "natural_pipeline"):  # fmt: skip
            inner = getattr(part, name, None)
            waiting.extend(inner if isinstance(inner, (list, tuple)) else [inner])
        if isinstance(part, (list, tuple)):
            waiting.extend(part)


def _has_generator(part: Any, depth: int = 3) -> bool:
    if isinstance(part, GENERATORS):
        return True
    if depth == 0 or isinstance(part, (str, bytes, int, float, np.ndarray, torch.Tensor)):
        return False
    inner: Iterable[Any] = part if isinstance(part, (list, tuple)) else ()
    inner = [*inner, *getattr(part, "__dict__", {}).values()]
    return any(_has_generator(value, depth - 1) for value in inner)


def _consume(batches: Iterator[Sequence[Any]], count: int) -> tuple[int, int]:
    """Take batches away; return how many there were, at most ``count``, and their samples."""
    taken = samples = 0
    while taken < count:
        batch = next(batches, None)
        if batch is None:
            break
        taken, samples = taken + 1, samples + len(batch)
    return taken, samples


def set_epoch(number: int, batches: Any, *samplers: Any) -> None:
    """Choose the epoch that a batch sampler, and other samplers, draw next."""
    for sampler in (getattr(batches, "sampler", None), *samplers):
        choose = getattr(sampler, "set_epoch", None)
        if choose is not None:
            choose(number)
