"""Counting and listing images that could not be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError, check_number
from gersp_mm.utils.files import append_missing_entries


@HOOKS.register_module()
class BadImageHook(Hook):
    """List every unreadable image once in ``<work_dir>/bad_images.txt`` and stop if they are many.

    The images themselves were replaced by :class:`gersp_mm.PairedDataset`. A line of the list is
    the path, a tab and the reason. A resumed run goes on with the list, a new one starts it anew.

    Args:
        max_share: stop when more than this share of all images of the run, in [0, 1], turned out
            to be unreadable.

    Raises:
        UserError: more than ``max_share`` of the images are unreadable.
    """

    priority = "NORMAL"

    def __init__(self, max_share: float = 0.05) -> None:
        check_number("BadImageHook: max_share", max_share, 0, 1, such_as=0.05)
        self.max_share = max_share
        self.known: set[str] = set()

    def before_train(self, runner: Any) -> None:
        """Remove the list of an earlier run, whose images may have been mended."""
        if runner.rank == 0 and runner.iter == 0:
            _listing(runner).unlink(missing_ok=True)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Collect what the samples of this batch report."""
        found = {
            path: " ".join(reason.split())
            for sample in data_batch["data_samples"]
            for path, reason in sample.get("bad_images", ())
            if path not in self.known
        }
        if not found:
            return
        self.known.update(found)
        listing = _listing(runner)
        count = append_missing_entries(listing, found)
        for path, reason in found.items():
            runner.logger.warning(f"unreadable image replaced by the next one: {path} ({reason})")
        total = sum(runner.train_dataloader.dataset.sizes)
        if count > self.max_share * total:
            raise UserError(
                f"{count} of {total} images cannot be read, more than the allowed share of "
                f"{self.max_share:.0%}: mend or remove the files listed in {listing}, or raise "
                "default_hooks.bad_images.max_share"
            )

    def after_train(self, runner: Any) -> None:
        """Say how many images were replaced in the whole run."""
        listing = _listing(runner)
        if listing.exists():
            count = append_missing_entries(listing, {})
            runner.logger.warning(f"unreadable images, replaced and listed in {listing}: {count}")


def _listing(runner: Any) -> Path:
    return Path(runner.work_dir) / "bad_images.txt"
