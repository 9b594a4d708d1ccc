"""Results as data: one JSON object a line, see ``results/README.md``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import locked

FIELDS = (
    "dataset", "protocol", "model", "metric", "value", "seed", "pretraining", "checkpoint_sha256",
    "config", "commit", "hardware", "versions", "seconds",
)  # fmt: skip


def append_rows(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a file, all or none of them.

    Safe with several processes at once. A last line that a killed process left unfinished is
    removed.

    Args:
        path: a ``.jsonl`` file; made with its folder if need be.
        rows: with exactly the :data:`FIELDS`.

    Raises:
        UserError: a row has other fields, or no finite value.
    """
    lines = []
    for row in rows:
        _check_row(row, f"row for {path}")
        lines.append(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file, locked(file):
        file.seek(0)
        content = file.read()
        whole, unfinished = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        end = b""
        if unfinished:
            try:
                json.loads(unfinished)
                end = b"\n"  # a file that was edited by hand
            except ValueError:
                file.truncate(len(whole))
        file.write(end + "".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read a file of :func:`append_rows`.

    Raises:
        UserError: there is no such file, or a line is no row; with the number of the line.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no results file {path}")
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where} is no JSON ({error}): mend or remove it") from None
            _check_row(row, where)
            rows.append(row)
    return rows


def _check_row(row: Any, where: str) -> None:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: not an object but {row!r}")
    differing = [f"{name} is missing" for name in FIELDS if name not in row]
    differing += [f"{name} is no field of a row" for name in row if name not in FIELDS]
    if differing:
        raise UserError(f"{where}: {'; '.join(differing)}")
    value = row["value"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: value must be a finite number, got {value!r}")
