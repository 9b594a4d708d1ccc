"""Losses of every iteration, read without waiting for the device in every iteration."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook

from gersp_mm.registry import HOOKS

SILENCE = 30  # seconds; for longer gaps before the first log line, the first iteration is printed


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """MMEngine's ``RuntimeInfoHook``, reading losses from the device only when they are needed.

    MMEngine's hook reads every value in every iteration, and each time the host waits for the
    device. This hook keeps the values on the device and reads them together before a log line, a
    checkpoint and the end of an epoch. The logged values are the same.

    If the first line of the log is far away, this hook writes the values of the first iteration
    after a start at once, into the text log only.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[list[str], torch.Tensor]] = []
        self._interval = 1
        self._began: float | None = None
        self._told = False

    def before_train(self, runner: Any) -> None:
        """Look up the interval of the log."""
        super().before_train(runner)
        self._began = None
        loggers = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        self._interval = min(loggers, default=1)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Note the time at which the first iteration begins."""
        super().before_train_iter(runner, batch_idx, data_batch)
        if self._began is None:
            self._began = time.perf_counter()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Keep ``log_vars`` of this iteration; read all kept values if they are logged now."""
        if outputs:
            values = [torch.as_tensor(value).detach().double() for value in outputs.values()]
            device = values[0].device
            row = torch.stack([value.to(device).mean() for value in values])
            self._waiting.append((list(outputs), row))
        due = self.every_n_train_iters(runner, self._interval)
        due = due or self.every_n_inner_iters(batch_idx, self._interval)
        if due or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self._read(runner)
        elif not self._told:
            self._tell(runner)
        self._told = True

    def _tell(self, runner: Any) -> None:
        seconds = time.perf_counter() - (self._began or math.inf)
        if seconds * self._interval >= SILENCE and self._waiting:
            names, row = self._waiting[-1]
            values = "  ".join(f"{name}: {value:.4f}" for name, value in zip(names, row.tolist()))
            runner.logger.info(
                f"iteration {runner.iter + 1} took {seconds:.1f} s  {values}  (the next line comes "
                f"within {self._interval} iterations)"
            )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the values up to now to the checkpoint."""
        if self._waiting:
            self._read(runner)
            if "message_hub" in checkpoint:
                checkpoint["message_hub"] = runner.message_hub.state_dict()

    def _read(self, runner: Any) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows = torch.cat([row for _, row in waiting]).tolist()
        for names, _ in waiting:
            for name in names:
                runner.message_hub.update_scalar(f"train/{name}", rows.pop(0))
