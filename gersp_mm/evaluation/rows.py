"""The earlier interface of :mod:`gersp_mm.results`, in which rows are dicts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from gersp_mm import results
from gersp_mm.utils.validation import validated


def append_rows(path: str | os.PathLike, rows: Iterable[Mapping[str, Any] | results.Row]) -> None:
    """Append rows to a file, see :func:`gersp_mm.results.append_rows`.

    Raises:
        UserError: A field of a row is missing, unknown or wrong.
    """
    typed = [validated(results.Row, row, f"row {number}") for number, row in enumerate(rows, 1)]
    results.append_rows(path, typed)


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read a result file, see :func:`gersp_mm.results.read_rows`."""
    return [row.as_dict() for row in results.read_rows(path)]
