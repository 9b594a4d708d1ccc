"""Pictures of test predictions: which images are drawn, by the hosts' hooks or as label maps."""

from __future__ import annotations

import abc
import colorsys
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from PIL import Image

from gersp_mm.images.decode import load_rgb
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.model import unwrap
from gersp_mm.visualization.boxes import Boxes, draw_detections
from gersp_mm.visualization.features import class_name, save_figure
from gersp_mm.visualization.panels import DPI, RIGHT, WRONG, draw_panels, shown_size

SCOPES = ("mmpretrain", "mmdet", "mmrotate", "mmseg")
UNLABELLED = (96, 96, 96)  # Colour of pixels that are not evaluated.
RIGHT_PIXEL, WRONG_PIXEL = (245, 245, 245), (215, 30, 30)


def choose_pictures(paths: Sequence[str], limit: int | None = None) -> dict[str, str]:
    """Choose the images to draw, evenly over the data set, and name their pictures.

    Args:
        paths: All image files, in the data set's order.
        limit: Draw at most this many.

    Returns:
        The name of the picture by image file: its path below the folder that all images share,
        without suffix unless it takes that to be unique. No two names are equal.
    """
    paths = list(dict.fromkeys(paths))
    if not paths:
        return {}
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    relative = {path: PurePath(os.path.relpath(path, folder)) for path in paths}
    times = Counter(name.with_suffix("") for name in relative.values())
    count = len(paths) if limit is None else min(limit, len(paths))
    chosen = [paths[number * len(paths) // count] for number in range(count)]
    names = {path: relative[path] for path in chosen}
    return {
        path: str(name if times[name.with_suffix("")] > 1 else name.with_suffix(""))
        for path, name in names.items()
    }


def distinct_colours(
    count: int, given: Sequence[Sequence[int]] | None = None
) -> list[tuple[int, ...]]:
    """Complete a palette to ``count`` colours, RGB from 0 to 255."""
    colours = [tuple(map(int, colour)) for colour in given or ()][:count]
    for number in range(len(colours), count):
        hue, value = number * 0.618034 % 1, 1 - 0.35 * (number % 3) / 2
        colours.append(tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue, 0.85, value)))
    return colours


