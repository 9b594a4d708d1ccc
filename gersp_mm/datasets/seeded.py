"""Samples of any host's dataset whose random numbers depend only on their place in a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset, get_worker_info

from gersp_mm.datasets.pipelines import generators
from gersp_mm.datasets.sampler import PairedSampler
from gersp_mm.utils.randomness import preserved_rng_state, seed_everything

CACHES = ("results_cache",)  # of earlier images, in transforms


class SampleIndex(int):
    """The index of a sample with the numbers that seed its random state."""

    numbers: tuple[int, ...]

    def __new__(cls, index: int, numbers: tuple[int, ...]) -> SampleIndex:
        """Return ``index`` with its numbers, which have to be at least 0."""
        self = super().__new__(cls, index)
        self.numbers = numbers
        return self

    def __reduce__(self) -> tuple[type, tuple[int, tuple[int, ...]]]:
        """Return the parts for pickle."""
        return SampleIndex, (int(self), self.numbers)


class SeededDataset(Dataset):
    """A dataset whose samples depend only on their :class:`SampleIndex`, in every process.

    Python's, NumPy's and PyTorch's random states are set before the host loads a sample. In the
    main process they are restored afterwards. All attributes are those of the wrapped dataset.

    Args:
        dataset: Any dataset with numbered samples.
    """

    _wrapped: Any

    def __init__(self, dataset: Any) -> None:
        self.__dict__["_wrapped"] = dataset

    def __getitem__(self, index: Any) -> Any:
        """Return the sample; an index without numbers is passed on unchanged."""
        if not isinstance(index, SampleIndex):
            return self._wrapped[index]
        # The dataset must not change the random states of the main process.
        guard = preserved_rng_state() if get_worker_info() is None else contextlib.nullcontext()
        with guard:
            seed_everything(*index.numbers, cpu_only=True)
            return self._wrapped[int(index)]

    def __len__(self) -> int:
        return len(self._wrapped)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python and PyTorch look up optional methods.
            raise AttributeError(name)
        return getattr(self.__dict__["_wrapped"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._wrapped, name, value)

    def __reduce__(self) -> tuple[type, tuple[Any]]:
        return SeededDataset, (self._wrapped,)


class SeededBatches:
    """A batch sampler that numbers its samples and can start in the middle of a pass.

    Skipped batches are not decoded.

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
        """Choose the batches of the next iteration.

        Args:
            seed: Seed of the run.
            number: Number of the pass.
            done: Number of batches that this pass skips.
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
                # The stream of an endless sampler cannot be opened twice.
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
        return index  # The sampler seeds its samples itself.


def seed_samples(loader: DataLoader) -> SeededBatches | None:
    """Make each sample of a data loader a function of the seed and its place in the run.

    Args:
        loader: Changed in place. A dataset with :class:`gersp_mm.PairedSampler` does not change,
            because that sampler gives each sample a seed.

    Returns:
        The loader's batch sampler, or None if it has none.
    """
    if loader.batch_sampler is None:
        return None
    batches = SeededBatches(loader.batch_sampler)
    # PyTorch forbids setting these attributes, and a new loader would lose batch size and sampler.
    vars(loader)["batch_sampler"] = batches
    if not isinstance(loader.sampler, PairedSampler):
        vars(loader)["dataset"] = SeededDataset(loader.dataset)
    return batches


def find_private_randomness(dataset: Any) -> list[str]:
    """Return a text on each transform of a dataset that keeps images or a random generator."""
    found = {}
    for transform in _parts(dataset):
        name = type(transform).__name__
        if any(hasattr(transform, cache) for cache in CACHES):
            found[name] = f"{name} keeps images of earlier samples"
        elif next(generators(transform), None) is not None:
            found[name] = f"{name} has its own random generator"
    return list(found.values())


def _parts(root: Any) -> Iterator[Any]:
    """Yield the transforms of a dataset and of the datasets that it wraps."""
    waiting, seen = [root], set()
    while waiting:
        part = waiting.pop()
        if part is None or isinstance(part, (str, int, float, dict)) or id(part) in seen:
            continue
        seen.add(id(part))
        if callable(part):
            yield part
        for name in ("dataset", "datasets", "_dataset", "pipeline", "transforms"):
            inner = getattr(part, name, None)
            waiting.extend(inner if isinstance(inner, (list, tuple)) else [inner])
        if isinstance(part, (list, tuple)):
            waiting.extend(part)


def _consume(batches: Iterator[Sequence[Any]], count: int) -> tuple[int, int]:
    """Consume up to ``count`` batches; return the number of batches and of their samples."""
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
