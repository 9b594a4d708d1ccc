"""The folder of a run, which belongs to one run at a time, and a run in a separate process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from gersp_mm.engine.preflight.findings import RULE
from gersp_mm.engine.schedule import Length
from gersp_mm.utils.console import progress_bar
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import write_text

LOCK = "run.lock"
SCALARS = "*/vis_data/scalars.json"  # one file for each start of a run
SUPERSEDED = ".superseded.json"  # suffix of files with lines that a resumed run logged again
TRAINING_LOG = "train.log"  # the output of a training that another process started
EPOCH_LENGTH = re.compile(r"Epoch\(train\)\s*\[\s*\d+\]\[\s*\d+/\s*(\d+)\]")  # in a line of the log
POLL = 0.5  # seconds between two checks of a process
# Errors of file systems without locks; some network file systems have none.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def sole_run(work_dir: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of a work directory until the block ends.

    Rank 0 holds the lock for all processes of a run. The lock ends with the process of rank 0, even
    if it is killed.

    Args:
        work_dir: Folder of the run; created if it does not exist.

    Raises:
        UserError: Another run writes to the folder, or the folder is not writable. The other ranks
            raise ``SystemExit`` with code 2, so that the line is printed once.
    """
    path = Path(work_dir) / LOCK
    lock = FileLock(path)
    try:
        with together():
            if is_main_process():
                _acquire(lock, path)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """End all ranks if rank 0 fails, so that no rank waits for it.

    Every rank has to enter and leave the block.

    Raises:
        Exception: The exception of rank 0; on the other ranks a ``SystemExit`` with code 2.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if not is_main_process():
            raise
        failure = error
    failed = [failure is not None]
    broadcast_object_list(failed)
    if failure is not None:
        raise failure
    if failed[0]:
        raise SystemExit(2)


def _acquire(lock: FileLock, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        path.write_text(
            f"process {os.getpid()} on {socket.gethostname()}, started "
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n",
            encoding="utf-8",
        )
    except Timeout:
        holder = path.read_text(encoding="utf-8", errors="replace").strip()
        raise UserError(
            f"another run writes to {path.parent}: {holder or 'its process is not known'}. Wait "
            "for it, end it, or choose another folder with --work-dir"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise UserError(
                f"the work directory {path.parent} cannot be written to "
                f"({error.strerror or error}). Choose another folder with --work-dir"
            ) from error
        print_log(
            f"{path.parent} is on a file system without locks, so a second run in it would not be "
            "noticed",
            logger="current",
        )


class RunFolder:
    """The work directory of a run, with its settings and results.

    Args:
        path: The folder. It need not exist.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def read(self, name: str) -> Any:
        """Return the content of a JSON file of the folder, or None if there is no such file.

        Raises:
            UserError: The file is damaged.
        """
        file = self.path / name
        try:
            return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        except ValueError as error:
            raise UserError(
                f"{file} is damaged ({error}). Discard the run in its folder, or choose another"
            ) from error

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file into the folder, whole or not at all."""
        write_text(self.path / name, json.dumps(content, indent=1))

    def require_settings(
        self, known: Mapping[str, Any], settings: Mapping[str, Any], remedy: str
    ) -> None:
        """Refuse a folder whose run has other settings.

        Args:
            known: Settings of the run in the folder.
            settings: Requested settings.
            remedy: The advice at the end of the message.

        Raises:
            UserError: The message names each setting that differs.
        """
        changed = [
            f"{name} {known.get(name)!r} instead of {value!r}"
            for name, value in settings.items()
            if known.get(name) != value
        ]
        if changed:
            raise UserError(f"{self.path} holds a run with {'; '.join(changed)}: {remedy}")

    def checkpoint(self, epochs: int) -> Path | None:
        """Return the checkpoint after ``epochs``, or None if there is none."""
        path = self.path / f"epoch_{epochs}.pth"
        return path if path.is_file() else None

    def scalars(self) -> list[dict[str, Any]]:
        """Return the logged entries of the last run in the folder, each iteration once."""
        return [entry for _, entry in read_run(sorted(self.path.glob(SCALARS)))]


def read_scalars(file: Path) -> list[dict[str, Any]]:
    """Return the entries of MMEngine's ``scalars.json``, without an unfinished last line."""
    return _entries(file.read_text(encoding="utf-8").splitlines())


def read_run(files: Sequence[Path]) -> list[tuple[float, dict[str, Any]]]:
    """Read the scalar files of the starts of a run as one log.

    Entries of an earlier start are dropped from the first iteration of a later start on, because
    the later start repeated them from a checkpoint. Lines of validation hold no iteration; they
    belong to their step, or, if the step is an epoch, to the iteration logged before them.

    Args:
        files: The ``scalars.json`` of each start, the oldest first.

    Returns:
        The entries in order, each with its iteration.
    """
    log: list[tuple[float, dict[str, Any]]] = []
    for file in files:
        entries = read_scalars(file)
        first = next((entry["iter"] for entry in entries if "iter" in entry), None)
        if first is not None:
            log = [(place, entry) for place, entry in log if place < first]
        place = log[-1][0] if log else 0.0
        for entry in entries:
            place = float(entry.get("iter", max(place, entry.get("step", 0))))
            log.append((place, entry))
    return log


