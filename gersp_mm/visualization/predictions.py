"""Pictures of test predictions: which images are drawn, by the hosts' hooks or as label maps."""

from __future__ import annotations

import abc
import colorsys
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS as HOST_REGISTRY
from PIL import Image

from gersp_mm.images.decode import load_rgb
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.model import unwrap
from gersp_mm.visualization.features import save_figure

# By default scope, the hook that draws and the visualizer that it needs.
HOST_HOOKS = {
    "mmpretrain": ("mmpretrain.VisualizationHook", "UniversalVisualizer"),
    "mmdet": ("mmdet.DetVisualizationHook", "DetLocalVisualizer"),
    "mmrotate": ("mmdet.DetVisualizationHook", "RotLocalVisualizer"),
}
UNLABELLED = (96, 96, 96)  # Colour of pixels that are not evaluated.
RIGHT, WRONG = (245, 245, 245), (215, 30, 30)  # of the panel that compares two maps
LONGEST = 1024  # Longest side of a panel in pixels.
DPI = 100
SMALLEST_PANEL = 3.0  # Inches.
LEGEND_WIDTH = 32  # Width of an entry, in sizes of its font.
SMALL = 256  # pixels; smaller images of classes are enlarged so that text is readable on them


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
                self.draw(runner, sample, data_batch["inputs"][number], self.out_dir / name)
                self.count += 1

    @abc.abstractmethod
    def draw(self, runner: Any, sample: Any, image: Any, path: Path) -> None:
        """Draw one image.

        Args:
            runner: The MMEngine runner.
            sample: The host's data sample with prediction.
            image: The input tensor before normalisation.
            path: File to write, without its suffix.
        """


class HostPicturesHook(PicturesHook):
    """Let a host's visualization hook draw one image at a time.

    Left to themselves these hooks give two images of one name one file, draw all images, and
    mmpretrain's takes BGR images for RGB.

    Args:
        hook: Visualization hook of mmpretrain or mmdet.
        out_dir: Folder of the pictures.
        max_pictures: Draw at most this many.
    """

    def __init__(self, hook: Any, out_dir: str, max_pictures: int | None) -> None:
        super().__init__(out_dir, max_pictures)
        self.hook = hook

    def before_test_epoch(self, runner: Any) -> None:
        """Choose the images, and complete a palette of too few colours."""
        super().before_test_epoch(runner)
        runner.visualizer.dataset_meta = self.meta

    def draw(self, runner: Any, sample: Any, image: Any, path: Path) -> None:
        """Draw into a separate folder, because the hooks choose the name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            if hasattr(self.hook, "test_out_dir"):
                self.hook.test_out_dir = os.path.abspath(folder)  # a relative one would grow
            else:
                self.hook.out_dir = folder
                factor = max(1, round(SMALL / min(image.shape[1:])))
                self.hook.draw_args["rescale_factor"] = factor
                if unwrap(runner.model).data_preprocessor.to_rgb:
                    image = image.flip(0)
            self.hook.after_test_iter(runner, 0, dict(inputs=[image]), [sample])
            (written,) = Path(folder).iterdir()
            os.replace(written, f"{path}{written.suffix}")


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
        )
        save_figure(picture, path.with_name(f"{path.name}.png"), DPI)


def require_pictures(cfg: Config, config: str) -> None:
    """Make sure that there is a visualizer for the predictions of a config.

    Args:
        cfg: Gets the visualizer of its host where it has a plain one.
        config: Its file, for the message.

    Raises:
        UserError: The predictions of its scope cannot be drawn.
    """
    scope = cfg.get("default_scope")
    if scope != "mmseg" and scope not in HOST_HOOKS:
        raise UserError(
            f"--show-dir: default_scope of {config} is {scope!r}, not one of "
            f"{', '.join([*HOST_HOOKS, 'mmseg'])}"
        )
    visualizer = cfg.get("visualizer") or {}
    plain = ("Visualizer", "mmengine.Visualizer")  # These draw neither boxes nor labels.
    if scope != "mmseg" and visualizer.get("type", plain[0]) in plain:
        cfg.visualizer = dict(visualizer, type=HOST_HOOKS[scope][1])


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
        raise UserError("--show-dir: the hosts draw only in a single process. Start one process.")
    scope = runner.cfg.default_scope
    hook: PicturesHook
    if scope == "mmseg":
        hook = SegmentationPicturesHook(folder, max_pictures)
    else:
        options: dict[str, Any] = dict(draw=True, score_thr=threshold)
        if scope == "mmpretrain":
            options = dict(enable=True, interval=1)
        host = HOST_REGISTRY.build(dict(type=HOST_HOOKS[scope][0], **options))
        hook = HostPicturesHook(host, folder, max_pictures)
    runner.register_hook(hook)
    return hook


def draw_label_maps(
    image: Image.Image,
    maps: Mapping[str, np.ndarray],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Figure:
    """Draw an image and its label maps next to each other, with a legend of the pixels' shares.

    Two maps get a panel more, in which pixels that differ are red.

    Args:
        image: RGB.
        maps: H×W integer labels by title, the ground truth first; labels of no class are grey.
        classes: Names of the classes.
        palette: Colours of the classes, RGB from 0 to 255.
    """
    from matplotlib.patches import Patch

    scale = min(1.0, LONGEST / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    colours = np.array([*palette, UNLABELLED], np.uint8)
    shares, panels = {}, {"image": image.resize((width, height))}
    for title, labels in maps.items():
        known = np.where((labels >= 0) & (labels < len(classes)), labels, len(classes))
        shares[title] = np.bincount(known.ravel(), minlength=len(colours)) / known.size
        coloured = Image.fromarray(colours[known])
        panels[title] = coloured.resize((width, height), Image.Resampling.NEAREST)
    if len(maps) == 2:
        truth, found = maps.values()
        counted = (truth >= 0) & (truth < len(classes))
        wrong = counted & (truth != found)
        errors = np.where(wrong[..., None], WRONG, np.where(counted[..., None], RIGHT, UNLABELLED))
        drawn = Image.fromarray(errors.astype(np.uint8))
        share = f"{wrong.sum() / counted.sum():.1%} of the pixels" if counted.any() else "no pixels"
        panels[f"wrong: {share}"] = drawn.resize((width, height), Image.Resampling.NEAREST)
    handles = []
    for label, name in enumerate([*classes, "not evaluated"]):
        parts = [f"{title} {share[label]:.1%}" for title, share in shares.items()]
        if label < len(classes) or any(share[label] for share in shares.values()):
            text = f"{name}: {', '.join(parts)}"
            handles.append(Patch(facecolor=colours[label] / 255, edgecolor="black", label=text))

    side = max(SMALLEST_PANEL, width / DPI)  # inches
    size = max(9.0, side * 72 / 40)  # points
    columns = max(1, int(len(panels) * side * 72 / size / LEGEND_WIDTH))
    lines = 2 + -(-len(handles) // columns)
    figure = Figure(
        (len(panels) * side, side * height / width + lines * size / 40), DPI, layout="constrained"
    )
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, panel) in zip(axes, panels.items()):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(title, fontsize=size)
        axis.set_xticks([])
        axis.set_yticks([])  # The frame stays: a class may be white.
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=size)
    return figure
