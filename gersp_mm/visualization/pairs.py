"""Draw training pairs exactly as the model sees them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from gersp_mm.engine.launch import load_config
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.randomness import seed_everything
from gersp_mm.visualization.features import hide_ticks, new_figure, save_figure, spaced
from gersp_mm.visualization.panels import fill

VIEWS = {
    "rs_query": "remote sensing, query",
    "rs_key": "remote sensing, key",
    "natural": "natural",
}


def seen_by_model(cfg: Config, rows: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Collect the first ``rows`` pairs of the first epoch.

    Args:
        cfg: A pre-training config with a ``gersp_mm.PairedDataset``.
        rows: Number of pairs.

    Returns:
        For every view N×H×W×3 uint8 RGB images, and the label of every natural image as text.

    Raises:
        UserError: The config has no train_dataloader that gives pairs.
    """
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    from gersp_mm.registry import MODELS

    if "train_dataloader" not in cfg:
        raise UserError("the config has no train_dataloader")
    init_default_scope(cfg.get("default_scope", "mmpretrain"))
    seed = cfg.get("randomness", {}).get("seed") or 0
    seed_everything(seed)
    loader_cfg = {**cfg.train_dataloader, "num_workers": 0, "persistent_workers": False}
    loader_cfg.pop("prefetch_factor", None)
    loader = Runner.build_dataloader(loader_cfg, seed=seed)
    preprocessor_cfg = cfg.model.get("data_preprocessor") or {}
    preprocessor = MODELS.build({"type": "gersp_mm.PairedDataPreprocessor", **preprocessor_cfg})

    images: dict[str, list[np.ndarray]] = {}
    samples: list[Any] = []
    classes = (getattr(loader.dataset, "metainfo", None) or {}).get("classes")
    seen = 0
    for batch in loader:
        data = preprocessor(batch, training=True)
        if not isinstance(data["inputs"], dict):
            raise UserError("train_dataloader gives no pairs: its dataset is not a PairedDataset")
        for view in (view for view in VIEWS if view in data["inputs"]):
            images.setdefault(view, []).append(restore(data["inputs"][view], preprocessor))
        samples += data.get("data_samples", [])
        seen += len(next(iter(data["inputs"].values())))
        if seen >= rows:
            break
    if not images:
        raise UserError(
            f"train_dataloader gives no batch: its {len(loader.dataset)} pairs do not fill one of "
            f"{loader.batch_size}; lower train_dataloader.batch_size"
        )
    labels = label_texts(samples, classes)
    return {view: np.concatenate(parts)[:rows] for view, parts in images.items()}, labels[:rows]


def restore(batch: torch.Tensor, preprocessor: Any) -> np.ndarray:
    """Undo the normalisation: N×3×H×W floats to N×H×W×3 uint8."""
    pixels = batch.float() * preprocessor.std + preprocessor.mean
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def label_texts(samples: Sequence[Any], classes: Sequence[str] | None = None) -> list[str]:
    """Return the class name of each natural image, or its number where no name is known.

    Args:
        samples: Data samples of the model's data set.
        classes: Names that the data set knows. Without them the images' folders are the names,
            where each class has its own and it is no number.
    """
    labels = [int(s.gt_label) if "gt_label" in s else None for s in samples]
    names = dict(enumerate(classes or ()))
    if not classes:
        files: dict[int, set[Path]] = {}
        for sample, label in zip(samples, labels):
            if label is not None:
                files.setdefault(label, set()).add(Path(str(sample.get("natural_path", ""))))
        folders = {label: {path.parent.name for path in own} for label, own in files.items()}
        if all(_of_demo(path, label) for label, own in files.items() for path in own):
            names = _imagenet_names(files)
        elif len(folders) > 1 and all(len(own) == 1 for own in folders.values()):
            own_names = {label: own.pop() for label, own in folders.items()}
            if len(set(own_names.values())) == len(own_names):
                names = {k: name for k, name in own_names.items() if not name.isdigit()}
    return [
        "" if label is None else spaced(names[label]) if label in names else f"class {label}"
        for label in labels
    ]


def _of_demo(path: Path, label: int) -> bool:
    """Return whether a file is a photograph of the demo, named after its class in ImageNet."""
    return re.fullmatch(rf"imagenet_\d+_{label}", path.stem) is not None


def _imagenet_names(labels: Iterable[int]) -> dict[int, str]:
    """Return the first name of classes of ImageNet-1k."""
    from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

    known = len(IMAGENET_CATEGORIES)
    return {label: IMAGENET_CATEGORIES[label].split(",")[0] for label in labels if label < known}


def draw(images: dict[str, np.ndarray], labels: list[str], out: Path) -> Path:
    """Draw the grid.

    Args:
        images: N×H×W×3 uint8 images of every view.
        labels: N texts for the natural images; may be empty.
        out: The png to write.
    """
    rows = max(map(len, images.values()))
    size = (2.1 * len(images), 2.1 * rows + 0.4)
    figure, axes = new_figure(rows, len(images), size)
    hide_ticks(axes)
    for column, (view, pictures) in enumerate(images.items()):
        side = "x".join(map(str, pictures.shape[2:0:-1]))
        axes[0, column].set_title(f"{VIEWS[view]}\n{side} px", fontsize=9)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture, interpolation="nearest")
            if view == "natural" and row < len(labels):
                axes[row, column].set_xlabel(fill(labels[row], 2.1, 8), fontsize=8)
    save_figure(figure, out)
    return out


def run(args: argparse.Namespace) -> None:
    """Draw training pairs of a config as the model gets them."""
    if args.rows < 1:
        raise UserError(f"--rows must be at least 1, got {args.rows}")
    cfg = load_config(args)
    images, labels = seen_by_model(cfg, args.rows)
    out = args.out or Path(cfg.work_dir) / "pairs.png"
    draw(images, labels, out)
    print(f"wrote {out}")
