"""The note in a run of the file that it starts from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gersp_mm.utils.files import file_sha256


def origin_of(path: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run notes of the file that it starts from.

    Args:
        path: The file; its hash is None where it lies in another storage than the file system.
        meta: The file's ``meta``.
    """
    sha256 = file_sha256(path) if os.path.isfile(path) else None
    names = ("method", "arch", "epoch")
    facts = {name: meta[name] for name in ("iterations", "statistics") if name in meta}
    return dict(path=str(path), sha256=sha256, **{name: meta.get(name) for name in names}, **facts)
