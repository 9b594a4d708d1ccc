"""The memory of a training step by part, from a few small steps.

Weights, gradients, optimizer state, teacher and queue are counted. The images of a batch and the
activations, which are what autograd keeps for the backward pass, are measured at two batches. Both
grow linearly with the batch. What else a step needs for a moment is measured on a GPU, by its
allocator, and is a model on a CPU: two more tensors of the largest kind that is kept.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks

from gersp_mm.planning.trial import Trial
from gersp_mm.utils.errors import UserError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
         "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}  # fmt: skip
BATCHES = (2, 4)  # Samples of the measured steps.
LARGEST_TENSORS = 2  # The model of what a step needs for a moment.
RESERVE = 10**9  # Bytes left for CUDA's context, libraries and fragmentation, or for the process.


class Line(NamedTuple):
    """A number of bytes or seconds that grows linearly with the batch."""

    constant: float
    slope: float

    @classmethod
    def through(cls, values: Mapping[int, float]) -> Line:
        """Return the line through the values at two batches."""
        (x, first), (y, second) = sorted(values.items())
        slope = (second - first) / (y - x)
        return cls(first - slope * x, slope)

    def at(self, batch: int) -> float:
        """Return the value at a batch, at least 0."""
        return max(0.0, self.constant + self.slope * batch)


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step by part.

    Attributes:
        weights: Trained parameters, and buffers.
        gradients: Their gradients.
        optimizer: State of the optimizer.
        teacher: Parameters and buffers of modules that are not trained.
        queue: The queue of keys.
        images: A batch before and after its normalisation.
        activations: What autograd keeps for the backward pass, at its largest.
        temporary: What else is needed for a moment.
        measured: Whether ``temporary`` was measured; otherwise it is a model.
    """

    weights: int
    gradients: int
    optimizer: int
    teacher: int
    queue: int
    images: Line
    activations: Line
    temporary: Line
    measured: bool

    def parts(self, batch: int) -> dict[str, float]:
        """Return the bytes of each part for a batch."""
        names = ("weights", "gradients", "optimizer", "teacher", "queue")
        fixed = {name: float(getattr(self, name)) for name in names}
        grown = {n: getattr(self, n).at(batch) for n in ("images", "activations", "temporary")}
        return fixed | grown

    def total(self, batch: int) -> float:
        """Return the bytes of a step, all parts at once, for a batch."""
        return sum(self.parts(batch).values())

    def largest_batch(self, limit: float) -> int:
        """Return the largest batch whose step needs at most ``limit`` bytes; 0 for none."""
        slope = self.images.slope + self.activations.slope + self.temporary.slope
        batch = max(0, math.floor((limit - self.total(0)) / slope) + 2)
        while batch and self.total(batch) > limit:
            batch -= 1
        return batch


