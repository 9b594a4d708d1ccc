"""Counting and listing images that could not be read."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmengine.hooks import Hook

from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import append_missing_lines


@HOOKS.register_module()
class BadImageHook(Hook):
    """List every unreadable image once in ``<work_dir>/bad_images.txt`` and stop if they are many.

    The images themselves were replaced by :class:`gersp_mm.PairedDataset`.

    Args:
        max_share: stop when more than this share of all images of the run, in [0, 1], turned out
            to be unreadable.

    Raises:
        UserError: more than ``max_share`` of the images are unreadable.
    """

    priority = "NORMAL"

    def __init__(self, max_share: float = 0.05) -> None:
        self.max_share = max_share
        self.known: set[str] = set()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Collect what the samples of this batch report."""
        found = {
            path: reason
            for sample in data_batch["data_samples"]
            for path, reason in sample.get("bad_images", ())
            if path not in self.known
        }
        if not found:
            return
        self.known.update(found)
        listing = osp.join(runner.work_dir, "bad_images.txt")
        lines = [f"{path}\t{' '.join(reason.split())}" for path, reason in found.items()]
        count = append_missing_lines(listing, lines)
        for line in lines:
            runner.logger.warning(f"unreadable image replaced by the next one: {line}")
        total = sum(runner.train_dataloader.dataset.sizes)
        if count > self.max_share * total:
            raise UserError(
                f"{count} of {total} images cannot be read, more than the allowed share of "
                f"{self.max_share:.0%}: mend or remove the files listed in {listing}, or raise "
                "default_hooks.bad_images.max_share"
            )

    def after_train(self, runner: Any) -> None:
        """Say how many images were replaced in the whole run."""
        if self.known:
            listing = osp.join(runner.work_dir, "bad_images.txt")
            runner.logger.warning(f"{len(self.known)} unreadable images are listed in {listing}")
