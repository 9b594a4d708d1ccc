"""The console of a run: a summary before the first step, then one line of progress."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, master_only
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from gersp_mm.backbones.architectures import Architecture
from gersp_mm.engine.hooks.bad_images import SOURCES
from gersp_mm.engine.precision import described
from gersp_mm.registry import HOOKS
from gersp_mm.utils.console import Bar, progress_bar
from gersp_mm.utils.errors import counted
from gersp_mm.utils.model import unwrap

SHOWN = ("loss", "loss_ct", "loss_ce", "knn_top1")  # of a pre-training
MOST_LOSSES = 4  # of another training


@HOOKS.register_module()
class WatchHook(Hook):
    """Show a summary and the progress of a run on the console of the first process.

    Before the first step, a summary of at most ten lines is printed: data, model, batch, schedule,
    device and folders. Then a bar shows the progress, the latest losses and the remaining time. If
    the output is not a terminal, a line is printed at the first step, every 30 seconds and at the
    end of each epoch. :class:`QuietRunner` keeps the log off the console, except for warnings.
    """

    priority = "VERY_LOW"  # after the hooks that examine the data, and after the log

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._bar: Bar | None = None
        self._began = 0.0

    @master_only
    def before_train(self, runner: Any) -> None:
        """Print the summary and start the bar."""
        for name, text in summary(runner):
            print(f"{name:<10}{text}", flush=True)
        bar = progress_bar("training", "steps", runner.max_iters, runner.iter)
        self._bar = self._stack.enter_context(bar)
        self._bar.start_from(runner.iter, runner.max_iters)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Note the time at which the first step of this start begins."""
        if not self._began:
            self._began = time.perf_counter()

    @master_only
    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Count the step, and show the losses if the log has just read them."""
        if self._bar is None:
            return
        first = self._bar.done == self._bar.first
        if first and outputs:
            values = {
                name: float(torch.as_tensor(v).detach().mean()) for name, v in outputs.items()
            }
            seconds = time.perf_counter() - self._began
            self._bar.write(f"first step: {seconds:.1f} s, {_words(values)}")
        note = None
        if self.every_n_train_iters(runner, 10):
            note = _words(_latest(runner))
        self._bar.advance(note=note)

    @master_only
    def after_train_epoch(self, runner: Any) -> None:
        """Print a line for the epoch."""
        if self._bar is not None and runner.max_epochs:
            line = f"epoch {runner.epoch + 1}/{runner.max_epochs}: {_words(_latest(runner))}"
            self._bar.write(line)

    @master_only
    def after_train(self, runner: Any) -> None:
        """Remove the bar."""
        self._stack.close()
        self._bar = None


def summary(runner: Any) -> list[tuple[str, str]]:
    """Return the summary of a run as pairs of a name and a text."""
    loader, model = runner.train_dataloader, unwrap(runner.model)
    dataset, steps = loader.dataset, len(loader)
    lines = [("data", text) for text in _data(dataset)]
    backbone = getattr(model, "backbone", model)
    weights = sum(p.numel() for p in backbone.parameters()) / 1e6
    text = f"{Architecture.of(backbone).name}, {weights:.1f} million weights"
    if getattr(model, "teacher", None) is not None:
        temperature = getattr(model.head, "temperature", None)
        text += f"; queue of {len(model.queue):,} keys"
        text += "" if temperature is None else f", temperature {temperature:g}"
        text += f"; teacher momentum {model.teacher_momentum:g}"
    lines.append(("model", text))
    processes = get_world_size()
    batch = loader.batch_size or loader.batch_sampler.batch_size
    several = "" if processes == 1 else f" x {processes} processes"
    text = f"{counted(batch, 'sample')}{several}, {counted(steps, 'step')} per epoch"
    lines.append(("batch", text))
    wrapper = runner.optim_wrapper
    optimizer = getattr(wrapper, "optimizer", None)
    if optimizer is not None:
        length = f"{counted(runner.max_epochs, 'epoch')}, " if runner.max_epochs else ""
        length += counted(runner.max_iters, "step")
        base = optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"])
        lines.append(("schedule", f"{length}; {type(optimizer).__name__}, learning rate {base:g}"))
    lines.append(("device", _device(wrapper)))
    lines.append(("folder", f"{runner.work_dir}   (log: {runner.log_dir})"))
    if runner.iter:
        lines.append(("resumed", f"at step {runner.iter:,}"))
    return lines


def _data(dataset: Any) -> list[str]:
    found = []
    for name, words in SOURCES.items():
        source = getattr(dataset, name, None)
        if source is None:
            continue
        scenes = f" windows of {counted(source.file_count, 'scene')}" if _is_scenes(source) else ""
        what = f"{words} images" if not scenes else f"{words}{scenes}"
        where = getattr(source, "data_root", "")
        classes = len((getattr(source, "metainfo", None) or {}).get("classes") or ())
        text = f"{len(source):,} {what}{f' of {classes} classes' if classes else ''}"
        found.append(f"{text}, {where}" if where else text)
        scale = getattr(source, "pixel_scale", None) if hasattr(source, "asked_scale") else None
        if scale is not None and scale.limits:
            found += scale.describe()[:2]
    return found or [f"{len(dataset):,} images ({type(dataset).__name__})"]


def _is_scenes(source: Any) -> bool:
    return hasattr(source, "census") and hasattr(source, "file_count")


def _device(wrapper: Any) -> str:
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"CPU, {counted(torch.get_num_threads(), 'thread')}"
    return f"{device}; {described(wrapper)}"


def _latest(runner: Any) -> dict[str, float]:
    scalars = runner.message_hub.log_scalars
    found = {}
    for name, buffer in scalars.items():
        short = name.rpartition("/")[2]
        if short in SHOWN or (name.startswith("train/") and "loss" in short):
            with contextlib.suppress(ValueError, IndexError):
                found[short] = float(buffer.current())
    return found


def _words(values: dict[str, float]) -> str:
    names = [name for name in SHOWN if name in values]
    if "loss_ct" not in values and "loss_ce" not in values:
        names = [name for name in values if "loss" in name][:MOST_LOSSES]
        names += ["knn_top1"] * ("knn_top1" in values)
    return ", ".join(
        f"kNN {values[n]:.1f} %" if n == "knn_top1" else f"{n} {values[n]:.3f}" for n in names
    )


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a record is not one of MMEngine's deprecation warnings."""
    return "will be deprecated" not in record.getMessage()


class KeepingRunner(Runner):
    """A runner that does not replace a config of the user that lies in the work directory.

    MMEngine would write what was run over it, with ``load_from`` and ``resume`` of this start; that
    is in ``vis_data/config.py`` too.
    """

    def dump_config(self) -> None:
        """Write the config to the work directory, unless its own file lies there."""
        folder = Path(self.cfg.filename or "").resolve().parent
        if self.cfg.filename is None or folder != Path(self.work_dir).resolve():
            super().dump_config()


class QuietRunner(KeepingRunner):
    """A runner whose log goes only to its file, except for warnings and errors."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger and raise the level of its console handler."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
                handler.addFilter(_is_news)
        return logger
