"""Recording the census of a run's scenes, and noticing when one of them changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from gersp_mm.engine.hooks.bad_images import SOURCES
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import append_missing_entries, escape_name, write_text

CENSUS = "census"  # key of a checkpoint's meta


@HOOKS.register_module()
class CensusHook(Hook):
    """Record the census of :class:`gersp_mm.Scenes` with the run.

    The census is written to ``<work_dir>/census.json``, and unusable scenes are listed in
    ``<work_dir>/bad_images.txt``. Every checkpoint holds a fingerprint of each scene, by which a
    resumed run notices that a scene changed. A run without scenes has no census.

    Raises:
        UserError: The run is resumed and scenes were added, removed or replaced.
    """

    priority = "LOW"  # after BadImageHook, which starts the list

    def __init__(self) -> None:
        self._before: dict[str, dict[str, str]] | None = None

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Read the fingerprints from the start of the run."""
        if runner._resume:
            self._before = checkpoint["meta"].get(CENSUS)

    def before_train(self, runner: Any) -> None:
        """Compare the scenes with those at the start of the run, and write the census."""
        sources = _scenes(runner)
        if self._before is not None:
            _require_same(self._before, _fingerprints(sources))
        if runner.rank != 0 or not sources:
            return
        content = {name: source.census() for name, source in sources.items()}
        text = json.dumps(content, indent=1, default=str)
        write_text(Path(runner.work_dir) / "census.json", text)
        for name, source in sources.items():
            lines = {path: f"{why} [{SOURCES[name]}]" for path, why in source.bad.items()}
            if lines:
                append_missing_entries(Path(runner.work_dir) / "bad_images.txt", lines)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the fingerprints to the checkpoint."""
        if sources := _scenes(runner):
            checkpoint["meta"][CENSUS] = _fingerprints(sources)


def _scenes(runner: Any) -> dict[str, Any]:
    """Return the sources of a run that read scenes."""
    dataset = runner.train_dataloader.dataset
    sources = {name: getattr(dataset, name, None) for name in SOURCES}
    return {name: source for name, source in sources.items() if hasattr(source, "census")}


def _fingerprints(sources: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {name: source.fingerprints() for name, source in sources.items()}


def _require_same(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> None:
    for name in before.keys() | now.keys():
        old, new = before.get(name, {}), now.get(name, {})
        changed = [
            path for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)
        ]
        if changed:
            raise UserError(
                f"train_dataloader.dataset.{name}: {len(changed)} scenes were added, removed or "
                f"replaced since the run began: {listed([escape_name(p) for p in changed])}. Put "
                "them back, or start a new run with load_from"
            )
