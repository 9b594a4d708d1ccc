"""Alarms in the output of a healthy run."""

from __future__ import annotations

import re

from output import CRASH, read_output

ALARM = re.compile(r" - (WARNING|ERROR|CRITICAL) -( |$)|^(WARNING|error|ERROR)\b|Warning: ")
FRAME = "!" * 96  # around warnings of several lines, which begin on the line after it
# Messages of the hosts in every run, and messages that are true for every run in one process.
NO_ALARMS = re.compile(
    "|".join(
        (
            r"Failed to search registry with scope",  # MMEngine, of scopes that are not imported
            r"Failed to add <class",  # MMEngine, of visualizers that are there already
            r"The prefix is not set in metric class",  # MMEngine, of hosts' metrics
            r"`Visualizer` backend is not initialized",
            r'"FileClient" will be deprecated',
            r"The model and loaded state dict do not match exactly",  # followed by the names
            r"init_weights of .* has been called more than once",
            r"key_bn='shuffle' (cannot work|has no effect) with one process",
            r"Dataset \w+ has not been (fully )?initialized",
            r"\"HardDiskBackend\" is the alias",
            r"No module named 'mmcv\._ext'",
            r"Gradient accumulative may slightly decrease performance",  # MMEngine, of BatchNorm
            r"site-packages",  # Python warnings of other packages about themselves
            r"`num_anchors` is deprecated",  # mmdet, in every DyHead, as a warning of no category
        )
    )
)


def find_alarms(text: str) -> list[str]:
    """Return the refusals and warnings in an output, each once."""
    found: dict[str, None] = {}
    lines = [message.text for message in read_output(text).messages]
    for number, line in enumerate(lines):
        if not ALARM.search(line):
            continue
        if line.endswith(FRAME) or line.endswith("WARNING -"):
            line = f"{line} {' '.join(lines[number + 1 : number + 4])}"
        if not NO_ALARMS.search(line):
            found.setdefault(re.sub(r"^.* - (WARNING|ERROR|CRITICAL) - !*\s*", "", line))
    if CRASH in text:
        found.setdefault(lines[-1] if lines else CRASH)
    return list(found)
