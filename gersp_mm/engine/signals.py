"""Stopping a run by a signal, after the same optimizer step in all processes."""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

import torch.distributed as dist
from mmengine.dist import get_world_size

from gersp_mm.utils.memory import keep_freed_memory

# Ctrl-C, the end of a job, a lost terminal, and Slurm's signal before a time limit.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
ECHO = 1.0  # s; some releases of torchrun answer a terminal's Ctrl-C by sending another one
SAVING = timedelta(seconds=60)  # longest wait of the other ranks while rank 0 saves


class StopRequest:
    """A signal that asks a run to save and exit.

    A process group shares the request through its store: wherever the signal arrives, all ranks
    stop after the same optimizer step. A signal that was ignored when the run started, as
    ``nohup`` does with SIGHUP, stays ignored.

    Args:
        say: Called with one sentence when the first signal arrives.

    Attributes:
        number: Number of the signal, 0 before it arrives.
    """

    _runs = itertools.count()  # number of the run in this process, the same on every rank

    def __init__(self, say: Callable[[str], Any]) -> None:
        self.number = 0
        self._say = say
        self._asked = 0.0  # time of the signal on the monotonic clock
        self._process = os.getpid()
        self._released = multiprocessing.RawValue("b", 0)
        self._steps, self._stop_at = 0, 0
        prefix = f"gersp_mm/stop/{next(self._runs)}"
        self._store: Any = None
        if get_world_size() > 1:
            default = dist.distributed_c10d._get_default_store()
            self._store = dist.PrefixStore(prefix, default)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals until the block ends; do nothing outside the main thread."""
        try:
            with _handling(self._on_signal):
                yield
        finally:
            self._released.value = 1

    def protect_workers(self, loader: Any) -> None:
        """Let the worker processes of a data loader ignore signals until the run has ended.

        A signal to all processes then does not end the workers before the checkpoint is written.
        """
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn, self._released)

    def due(self) -> bool:
        """Return whether to stop now; every rank calls this once after each optimizer step."""
        self._steps += 1
        if self._store is None:
            return bool(self.number)
        if not self._stop_at and self.arrived():
            # No rank can be past the next step, because that step needs this rank.
            step, _, number = self._request(f"{self._steps + 1} {self.number}").partition(" ")
            self._stop_at, self.number = int(step or 0), int(number or self.number)
        return 0 < self._stop_at <= self._steps

    def arrived(self) -> bool:
        """Return whether this process, or another one of the group, was asked to stop."""
        if self.number or self._store is None:
            return bool(self.number)
        request = self._request("")  # reads the request; torch 2.1 has no `check`
        self.number = int(request.split()[1]) if request else 0
        return bool(self.number)

    def _request(self, own: str) -> str:
        """Make a request unless there is one, and return the valid request, or an empty text.

        The store may end with rank 0. After the last step rank 0 may have finished before the other
        ranks ask. If rank 0 died, the next exchange between the ranks fails.
        """
        try:
            assert self._store is not None
            return self._store.compare_set("request", "", own).decode()
        except RuntimeError:
            return ""

    def leave(self, save: Callable[[], Any]) -> None:
        """Save on rank 0 while the other ranks wait, and end the process.

        Raises:
            SystemExit: Always, with 128 plus the number of the signal, unless saving fails.
        """
        if self._store is None:
            save()
        elif dist.get_rank() == 0:
            try:
                save()
            finally:
                self._store.set("saved", "yes")
        else:
            with contextlib.suppress(RuntimeError):  # The store may have ended with rank 0.
                self._store.wait(["saved"], SAVING)
        raise SystemExit(128 + self.number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker process that was just forked
            return
        if self.number:
            if number == signal.SIGINT and time.monotonic() - self._asked > ECHO:
                raise KeyboardInterrupt
            return
        self.number, self._asked = number, time.monotonic()
        if self._store is None or dist.get_rank() == 0:
            self._say("stopping after this step to save a checkpoint; Ctrl-C again stops at once")


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Block signals in this thread, and in processes that it starts inside the context.

    It protects worker processes until :meth:`StopRequest.protect_workers` takes effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may set handlers.
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _start_worker(init: Callable[[int], None] | None, released: Any, worker_id: int) -> None:
    """Prepare a worker process: ignore signals, and keep freed memory for the next image.

    Args:
        init: The loader's own ``worker_init_fn``.
        released: Shared between the processes; not zero once the workers may end.
        worker_id: Number of the worker.
    """
    if init is not None:
        init(worker_id)
    keep_freed_memory()
    gc.freeze()  # Garbage collection would copy memory that all processes share.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # PyTorch ends workers that outlive the loader by SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if released.value else None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
