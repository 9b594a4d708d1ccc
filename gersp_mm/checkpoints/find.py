"""Finding the checkpoint to resume from."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gersp_mm.checkpoints.read import StandIn, read_checkpoint
from gersp_mm.utils.errors import UserError


def latest_checkpoint(
    work_dir: str | os.PathLike, warn: Callable[[str], object] = warnings.warn
) -> str | None:
    """Return the whole checkpoint that is furthest in training, or None where there is none.

    The epoch and the iteration in the files themselves decide. Times are lost when a folder is
    copied, names may be changed, and MMEngine's ``last_checkpoint`` note is left empty or behind
    by a run that is killed at the wrong moment. Checkpoints without an optimizer, such as
    MMEngine's ``best_*.pth``, come after those with one.

    Args:
        work_dir: Folder of the checkpoints.
        warn: Called with one sentence about each damaged file that is further in training.

    Raises:
        UserError: Every checkpoint of the folder is damaged.
    """
    ranked, damaged = [], []
    for path in sorted(Path(work_dir).glob("*.pth")):
        try:
            progress = read_progress(path)
        except Exception as error:  # of files, zip archives and pickles
            damaged.append(f"{path} ({type(error).__name__}: {error})")
            continue
        if progress is not None:
            ranked.append((progress, path))
    for _, path in sorted(ranked, reverse=True):
        try:
            read_checkpoint(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        for text in damaged:
            warn(f"passed over a damaged checkpoint: {text}")
        return str(path)
    if damaged:
        raise UserError(
            f"no checkpoint in {work_dir} is whole: {'; '.join(damaged)}. Remove them to start "
            "from the beginning, or name another one"
        )
    return None


def read_progress(path: str | os.PathLike) -> tuple[bool, int, int] | None:
    """Return whether a checkpoint holds an optimizer, its epoch and its iteration.

    The names in the file are read and its tensors are not, so that this is quick. No code of the
    file runs.

    Args:
        path: A file of ``torch.save``.

    Returns:
        None for a file that is no checkpoint of a training, such as an exported backbone.

    Raises:
        Exception: The file is empty, cut off or something else.
    """
    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if n.partition("/")[2] == "data.pkl")
        with archive.open(name) as file:
            content = _Outline(file).load()
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping) or "state_dict" not in content:
        return None
    epoch, iteration = meta.get("epoch"), meta.get("iter")
    if not isinstance(epoch, int) or not isinstance(iteration, int):
        return None
    return "optimizer" in content, epoch, iteration


class _Outline(pickle.Unpickler):
    """Reads plain Python alone; everything else becomes an empty stand-in."""

    def find_class(self, module: str, name: str) -> Any:
        return type(name.rpartition(".")[2], (StandIn,), {})

    def persistent_load(self, pid: Any) -> Any:
        return StandIn()
