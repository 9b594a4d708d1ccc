"""A few images of each downstream data set in its real format; the smoke twin of any config."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.models import ResNet
from PIL import Image, ImageDraw

from gersp_mm.backbones.exported import export_backbone
from gersp_mm.constants import RGB_MEAN, RGB_STD
from tests.support.smoke import CONFIGS, write_images

PYRAMID = (256, 1024)  # channels of a detector's pyramid and of its heads' layers
SIDE = 128  # px, of detection and segmentation images
CHANNELS = [32, 64, 128, 256]  # of the four stages of a ResNet-50 with base_channels=8


# ------------------------------------------------------------------------------------------- data


def _objects(seed: int, count: int = 4) -> list[tuple[int, int, int, int]]:
    rng = np.random.default_rng(seed)
    corners = rng.integers(4, SIDE - 50, (count, 2))
    sides = rng.integers(20, 44, (count, 2))
    return [(int(x), int(y), int(x + w), int(y + h)) for (x, y), (w, h) in zip(corners, sides)]


def _picture(path: Path, objects: list[tuple[int, int, int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    for number, box in enumerate(objects):
        draw.rectangle(box, fill=[(220, 40, 40), (40, 200, 60), (240, 230, 60)][number % 3])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _xml(name: str, objects: list[tuple[int, int, int, int]], classes: list[str], kind: str) -> str:
    parts = []
    for number, (left, top, right, bottom) in enumerate(objects):
        if kind == "hbb":
            box = (
                f"<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>"
                f"<ymax>{bottom}</ymax></bndbox>"
            )
        else:
            corners = zip(
                ("left_top", "right_top", "right_bottom", "left_bottom"),
                ((left, top), (right, top), (right, bottom), (left, bottom)),
            )
            tags = "".join(f"<x_{c}>{x}</x_{c}><y_{c}>{y}</y_{c}>" for c, (x, y) in corners)
            box = f"<robndbox>{tags}</robndbox>"
        parts.append(f"<object><name>{classes[number % len(classes)]}</name>{box}</object>")
    size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{''.join(parts)}</annotation>"


def write_dior(root: Path) -> Path:
    """Write the official tree with five images, its mixed-case names among the classes."""
    splits = dict(train=["00001", "00002"], val=["00003"], test=["11726", "11727"])
    (root / "ImageSets" / "Main").mkdir(parents=True)
    classes = ["Expressway-Service-area", "airplane", "ship"]
    for split, names in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        folder = "JPEGImages-test" if split == "test" else "JPEGImages-trainval"
        for name in names:
            objects = _objects(int(name))
            _picture(root / folder / f"{name}.jpg", objects, int(name))
            for kind, title in (("hbb", "Horizontal"), ("obb", "Oriented")):
                path = root / "Annotations" / f"{title} Bounding Boxes" / f"{name}.xml"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(_xml(name, objects, classes, kind))
    return root


def write_dota(root: Path) -> Path:
    """Write whole images of train, val and test, labels with the release's two header lines."""
    for number, part in enumerate(("train", "train", "val", "test")):
        name = f"P{number:04d}"
        objects = _objects(50 + number)
        _picture(root / part / "images" / f"{name}.png", objects, 50 + number)
        if part == "test":
            continue
        lines = ["imagesource:GoogleEarth", "gsd:0.15"]
        for index, (left, top, right, bottom) in enumerate(objects):
            label = ["plane", "small-vehicle", "ship"][index % 3]
            lines.append(
                f"{left}.0 {top}.0 {right}.0 {top}.0 {right}.0 {bottom}.0 {left}.0 {bottom}.0 "
                f"{label} {index % 2}"
            )
        path = root / part / "labelTxt" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return root


