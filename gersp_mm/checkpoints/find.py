"""Finding the checkpoint to resume from."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path


def latest_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """Return the newest whole training checkpoint in a work directory, or None.

    The files themselves are looked at, not MMEngine's ``last_checkpoint`` note, which a run killed
    at the wrong moment leaves empty or behind.
    """
    folder = Path(work_dir)
    candidates = [*folder.glob("epoch_*.pth"), *folder.glob("iter_*.pth")]
    for path in sorted(candidates, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        if zipfile.is_zipfile(path):
            return str(path)
    return None
