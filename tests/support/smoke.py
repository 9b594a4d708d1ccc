"""Small real runs: image folders in seconds, and the smoke twin of any pre-training config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"

SIZE = 32


def forget_runs() -> None:
    """Clear MMEngine's singletons: two runs of one second would share them."""
    managers: list[Any] = [MMLogger, MessageHub, Visualizer, DefaultScope]
    for manager in managers:  # the hosts' visualizers keep instances of their own
        managers.extend(manager.__subclasses__())
        manager._instance_dict.clear()


def write_images(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (40, 48)) -> Path:
    """Write ``count`` JPEG pictures of coloured gradients with noise, named 000.jpg onwards."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, size[1])[None, :, None] * np.linspace(0, 1, size[0])[:, None, None]
    for number in range(count):
        colour = rng.uniform(0, 255, 3)
        noise = rng.normal(0, 12, (*size, 3))
        pixels = np.clip(ramp * colour + rng.uniform(0, 80) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.jpg", quality=92)
    return folder


def write_classes(folder: Path, classes: int = 3, per_class: int = 8) -> Path:
    """Write a folder with one sub-folder a class."""
    for label in range(classes):
        write_images(folder / f"class_{label}", per_class, seed=100 + label)
    return folder


def write_pair(
    folder: Path, remote_sensing: int = 24, classes: int = 3, per_class: int = 8
) -> Path:
    """Write both sources below ``folder``: ``rs/`` and ``natural/``."""
    write_images(folder / "rs", remote_sensing)
    write_classes(folder / "natural", classes, per_class)
    return folder


def narrow(model: Any) -> None:
    """Give a ResNet of a pre-training config 8 to 64 channels (256 for depth 50)."""
    model.backbone.update(base_channels=8, stem_channels=8)
    for part in ("neck", "natural_head"):
        if model.get(part):
            model[part].in_channels = 64 if model.backbone.depth < 50 else 256


def smoke_twin(config: str | Path, data: Path, work_dir: Path, iterations: int = 2) -> Config:
    """Shrink a pre-training config to small images, little data and a few iterations.

    Everything else (types, hooks, schedule, losses) stays what the config says.

    Args:
        config: a file below ``configs/pretrain``.
        data: a folder of :func:`write_pair`.
        work_dir: where the run writes.
        iterations: batches of an epoch; one epoch is run.
    """
    cfg = Config.fromfile(CONFIGS / "pretrain" / config)
    cfg.work_dir = str(work_dir)
    loader = cfg.train_dataloader
    loader.update(batch_size=4, num_workers=0, persistent_workers=False, pin_memory=False)
    dataset = loader.dataset
    # data of just the wanted number of batches: one epoch is one pass over it
    if dataset.get("remote_sensing"):
        sources = dataset.remote_sensing.get("datasets", [dataset.remote_sensing])
        for source in sources:
            source.update(data_root=str(data / "rs"), ann_file="", data_prefix="")
            source.indices = 4 * iterations // len(sources)
        loader.sampler.epoch_length = "remote_sensing"
    if dataset.get("natural"):
        dataset.natural = dict(type="CustomDataset", data_root=str(data / "natural"))
        if not dataset.get("remote_sensing"):
            dataset.natural.indices = 4 * iterations
    for pipeline in (dataset.rs_pipeline, dataset.natural_pipeline):
        pipeline[0].size = SIZE
    if cfg.model.get("queue_len"):
        cfg.model.queue_len = 32
    if "img_size" in cfg.model.backbone:
        cfg.model.backbone.img_size = SIZE
    if cfg.model.backbone.type == "SwinTransformer":
        cfg.model.backbone.pad_small_map = True  # maps get smaller than its windows
    cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.logger.interval = 1
    if "knn_eval" in cfg.default_hooks:
        cfg.default_hooks.pop("knn_eval")
    return cfg
