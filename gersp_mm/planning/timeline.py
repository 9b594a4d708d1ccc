"""What is in memory after each operation of a training step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = ("gradients", "images", "activations", "temporary")
GRADIENTS, IMAGES, ACTIVATIONS, TEMPORARY = range(len(KINDS))


class Timeline(TorchDispatchMode):
    """Count the storages on a device after each operation, by what they are for.

    A storage holds images, a gradient, an activation (what autograd keeps for the backward pass)
    or something temporary, and is of one kind at a time. On a GPU the allocator's highest value
    during an operation decides what is temporary, so that the workspace of a kernel counts; on a
    CPU, what a kernel allocates and frees again by itself is not seen.

    Args:
        device: Where the tensors are that count.
        known: Tensors that do not count, because they are there before and after the step.
    """

    def __init__(self, device: torch.device, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._device = device
        self._live = [0] * len(KINDS)
        self._kinds: dict[int, int] = {}
        # Torch's own references: in torch 2.1 those of Python crash when a storage is freed.
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._kept: dict[int, int] = {}
        self._moments: list[list[int]] = []
        self._known = {_key(tensor): tensor for tensor in known}
        self._steady = sum(t.untyped_storage().nbytes() for t in self._known.values())

    @property
    def moments(self) -> np.ndarray:
        """The bytes after each operation, a row of int64 in the order of ``KINDS``."""
        return np.asarray(self._moments, np.int64).reshape(-1, len(KINDS))

    @contextmanager
    def recording(self, model: Any) -> Iterator[None]:
        """Record the operations inside the context, which are one step of a model."""
        with ExitStack() as stack:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    hook = parameter.register_post_accumulate_grad_hook(self._add_gradient)
                    stack.callback(hook.remove)
            hook = model.data_preprocessor.register_forward_hook(
                lambda module, args, batch: self.add_images(batch)
            )
            stack.callback(hook.remove)
            stack.enter_context(saved_tensors_hooks(lambda t: _Kept(self, t), lambda k: k.tensor))
            stack.enter_context(self)
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what is there then."""
        result = func(*args, **(kwargs or {}))
        self._forget_freed()
        for tensor in tensors_in(result):
            self._add(tensor, TEMPORARY)
        self._moments.append(self._now())
        return result

    def _now(self) -> list[int]:
        live = list(self._live)
        if self._device.type == "cuda":
            highest = torch.cuda.max_memory_allocated(self._device) - self._steady
            live[TEMPORARY] = max(0, highest - sum(live[:TEMPORARY]))
            torch.cuda.reset_peak_memory_stats(self._device)
        return live

    def add_images(self, batch: Any) -> None:
        """Count the tensors of a batch as images, as far as they are on the device."""
        for tensor in tensors_in(batch):
            self._add(tensor, IMAGES)
            self._change(_key(tensor), IMAGES)

    def _add_gradient(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self._add(parameter.grad, GRADIENTS)
            self._change(_key(parameter.grad), GRADIENTS)

    def _add(self, tensor: torch.Tensor, kind: int) -> None:
        """Count a storage until it is freed, unless it is counted already."""
        key, storage = _key(tensor), tensor.untyped_storage()
        if key in self._kinds or key in self._known or tensor.device.type != self._device.type:
            return
        size = storage.nbytes()
        self._storages[key] = StorageWeakRef(storage), size
        self._kinds[key] = kind
        self._live[kind] += size

    def _change(self, key: int, kind: int) -> None:
        if key in self._kinds:
            size = self._storages[key][1]
            self._live[self._kinds[key]] -= size
            self._live[kind] += size
            self._kinds[key] = kind

    def _forget_freed(self) -> None:
        freed = [key for key, (storage, _) in self._storages.items() if storage.expired()]
        for key in freed:
            self._live[self._kinds.pop(key)] -= self._storages.pop(key)[1]

    def keep(self, key: int, number: int) -> None:
        """Note that autograd keeps a storage ``number`` times more (1), or less (-1)."""
        self._kept[key] = self._kept.get(key, 0) + number
        if self._kinds.get(key) == (TEMPORARY if number > 0 else ACTIVATIONS):
            self._change(key, ACTIVATIONS if self._kept[key] else TEMPORARY)
        if not self._kept[key]:
            del self._kept[key]


class _Kept:
    """A tensor that autograd keeps; the graph owns it."""

    def __init__(self, timeline: Timeline, tensor: torch.Tensor) -> None:
        self.timeline, self.tensor, self.key = timeline, tensor, _key(tensor)
        timeline.keep(self.key, 1)

    def __del__(self) -> None:
        self.timeline.keep(self.key, -1)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in nested dicts, lists and tuples."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
