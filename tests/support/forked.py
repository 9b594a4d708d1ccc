"""Scripts run in a fork of the test's process, which has imported already what takes them seconds.

A fork is a process of its own: it can be killed, and has its own folder, environment and output.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import thread
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gersp_mm.augmentation.host import compile_kernel, has_numba
from tests.support.smoke import forget_runs


class Forked:
    """A running script with the part of the interface of :class:`subprocess.Popen` that tests use.

    Args:
        script: Python file that is run as ``__main__``.
        *arguments: Its arguments.
        output: File for what it prints.
        errors: File for what it prints as errors; the same by default.
        cwd: Folder that it runs in.
        env: Its environment.
        start_new_session: Give it a process group of its own.
    """

    def __init__(
        self,
        script: str | Path,
        *arguments: object,
        output: Path,
        errors: Path | None = None,
        cwd: str | Path = ".",
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> None:
        import gersp_mm.engine.launch  # noqa: F401  # imported once, here

        if has_numba():
            compile_kernel()
        command = [str(script), *map(str, arguments)]
        self.output, streams = output, (output, errors or output)
        context = multiprocessing.get_context("fork")
        self.process = context.Process(
            target=_run, args=(command, streams, cwd, dict(env or os.environ), start_new_session)
        )
        self.process.start()
        self.pid: int = self.process.pid or 0
        self.stdin = None

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the number of a signal that killed it, or None while it runs."""
        return self.process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it without warning."""
        self.send_signal(signal.SIGKILL)


def popen(
    command: list[str],
    stdout: Any,
    stderr: Any,
    text: bool = False,
    errors: str | None = None,
    **options: Any,
) -> Any:
    """Stand in for ``subprocess.Popen`` of a Python script that prints to a file or one pipe."""
    program, script, *arguments = command
    if program != sys.executable or not script.endswith(".py"):
        streams = dict(stdout=stdout, stderr=stderr, text=text, errors=errors)
        return subprocess.Popen(command, **streams, **options)
    if stdout != subprocess.PIPE:
        return Forked(script, *arguments, output=Path(stdout.name), **options)
    reader, writer = os.pipe()
    child = Forked(script, *arguments, output=Path(f"/dev/fd/{writer}"), **options)
    os.close(writer)
    child.stdout = os.fdopen(reader, errors=errors)
    return child


# Put in place of the module in a file that starts scripts.
SUBPROCESS = SimpleNamespace(Popen=popen, STDOUT=subprocess.STDOUT, PIPE=subprocess.PIPE)


def run(script: str | Path, *arguments: object, output: Path, **options: object):
    """Run a script to its end, as ``subprocess.run(..., capture_output=True, text=True)`` does.

    Args:
        script: Python file that is run as ``__main__``.
        *arguments: Its arguments.
        output: Folder for what it prints.
        **options: See :class:`Forked`.
    """
    files = [output / f"{kind}-{time.monotonic_ns()}" for kind in ("out", "err")]
    child = Forked(script, *arguments, output=files[0], errors=files[1], **options)
    code = child.wait(300)
    return subprocess.CompletedProcess([script, *arguments], code, *(f.read_text() for f in files))


def run_ranks(
    script: str | Path, *arguments: object, output: Path, env: Mapping[str, str], count: int = 2
):
    """Run a script to its end in processes that join each other, as torchrun starts them.

    Args:
        script: Python file that is run as ``__main__``.
        *arguments: Its arguments.
        output: Folder for what they print.
        env: Their environment but for what says who they are.
        count: How many they are.

    Returns:
        What each of them, the first rank first, ended with and printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(count))
    files = [output / f"rank{rank}.log" for rank in range(count)]
    ranks = [
        Forked(
            script,
            *arguments,
            output=file,
            env={**env, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, file in enumerate(files)
    ]
    try:
        codes = [rank.wait(300) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
    return [
        subprocess.CompletedProcess([script, *arguments], code, file.read_text())
        for code, file in zip(codes, files)
    ]


def _run(command, streams, cwd, env, new_session) -> None:
    thread._threads_queues.clear()  # else a fork of a pool's thread waits for itself at its end
    if new_session:
        os.setsid()
    for number, (stream, file) in enumerate(zip(("stdout", "stderr"), streams), 1):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, number)
        setattr(sys, stream, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    forget_runs()
    runpy.run_path(command[0], run_name="__main__")
