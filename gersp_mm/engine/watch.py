"""Keeping the log of a run off the console, where :class:`WatchHook` shows its progress."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a record is not one of MMEngine's deprecation warnings."""
    return "will be deprecated" not in record.getMessage()


class QuietRunner(Runner):
    """A runner whose log goes only to its file, except for warnings and errors."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger and raise the level of its console handler."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
                handler.addFilter(_is_news)
        return logger
