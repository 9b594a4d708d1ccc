"""Draw where several pre-trainings look: class activation maps, images by pre-trainings."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from gersp_mm.backbones.named import Backbone
from gersp_mm.evaluation.features import EvalImages, last_output, pool, prepare
from gersp_mm.evaluation.linear_probe import linear_probe
from gersp_mm.images.listing import IMAGE_EXTENSIONS, find_images, is_passed_over
from gersp_mm.utils.console import progress
from gersp_mm.utils.errors import UserError
from gersp_mm.visualization.features import (
    checked_backbones,
    class_names,
    features_of,
    follow_classes,
    hide_ticks,
    labelled_images,
    new_figure,
    save_figure,
    spaced,
)
from gersp_mm.visualization.panels import RIGHT, WRONG, fill

METHODS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "scorecam": "ScoreCAM",
}
UNKNOWN = -1  # Label of an image whose class is unknown.
CELL = 1.55  # Side of an image in inches.


class Probed(nn.Module):
    """A frozen backbone with a linear classifier behind it.

    ``stage`` is what maps are made of: it passes on the backbone's last output. ``grid`` is the
    height and width of that output in the latest call.

    Args:
        backbone: See :class:`gersp_mm.backbones.named.Backbone`.
        weight: Weights of the classifier, classes×D, for unchanged features.
        bias: Biases of the classifier, one per class.
    """

    def __init__(self, backbone: Backbone, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.name, self.mean, self.std = backbone.name, backbone.mean, backbone.std
        self.backbone = backbone.network
        self.stage = nn.Identity()
        self.grid = (0, 0)
        self.classifier = nn.Linear(weight.shape[1], weight.shape[0])
        self.classifier.weight.data, self.classifier.bias.data = weight, bias

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores of images N×3×H×W with values 0 to 255."""
        with torch.no_grad():
            output = last_output(self.backbone(prepare(images, self.mean, self.std)))
        if output.dim() != 4:
            raise UserError(
                f"{self.name}: the backbone gives {tuple(output.shape)}, no map N×D×H×W of which "
                "activation maps could be made"
            )
        self.grid = (output.shape[2], output.shape[3])
        if torch.is_grad_enabled():
            output.requires_grad_()
        return self.classifier(pool(self.stage(output)))


class Seen(NamedTuple):
    """Maps and predictions of one network.

    Attributes:
        maps: N×H×W, 0 to 1; all 0 where nothing speaks for the class.
        targets: N labels, the classes of the maps.
        predicted: N labels.
        probabilities: N, of the predicted labels.
        accuracy: Accuracy of the probe in per cent.
        held_out: Number of images that the accuracy is of.
        grid: Height and width of a map before it was enlarged.
    """

    maps: np.ndarray
    targets: list[int]
    predicted: list[int]
    probabilities: list[float]
    accuracy: float
    held_out: int
    grid: tuple[int, int]


