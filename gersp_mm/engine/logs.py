"""The logs of a resumed run, which continue at the iteration of its checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from gersp_mm.engine.hooks.checkpoint_check import CheckpointCheckHook
from gersp_mm.engine.runs import SCALARS, SUPERSEDED, read_run, read_scalars, together
from gersp_mm.engine.trackers import Tracker
from gersp_mm.utils.errors import listed
from gersp_mm.utils.files import write_text


def cut_back(work_dir: Path, iteration: int, current: Path) -> list[Path]:
    """Remove the lines after an iteration from the scalar files of a run's earlier starts.

    The lines are moved to ``*.superseded.json`` next to each file, so that nothing is lost. The
    logs of older runs in the folder do not change.

    Args:
        work_dir: The run's work directory.
        iteration: The iteration of the checkpoint from which the run resumes.
        current: The ``vis_data`` folder of this start.

    Returns:
        The files that were shortened.
    """
    files = [file for file in sorted(work_dir.glob(SCALARS)) if file.parent != current]
    shortened = []
    for number in reversed(range(len(files))):
        for file in [files[number], _twin(files[number])]:
            if file.is_file() and _cut(file, _kept(file, files[:number], iteration)):
                shortened.append(file)
        if _begins_a_run(files[number], files[:number]):
            break
    return shortened


def _twin(scalars: Path) -> Path:
    """Return the second file into which MMEngine's ``LoggerHook`` writes the same lines."""
    return scalars.with_name(f"{scalars.parent.parent.name}.json")


def _kept(file: Path, earlier: list[Path], iteration: int) -> int:
    own = len(read_scalars(file))
    return sum(place <= iteration for place, _ in read_run([*earlier, file])[-own:]) if own else 0


def _begins_a_run(file: Path, earlier: list[Path]) -> bool:
    return bool(read_scalars(file)) and len(read_run([*earlier, file])) == len(read_scalars(file))


def _cut(file: Path, entries: int) -> bool:
    """Keep the first entries of a file, and move all other bytes to the file next to it."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept, left = lines[:entries], lines[entries:]
    if not left:
        return False
    with open(file.with_suffix(SUPERSEDED), "a", encoding="utf-8", newline="\n") as superseded:
        superseded.writelines(line.rstrip("\n") + "\n" for line in left)
        superseded.flush()
        os.fsync(superseded.fileno())
    write_text(file, "".join(kept))
    return True


class ContinueLogsHook(Hook):
    """Continue the logs of a resumed run at the iteration of its checkpoint."""

    priority = "LOWEST"  # after all checks

    def __init__(self) -> None:
        self._trackers: list[Tracker] = []

    def before_train(self, runner: Any) -> None:
        """Move lines that were logged after the checkpoint, and open the trackers."""
        done = runner.iter if runner._resume else 0
        with together():
            if runner.rank == 0:
                self._cut_back(runner, done)
                backends = runner.visualizer._vis_backends.values()
                self._trackers = [entry for entry in backends if isinstance(entry, Tracker)]
                ids = [h.run_id for h in runner.hooks if isinstance(h, CheckpointCheckHook)]
                for tracker in self._trackers:
                    tracker.begin(next(iter(ids), None), Path(runner.work_dir), done)

    @staticmethod
    def _cut_back(runner: Any, done: int) -> None:
        current = Path(runner.log_dir) / "vis_data"
        files = cut_back(Path(runner.work_dir), done, current) if done else []
        if files:
            runner.logger.info(
                f"moved the lines logged after iteration {done} to *{SUPERSEDED} next to "
                f"{listed([str(file) for file in files])}"
            )

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Let the trackers write the previous iteration."""
        for tracker in self._trackers:
            tracker.commit()
