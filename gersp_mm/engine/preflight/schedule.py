"""Checks of the learning-rate schedule against the length of the run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from gersp_mm.engine import schedule
from gersp_mm.engine.preflight.findings import Finding

# A learning rate is annealed if it is below this multiple of the schedule's last rate.
ANNEALED = 1.3
TOLERANCE = 0.01  # as a share of the run's length


def check_schedule(runner: Any) -> Iterator[Finding]:
    """Compare a run's schedule with its length by simulating the schedulers."""
    yield from compare_schedule(runner.cfg, len(runner.train_dataloader))


def compare_schedule(cfg: Config, epoch_length: int) -> Iterator[Finding]:
    """Yield a finding on the learning rate if the schedule is made for another length.

    Args:
        cfg: A config that trains.
        epoch_length: Iterations of an epoch.
    """
    length = schedule.run_length(cfg)
    entries = schedule.schedulers_of(cfg)
    optimizer = (cfg.get("optim_wrapper") or {}).get("optimizer") or {}
    if length is None or not entries or not isinstance(optimizer.get("lr"), (int, float)):
        return
    yield from _check_counting(entries, length)
    planned = schedule.planned_length(cfg, epoch_length)
    if planned is None or abs(planned - length.number) <= TOLERANCE * length.number:
        return
    curve = schedule.learning_rates(cfg, epoch_length)
    whole = schedule.learning_rates(cfg, epoch_length, max(1, round(planned)))
    has_cycles = any(entry.get("periods") for _, entry in entries)
    unit = "epoch" if length.unit == "epochs" else "iteration"
    plan = f"{planned:g} {unit}{'s' * (planned != 1)}"
    if planned < length.number:
        rises = curve.last > ANNEALED * whole.last
        then = f"rises to {curve.last:.3g}" if rises else f"stays at {curve.last:.3g}"
        effect = (
            f"the learning rate reaches {whole.last:.3g} after {plan} and {then} in the remaining "
            f"{length.number - planned:g}"
        )
    elif curve.last > ANNEALED * max(whole.last, 1e-12):
        effect = (
            f"the learning rate starts at {curve.first:.3g}, ends at {curve.last:.3g} and never "
            f"reaches {whole.last:.3g}"
        )
    else:
        return
    options = schedule.fitted_options(cfg, length.number, epoch_length)
    fitted = copy.deepcopy(cfg)
    fitted.merge_from_dict(options)
    options.pop(length.key)
    fix = f"Fit the schedule with --cfg-options {' '.join(schedule.as_options(options))}"
    if (schedule.planned_length(fitted, epoch_length) or 0) > length.number * (1 + TOLERANCE):
        fix = "Train for longer than the warm-up, or shorten the warm-up."
    yield Finding(
        length.key,
        f"{length.key}={length.number} does not fit the learning-rate schedule, which is made for "
        f"{plan}: {effect}.",
        fix,
        "error" if has_cycles and planned < length.number else "warning",
    )


def check_checkpoint_counting(runner: Any) -> Iterator[Finding]:
    """Find a checkpoint hook that waits for epochs in a run that counts iterations."""
    length = schedule.run_length(runner.cfg)
    if length is None or length.unit != "iters":
        return
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.by_epoch:
            yield Finding(
                "default_hooks.checkpoint.by_epoch",
                "default_hooks.checkpoint counts epochs, but the run counts iterations, so no "
                f"checkpoint is written before iteration {length.number}.",
                "Set default_hooks.checkpoint.by_epoch=False and its interval in iterations.",
            )


def _check_counting(entries: Any, length: schedule.Length) -> Iterator[Finding]:
    """Find schedulers that are never stepped, because an iteration-based loop has no epochs."""
    for key, entry in entries:
        counts_epochs = entry.get("by_epoch", True) and not entry.get("convert_to_iter_based")
        if length.unit == "iters" and counts_epochs:
            yield Finding(
                f"{key}.by_epoch",
                f"{key} counts epochs, but the run counts iterations, so it never changes the "
                "learning rate.",
                f"Set {key}.by_epoch=False and give its lengths in iterations.",
            )
