"""Keeping the log of a run off the console, for those who watch :class:`WatchHook` there."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a record is more than MMEngine's word on its own future."""
    return "will be deprecated" not in record.getMessage()


class QuietRunner(Runner):
    """A runner whose log goes to its file alone, except for warnings and errors."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger and raise the level of its console handler."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
                handler.addFilter(_is_news)
        return logger