def write_loveda(root: Path) -> Path:
    """Write two images of each part, Rural and Urban, masks with labels 0 (no data) to 7."""
    number = 0
    for part in ("Train", "Val", "Test"):
        for area in ("Rural", "Urban"):
            folder = root / part / area
            _picture(folder / "images_png" / f"{number}.png", _objects(number), number)
            if part != "Test":
                mask = np.zeros((SIDE, SIDE), np.uint8)
                mask[:, 8:] = np.arange(1, 8).repeat(-(-(SIDE - 8) // 7))[: SIDE - 8]
                (folder / "masks_png").mkdir(parents=True)
                Image.fromarray(mask).save(folder / "masks_png" / f"{number}.png")
            number += 1
    return root


def write_scenes(root: Path, classes: tuple[str, ...], side: int, per_class: int) -> Path:
    """Write one folder a class with ``<class>_<n>.jpg`` files."""
    for number, name in enumerate(classes):
        folder = write_images(root / name, per_class, seed=number, size=(side, side))
        for index, path in enumerate(sorted(folder.glob("*.jpg")), 1):
            path.rename(folder / f"{name}_{index}.jpg")
    return root


def write_trees(root: Path) -> Path:
    """Write the tiles of the tree demo, two to train and two to test, in COCO's form."""
    for split, seeds in dict(train=(80, 81), test=(82, 83)).items():
        images, annotations = [], []
        for seed in seeds:
            objects = _objects(seed)
            _picture(root / "trees" / split / f"{seed}.png", objects, seed)
            name = f"{split}/{seed}.png"
            images.append(dict(id=seed, file_name=name, width=SIDE, height=SIDE))
            annotations += [
                dict(id=len(annotations) + number, image_id=seed, category_id=1, iscrowd=0,
                     bbox=[x, y, right - x, bottom - y], area=(right - x) * (bottom - y))
                for number, (x, y, right, bottom) in enumerate(objects, 1)
            ]  # fmt: skip
        path = root / "trees" / "coco" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        categories = [dict(id=1, name="tree")]
        path.write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories))
        )
    return root


def convert(name: str, data: Path, *options: str) -> None:
    """Run a converter's command line in this process."""
    module = importlib.import_module(f"gersp_mm.preparation.{name}")
    module.run(module.parse_args([str(data), *options]))


def write_all(root: Path) -> Path:
    """Write and convert every data set below ``root``, as ``GERSP_DATA`` has them."""
    from gersp_mm.datasets.known import EUROSAT, RESISC45

    write_scenes(root / "eurosat" / "2750", EUROSAT.classes, 64, 5)
    write_scenes(root / "resisc45", RESISC45.classes, 256, 3)
    convert("eurosat", root / "eurosat", "--allow-incomplete")
    convert("resisc45", root / "resisc45", "--allow-incomplete")
    convert("dior", write_dior(root / "dior"), "--allow-incomplete")
    if find_spec("mmrotate"):  # whose tool cuts the tiles
        convert("dota", write_dota(root / "dota"), "--protocol", "released", "--allow-incomplete")
        convert("dota", root / "dota", "--protocol", "field", "--allow-incomplete")
    convert("loveda", write_loveda(root / "loveda"), "--allow-incomplete")
    write_trees(root / "demo")
    return root


def write_backbone(path: Path, depth: int = 50) -> Path:
    """Export a random ResNet of 8 base channels as pre-training does."""
    torch.manual_seed(0)
    network = ResNet(depth, base_channels=8, stem_channels=8)
    network.init_weights()
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    export_backbone(state, path, f"ResNet-{depth}", "GeRSP", list(RGB_MEAN), list(RGB_STD))
    return path


# ------------------------------------------------------------------------------------------- twin


def downstream_configs() -> list[str]:
    """Every config of a task of the paper, relative to ``configs/downstream``."""
    root = CONFIGS / "downstream"
    files = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(p.as_posix() for p in files if p.parts[0] not in ("_base_", "demo"))


TREES = "demo/faster-rcnn_r18_fpn_trees.py"


