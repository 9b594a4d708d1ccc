"""Counting and listing images that could not be read."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError, check_number, listed
from gersp_mm.utils.files import append_missing_entries, escape_name

SOURCES = {"remote_sensing": "remote-sensing", "natural": "natural"}  # names in messages
_SOURCE = re.compile(rf" \[({'|'.join(SOURCES.values())})\]$")


@HOOKS.register_module()
class BadImageHook(Hook):
    r"""List every unreadable image once in ``<work_dir>/bad_images.txt`` and stop at too many.

    The images themselves were replaced by :class:`gersp_mm.PairedDataset`. A line of the list is
    the path, a tab, the reason and the source in brackets; line breaks, tabs and bytes that are not
    UTF-8 are escaped in it (``\n``, ``\xe9``). A resumed run extends the list; a new run
    replaces it.

    Args:
        max_share: Largest share of unreadable images of either source, in [0, 1].

    Raises:
        UserError: More than ``max_share`` of the images of a source are unreadable.
    """

    priority = "NORMAL"

    def __init__(self, max_share: float = 0.05) -> None:
        check_number("BadImageHook: max_share", max_share, 0, 1, such_as=0.05)
        self.max_share = max_share
        self.known: set[str] = set()

    def before_train(self, runner: Any) -> None:
        """Remove the list of an earlier run, whose images may have been repaired."""
        if runner.rank != 0:
            return
        if runner.iter == 0:
            _listing(runner).unlink(missing_ok=True)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """List the unreadable images that the samples of this batch report."""
        found = {
            path: (SOURCES[source], " ".join(reason.split()))
            for sample in data_batch["data_samples"]
            for source, path, reason in sample.get("bad_images", ())
            if path not in self.known
        }
        if not found:
            return
        self.known.update(found)
        listing = _listing(runner)
        lines = {path: f"{reason} [{source}]" for path, (source, reason) in found.items()}
        entries = append_missing_entries(listing, lines)
        for path, (_, reason) in found.items():
            runner.logger.warning(
                f"unreadable image replaced by the next one: {escape_name(path)} ({reason})"
            )
        counts = _count(entries)
        dataset = runner.train_dataloader.dataset
        files = (
            getattr(getattr(dataset, name, None), "file_count", size)  # scenes, not windows
            for name, size in zip(SOURCES, dataset.sizes)
        )
        totals = dict(zip(SOURCES.values(), files))
        many = [
            f"{counts[source]} of {total} {source} images"
            for source, total in totals.items()
            if counts[source] > self.max_share * total
        ]
        if many:
            raise UserError(
                f"{' and '.join(many)} cannot be read, more than the allowed share of "
                f"{self.max_share:.0%}: repair or remove the files listed in {listing}, or raise "
                "default_hooks.bad_images.max_share"
            )

    def after_train(self, runner: Any) -> None:
        """Log how many images were replaced in the whole run."""
        listing = _listing(runner)
        if listing.exists():
            entries = append_missing_entries(listing, {})
            sources = [f"{count} {source}" for source, count in _count(entries).items()]
            runner.logger.warning(
                f"unreadable images, replaced and listed in {listing}: {len(entries)} "
                f"({listed(sources)})"
            )


def _count(entries: dict[str, str]) -> Counter[str]:
    """Return the number of entries of each source."""
    found = (_SOURCE.search(reason) for reason in entries.values())
    return Counter(match[1] for match in found if match)


def _listing(runner: Any) -> Path:
    return Path(runner.work_dir) / "bad_images.txt"
