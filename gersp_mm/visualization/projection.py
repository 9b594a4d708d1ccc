"""Draw the features of the same images by several pre-trainings, side by side in two dimensions."""

from __future__ import annotations

import argparse
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from gersp_mm.evaluation.knn import knn_predict
from gersp_mm.results.statistics import fixed
from gersp_mm.utils.console import progress
from gersp_mm.utils.errors import UserError
from gersp_mm.visualization.features import (
    checked_backbones,
    class_names,
    features_of,
    hide_ticks,
    labelled_images,
    new_figure,
    save_figure,
    spaced,
)
from gersp_mm.visualization.panels import SERIES

FEWEST = 10  # Smallest number of images for a projection.
COMPONENTS = 50  # The authors of t-SNE first reduce the features to this dimension.
FOLDS = 5
NEIGHBOURS = 20
CAPTION = (
    "{name} of {count} images. kNN top-1 (k = {k}, {folds} folds of these images) and silhouette "
    "of the classes\n(cosine) are of the features themselves, not of the projection"
)
MARKERS = "osD^vPX"  # Of more classes than there are colours.


def project(features: torch.Tensor, method: str, seed: int) -> np.ndarray:
    """Bring features to two dimensions.

    Args:
        features: N×D.
        method: ``'tsne'`` or ``'umap'``.
        seed: Seed; the same seed gives the same result.

    Raises:
        UserError: There is no umap.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    points = F.normalize(features, dim=1).numpy()
    if method == "umap":
        return umap_class()(n_neighbors=min(15, len(points) - 1), random_state=seed).fit_transform(
            points
        )
    components = min(COMPONENTS, *points.shape)
    points = PCA(components, random_state=seed).fit_transform(points)
    perplexity = min(30.0, (len(points) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(points)


def umap_class() -> Any:
    """Return umap's class."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no TensorFlow
            from umap import UMAP
    except ImportError:
        raise UserError(
            "--method umap needs a package that is not here: pip install umap-learn"
        ) from None
    return UMAP


def scores(features: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[float, float]:
    """Return kNN top-1 in per cent, over folds, and the silhouette; the latter may be NaN."""
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import KFold

    predicted = torch.empty_like(labels)
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(features):
        k = min(NEIGHBOURS, len(train))
        predicted[test] = knn_predict(features[train], labels[train], features[test], k=k)
    knn = 100 * (predicted == labels).double().mean().item()
    classes = len(labels.unique())
    if not 2 <= classes < len(labels):
        return knn, math.nan
    return knn, float(silhouette_score(features.numpy(), labels.numpy(), metric="cosine"))


def draw(
    panels: dict[str, np.ndarray],
    labels: np.ndarray,
    names: dict[int, str],
    method: str,
    out: Path,
) -> None:
    """Draw the panels with one legend.

    Args:
        panels: N×2 points by title.
        labels: N labels.
        names: Class name of each label.
        method: ``'tsne'`` or ``'umap'``.
        out: The png to write.
    """
    from matplotlib.lines import Line2D

    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure, axes = new_figure(rows, columns, (3.6 * columns + 1.8, 3.9 * rows))
    hide_ticks(axes)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    size = min(14.0, max(3.0, 9000 / len(labels)))
    # One scatter of all classes in random order, so that none lies on top of the others.
    order = np.random.default_rng(0).permutation(len(labels))
    ranks = {label: rank for rank, label in enumerate(names)}
    rank = np.array([ranks[label] for label in labels.tolist()])
    for axis, (title, points) in zip(axes.flat, panels.items()):
        for turn, marker in enumerate(MARKERS):
            here = order[rank[order] // len(SERIES) % len(MARKERS) == turn]
            paint = [SERIES[r % len(SERIES)] for r in rank[here]]
            axis.scatter(*points[here].T, s=size, c=paint, marker=marker, linewidths=0, alpha=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_box_aspect(1)
    handles = [
        Line2D(
            [], [], linestyle="", markersize=6, color=SERIES[r % len(SERIES)],
            marker=MARKERS[r // len(SERIES) % len(MARKERS)],
        )
        for r in range(len(names))
    ]  # fmt: skip
    texts = [spaced(name) for name in names.values()]
    figure.legend(
        handles,
        texts,
        loc="outside right center",
        fontsize=8,
        frameon=False,
        ncols=math.ceil(len(names) / (16 * rows)),
        handletextpad=0.2,
    )
    name = dict(tsne="t-SNE", umap="UMAP")[method]
    text = CAPTION.format(name=name, count=len(labels), k=NEIGHBOURS, folds=FOLDS)
    figure.suptitle(text, fontsize=9)
    save_figure(figure, out)


def run(args: argparse.Namespace) -> None:
    """Draw the features of each checkpoint in two dimensions."""
    if args.method == "umap":
        umap_class()
    backbones = checked_backbones(args)
    images = labelled_images(args.images, args.size, limit=args.limit)
    if len(images) < FEWEST:
        raise UserError(f"a projection of {len(images)} images says nothing: {FEWEST} are needed")
    names = class_names(args.images, images)
    all_features = {backbone.name: features_of(backbone, images, args)[0] for backbone in backbones}
    panels = {}
    for name, features in progress(all_features.items(), f"projecting by {args.method}", "model"):
        knn, silhouette = scores(features, images.labels, args.seed)
        numbers = f"kNN {knn:.1f} %"
        if not math.isnan(silhouette):
            numbers += f", silhouette {fixed(silhouette)}"
        panels[f"{name}\n{numbers}"] = project(features, args.method, args.seed)
        print(f"{name}: {numbers}, {len(images)} images")
    draw(panels, images.labels.numpy(), names, args.method, args.out)
    print(f"wrote {args.out}")