class PicturesHook(Hook, abc.ABC):
    """Draw chosen test images; :meth:`draw` decides the content of a picture.

    Args:
        out_dir: Folder of the pictures.
        max_pictures: Draw at most this many, evenly chosen from the data set; all by default.

    Raises:
        UserError: ``max_pictures`` is below 1.
    """

    priority = "LOW"

    def __init__(self, out_dir: str, max_pictures: int | None = None) -> None:
        if max_pictures is not None and max_pictures < 1:
            raise UserError(f"max_pictures must be at least 1, got {max_pictures}")
        self.out_dir = Path(out_dir)
        self.max_pictures = max_pictures
        self.count = 0
        self.meta: dict[str, Any] = {}
        self._names: dict[str, str] = {}

    def before_test_epoch(self, runner: Any) -> None:
        """Choose the images."""
        dataset = runner.test_loop.dataloader.dataset
        paths = [dataset.get_data_info(number)["img_path"] for number in range(len(dataset))]
        self._names = choose_pictures(paths, self.max_pictures)
        self.count = 0
        self.meta = dict(dataset.metainfo)
        classes = self.meta.get("classes") or ()
        self.meta["palette"] = distinct_colours(len(classes), self.meta.get("palette"))

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw those images of a batch that were chosen."""
        for number, sample in enumerate(outputs):
            name = self._names.pop(sample.img_path, None)  # an image of two batches is drawn once
            if name is not None:
                inputs = data_batch["inputs"]
                if isinstance(inputs[0], (list, tuple)):  # Views of --tta; the first is the image.
                    inputs = inputs[0]
                self.draw(runner, sample, inputs[number], self.out_dir / name)
                self.count += 1

    def heading(self, runner: Any, path: Path) -> str:
        """Return the name of an image, of the config and of the checkpoint, for above a picture.

        Args:
            runner: The MMEngine runner.
            path: File to write, without its suffix.
        """
        checkpoint = getattr(runner, "_load_from", None)
        parts = [
            str(path.relative_to(self.out_dir)),
            Path(runner.cfg.filename).stem if runner.cfg.filename else "",
            "/".join(Path(checkpoint).parts[-2:]) if checkpoint else "",
        ]
        return ", ".join(part for part in parts if part)

    @abc.abstractmethod
    def draw(self, runner: Any, sample: Any, image: Any, path: Path) -> None:
        """Draw one image.

        Args:
            runner: The MMEngine runner.
            sample: The host's data sample with prediction.
            image: The input tensor before normalisation.
            path: File to write, without its suffix.
        """


class ClassesPicturesHook(PicturesHook):
    """Draw images of scenes as the network receives them, with true and predicted class."""

    def draw(self, runner: Any, sample: Any, image: Any, path: Path) -> None:
        """Draw a sample of mmpretrain."""
        pixels = image.flip(0) if unwrap(runner.model).data_preprocessor.to_rgb else image
        pixels = pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        found = sample.pred_label.tolist()
        picture = draw_classes(
            Image.fromarray(pixels),
            sample.gt_label.tolist() if "gt_label" in sample else None,
            {label: sample.pred_score[label].item() for label in found},
            self.meta.get("classes") or (),
            self.heading(runner, path),
        )
        save_figure(picture, path.with_name(f"{path.name}.png"), DPI)


class BoxesPicturesHook(PicturesHook):
    """Draw annotated and predicted boxes, upright or rotated, next to each other.

    Args:
        out_dir: Folder of the pictures; those of a JPEG are JPEGs, all others are PNGs.
        max_pictures: Draw at most this many, evenly chosen from the data set; all by default.
        threshold: Boxes with a higher score are drawn.
    """

    def __init__(
        self, out_dir: str, max_pictures: int | None = None, threshold: float = 0.3
    ) -> None:
        super().__init__(out_dir, max_pictures)
        self.threshold = threshold

    def draw(self, runner: Any, sample: Any, image: Any, path: Path) -> None:
        """Draw a sample of mmdet or mmrotate."""
        truth, others = (
            Boxes.of(sample.get(name)) if "bboxes" in sample.get(name, ()) else None
            for name in ("gt_instances", "ignored_instances")
        )
        heading = f"{self.heading(runner, path)}\nboxes with a score above {self.threshold:g}"
        picture = draw_detections(
            load_rgb(sample.img_path),
            truth,
            Boxes.of(sample.pred_instances, self.threshold),
            self.meta.get("classes") or (),
            heading,
            others,
        )
        suffix = ".jpg" if sample.img_path.lower().endswith((".jpg", ".jpeg")) else ".png"
        save_figure(picture, path.with_name(f"{path.name}{suffix}"), DPI)


@HOOKS.register_module()
class SegmentationPicturesHook(PicturesHook):
    """Draw image, ground truth (where there is one) and prediction of test images side by side.

    Below them is a legend with each class's share of the pixels. Colours are the data set's.

    Args:
        out_dir: Folder of the pictures, one PNG per image.
        max_pictures: Draw at most this many, evenly chosen from the data set; all by default.
    """

    def draw(self, runner: Any, sample: Any, image: Any, path: Path) -> None:
        """Draw the label maps of an mmseg sample."""
        maps = {}
        if "gt_sem_seg" in sample:
            maps["ground truth"] = sample.gt_sem_seg.data
        maps["prediction"] = sample.pred_sem_seg.data
        picture = draw_label_maps(
            load_rgb(sample.img_path),
            {title: labels.squeeze().cpu().numpy() for title, labels in maps.items()},
            self.meta["classes"],
            self.meta["palette"],
            self.heading(runner, path),
        )
        save_figure(picture, path.with_name(f"{path.name}.png"), DPI)


def require_pictures(cfg: Config, config: str) -> None:
    """Refuse a config whose predictions cannot be drawn.

    Args:
        cfg: The config.
        config: Its file, for the message.

    Raises:
        UserError: Its scope is none of those that are drawn.
    """
    scope = cfg.get("default_scope")
    if scope not in SCOPES:
        raise UserError(
            f"--show-dir: default_scope of {config} is {scope!r}, not one of {', '.join(SCOPES)}"
        )


def add_pictures(
    runner: Any, folder: str, max_pictures: int | None, threshold: float
) -> PicturesHook:
    """Register the hook that draws the predictions of a test, and return it.

    Args:
        runner: The built run.
        folder: Where to write.
        max_pictures: Draw at most this many, evenly chosen; all by default.
        threshold: Boxes with a higher score are drawn.

    Raises:
        UserError: There are several processes.
    """
    if runner.world_size > 1:
        raise UserError("--show-dir: pictures are drawn in a single process. Start one process.")
    scope = runner.cfg.default_scope
    hook: PicturesHook
    if scope == "mmseg":
        hook = SegmentationPicturesHook(folder, max_pictures)
    elif scope == "mmpretrain":
        hook = ClassesPicturesHook(folder, max_pictures)
    else:
        hook = BoxesPicturesHook(folder, max_pictures, threshold)
    runner.register_hook(hook)
    return hook


def draw_classes(
    image: Image.Image,
    truth: Sequence[int] | None,
    scores: Mapping[int, float],
    classes: Sequence[str],
    heading: str = "",
) -> Figure:
    """Draw an image with its true and its predicted class above it, in a frame of right or wrong.

    Args:
        image: RGB.
        truth: Numbers of its classes; None where the data set has no labels.
        scores: Score of each predicted class, 0 to 1.
        classes: Names of the classes.
        heading: Text above the picture.
    """
    names = [f"{class_name(classes, label)} {score:.0%}" for label, score in scores.items()]
    lines, colour = [f"prediction: {', '.join(names)}"], "black"
    if truth is not None:
        told, colour = ("right", RIGHT) if set(truth) == set(scores) else ("wrong", WRONG)
        lines[0] += f" ({told})"
        lines.insert(0, f"truth: {', '.join(class_name(classes, label) for label in truth)}")
    figure = draw_panels({"\n".join(lines): image.resize(shown_size(image))}, heading)
    (axis,) = figure.axes
    axis.title.set_color(colour)
    axis.spines[:].set(color=colour, linewidth=4)
    return figure


def draw_label_maps(
    image: Image.Image,
    maps: Mapping[str, np.ndarray],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    heading: str = "",
) -> Figure:
    """Draw an image and its label maps next to each other, with a legend of the pixels' shares.

    Two maps get a panel more, in which pixels that differ are red.

    Args:
        image: RGB.
        maps: H×W integer labels by title, the ground truth first; labels of no class are grey.
        classes: Names of the classes.
        palette: Colours of the classes, RGB from 0 to 255.
        heading: Text above all panels.
    """
    from matplotlib.patches import Patch

    width, height = shown_size(image)
    colours = np.array([*palette, UNLABELLED], np.uint8)
    shares, panels = {}, {"image": image.resize((width, height))}
    for title, labels in maps.items():
        known = np.where((labels >= 0) & (labels < len(classes)), labels, len(classes))
        shares[title] = np.bincount(known.ravel(), minlength=len(colours)) / known.size
        coloured = Image.fromarray(colours[known])
        panels[title] = coloured.resize((width, height), Image.Resampling.NEAREST)
    handles = []
    for label, name in enumerate([*classes, "not evaluated"]):
        parts = [f"{title} {share[label]:.1%}" for title, share in shares.items()]
        if label < len(classes) or any(share[label] for share in shares.values()):
            text = f"{name}: {', '.join(parts)}"
            handles.append(Patch(facecolor=colours[label] / 255, edgecolor="black", label=text))
    if len(maps) == 2:
        truth, found = maps.values()
        counted = (truth >= 0) & (truth < len(classes))
        wrong = counted & (truth != found)
        errors = np.where(
            wrong[..., None], WRONG_PIXEL, np.where(counted[..., None], RIGHT_PIXEL, UNLABELLED)
        )
        drawn = Image.fromarray(errors.astype(np.uint8))
        share = f"{wrong.sum() / counted.sum():.1%} of the pixels" if counted.any() else "no pixels"
        panels[f"wrong: {share}"] = drawn.resize((width, height), Image.Resampling.NEAREST)
        for text, colour in {"right pixel": RIGHT_PIXEL, "wrong pixel": WRONG_PIXEL}.items():
            shade = "#{:02x}{:02x}{:02x}".format(*colour)
            handles.append(Patch(facecolor=shade, edgecolor="black", label=text))
    return draw_panels(panels, heading, legend=handles)
