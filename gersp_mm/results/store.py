"""Result files: one JSON object per line, see ``results/README.md``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from gersp_mm.results.row import Row
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import locked
from gersp_mm.utils.validation import validated


def append_rows(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Append rows to a file, all of them or none.

    Several processes may append at once. A last line that a killed process left unfinished is
    removed.

    Args:
        path: A ``.jsonl`` file. If it does not exist, it and its folder are created.
        rows: The rows.
    """
    text = "".join(json.dumps(row.as_dict(), ensure_ascii=False) + "\n" for row in rows)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file, locked(file):
        file.seek(0)
        content = file.read()
        whole, unfinished = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        end = b""
        if unfinished:
            try:
                json.loads(unfinished)
                end = b"\n"  # The file was edited by hand and has no newline at its end.
            except ValueError:
                file.truncate(len(whole))
        file.write(end + text.encode())
        file.flush()
        os.fsync(file.fileno())


def append_new_rows(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Append the rows that a file does not hold already.

    Args:
        path: A ``.jsonl`` file. It is created with its folder where it does not exist.
        rows: The rows. One is left out if the file has a row with its identity and value.

    Raises:
        UserError: The file holds a line that is no row.
    """
    known = [(row.identity, row.value) for row in read_rows(path)] if os.path.isfile(path) else []
    append_rows(path, [row for row in rows if (row.identity, row.value) not in known])


def read_rows(path: str | os.PathLike) -> list[Row]:
    """Read a result file of this version or of an earlier one.

    A line without ``schema_version`` becomes a row whose protocol is the line's sentence.

    Raises:
        UserError: The file does not exist, or a line holds no row. The message names the line, each
            wrong field, and the value that is expected there.
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
                content = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{where} is not valid JSON ({error}). Fix or remove the line."
                ) from None
            rows.append(validated(Row, content, where))
    return rows