class SavedTensors:
    """Bytes of the storages that autograd keeps for the backward pass.

    Args:
        known: Tensors that do not count, because they exist anyway.

    Attributes:
        peak: The most bytes at one time, with what is recomputed in the backward pass.
        sizes: Bytes of each storage.
    """

    def __init__(self, known: Iterator[torch.Tensor]) -> None:
        self.live = self.peak = 0
        self.sizes: set[int] = set()
        self._users: dict[int, int] = {}
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count what is kept by operations inside the context."""
        with saved_tensors_hooks(lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor):
            yield

    def add(self, address: int, size: int) -> None:
        """Count a storage, unless it is counted already."""
        self._users[address] = self._users.get(address, 0) + 1
        if self._users[address] == 1 and address not in self._known:
            self.live += size
            self.peak = max(self.peak, self.live)
            self.sizes.add(size)

    def remove(self, address: int, size: int) -> None:
        """Count a storage no more, if this was its last user."""
        self._users[address] -= 1
        if not self._users[address]:
            del self._users[address]
            self.live -= size if address not in self._known else 0


class _Kept:
    """A tensor that autograd keeps; the graph owns it."""

    def __init__(self, owner: SavedTensors, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self.owner, self.tensor = owner, tensor
        self.key = storage.data_ptr(), storage.nbytes()
        owner.add(*self.key)

    def __del__(self) -> None:
        self.owner.remove(*self.key)


def measure_memory(trial: Trial) -> Memory:
    """Measure the memory of a config's step.

    Args:
        trial: Its model on this device.
    """
    model, on_gpu = trial.model, trial.device.type == "cuda"
    trial.step(trial.samples.batch(BATCHES[0]))  # The optimizer makes its state.
    fixed = _fixed(trial)
    images: dict[int, float] = {}
    activations: dict[int, float] = {}
    rest: dict[int, float] = {}
    sizes: dict[int, set[int]] = {}
    for size in BATCHES:
        batch = trial.samples.batch(size)
        images[size] = float(_bytes(batch) + _bytes(model.data_preprocessor(_copied(batch), True)))
        saved = SavedTensors(_state(model))
        if on_gpu:
            trial.step(_copied(batch))  # cuDNN chooses its algorithms.
            torch.cuda.synchronize(trial.device)
            torch.cuda.reset_peak_memory_stats(trial.device)
            trial.step(_copied(batch))
            torch.cuda.synchronize(trial.device)
            peak = torch.cuda.max_memory_allocated(trial.device)
        with saved.watched():
            trial.step(batch)
        activations[size], sizes[size] = float(saved.peak), saved.sizes
        if on_gpu:
            rest[size] = max(0.0, peak - sum(fixed.values()) - images[size] - saved.peak)
    if on_gpu:
        temporary = Line.through(rest)
    else:  # Weights in a lower precision are kept too, but do not grow.
        small, large = BATCHES
        largest = max(sizes[large] - sizes[small], default=0)
        temporary = Line(0.0, LARGEST_TENSORS * largest / large)
    return Memory(
        **fixed,
        images=Line.through(images),
        activations=Line.through(activations),
        temporary=temporary,
        measured=on_gpu,
    )


def _fixed(trial: Trial) -> dict[str, int]:
    """Return the bytes of the parts that do not depend on the batch."""
    model = trial.model
    teachers = {
        id(tensor) for child in model.children() if _is_teacher(child) for tensor in _state(child)
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    queue = {n: b for n, b in model.named_buffers(recurse=False) if n.startswith("queue")}
    teacher = [tensor for tensor in _state(model) if id(tensor) in teachers]
    apart = teachers | {id(buffer) for buffer in queue.values()}
    optimizers = getattr(trial.wrapper, "optimizer", None)
    state = {} if optimizers is None else optimizers.state
    return dict(
        weights=_bytes([tensor for tensor in _state(model) if id(tensor) not in apart]),
        gradients=_bytes(trained),
        optimizer=_bytes([list(entry.values()) for entry in state.values()]),
        teacher=_bytes(teacher),
        queue=_bytes(list(queue.values())),
    )


def _is_teacher(module: Any) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _state(module: Any) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _copied(batch: Any) -> Any:
    """Return a batch whose dicts may be changed; the tensors are shared."""
    if isinstance(batch, Mapping):
        return {name: _copied(value) for name, value in batch.items()}
    return list(batch) if isinstance(batch, list) else batch


def _bytes(values: Any) -> int:
    """Return the bytes of all tensors in nested containers."""
    if isinstance(values, torch.Tensor):
        return values.numel() * values.element_size()
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return 0
    return sum(map(_bytes, values))


def split_batch(samples: float, most: int) -> tuple[int, int]:
    """Divide the samples of an optimizer step into batches that fit.

    Args:
        samples: Samples of a process between two updates of the optimizer.
        most: The largest batch that fits.

    Returns:
        The batch, and how many of them are accumulated. They make up ``samples`` exactly, unless
        that would need batches of less than half of ``most``. The batch is 0 or 1 where no two
        samples fit.
    """
    whole = max(2, round(samples))
    if most < 2:
        return most, 1
    count = math.ceil(whole / most)
    even = next((n for n in range(count, 2 * count + 1) if whole % n == 0), None)
    return (whole // even, even) if even else (math.ceil(whole / count), count)


def parse_bytes(text: str) -> int:
    """Return the bytes of a text such as ``12GB``, ``11.5 GiB`` or ``8000M``.

    Raises:
        UserError: It is no amount of memory.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?I?)B?\s*", text, re.I)
    try:
        assert found is not None
        return int(float(found[1]) * UNITS[found[2].upper()])
    except (AssertionError, KeyError, ValueError):
        raise UserError(f"--memory {text}: write an amount such as 12GB or 11.5GiB.") from None


def device_memory() -> int:
    """Return the bytes of the GPU, or of this machine's memory where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