def fit_probe(
    features: torch.Tensor, labels: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Fit the classifier of :func:`gersp_mm.evaluation.linear_probe`.

    Args:
        features: N×D.
        labels: N, the numbers from 0 on.
        seed: Seed of the split that its strength is chosen on.

    Returns:
        Weight classes×D and bias for unchanged features, and the accuracy in per cent on the
        part that the strength was chosen on.
    """
    probe = linear_probe(features, labels, features[:1], labels[:1], seed=seed)
    return *probe.classifier.of_raw_features(), probe.sweep[probe.chosen_c]


def activation_maps(
    model: Probed, images: torch.Tensor, targets: list[int], method: str
) -> np.ndarray:
    """Return a map N×H×W with values 0 to 1 for each image.

    Args:
        model: On the device to run on.
        images: N×3×H×W, 0 to 255.
        targets: The class of each map.
        method: One of :data:`METHODS`.

    Raises:
        UserError: There is no grad-cam.
    """
    cam_class, target_class = library(method)
    cam = cam_class(model=model, target_layers=[model.stage])
    maps = []
    for number, target in enumerate(progress(targets, f"{model.name}, maps", "img")):
        image = images[number : number + 1].float()
        maps.append(cam(input_tensor=image, targets=[target_class(target)])[0])
    return np.stack(maps)


def library(method: str) -> tuple[Any, Any]:
    """Return grad-cam's class of a method, and its target class."""
    try:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise UserError(
            f"activation maps need a package that is not here ({error}): bash tools/setup_env.sh "
            "--demo, or pip install grad-cam"
        ) from None
    return getattr(pytorch_grad_cam, METHODS[method]), ClassifierOutputTarget


def shown_images(
    sources: list[Path], size: int, rows: int, names: dict[int, str], train: Path
) -> EvalImages:
    """Read the images to draw; those whose class is not known get the label ``UNKNOWN``.

    Args:
        sources: Image files, or one folder or list.
        size: Side of the images.
        rows: How many of a folder or list.
        names: Names of the training images' classes.
        train: The training images, for messages.

    Raises:
        UserError: a file does not exist, or the classes are others than the training images'.
    """
    first = sources[0]
    plain = first.is_dir() and not any(
        path.is_dir() and not is_passed_over(path.name) for path in first.iterdir()
    )
    if len(sources) == 1 and not plain and first.suffix.lower() not in IMAGE_EXTENSIONS:
        images = labelled_images(first, size, limit=rows)
        follow_classes(first, images, names, train)
        return images
    paths = [p / name for p in sources if p.is_dir() for name in find_images(p)][:rows]
    paths += [path for path in sources if not path.is_dir()]
    for path in paths:
        if not path.is_file():
            raise UserError(f"there is no image {path}")
    if not paths:
        raise UserError(f"{first}: there is no image in it")
    numbers = {name: label for label, name in names.items()}
    images = EvalImages(train, size, limit=1)
    images.samples = [(str(path), numbers.get(path.parent.name, UNKNOWN)) for path in paths]
    return images


def look(
    backbone: Backbone, train: EvalImages, images: EvalImages, args: argparse.Namespace
) -> Seen:
    """Fit the probe of one backbone and make its maps of the images."""
    features, labels = features_of(backbone, train, args, "training images")
    classes, numbers = labels.unique(return_inverse=True)
    weight, bias, accuracy = fit_probe(features, numbers, args.seed)
    model = Probed(backbone, weight, bias).to(args.device)
    images.pixel_scale = backbone.pixel_scale
    pixels = torch.stack([images[number][0] for number in range(len(images))]).to(args.device)
    with torch.no_grad():
        scores = torch.cat([model(part.float()) for part in pixels.split(args.batch_size)])
    best, guesses = scores.softmax(1).max(1)
    known = {label: number for number, label in enumerate(classes.tolist())}
    targets = [
        guess if args.target == "predicted" else known.get(label, guess)
        for guess, label in zip(guesses.tolist(), images.labels.tolist())
    ]
    maps = activation_maps(model, pixels, targets, args.method)
    return Seen(
        maps,
        classes[targets].tolist(),
        classes[guesses.cpu()].tolist(),
        best.tolist(),
        accuracy,
        math.ceil(0.2 * len(labels)),  # The split of linear_probe.
        model.grid,
    )


def caption(seen: Seen, row: int, names: dict[int, str]) -> str:
    """Return the prediction, the map's class where that is another, and whether a map is empty."""
    guess, target = seen.predicted[row], seen.targets[row]
    text = f"{spaced(names[guess])} {100 * seen.probabilities[row]:.0f} %"
    lines = [text if guess == target else f"predicted {text}"]
    if guess != target:
        lines.append(f"map of {spaced(names[target])}")
    if not seen.maps[row].any():
        lines.append("(no evidence for it)")
    return "\n".join(lines)


def draw(
    images: EvalImages, seen: dict[str, Seen], names: dict[int, str], overlay: float, out: Path
) -> None:
    """Draw the grid.

    Args:
        images: The rows.
        seen: The columns.
        names: Names of the classes.
        overlay: Share of the map in the mixture with the image.
        out: The png to write.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D

    paint = colormaps["inferno"]
    rows, columns = len(images), 1 + len(seen)
    width, height = (CELL + 0.12) * columns + 0.9, (CELL + 0.45) * rows + 0.5
    figure, axes = new_figure(rows, columns, (width, height))
    hide_ticks(axes)
    for row in range(len(images)):
        image, label = images[row]
        picture = image.permute(1, 2, 0).numpy() / 255
        axes[row, 0].imshow(picture, interpolation="nearest")
        axes[row, 0].set_xlabel(spaced(names[label]) if label in names else "", fontsize=8)
        for axis, result in zip(axes[row, 1:], seen.values()):
            colours = paint(result.maps[row])[..., :3]
            axis.imshow((1 - overlay) * picture + overlay * colours, interpolation="nearest")
            guess = result.predicted[row]
            text = fill(caption(result, row, names), CELL, 7.5)
            right = "#444444" if label == UNKNOWN else RIGHT if guess == label else WRONG
            axis.set_xlabel(text, fontsize=7.5, color=right)
        for axis in axes[row]:
            axis.spines[:].set_visible(False)
            axis.xaxis.labelpad = 2
    axes[0, 0].set_title("image", fontsize=9)
    for axis, (name, result) in zip(axes[0, 1:], seen.items()):
        axis.set_title(
            f"{name}\nprobe right on {result.accuracy:.1f} %\nof {result.held_out} images, "
            f"maps of {result.grid[0]} x {result.grid[1]}",
            fontsize=8,
        )
    bar = figure.colorbar(ScalarMappable(cmap=paint), ax=axes, aspect=40, pad=0.01)
    bar.set_label("evidence, as a share of the largest in the map", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    told = {"right prediction": RIGHT, "wrong prediction": WRONG}
    figure.legend(
        [Line2D([], [], color=colour) for colour in told.values()], list(told),
        loc="outside lower left", ncols=2, fontsize=8, labelcolor="linecolor", handlelength=1,
    )  # fmt: skip
    save_figure(figure, out)


def run(args: argparse.Namespace) -> None:
    """Draw one row per image and one activation map per checkpoint."""
    library(args.method)
    if not 0 < args.overlay <= 1:
        raise UserError(f"--overlay must be above 0 and at most 1, got {args.overlay}")
    backbones = checked_backbones(args)
    train = labelled_images(args.train, args.size, limit=args.train_limit)
    names = class_names(args.train, train)
    images = shown_images(args.images, args.size, args.rows, names, args.train)
    seen = {backbone.name: look(backbone, train, images, args) for backbone in backbones}
    for name, result in seen.items():
        print(
            f"{name}: the probe's accuracy is {result.accuracy:.1f} % on the fifth of --train that "
            "chose its strength. Overlapping tiles make it too high"
        )
    draw(images, seen, names, args.overlay, args.out)
    print(f"wrote {args.out}")