def _entries(lines: Sequence[str]) -> list[dict[str, Any]]:
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries


class ChildRun:
    """A command in a separate process, usually a training.

    Its output is appended to a log file. The progress of a training is read from the
    ``scalars.json`` in the folder of the log. As a context manager, it terminates a process that
    outlives the block and waits for its end.

    Args:
        title: Name of the process in messages.
        command: Program and arguments.
        log: File for the output.
        length: Length of the training, if there is one.
        **options: Further arguments of ``subprocess.Popen``.
    """

    def __init__(
        self,
        title: str,
        command: Sequence[object],
        log: Path,
        length: Length | None = None,
        **options: Any,
    ) -> None:
        self.title, self.log, self.length = title, log, length
        self.last: dict[str, Any] = {}  # the last entry of the training's log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._older = set(log.parent.glob(SCALARS))
        self._scalars: _NewLines | None = None
        self._epoch_length: int | None = None
        self._stopped = False
        with open(log, "ab") as file:
            self._start = file.tell()
            self._output = _NewLines(log, self._start)
            self.process = subprocess.Popen(
                list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, **options
            )

    def __enter__(self) -> ChildRun:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.stop()
        while self.running:
            with contextlib.suppress(KeyboardInterrupt):  # The user pressed Ctrl-C again.
                self.process.wait()

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def stop(self) -> None:
        """Terminate the process without waiting; a training then saves a checkpoint.

        A second call does nothing, because a second signal would interrupt the saving.
        """
        if self.running and not self._stopped:
            self._stopped = True
            print(f"\nstopping {self.title} ...", flush=True)
            self.process.terminate()

    def new_lines(self) -> list[str]:
        """Return the lines of output since the last call."""
        return self._output.read()

    def lines(self) -> Iterator[list[str]]:
        """Yield the new lines of output repeatedly until the process has ended."""
        while self.running:
            time.sleep(POLL)
            yield self.new_lines()
        yield self.new_lines()

    def position(self, values: Sequence[str] = ()) -> str:
        """Return a text on the progress of the training.

        Args:
            values: Names of logged values to add.
        """
        fresh = set() if self._scalars else set(self.log.parent.glob(SCALARS)) - self._older
        if fresh:
            self._scalars = _NewLines(min(fresh))
        for entry in _entries(self._scalars.read() if self._scalars else ()):
            if "iter" in entry:
                self.last = entry
        if not self.last:
            return "starting"
        epoch = f"epoch {self.last['epoch']}, " if "epoch" in self.last else ""
        parts = [f"{epoch}iteration {self.last['iter']}"]
        parts += [f"{name} {self.last[name]:.2f}" for name in values if name in self.last]
        return "   ".join(parts)

    def follow(self, values: Sequence[str] = (), notable: Sequence[str] = ()) -> None:
        """Wait for the end, show the progress and repeat the warnings of the log.

        Args:
            values: Names of logged values that are shown next to the progress.
            notable: Texts; log lines that contain one of them are shown too.

        Raises:
            UserError: The process failed.
        """
        unit, framed = "iterations" if self.length else "", False
        with self, progress_bar(f"   {self.title}", unit, self._iterations()) as bar:
            for lines in self.lines():
                for line in lines:
                    if found := EPOCH_LENGTH.search(line):
                        self._epoch_length = int(found[1])
                    if line == RULE:  # a frame begins or ends
                        framed = not framed
                    elif framed:
                        bar.write(f"   {line.strip()}")
                    elif re.search(r" - (WARNING|ERROR) - \S", line) and "deprecated" not in line:
                        bar.write(line)
                    elif any(text in line for text in notable):
                        bar.write("   " + line.rsplit(" - ", 1)[-1])
                text = self.position(values)
                done, total = self.last.get("iter", 0), self._iterations()
                if not bar.done or bar.total != total:
                    bar.start_from(done, total)
                bar.advance(max(0, done - bar.done), text)
            if self.last:
                bar.write(f"   {text}")
        self.require_success()

    def _iterations(self) -> int | None:
        """Return the iterations of the training, or None while they are not known."""
        if self.length is None or self.length.unit == "iters":
            return self.length and self.length.number
        return self._epoch_length and self._epoch_length * self.length.number

    def require_success(self) -> None:
        """Wait for the end.

        Raises:
            UserError: The exit code is not 0. The message repeats the last error of the output.
        """
        if code := self.process.wait():
            with open(self.log, "rb") as file:
                file.seek(self._start)
                reason = last_error(file.read().decode("utf-8", "replace"))
            raise UserError(f"{self.title} failed: {reason or f'exit code {code}'}; see {self.log}")


def last_error(output: str) -> str:
    """Return the last ``error:`` line of a tool's output, or else its last line."""
    found = re.findall(r"^error: (.*)", output, re.M) or output.strip().splitlines()[-1:]
    return found[-1] if found else ""


class _NewLines:
    """Reads the lines that another process adds to a file."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self._path, self._position = path, start

    def read(self) -> list[str]:
        with open(self._path, "rb") as file:
            file.seek(self._position)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        return whole.decode("utf-8", "replace").splitlines()
