"""The shipped configs on small data: every refusal or warning is a false alarm."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from data import picture, save, write_healthy
from mmengine.config import Config
from PIL import Image

from gersp_mm.datasets.dior import DIOR_CLASSES
from gersp_mm.datasets.dota import (
    DOTA_CLASSES,
    CocoImage,
    LabelledBox,
    coco_text,
    format_labels,
)
from gersp_mm.datasets.splits import EUROSAT_GERSP_1, RESISC45_GERSP_1
from gersp_mm.utils.files import write_text

ROOT = Path(__file__).resolve().parents[2]
SIDE = 32  # pixels of a view in pre-training
BATCH = 4
BOX = (20, 20, 60, 60)


def shipped_configs() -> list[str]:
    """Return all configs of the package, relative to ``configs/``."""
    root = ROOT / "configs"
    files = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(path.as_posix() for path in files if "_base_" not in path.parts)


def write_twin(name: str, shared: Path, case: Path) -> int:
    """Write a config that differs from a shipped config only in data, batch and width.

    Epochs, schedule, losses, hooks and options stay the same, so that all checks before the first
    step see them.

    Args:
        name: One of :func:`shipped_configs`.
        shared: Folder of data and weights for all twins; written if necessary.
        case: Folder in which ``twin.py`` is written.

    Returns:
        The step at whose beginning the run may be stopped.
    """
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir(parents=True)
    if not (shared / "ready").is_file():
        write_data(shared / "data")
        write_weights(shared)
        (shared / "ready").touch()
    (case / "data").symlink_to(shared / "data")
    cfg = Config.fromfile(ROOT / "configs" / name)
    pretrain = name.startswith("pretrain")
    (shrink_pretraining if pretrain else shrink_downstream)(cfg, shared)
    imports = (cfg.get("custom_imports") or {}).get("imports", [])
    cfg.custom_imports = dict(imports=[*imports, "step_marker"], allow_failed_imports=False)
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), dict(type="mmengine.StepMarkerHook")]
    cfg.dump(case / "twin.py")
    return 2 if pretrain else 1


def shrink_pretraining(cfg: Config, shared: Path) -> None:
    """Give a pre-training config small images, batches of 4 and a narrow network."""
    loader = cfg.train_dataloader
    loader.update(batch_size=BATCH, num_workers=0, persistent_workers=False)
    data = shared / "data"
    dataset = loader.dataset
    if dataset.get("remote_sensing"):
        for source in dataset.remote_sensing.get("datasets", [dataset.remote_sensing]):
            labelled = source.type.endswith("LabelledImages")
            folder = data / ("natural" if labelled else "rs")
            source.update(data_root=str(folder), ann_file="", data_prefix="")
    if dataset.get("natural"):
        kind = dataset.natural.get("type", "gersp_mm.LabelledImages")
        dataset.natural = dict(type=kind, data_root=str(data / "natural"))
    for pipeline in (dataset.get("rs_pipeline"), dataset.get("natural_pipeline")):
        if pipeline:
            pipeline[0].size = SIDE
    model = cfg.model
    if model.get("queue_len"):
        model.queue_len = 32
    if model.backbone.type.endswith("ResNet"):
        model.backbone.update(base_channels=8, stem_channels=8)
        width = 64 if model.backbone.depth < 50 else 256
        for part in ("neck", "natural_head"):
            if model.get(part):
                model[part].in_channels = width
    if "img_size" in model.backbone:
        model.backbone.img_size = SIDE
    if model.backbone.type.endswith("SwinTransformer"):
        model.backbone.pad_small_map = True
    if model.get("natural_head"):
        model.natural_head.update(num_classes=5)
    if cfg.get("auto_scale_lr"):
        counts = cfg.optim_wrapper.get("accumulative_counts", 1)
        cfg.auto_scale_lr.base_batch_size = BATCH * counts
    cfg.default_hooks.logger.interval = 1
    if cfg.default_hooks.get("knn_eval"):
        cfg.default_hooks.knn_eval.update(
            train=str(data / "knn" / "train"), test=str(data / "knn" / "test"), k=3
        )


def shrink_downstream(cfg: Config, shared: Path) -> None:
    """Point a downstream config to small data and to weights of its architecture."""
    data = shared / "data"
    for part in ("train", "val", "test"):
        loader = cfg.get(f"{part}_dataloader")
        if loader:
            loader.update(num_workers=0, persistent_workers=False)
            loader.dataset.data_root = _below(loader.dataset.data_root, data)
        evaluator = cfg.get(f"{part}_evaluator")
        if evaluator and evaluator.get("ann_file"):
            evaluator.ann_file = _below(evaluator.ann_file, data)
    if cfg.get("train_cfg"):
        cfg.train_dataloader.batch_size = 2  # of two images or more
        if cfg.get("auto_scale_lr"):
            cfg.auto_scale_lr.base_batch_size = 2
    elif "fewshot" in cfg.test_cfg:
        cfg.test_cfg.fewshot = dict(shots=(1, 2), draws=2)
    cfg.pretrained = str(shared / f"resnet{cfg.model.backbone.depth}.pth")
    cfg.model.backbone.init_cfg = dict(
        type="Pretrained", checkpoint=cfg.pretrained, prefix="backbone."
    )


def _below(path: str, data: Path) -> str:
    """Return a path below ``data/`` as a path below the small data."""
    return str(data / Path(path).relative_to("data"))


def write_weights(folder: Path) -> None:
    """Write random weights of ResNet-18 and 50 in the form of an exported backbone."""
    from mmpretrain.models import ResNet

    from gersp_mm.backbones.exported import export_backbone
    from gersp_mm.constants import RGB_MEAN, RGB_STD

    for depth in (18, 50):
        torch.manual_seed(0)
        state = {f"backbone.{k}": v for k, v in ResNet(depth).state_dict().items()}
        path = folder / f"resnet{depth}.pth"
        export_backbone(state, path, f"ResNet-{depth}", "GeRSP", list(RGB_MEAN), list(RGB_STD))


def write_data(folder: Path) -> None:
    """Write a few images of every data set in the layout that the configs read."""
    write_healthy(folder)
    for split, name, side in (
        (EUROSAT_GERSP_1, "eurosat", 64),
        (RESISC45_GERSP_1, "resisc45", 256),
    ):
        lines = []
        for label, scene in enumerate(split.classes):
            for number in range(2):
                path = f"{scene}/{scene}_{number}.jpg"
                save(picture(100 * label + number, side), folder / name / path)
                lines.append(f"{path} {label}\n")
        for part in ("train", "val", "test"):
            chosen = lines[:: 1 if part == "train" else 2]
            write_text(folder / name / "splits" / split.name / f"{part}.txt", "".join(chosen))
    for part, images in (("trainval", "JPEGImages-trainval"), ("test", "JPEGImages-test")):
        _write_boxes(folder / "dior", f"coco/{part}.json", images, ".jpg", DIOR_CLASSES)
        _write_labels(folder / "dior" / "obb" / part, DIOR_CLASSES)
    tiles = folder / "dota" / "tiles_800_160"
    for part in ("train", "val"):
        _write_boxes(tiles, f"coco/{part}.json", f"{part}/images", ".png", DOTA_CLASSES)
    tiles = folder / "dota" / "tiles_1024_200"
    for part in ("trainval", "test"):
        for number in (1, 2):
            save(picture(number, 128), tiles / part / "images" / f"000{number}.png")
        _write_labels(tiles / part / "annfiles", DOTA_CLASSES)
    for part in ("train", "test"):
        _write_boxes(folder / "demo" / "trees", f"coco/{part}.json", part, ".jpg", ("tree",))
    for part in ("train", "val", "test"):
        for number in range(2):
            save(picture(number, 1024), folder / "loveda" / "img_dir" / part / f"{number}.png")
            mask = np.tile(np.repeat(np.arange(8, dtype=np.uint8), 128), (1024, 1))
            save(Image.fromarray(mask), folder / "loveda" / "ann_dir" / part / f"{number}.png")


def _write_boxes(root: Path, file: str, images: str, ending: str, classes: tuple[str, ...]) -> None:
    found = []
    for number in (1, 2):
        name = f"{images}/000{number}{ending}"
        save(picture(number, 128), root / name)
        boxes = [(number, classes[number % len(classes)], BOX)]
        found.append(CocoImage(number, name, 128, 128, boxes))
    write_text(root / file, coco_text(classes, found))


def _write_labels(folder: Path, classes: tuple[str, ...]) -> None:
    left, top, right, bottom = BOX
    corners = (left, top, right, top, right, bottom, left, bottom)
    for number in (1, 2):
        box = LabelledBox(corners, classes[number % len(classes)], 0)
        write_text(folder / f"000{number}.txt", format_labels([box]))
