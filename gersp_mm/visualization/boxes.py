"""Draw annotated boxes and the boxes of several detectors next to each other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gersp_mm.visualization.features import save_figure


def draw_scenes(
    coco: Mapping[str, Any],
    images: Path,
    predictions: Mapping[str, Path],
    threshold: float,
    out: Path,
) -> None:
    """Draw the most crowded image of every scene: its annotation, then each detector's boxes.

    Args:
        coco: Annotations in COCO's format. A file is called ``<scene>_x<left>_y<top>``.
        images: Folder that the file names of ``coco`` start from.
        predictions: File in COCO's result format for each detector.
        threshold: Predictions with a higher score are drawn.
        out: The png to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle
    from PIL import Image

    boxes = {"annotated": list(coco["annotations"])}
    for name, path in predictions.items():
        found = json.loads(path.read_text(encoding="utf-8"))
        boxes[name] = [entry for entry in found if entry["score"] > threshold]
    counts = Counter(entry["image_id"] for entry in coco["annotations"])
    crowded = {
        Path(image["file_name"]).stem.split("_x")[0]: image
        for image in sorted(coco["images"], key=lambda image: counts[image["id"]])
    }
    size = (3 * len(boxes), 3.2 * len(crowded) + 0.5)
    figure, axes = plt.subplots(
        len(crowded), len(boxes), figsize=size, squeeze=False, layout="constrained"
    )
    for row, (scene, image) in zip(axes, sorted(crowded.items())):
        with Image.open(images / image["file_name"]) as opened:
            pixels = opened.convert("RGB")
        for axis, (name, entries) in zip(row, boxes.items()):
            drawn = [entry["bbox"] for entry in entries if entry["image_id"] == image["id"]]
            axis.imshow(pixels)
            for left, top, width, height in drawn:
                axis.add_patch(Rectangle((left, top), width, height, fill=False, color="yellow"))
            axis.set_title(f"{name}: {len(drawn)}", fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(scene, fontsize=9)
    figure.suptitle(
        "The most crowded test tile of each scene, with the number of boxes; predictions above a "
        f"score of {threshold:g}",
        fontsize=10,
    )
    save_figure(figure, out)
    plt.close(figure)
