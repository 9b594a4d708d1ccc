"""A few steps of a config on this machine, without its run: what ``gersp plan`` measures."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MessageHub
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from gersp_mm.engine import launch
from gersp_mm.engine.options import value_at
from gersp_mm.engine.preflight.building import told_in_one_line
from gersp_mm.engine.preflight.classes import AUTO, HEAD, fill_class_count
from gersp_mm.engine.preflight.names import find_types, parameters
from gersp_mm.models.settings import IMAGENET_CLASSES
from gersp_mm.utils.errors import UserError

CHECKPOINTING = "model.backbone.with_cp"
STAND_INS = 8  # Images that stand in for each source that is not here.
STAND_IN_SIDE = 256  # Pixels.
SAMPLES = 16  # Samples of which all batches are made.


class Samples:
    """Samples of a config's training data, from which batches of any size are made.

    Attributes:
        present: Whether they are the config's own images; otherwise random ones stand in.
        problem: Why the config's own cannot be read; empty where they can.
        number: Samples of one epoch of all processes; None where random images stand in.
        seconds: Time in which one core makes one sample.
    """

    def __init__(self, cfg: Config) -> None:
        self.present, self.problem = True, ""
        with TemporaryDirectory() as folder:
            try:
                loader = _loader(cfg)
            except (UserError, OSError) as error:
                self.present, self.problem = False, str(error).splitlines()[0].partition(". ")[0]
                loader = _loader(_with_stand_ins(cfg, Path(folder)))
            self.number = len(loader.sampler) if self.present else None
            self._collate = loader.collate_fn
            self._samples: list[Any] = []
            taken = []
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as in a worker of the loader
            for index, _ in zip(loader.sampler, range(SAMPLES)):
                start = time.perf_counter()
                self._samples.append(loader.dataset[index])
                taken.append(time.perf_counter() - start)
            torch.set_num_threads(threads)
        self.seconds = float(np.median(taken))

    def batch(self, size: int) -> Any:
        """Return a batch of ``size`` samples, as the data loader collates it."""
        chosen = (self._samples[n % len(self._samples)] for n in range(size))
        return self._collate([copy.deepcopy(one) for one in chosen])  # Collating changes them.


def _loader(cfg: Config) -> Any:
    settings = copy.deepcopy(cfg.train_dataloader)
    for name in ("persistent_workers", "prefetch_factor", "pin_memory"):
        settings.pop(name, None)
    settings.update(num_workers=0, batch_size=1)
    return Runner.build_dataloader(settings, seed=0)


def _with_stand_ins(cfg: Config, folder: Path) -> Config:
    """Return a copy of a config whose sources are a few random images below ``folder``."""
    generator = np.random.default_rng(0)
    shape = (STAND_IN_SIDE, STAND_IN_SIDE, 3)
    (folder / "class").mkdir()
    for number in range(STAND_INS):
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "class" / f"{number}.jpg")
    cfg = copy.deepcopy(cfg)
    dataset = cfg.train_dataloader.dataset
    kinds = dict(remote_sensing="gersp_mm.MillionAID", natural="gersp_mm.LabelledImages")
    for name, kind in kinds.items():
        if dataset.get(name):
            dataset[name] = dict(type=kind, data_root=str(folder))
    return cfg


class Trial:
    """The model and optimizer of a config on this machine's device, and steps of any batch.

    Args:
        cfg: The config; it stays as it is. Nothing is compiled.
        samples: Samples of its data.
        precision: ``'bf16'``, ``'fp16'`` or ``'fp32'``; by default the config's.
        checkpointing: Whether the backbone recomputes its activations.

    Raises:
        UserError: A part cannot be built; the message names its key.
    """

    def __init__(
        self,
        cfg: Config,
        samples: Samples,
        precision: str | None = None,
        checkpointing: bool = False,
    ) -> None:
        cfg = copy.deepcopy(cfg)
        self.samples = samples
        self.device = torch.device(get_device())
        if value_at(cfg, HEAD + ".num_classes") == AUTO and not samples.present:
            cfg.merge_from_dict({HEAD + ".num_classes": IMAGENET_CLASSES})
        if "compile" in cfg.model:
            cfg.model.compile = False
        cfg.model.backbone.pop("init_cfg", None)  # The values do not matter.
        if checkpointing:
            cfg.merge_from_dict({CHECKPOINTING: True})
        if precision is not None:
            launch.use_amp(cfg, precision)
        cfg.optim_wrapper.pop("accumulative_counts", None)
        with (
            DefaultScope.overwrite_default_scope(cfg.get("default_scope") or "mmengine"),
            told_in_one_line(cfg),
        ):
            fill_class_count(cfg)
            model = revert_sync_batchnorm(MODELS.build(cfg.model))
            self.model: Any = model.to(self.device).train()
            self.wrapper: Any = build_optim_wrapper(self.model, cfg.optim_wrapper)
        # BYOL's and MoCo v3's averages ask how long the run is.
        MessageHub.get_current_instance().update_info("max_iters", 1000)

    def step(self, batch: Any) -> None:
        """Take one step, with the teacher's update."""
        self.model.train_step(batch, self.wrapper)
        if hasattr(self.model, "update_teacher"):
            self.model.update_teacher()

    def seconds(self, size: int, repeats: int) -> list[float]:
        """Return the durations of some steps of batches of ``size`` samples, without the data."""
        batch = self.samples.batch(size)
        taken = []
        for number in range(repeats + 1):
            self.synchronise()
            start = time.perf_counter()
            self.step(copy.copy(batch))
            self.synchronise()
            if number:  # The first one warms up.
                taken.append(time.perf_counter() - start)
        return taken

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def can_checkpoint(cfg: Config) -> bool:
    """Tell whether the backbone of a config has an argument for activation checkpointing."""
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope") or "mmengine"):
        backbone = cfg.model.backbone
        kinds = find_types(backbone.get("type"), "model.backbone", backbone)
    return any("with_cp" in parameters(kind)[0] for kind in kinds)
