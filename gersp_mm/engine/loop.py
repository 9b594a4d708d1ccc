"""An epoch loop that can stop and go on in the middle of an epoch."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from functools import partial
from types import FrameType
from typing import Any, Callable

import torch
from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop

from gersp_mm.engine.hooks.checkpoint import ATOMIC_BACKEND
from gersp_mm.registry import LOOPS
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.memory import keep_freed_memory


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """MMEngine's epoch loop, made safe to interrupt and exact to resume.

    Ctrl-C and SIGTERM let the current optimizer step finish, write ``iter_<n>.pth`` and end the
    process; a second Ctrl-C, a second or more later, ends it at once. A checkpoint from the middle
    of an epoch goes on with the next batch of that epoch, which needs a sampler with a ``skip``
    method (:class:`gersp_mm.PairedSampler`).

    Raises:
        UserError: an epoch has no iteration, or a checkpoint from the middle of an epoch is
            resumed with epochs of another length (another batch size, number of GPUs or data set).
    """

    _epoch: int
    _iter: int
    _stop_signal = 0
    _asked = 0.0  # when, on the monotonic clock
    # Some releases of torchrun answer a terminal's Ctrl-C by sending the ranks another one.
    _echo_seconds = 1.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        loader = self.dataloader
        self._workers_released = multiprocessing.RawValue("b", 0)
        loader.worker_init_fn = partial(
            _start_worker, loader.worker_init_fn, self._workers_released
        )
        if len(loader) == 0:
            pairs = len(loader.sampler) * get_world_size()
            raise UserError(
                f"an epoch has no iteration: {pairs} samples make no batch of "
                f"{loader.batch_size * get_world_size()} ({loader.batch_size} a process): lower "
                "train_dataloader.batch_size or add images"
            )

    def run(self) -> torch.nn.Module:
        """Train, handling signals meanwhile."""
        self._check_epoch_length()
        self._keep_sampler_seed()
        if threading.current_thread() is not threading.main_thread():
            self._workers_released.value = 1
            return super().run()  # signals belong to the main thread
        signals = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._on_signal) for number in signals}
        try:
            return super().run()
        except Exception:
            if self._stop_signal and self.runner.rank:  # rank 0 has saved and left
                raise SystemExit(128 + self._stop_signal) from None
            raise
        finally:
            self._workers_released.value = 1
            for number, handler in previous.items():
                signal.signal(number, handler)

    def run_epoch(self) -> None:
        """Run the rest of the current epoch."""
        self._stop_if_asked()
        done = self._iter - self._epoch * len(self.dataloader)
        if done:
            self.dataloader.sampler.skip(done * self.dataloader.batch_size)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        for idx, data_batch in enumerate(self.dataloader, start=done):
            self.run_iter(idx, data_batch)
            self._stop_if_asked()
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stop_signal:
            if number == signal.SIGINT and time.monotonic() - self._asked > self._echo_seconds:
                raise KeyboardInterrupt
            return
        self._stop_signal, self._asked = number, time.monotonic()
        if self.runner.rank == 0:
            self.runner.logger.warning(
                "stopping after this step to save a checkpoint; Ctrl-C again stops at once"
            )

    def _stop_if_asked(self) -> None:
        """Save and leave, on rank 0 and between two optimizer steps."""
        stop = self._stop_signal and self.runner.rank == 0
        if not stop or not self.runner.optim_wrapper.should_update():
            return
        name = f"iter_{self._iter}.pth"
        self.runner.save_checkpoint(
            self.runner.work_dir,
            name,
            meta=dict(epoch=self._epoch, iter=self._iter),
            by_epoch=False,
            backend_args=dict(backend=ATOMIC_BACKEND),
        )
        self.runner.logger.warning(
            f"saved {os.path.join(self.runner.work_dir, name)}; run the same command with "
            "--resume to go on from there"
        )
        raise SystemExit(128 + self._stop_signal)

    def _check_epoch_length(self) -> None:
        """Compare the length of an epoch with that of the run that is resumed, and note it."""
        now = len(self.dataloader)
        hub = self.runner.message_hub
        before = hub.get_info("iters_per_epoch", now)
        done = self._iter - self._epoch * before
        if before != now and done:
            raise UserError(
                f"the checkpoint is {done} iterations into an epoch of {before}, but an epoch now "
                f"has {now}: resume with the batch size, number of processes and data of the "
                "first run, or from a checkpoint written at the end of an epoch"
            )
        if before != now:
            self.runner.logger.warning(
                f"an epoch had {before} iterations before and has {now} now; the run goes on at "
                f"epoch {self._epoch}, but is no longer the run that it would have been"
            )
            self._iter = self._epoch * now
            self.runner.optim_wrapper.initialize_count_status(
                self.runner.model, self._iter, self._max_iters
            )
        if done and not hasattr(self.dataloader.sampler, "skip"):
            raise UserError(
                f"the checkpoint is {done} iterations into an epoch, which "
                f"{type(self.dataloader.sampler).__name__} cannot continue: use "
                "gersp_mm.PairedSampler or a checkpoint written at the end of an epoch"
            )
        hub.update_info("iters_per_epoch", now)

    def _keep_sampler_seed(self) -> None:
        """Draw the data in the order of the run that is resumed, also if no seed was configured."""
        sampler, hub = self.dataloader.sampler, self.runner.message_hub
        if hasattr(sampler, "seed"):
            sampler.seed = hub.get_info("sampler_seed", sampler.seed)
            hub.update_info("sampler_seed", sampler.seed)


def _start_worker(init: Callable[[int], None] | None, released: Any, worker_id: int) -> None:
    """Prepare a worker process.

    A signal sent to all processes does not take the data away before the checkpoint, and memory of
    one image is kept for the next.

    Args:
        init: the function that starts a worker otherwise.
        released: shared between the processes; not zero when the workers may end.
        worker_id: number of the worker.
    """
    if init is not None:
        init(worker_id)
    keep_freed_memory()
    gc.freeze()  # the collector need not look through, and so copy, what all processes share
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if released.value else None)
