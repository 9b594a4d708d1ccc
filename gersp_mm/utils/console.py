"""Tables of text and progress on the console."""

from __future__ import annotations

import atexit
import io
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich import box
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

_Item = TypeVar("_Item")

EVERY = 30.0  # Seconds between two lines where no bar can be drawn.
RULE_BELOW_HEADER = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)

_display: rich_progress.Progress | None = None  # All bars of a terminal share one display.


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as text, with a rule below its header.

    Args:
        header: Names of the columns.
        rows: One value per column. Integers get thousands separators. The first column is aligned
            to the left, the others to the right.
    """
    made = Table(box=RULE_BELOW_HEADER, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(header):
        made.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(f"{c:,}" if isinstance(c, int) else str(c)) for c in row))
    written = io.StringIO()
    Console(file=written, width=10_000, color_system=None).print(made)
    return "\n".join(line.rstrip() for line in written.getvalue().rstrip().splitlines())


class Bar:
    """How far some work is: a bar on a terminal, a line every 30 seconds elsewhere.

    Args:
        description: Names the work.
        unit: Name of the counted items.
        total: How much there is, None if that is not known.
        done: How much of it was done before.
    """

    def __init__(self, description: str, unit: str, total: int | None, done: int = 0) -> None:
        self.description, self.unit, self.total, self.done = description, unit, total, done
        self.note = ""
        self.started = self.told = time.monotonic()
        self.first = done
        self.task: rich_progress.TaskID | None = None

    def start_from(self, done: int, total: int | None) -> None:
        """Continue from a position; work done before it does not enter the speed.

        Args:
            done: How much was done before.
            total: How much there is, None if that is not known.
        """
        self.done, self.first, self.total = done, done, total
        self.started = time.monotonic()
        if _display is not None and self.task is not None:
            _display.reset(self.task, total=total, completed=done, count=self._count())

    def advance(self, number: int = 1, note: str | None = None) -> None:
        """Count work that was done.

        Args:
            number: How much, 0 to show a note alone.
            note: Replaces the text behind the count.
        """
        self.done += number
        self.note = self.note if note is None else note
        if _display is not None and self.task is not None:
            _display.update(self.task, completed=self.done, count=self._count(), note=self.note)
        elif time.monotonic() - self.told >= EVERY:
            self.told = time.monotonic()
            parts = [f"{self.description}: {self._count()}", self._left(), self.note]
            print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        """Print a line to stdout, above the bars of a terminal."""
        if _display is not None and sys.stdout.isatty():
            _display.console.print(Text(text))
        else:
            print(text, flush=True)

    def _count(self) -> str:
        return f"{self.done:,}" + (f"/{self.total:,}" if self.total else "") + f" {self.unit}"

    def _left(self) -> str:
        new = self.done - self.first
        if not self.total or not new:
            return ""
        seconds = (self.told - self.started) / new * (self.total - self.done)
        return f"{seconds / 60:.0f} min left" if seconds >= 100 else f"{seconds:.0f} s left"


@contextmanager
def progress_bar(
    description: str, unit: str, total: int | None = None, done: int = 0, shown: bool = True
) -> Iterator[Bar]:
    """Give a :class:`Bar`, whose arguments these are, and remove it from the terminal at the end.

    Nobody sees the bar if ``shown`` is False.
    """
    global _display
    bar = Bar(description, unit, total, done)
    if not shown:
        bar.told = float("inf")
    if not (shown and sys.stderr.isatty()):
        yield bar
        return
    outermost = _display is None
    if _display is None:
        _display = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
            rich_progress.TextColumn("{task.fields[count]}", markup=False),
            rich_progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            rich_progress.TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            redirect_stdout=False,  # Forked workers would inherit the redirection and its lock.
            redirect_stderr=False,
        )
        _display.start()
        atexit.register(_display.stop)  # An error may leave a bar open, which hides the cursor.
    display = _display
    bar.task = display.add_task(
        description, total=total, completed=done, count=bar._count(), note=""
    )
    try:
        yield bar
    finally:
        if outermost:
            display.stop()
            _display = None
        else:
            display.remove_task(bar.task)


def progress(
    items: Iterable[_Item],
    description: str,
    unit: str,
    total: int | None = None,
    done: int = 0,
    shown: bool = True,
) -> Iterator[_Item]:
    """Yield items and show how many of them were handled.

    Args:
        items: Items that are processed one by one.
        description: Names the work.
        unit: Names one item.
        total: Number of items; by default their length where they have one.
        done: Number of items that were handled before and count as part of ``total``.
        shown: False to show nothing.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, unit, total, done, shown) as bar:
        for item in items:
            yield item
            bar.advance()
