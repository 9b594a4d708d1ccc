"""The work directory of a run: it belongs to one run at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from gersp_mm.utils.errors import UserError

LOCK = "run.lock"
# What file systems answer that have no locks, some network file systems among them.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def sole_run(work_dir: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of a work directory until the block ends.

    Rank 0 holds it for all processes of a run. A process that dies gives it back, however it dies,
    and processes that it has forked do not keep it.

    Args:
        work_dir: Folder of the run, made if it does not exist.

    Raises:
        UserError: Another run writes there, or nothing can be written there. On the other ranks a
            ``SystemExit`` with code 2 instead, so that the line is printed once.
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
    """Let all ranks leave if rank 0 cannot go on, so that none of them waits for it.

    Every rank has to enter and leave the block.

    Raises:
        Exception: The one of rank 0; on the other ranks a ``SystemExit`` with code 2.
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
            f"{path.parent} is on a file system without locks, so that a second run there would "
            "not be noticed",
            logger="current",
        )
