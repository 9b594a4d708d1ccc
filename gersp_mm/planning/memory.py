"""The memory of a training step by part, from two small steps.

Weights, optimizer state, teacher and queue are there all the time and are counted. What comes and
goes (images, activations, gradients and temporary tensors) is recorded after each operation of a
step at two batches. Since it is the same operations for any batch, what is there after each of them
is a line over the batch, and the memory of a step is the highest of these lines.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gersp_mm.planning.timeline import GRADIENTS, KINDS, Timeline, tensors_in
from gersp_mm.planning.trial import Trial
from gersp_mm.utils.errors import UserError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
         "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}  # fmt: skip
BATCHES = (2, 4)  # Samples of the measured steps.
RESERVE = 10**9  # Bytes left for CUDA's context, libraries and fragmentation, or for the process.


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step by part.

    Attributes:
        weights: Trained parameters, and buffers.
        gradients: Their gradients, once all are there.
        optimizer: State of the optimizer.
        teacher: Parameters and buffers of modules that are not trained.
        queue: The queue of keys.
        constant: What else is there after each operation of a step, for a batch of 0, as the
            lines through two batches have it: a row of numbers in the order of ``KINDS``.
        slope: How much a sample adds to that.
    """

    weights: int
    gradients: int
    optimizer: int
    teacher: int
    queue: int
    constant: np.ndarray
    slope: np.ndarray

    def parts(self, batch: int, accumulating: bool = False) -> dict[str, float]:
        """Return the bytes of each part at the moment of a step at which their sum is highest.

        Args:
            batch: Number of samples.
            accumulating: Whether gradients of earlier batches are there from the start.
        """
        moments = self._constant(accumulating) + self.slope * batch
        there = dict(zip(KINDS, moments[moments.sum(1).argmax()].tolist()))
        steady = ("weights", "optimizer", "teacher", "queue")
        return {name: float(getattr(self, name)) for name in steady} | there

    def total(self, batch: int, accumulating: bool = False) -> float:
        """Return the bytes of a step at its highest moment, as :meth:`parts` does."""
        return sum(self.parts(batch, accumulating).values())

    def largest_batch(self, limit: float, accumulating: bool = False) -> int:
        """Return the largest batch whose step needs at most ``limit`` bytes; 0 for none."""
        steady = self.weights + self.optimizer + self.teacher + self.queue
        left = limit - steady - self._constant(accumulating).sum(1)
        slope = self.slope.sum(1)
        grows = slope > 0
        if (left[~grows] < 0).any():
            return 0
        return max(0, math.floor((left[grows] / slope[grows]).min()))

    def _constant(self, accumulating: bool) -> np.ndarray:
        if not accumulating:
            return self.constant
        constant = self.constant.copy()
        constant[:, GRADIENTS] = self.gradients
        return constant


def measure_memory(trial: Trial, batches: tuple[int, int] = BATCHES) -> Memory:
    """Measure the memory of a config's step.

    Args:
        trial: Its model on this device.
        batches: Two numbers of samples, at least 2 each.
    """
    trial.step(trial.samples.batch(batches[0]))  # The optimizer makes its state.
    first, second = (_moments(trial, size) for size in batches)
    if len(first) != len(second):  # A step whose operations depend on its data.
        first, second = (each[[each.sum(1).argmax()]] for each in (first, second))
    slope = (second - first) / (batches[1] - batches[0])
    return Memory(**_fixed(trial), constant=first - slope * batches[0], slope=slope)


def _moments(trial: Trial, size: int) -> np.ndarray:
    """Return the bytes after each operation of a step with ``size`` samples."""
    batch = trial.samples.batch(size)
    if trial.device.type == "cuda":
        trial.step(_copied(batch))  # cuDNN chooses its algorithms.
        torch.cuda.synchronize(trial.device)
    timeline = Timeline(trial.device, [*_state(trial.model), *tensors_in(_optimizer_state(trial))])
    timeline.add_images(batch)
    with timeline.recording(trial.model):
        trial.step(_copied(batch))
    return timeline.moments


def _fixed(trial: Trial) -> dict[str, int]:
    """Return the bytes of the parts that are always there, and of all gradients."""
    model = trial.model
    teachers = {
        id(tensor) for child in model.children() if _is_teacher(child) for tensor in _state(child)
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    queue = {n: b for n, b in model.named_buffers(recurse=False) if n.startswith("queue")}
    teacher = [tensor for tensor in _state(model) if id(tensor) in teachers]
    apart = teachers | {id(buffer) for buffer in queue.values()}
    return dict(
        weights=_bytes([tensor for tensor in _state(model) if id(tensor) not in apart]),
        gradients=_bytes(trained),
        optimizer=_bytes(_optimizer_state(trial)),
        teacher=_bytes(teacher),
        queue=_bytes(list(queue.values())),
    )


def _optimizer_state(trial: Trial) -> list[Any]:
    optimizer = getattr(trial.wrapper, "optimizer", None)
    return [] if optimizer is None else [dict(entry) for entry in optimizer.state.values()]


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
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(values))


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


def fit(memory: Memory, samples: float, limit: float) -> tuple[int, int, int]:
    """Divide the samples of an optimizer step into batches that need at most ``limit`` bytes.

    Returns:
        The largest batch that fits, and the batch and its accumulation of :func:`split_batch`.
    """
    most = memory.largest_batch(limit)
    if most < max(2, round(samples)):
        most = memory.largest_batch(limit, accumulating=True)
    return most, *split_batch(samples, most)


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
