"""Failing early where a file's classes are not the config's."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop

from gersp_mm.datasets.annotations import PARTS, check_data
from gersp_mm.registry import HOOKS


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Compare the classes of annotation files with the config's before the first iteration.

    mmdet passes over names that a file does not have and numbers the others in the order of the
    file; this hook stops a run whose labels would be shifted, in whichever tool it was started.
    Classes that a config leaves out are named and counted in the log. See
    :func:`gersp_mm.datasets.annotations.check_data`.

    Raises:
        UserError: classes differ.
    """

    priority = "VERY_HIGH"

    def before_run(self, runner: Any) -> None:
        """Look at the files of the loops that this run has."""
        parts = [p for p in PARTS if isinstance(getattr(runner, f"_{p}_loop"), BaseLoop)]
        for note in check_data(runner.cfg, parts):
            runner.logger.warning(note)