def shrink_model(model: Any) -> None:
    """Make a model narrow, and DyHead one block deep.

    The ResNet is eight times narrower, and what comes after a detector's pyramid has 64 channels.
    """
    model.backbone.update(base_channels=8, stem_channels=8)
    widths = CHANNELS if model.backbone.depth >= 50 else [width // 4 for width in CHANNELS]
    for part in (model.get("neck"), model.get("head"), model.get("decode_head"),
                 model.get("auxiliary_head")):  # fmt: skip
        for piece in part if isinstance(part, list) else [part]:
            if not piece or "in_channels" not in piece:
                continue
            if isinstance(piece.in_channels, (list, tuple)):
                piece.in_channels = widths
            elif piece.type == "DyHead":
                piece.num_blocks = 1  # deformable convolutions are slow on CPUs
            else:
                piece.in_channels = widths[piece.get("in_index", -1)]
            if "c1_in_channels" in piece:
                piece.c1_in_channels = widths[0]
    for part in ("neck", "rpn_head", "roi_head", "bbox_head"):
        narrow_pyramid(model.get(part))


def narrow_pyramid(part: Any) -> None:
    """Give all convolutions and layers of a part 64 channels that have 256 or 1,024."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key.endswith(("in_channels", "feat_channels", "out_channels")) and value in PYRAMID:
                part[key] = 64
            narrow_pyramid(value)
    elif isinstance(part, (list, tuple)):
        for piece in part:
            narrow_pyramid(piece)


def trained_cases(quick: Sequence[str]) -> list[Any]:
    """Return a shipped config of each model that trains; all but some are marked as slow.

    The models of DOTA and RESISC45 are those of DIOR and EuroSAT.
    """
    trained = [
        name
        for name in downstream_configs()
        if not name.startswith(("dota/", "resisc45/")) and not re.search("knn|fewshot", name)
    ]
    return [
        pytest.param(name, marks=() if name in quick else pytest.mark.slow)
        for name in [TREES, *trained]
    ]


def downstream_twin(config: str, data: Path, work_dir: Path, iterations: int = 2) -> Config:
    """Shrink a downstream config to small images, a narrow network and a few iterations.

    Types, pipelines, hooks, losses and evaluators stay what the config says.

    Args:
        config: a name of :func:`downstream_configs`.
        data: a folder of :func:`write_all`.
        work_dir: where the run writes.
        iterations: batches of one epoch.
    """
    cfg = Config.fromfile(CONFIGS / "downstream" / config)
    cfg.work_dir = str(work_dir)
    cfg.log_level = "WARNING"
    shrink_model(cfg.model)
    loaders = [cfg.get(f"{part}_dataloader") for part in ("train", "val", "test")]
    loaders.append((cfg.get("submission") or {}).get("test_dataloader"))
    for loader in filter(None, loaders):
        loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
        dataset = loader.dataset
        dataset.data_root = str(data / Path(dataset.data_root).relative_to(DATA_ROOT))
        if "splits/" in dataset.get("ann_file", ""):
            dataset.ann_file = incomplete(dataset.ann_file)
        for step in dataset.pipeline:
            if step.type.endswith("Resize") and "scale" in step:
                step.scale = (SIDE, SIDE)
            elif step.type in ("RandomCrop", "CenterCrop"):
                step.crop_size = (64, 64)
            elif step.type == "RandomResizedCrop":
                step.scale = 64
        if loader is loaders[0]:
            loader.batch_size = 2
            if cfg.default_scope != "mmseg":
                dataset.indices = 2 * iterations if cfg.default_scope == "mmpretrain" else 2
    augmented = cfg.tta_pipeline[-1].transforms if "tta_pipeline" in cfg else []
    for step in (*cfg.get("test_pipeline", ()), *(choice[0] for choice in augmented)):
        if "scale" in step:
            step.scale = (SIDE, SIDE)
        elif "crop_size" in step:
            step.crop_size = (64, 64)
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = (64, 64)
    if cfg.default_scope in ("mmdet", "mmrotate"):
        few_boxes(cfg.model)
    for part in ("val", "test"):
        evaluator = cfg.get(f"{part}_evaluator")
        if evaluator and evaluator.get("ann_file"):
            folder = Path(evaluator.ann_file).relative_to(DATA_ROOT)
            evaluator.ann_file = str(data / folder)
    if cfg.get("test_cfg", {}).get("train_ann_file"):
        cfg.test_cfg.train_ann_file = incomplete(cfg.test_cfg.train_ann_file)
        if "fewshot" in cfg.test_cfg:
            shots = (1, 2) if "eurosat" in config else (1,)
            cfg.test_cfg.fewshot = dict(shots=shots, draws=2)
    if cfg.get("train_cfg"):
        schedule = cfg.train_cfg
        if "max_iters" in schedule:
            schedule.update(max_iters=iterations, val_interval=iterations)
            cfg.default_hooks.checkpoint.interval = iterations
        else:
            epochs = iterations if len_is_one(cfg) else 1
            schedule.update(max_epochs=epochs, val_interval=epochs)
        cfg.param_scheduler = []
    cfg.default_hooks.logger.interval = 1
    return cfg


DATA_ROOT = "data"  # the default of GERSP_DATA in the configs


def few_boxes(model: Any) -> None:
    """Let a detector keep few proposals and boxes, however bad: without any there is no metric."""
    steps = [model.test_cfg, *model.test_cfg.values(), (model.train_cfg or {}).get("rpn_proposal")]
    for step in steps:
        if isinstance(step, dict) and "max_per_img" in step:
            step.update(nms_pre=50, max_per_img=20)
            if "score_thr" in step:
                step.score_thr = 0.0


def len_is_one(cfg: Config) -> bool:
    """Whether an epoch of the twin is one iteration: detection, with two training images."""
    return cfg.default_scope in ("mmdet", "mmrotate")


def incomplete(path: str) -> str:
    """Name the list of a data set of which only a few images are there."""
    return path.replace("-gersp-1/", "-gersp-1-incomplete/")
