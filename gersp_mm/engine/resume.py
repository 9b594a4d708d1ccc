"""The checkpoint that a run is resumed from, and old files in the folders of a new run."""

from __future__ import annotations

import os
import os.path as osp
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook

from gersp_mm.checkpoints.find import (
    RUN_ID,
    by_run,
    describe_runs,
    find_checkpoints,
    latest_checkpoint,
    read_outline,
)
from gersp_mm.checkpoints.resume import require_training_state
from gersp_mm.engine.checkpoint_loading import read_weights
from gersp_mm.engine.runs import together
from gersp_mm.utils.errors import UserError, listed

# The name of a checkpoint in the text about an unreadable file, up to the reason in brackets.
SAVED = re.compile(r"[/\\](epoch|iter|best)_[^/\\]*\.pth \(")
AUTO = "auto"  # resume if there is a checkpoint, else start a new run


def choose_checkpoint(cfg: Config, given: str | bool | None, overwrite: bool = False) -> list[Path]:
    """Set ``cfg.resume`` and ``cfg.load_from`` to the checkpoint that a run is resumed from.

    Rank 0 decides for all processes. Every process has to call this.

    Args:
        cfg: Changed in place; its ``resume`` and ``load_from`` are used if ``given`` is None.
        given: A path; True for the checkpoint of this run that is furthest in training;
            ``'auto'`` for the same, or a new run if there is no checkpoint; None for a new run.
        overwrite: Whether a new run may replace an old one.

    Returns:
        Files of old runs, to be removed when the new run starts.

    Raises:
        UserError: The file does not exist, is damaged or is not a checkpoint of a training; there
            is no checkpoint; or a new run would be mixed with an old one.
    """
    chosen: list[Any] = [None, []]
    with together():
        if is_main_process():
            chosen = list(_choose(cfg, given, overwrite))
    broadcast_object_list(chosen)
    path, replaced = chosen
    if path is not None:
        cfg.resume, cfg.load_from = True, path
    else:
        cfg.resume = False
    return replaced


def _choose(
    cfg: Config, given: str | bool | None, overwrite: bool
) -> tuple[str | None, list[Path]]:
    """Return the checkpoint to resume from, or None, and the files that a new run replaces."""
    if given is None and cfg.get("resume"):
        given = cfg.get("load_from") or AUTO
    if given is not None and overwrite:
        raise UserError(
            "--overwrite starts a new run, and --resume continues an old one. Give one of the two."
        )
    if given is not None and cfg.get("load_from") and not cfg.get("resume"):
        raise UserError(
            f"--resume continues a run with its own weights, and load_from={cfg.load_from} starts "
            "a new one from others. Give one of the two."
        )
    folders = run_folders(cfg)
    if given is None:
        old = _make_room(folders, overwrite)
        if not old and not overwrite:
            _keep_export(cfg)
        _keep_start(cfg, old)
        return None, old
    if given in (True, AUTO):
        found = latest_checkpoint(*folders, warn=lambda text: _say(f"warning: {text}"))
        if found is None and given is True:
            raise UserError(
                f"--resume: there is no checkpoint in {listed(folders)}. Name one with --resume "
                "PATH, or leave --resume out; --resume auto starts a new run if there is none"
            )
        if found is None:
            print(f"--resume auto: no checkpoint in {listed(folders)} yet, starting a new run")
            return None, _make_room(folders, False)
        given = found
    path = str(given)
    if not os.path.exists(path) and "://" not in path:
        raise UserError(f"--resume: there is no checkpoint {path}")
    require_training_state(read_weights(path), path)
    _refuse_other_runs(path, folders)
    return path, []


def run_folders(cfg: Config) -> list[str]:
    """Return the folders that a run writes checkpoints to: the hook's, and the work directory."""
    folders = (checkpoint_folder(cfg), cfg.work_dir)
    return list(dict.fromkeys(f if "://" in f else osp.normpath(f) for f in folders))


def checkpoint_folder(cfg: Config) -> str:
    """Return the folder that MMEngine's checkpoint hook writes to."""
    out_dir = (cfg.get("default_hooks", {}).get("checkpoint") or {}).get("out_dir")
    if out_dir is None or out_dir == cfg.work_dir:
        return cfg.work_dir
    return osp.join(out_dir, osp.basename(cfg.work_dir.rstrip(osp.sep)))


