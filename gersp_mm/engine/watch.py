"""Keeping the log of a run off the console, where :class:`WatchHook` shows its progress."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a record is not one of MMEngine's deprecation warnings."""
    return "will be deprecated" not in record.getMessage()


class KeepingRunner(Runner):
    """A runner that does not replace a config of the user that lies in the work directory.

    MMEngine would write what was run over it, with ``load_from`` and ``resume`` of this start; that
    is in ``vis_data/config.py`` too.
    """

    def dump_config(self) -> None:
        """Write the config to the work directory, unless its own file lies there."""
        folder = Path(self.cfg.filename or "").resolve().parent
        if self.cfg.filename is None or folder != Path(self.work_dir).resolve():
            super().dump_config()


class QuietRunner(KeepingRunner):
    """A runner whose log goes only to its file, except for warnings and errors."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger and raise the level of its console handler."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
                handler.addFilter(_is_news)
        return logger
