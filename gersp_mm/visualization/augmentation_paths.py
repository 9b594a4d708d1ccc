"""Draw the same random views through every implementation of the augmentation, side by side."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING

from gersp_mm.utils.errors import UserError

if TYPE_CHECKING:  # Help loads neither numpy nor torch.
    import numpy as np

ENLARGE = 32
COLUMNS = ("reference (PIL)", "compiled kernel", "on the device")


def draw_views(paths: list[str], preset: str, size: int) -> list[np.ndarray]:
    """Return the views of every image by reference, kernel and device form.

    Args:
        paths: N image files.
        preset: Preset of :class:`gersp_mm.augmentation.view.ViewAugmentation`.
        size: Side of the views in pixels.

    Returns:
        Three arrays, N×size×size×3, uint8 as int16.

    Raises:
        UserError: Numba is not installed.
    """
    import numpy as np
    import torch

    from gersp_mm.augmentation.device import recolour_batch
    from gersp_mm.augmentation.draw import unpack
    from gersp_mm.datasets import ViewAugmentation, load_pixels
    from gersp_mm.utils.randomness import seed_everything

    images = [load_pixels(path) for path in paths]
    ways = (
        ViewAugmentation(preset, size, colour="workers", engine="pil"),
        ViewAugmentation(preset, size, colour="workers", engine="numba"),
        ViewAugmentation(preset, size, colour="device"),
    )
    views = []
    for way in ways:
        results = []
        for number, image in enumerate(images):
            seed_everything(number)
            results.append(way(dict(img=image)))
        batch = torch.stack([result["img"] for result in results])
        if way.on_device:
            batch = recolour_batch(batch, unpack(np.stack([r["draw"] for r in results])))
        views.append(batch.permute(0, 2, 3, 1).numpy().astype(np.int16))
    return views


def draw(views: list[np.ndarray], out: Path) -> None:
    """Write the grid as one png."""
    import numpy as np

    from gersp_mm.visualization.features import new_figure, save_figure

    enlarged = [np.clip(np.abs(view - views[0]) * ENLARGE, 0, 255) for view in views[1:]]
    most = [int(np.abs(view - views[0]).max()) for view in views[1:]]
    columns = {
        **dict(zip(COLUMNS, views)),
        **{  # A panel of small differences looks black.
            f"{name},\ndifference × {ENLARGE}\n{f'at most {top} of 255' if top else 'none'}": d
            for name, top, d in zip(COLUMNS[1:], most, enlarged)
        },
    }
    rows = len(views[0])
    figure, axes = new_figure(rows, len(columns), (10, 2 * rows + 0.5))
    for column, (name, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=9)
        for axis, picture in zip(axes[:, column], pictures):
            axis.imshow(picture.astype(np.uint8), interpolation="nearest")
            axis.axis("off")
    save_figure(figure, out, dpi=90)


def run(args: argparse.Namespace) -> None:
    """Draw the same views by each engine of the augmentation."""
    import numpy as np

    from gersp_mm.datasets import MillionAID

    dataset = MillionAID(str(args.images))
    if args.rows < 1:
        raise UserError(f"--rows must be at least 1, got {args.rows}")
    numbers = random.Random(0).sample(range(len(dataset)), min(args.rows, len(dataset)))
    paths = [dataset.get_data_info(number)["img_path"] for number in numbers]
    views = draw_views(paths, args.preset, args.size)
    draw(views, args.out)
    for name, view in zip(COLUMNS[1:], views[1:]):
        difference = np.abs(view - views[0])
        share = (difference > 2).mean()
        most = difference.max()
        print(f"{name:16} {share:.4%} of the values differ by more than 2, {most} at most")
    print(f"wrote {args.out}")