def _make_room(folders: list[str], overwrite: bool) -> list[Path]:
    """Return the files of old runs; refuse them unless they may be replaced."""
    found, unread = find_checkpoints(*folders)
    unread = [text for text in unread if SAVED.search(text)]
    if unread and not overwrite:
        raise UserError(
            f"there may be checkpoints of another run, which cannot be read: {listed(unread)}. "
            "Remove them, replace them with --overwrite, or choose another folder with --work-dir"
        )
    runs = by_run(found)
    if runs and not overwrite:
        resumable = any(entry.progress.resumable for entries in runs.values() for entry in entries)
        advice = "Continue it with --resume, replace" if resumable else "Replace"
        raise UserError(
            f"there are checkpoints of another run in {listed(folders)}: {describe_runs(runs)}. "
            f"{advice} its checkpoints with --overwrite, or choose another folder with --work-dir"
        )
    old = [entry.path for entries in runs.values() for entry in entries]
    return [*old, *_exports(folders, {run_id for run_id in runs if run_id is not None})]


def _keep_export(cfg: Config) -> None:
    """Refuse to replace the exported backbone of a run whose checkpoints are not in the folder.

    :func:`_make_room` handles exports next to the checkpoints of their run.
    """
    hook = cfg.get("default_hooks", {}).get("export_backbone")
    if not hook or not cfg.filename:
        return
    path = osp.join(cfg.work_dir, f"{Path(cfg.filename).stem}_backbone.pth")
    if (run_id := _meta(path).get(RUN_ID)) is not None:
        raise UserError(
            f"{path} is the backbone of another run ({run_id}), and would be replaced. Replace it "
            "with --overwrite, or choose another folder with --work-dir"
        )


def _keep_start(cfg: Config, old: Iterable[Path]) -> None:
    """Refuse to remove the file that the new run starts from."""
    for key in ("load_from", "pretrained"):
        path = cfg.get(key)
        if path and any(osp.realpath(path) == osp.realpath(entry) for entry in old):
            raise UserError(
                f"--overwrite would remove {path}, from which {key} starts the run. Copy it to "
                "another folder first."
            )


def _exports(folders: list[str], run_ids: set[str]) -> list[Path]:
    """Return the exported backbones of some runs."""
    paths = [path for folder in folders for path in sorted(Path(folder).glob("*.pth"))]
    metas = {path: _meta(path) for path in paths}
    return [p for p in paths if "weights_sha256" in metas[p] and metas[p].get(RUN_ID) in run_ids]


def _refuse_other_runs(path: str, folders: list[str]) -> None:
    """Refuse to continue a run in a folder that only holds the checkpoints of others."""
    inside = any(osp.realpath(osp.dirname(path)) == osp.realpath(folder) for folder in folders)
    if inside or not osp.exists(path):
        return
    others = by_run(find_checkpoints(*folders)[0])
    others.pop(_meta(path).get(RUN_ID), None)
    if others:
        raise UserError(
            f"--resume: there are checkpoints of another run than {path} in {listed(folders)}: "
            f"{describe_runs(others)}. Choose another folder with --work-dir"
        )


def _meta(path: str | Path) -> Mapping[str, Any]:
    """Return the ``meta`` of a file; empty where there is none that can be read."""
    try:
        meta = read_outline(path)["meta"]
    except Exception:  # There is no such file, or it is of another format.
        return {}
    return meta if isinstance(meta, Mapping) else {}


class ReplaceHook(Hook):
    """Remove the files of an old run when all checks before the first iteration have passed."""

    priority = "LOWEST"

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = list(paths)

    def before_train(self, runner: Any) -> None:
        """Remove the files, and each ``last_checkpoint`` that names one of them."""
        with together():
            if is_main_process():
                for path in self.paths:
                    path.unlink(missing_ok=True)
                for folder in {path.parent for path in self.paths} | {Path(runner.work_dir)}:
                    _remove_note(folder / "last_checkpoint")
        names = [str(path) for path in self.paths]
        runner.logger.warning(f"--overwrite: removed {listed(names, 10)} of an older run")


def _remove_note(note: Path) -> None:
    if note.is_file() and not osp.exists(note.read_text(encoding="utf-8", errors="replace")):
        note.unlink()


def _say(text: str) -> None:
    print(text, file=sys.stderr)
