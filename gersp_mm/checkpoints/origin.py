"""The note about the file that a run starts from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gersp_mm.utils.files import file_sha256


def origin_of(path: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts about the file that a run starts from, for the run's checkpoints.

    Args:
        path: Path of the file; the hash is None for a file in another storage.
        meta: The file's ``meta``.
    """
    sha256 = file_sha256(path) if os.path.isfile(path) else None
    names = ("method", "arch", "epoch")
    facts = {name: meta[name] for name in ("iterations", "statistics") if name in meta}
    return dict(path=str(path), sha256=sha256, **{name: meta.get(name) for name in names}, **facts)
