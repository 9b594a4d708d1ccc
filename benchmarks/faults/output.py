"""The messages in the output of a run, and the step at which each was printed."""

from __future__ import annotations

import re
from typing import NamedTuple

MARKER = re.compile(r"\[faults\] step (\d+) begins")
STAMP = re.compile(r"\d\d/\d\d \d\d:\d\d:\d\d - ")
# Blocks of MMEngine's log that repeat the config or the machine, and lines of numbers. A value that
# is only repeated in such a block is not a message about the value.
DUMPS = (
    "Config:", "Hooks will be executed in the following order:", "System environment:",
    "Runtime environment:",
)  # fmt: skip
NUMBERS = re.compile(r"Epoch\((train|val|test)\)|Iter\((train|val|test)\)")
CRASH = "Traceback (most recent call last)"


class Message(NamedTuple):
    """A line of output.

    Attributes:
        step: Number of the step that had begun; 0 before the first.
        text: The line.
    """

    step: int
    text: str


class Output(NamedTuple):
    """The output of a run.

    Attributes:
        messages: All lines but dumps of the config, numbers of steps and frames of stack traces.
        crashed: Whether there is a stack trace.
    """

    messages: list[Message]
    crashed: bool


def read_output(text: str) -> Output:
    """Read standard output and standard error of a run."""
    messages: list[Message] = []
    step, dump, trace = 0, False, False
    for line in re.split(r"\r\n|[\n\r]", text):
        if not line.strip():
            dump = False
            continue
        if marker := MARKER.search(line):
            step, dump, trace = int(marker[1]), False, False
            continue
        if STAMP.match(line):
            dump, trace = line.endswith(DUMPS), False
        elif line.strip() in DUMPS:  # below a rule
            dump = True
        if line.startswith(CRASH):
            dump, trace = False, True
            continue
        if trace and line.startswith(" "):
            continue
        if dump or NUMBERS.search(line):
            continue
        messages.append(Message(step, line.strip()))
    return Output(messages, CRASH in text)


def find_message(output: Output, pattern: str) -> Message | None:
    """Return the first message that names a fault."""
    found = re.compile(pattern, re.IGNORECASE)
    return next((message for message in output.messages if found.search(message.text)), None)
