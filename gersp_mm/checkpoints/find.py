"""Finding the checkpoints of a run, and the one to resume from."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gersp_mm.checkpoints.read import StandIn, UntrustedError, read_checkpoint
from gersp_mm.utils.errors import UserError, listed

RUN_ID = "run_id"  # key of a checkpoint's and an export's meta
ATTEMPT = "attempt"  # key of a checkpoint's meta
CONVERTED = "Resume it with the program that wrote it, or start a new run from its weights"


class Progress(NamedTuple):
    """The progress of a checkpoint, and its run.

    Attributes:
        resumable: Whether it holds an optimizer.
        epoch: Epochs trained.
        iteration: Iterations trained.
        run_id: Id of its run; None for checkpoints that were written before runs had ids.
        attempt: How many times the run had been resumed.
    """

    resumable: bool
    epoch: int
    iteration: int
    run_id: str | None
    attempt: int = 0

    @property
    def order(self) -> tuple[bool, int, int, int]:
        """Sort key, greater for a checkpoint further in training.

        The attempt decides before epoch and iteration, because a run that is resumed from an
        earlier checkpoint, or with another batch size, counts from there.
        """
        return self.resumable, self.attempt, self.epoch, self.iteration


class Found(NamedTuple):
    """A checkpoint in a folder."""

    path: Path
    progress: Progress


def latest_checkpoint(
    *folders: str | os.PathLike, warn: Callable[[str], object] = warnings.warn
) -> str | None:
    """Return the undamaged checkpoint that is furthest in training, or None if there is none.

    The epoch and the iteration inside the files decide, because times are lost when a folder is
    copied, files may be renamed, and a killed run may leave MMEngine's ``last_checkpoint`` empty or
    outdated. Checkpoints without an optimizer, such as MMEngine's ``best_*.pth``, are the last
    choice.

    Args:
        folders: Folders of the checkpoints of one run.
        warn: Called with a sentence about each unreadable file that is further in training.

    Raises:
        UserError: Every checkpoint is unreadable, or there are checkpoints of several runs.
    """
    found, unread = find_checkpoints(*folders)
    _refuse_several_runs(found, folders)
    unreadable = [f"a damaged checkpoint: {text}" for text in unread]
    for path, _ in sorted(
        found, key=lambda entry: (entry.progress.order, entry.path), reverse=True
    ):
        try:
            read_checkpoint(path, remedy=CONVERTED)
        except UntrustedError as error:
            unreadable.append(f"a checkpoint that may hold code: {error}")
            continue
        except UserError as error:
            unreadable.append(f"a damaged checkpoint: {error}")
            continue
        for text in unreadable:
            warn(f"passed over {text}")
        return str(path)
    if unreadable:
        raise UserError(
            f"no checkpoint in {listed(folders)} can be read: {'; '.join(unreadable)}. Remove them "
            "to start from the beginning, or name another one"
        )
    return None


def find_checkpoints(*folders: str | os.PathLike) -> tuple[list[Found], list[str]]:
    """Return the checkpoints of trainings in some folders, and the unreadable files.

    Args:
        folders: Folders, which need not exist.

    Returns:
        The checkpoints by path, without exported backbones; and a text about each unreadable file.
    """
    found, unread = [], []
    for folder in dict.fromkeys(Path(folder) for folder in folders):
        for path in sorted(folder.glob("*.pth")):
            try:
                progress = read_progress(path)
            except Exception as error:  # Damaged archives and pickles may raise anything.
                unread.append(f"{path} ({type(error).__name__}: {error})")
                continue
            if progress is not None:
                found.append(Found(path, progress))
    return found, unread


def by_run(found: Iterable[Found]) -> dict[str | None, list[Found]]:
    """Return checkpoints by the id of their run, in the order of training.

    Weights without an optimizer and without an id, such as published ones, belong to no run.
    """
    runs: dict[str | None, list[Found]] = {}
    for entry in sorted(found, key=lambda entry: entry.progress.order[1:]):
        if entry.progress.resumable or entry.progress.run_id is not None:
            runs.setdefault(entry.progress.run_id, []).append(entry)
    return runs


def describe_runs(runs: Mapping[str | None, list[Found]]) -> str:
    """Return a text with the id and the progress of each run."""
    texts = []
    for run_id, entries in runs.items():
        names = list(dict.fromkeys(entry.path.name for entry in entries))
        shown = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        last = entries[-1].progress
        name = f"run {run_id}" if run_id else "a run without an id"
        texts.append(f"{name} ({shown}, epoch {last.epoch}, iteration {last.iteration})")
    return "; ".join(texts)


def _refuse_several_runs(found: Iterable[Found], folders: tuple[str | os.PathLike, ...]) -> None:
    runs = by_run(entry for entry in found if entry.progress.resumable)
    if len(runs) > 1:
        raise UserError(
            f"{listed(folders)} holds checkpoints of {len(runs)} runs: {describe_runs(runs)}. Name "
            "the checkpoint to resume from with --resume PATH"
        )


def read_progress(path: str | os.PathLike) -> Progress | None:
    """Return the progress of a checkpoint.

    This is quick, because the tensors are not read. No code of the file runs.

    Args:
        path: A file of ``torch.save``.

    Returns:
        None for a file that is not a checkpoint of a training, such as an exported backbone.

    Raises:
        Exception: The file is empty, cut off or something else.
    """
    content = read_outline(path)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping) or "state_dict" not in content:
        return None
    epoch, iteration, run_id = (meta.get(name) for name in ("epoch", "iter", RUN_ID))
    attempt = meta.get(ATTEMPT)
    if not isinstance(epoch, int) or not isinstance(iteration, int):
        return None
    return Progress(
        "optimizer" in content,
        epoch,
        iteration,
        run_id if isinstance(run_id, str) else None,
        attempt if isinstance(attempt, int) else 0,
    )


def read_outline(path: str | os.PathLike) -> Any:
    """Return the content of a file of ``torch.save``; stand-ins replace all but plain Python.

    Raises:
        Exception: The file is empty, cut off or something else.
    """
    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if n.partition("/")[2] == "data.pkl")
        with archive.open(name) as file:
            return _Outline(file).load()


class _Outline(pickle.Unpickler):
    """An unpickler of plain Python that replaces all other objects by empty stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        return type(name.rpartition(".")[2], (StandIn,), {})

    def persistent_load(self, pid: Any) -> Any:
        return StandIn()
