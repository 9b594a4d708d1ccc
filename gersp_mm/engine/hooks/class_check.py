"""A check that annotation files have the classes of the config."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop

from gersp_mm.datasets.annotations import PARTS, check_data
from gersp_mm.registry import HOOKS


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Compare the classes of annotation files with the config's before the first iteration.

    mmdet skips classes that a file does not have and numbers the others in the order of the file.
    This hook stops a run whose labels would be shifted. Classes that a config omits are named
    and counted in the log. See :func:`gersp_mm.datasets.annotations.check_data`.

    Raises:
        UserError: The classes differ.
    """

    priority = "VERY_HIGH"

    def before_run(self, runner: Any) -> None:
        """Check the annotation files of every loop of the run."""
        parts = [p for p in PARTS if isinstance(getattr(runner, f"_{p}_loop"), BaseLoop)]
        for note in check_data(runner.cfg, parts):
            runner.logger.warning(note)
