"""Keep a line that the OpenMMLab libraries print when they are imported away from the output."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# Each prints that its optional data sets of OneDL cannot be imported.
MODULES = (
    "mmpretrain.datasets", "mmdet.datasets", "mmdet.datasets.transforms", "mmseg.datasets",
    "mmseg.datasets.transforms", "mmrotate.datasets",
)  # fmt: skip
STRAY = "Could not import OneDL"


class _Finder(MetaPathFinder):
    """Finds :data:`MODULES` as Python does, and lets them run without the line."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in MODULES else None
        if spec is not None and spec.loader is not None:
            run = partial(_run_quietly, spec.loader.exec_module)
            setattr(spec.loader, "exec_module", run)  # noqa: B010  # of this loader alone
        return spec


def _run_quietly(run: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Run a module; lines other than the stray one are printed when it has run."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            run(module)
    finally:
        for line in said.getvalue().splitlines():
            if line.startswith(STRAY):
                logging.getLogger(__name__).debug("%s: %s", module.__name__, line)
            else:
                print(line)


def keep_stray_lines_away() -> None:
    """Register the finder. A second call does nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
