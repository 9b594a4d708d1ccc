"""A check that training, validation and test data differ."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from gersp_mm.datasets.annotations import leaves
from gersp_mm.engine.preflight.findings import Finding


def check_parts(cfg: Config) -> Iterator[Finding]:
    """Warn of an evaluation on the training images."""
    trained = {_identity(dataset) for dataset in _datasets(cfg, "train")}
    for part in ("val", "test"):
        for dataset in _datasets(cfg, part):
            if _identity(dataset) in trained - {None}:
                field = "ann_file" if dataset.get("ann_file") else "data_prefix"
                yield Finding(
                    f"{part}_dataloader.dataset.{field}",
                    f"{part}_dataloader evaluates on the images of train_dataloader: "
                    f"{dataset.get('data_root') or ''} {dataset.get(field)}. Results on training "
                    "images say nothing about others.",
                    f"Set {part}_dataloader.dataset.{field} to held-out images.",
                    "warning",
                )


def _datasets(cfg: Config, part: str) -> list[Mapping[str, Any]]:
    loader = cfg.get(f"{part}_dataloader")
    dataset = loader.get("dataset") if isinstance(loader, Mapping) else None
    return list(leaves(dataset)) if isinstance(dataset, Mapping) and "type" in dataset else []


def _identity(dataset: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the split and the paths that identify a data set's images, or None."""
    root = str(dataset.get("data_root") or "")
    prefix = dataset.get("data_prefix") or ""
    places = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
    places = [dataset["ann_file"]] if dataset.get("ann_file") else places
    paths = sorted(os.path.normpath(os.path.join(root, str(place))) for place in places if place)
    split = str(dataset.get("split") or "")
    return (split, *paths) if split or paths else None
