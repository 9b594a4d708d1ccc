"""The pixel scale of rasters: found before the first step and kept with the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook

from gersp_mm.datasets.loading import PIXEL_SCALE, scales_of
from gersp_mm.engine.hooks.bad_images import SOURCES
from gersp_mm.images.pixels import PixelScale
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import write_text


@HOOKS.register_module()
class PixelScaleHook(Hook):
    """Find the scale that maps the values of rasters to grey levels, before the first step.

    Rank 0 finds the scale of each source in a sample of its images, and all ranks use it. The scale
    is logged, written to ``<work_dir>/pixel_scale.json``, kept in ``meta['pixel_scale']`` of every
    checkpoint and used again when the run is resumed. The exported backbone holds the scale of the
    remote-sensing images. A run on photographs alone has no scale. A run that is resumed from a
    checkpoint of an older version, which holds no scale, warns that its values change.

    Raises:
        UserError: The rasters need a choice of bands; or the run is resumed with another scale
            or other bands.
    """

    priority = "ABOVE_NORMAL"  # before any hook reads an image

    def __init__(self) -> None:
        self._kept: dict[str, PixelScale] = {}
        self._resumed = False

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Read the scales that the run used before."""
        if runner._resume:
            self._resumed, self._kept = True, scales_of(checkpoint["meta"])

    def before_train(self, runner: Any) -> None:
        """Find the scale of each source, and log it."""
        dataset = runner.train_dataloader.dataset
        for name, words in SOURCES.items():
            source: Any = getattr(dataset, name, None)
            if not hasattr(source, "asked_scale"):
                continue
            known = name in self._kept
            if known:
                _require_same(name, self._kept[name], source.asked_scale)
                source.pixel_scale = self._kept[name]
            else:
                found = [source.pixel_scale if runner.rank == 0 else None]
                broadcast_object_list(found)
                source.pixel_scale = found[0]
            if source.pixel_scale.limits:
                if self._resumed and not known:
                    runner.logger.warning(
                        f"the checkpoint holds no pixel scale of the {words} images: if the run "
                        "read these rasters before, it used their high bytes, on another scale "
                        "of values than from now on. Start a new run for one scale throughout"
                    )
                self._kept[name] = source.pixel_scale
                for line in source.pixel_scale.describe():
                    runner.logger.info(f"pixel scale of the {words} images: {line}")
        if self._kept and runner.rank == 0:
            text = json.dumps(self._content(), indent=2)
            write_text(Path(runner.work_dir) / "pixel_scale.json", text)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the scales to the checkpoint."""
        if self._kept:
            checkpoint["meta"][PIXEL_SCALE] = self._content()

    def _content(self) -> dict[str, dict[str, Any]]:
        return {name: scale.as_dict() for name, scale in self._kept.items()}


def _require_same(name: str, kept: PixelScale, asked: PixelScale) -> None:
    if (kept.scale, kept.bands) != (asked.scale, asked.bands):
        raise UserError(
            f"train_dataloader.dataset.{name}: the run used scale={kept.scale!r} and "
            f"bands={kept.bands}, but the config asks for scale={asked.scale!r} and "
            f"bands={asked.bands}. Resume with the former, or start a new run with load_from"
        )
