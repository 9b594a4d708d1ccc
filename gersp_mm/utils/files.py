"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and move it into place when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(TEMPORARY_SUFFIX, f".{path.name}.", path.parent)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "r+b") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def save_atomically(content: Any, path: str | os.PathLike) -> None:
    """``torch.save`` that leaves either the old file or the whole new one."""
    with replacing(path) as temporary:
        torch.save(content, temporary)


def remove_temporaries(folder: str | os.PathLike) -> None:
    """Delete what :func:`replacing` left in ``folder`` when its process was killed."""
    for leftover in Path(folder).glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def append_missing_entries(path: str | os.PathLike, entries: Mapping[str, str]) -> int:
    """Append a line ``key<tab>value`` for each key that the file does not hold yet.

    Safe with several processes at once, and after one that was killed while it wrote.

    Args:
        path: created when it does not exist; its folder has to.
        entries: neither keys nor values may hold a line break, nor values a tab.

    Returns:
        The number of keys that the file now has, whichever process wrote them.
    """
    with open(path, "a+b") as file, _locked(file):
        file.seek(0)
        *lines, unfinished = os.fsdecode(file.read()).split("\n")
        known = {line.rpartition("\t")[0] for line in lines if "\t" in line}
        fresh = [f"{key}\t{value}\n" for key, value in entries.items() if key not in known]
        file.write(os.fsencode("".join(["\n" if unfinished else "", *fresh])))
        file.flush()
        return len(known) + len(fresh)


@contextlib.contextmanager
def _locked(file: Any) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system; one process writes at a time there
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
