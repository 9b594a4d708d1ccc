"""Reading files inside LMDB databases: ``images.lmdb/a/b.jpg`` is the entry ``a/b.jpg``.

MMEngine's ``LmdbBackend`` only takes ASCII keys, and a forked worker keeps using the database that
its parent opened, which LMDB forbids.
"""

from __future__ import annotations

import io
import os
import os.path as osp
import re
import threading
from typing import Any, BinaryIO

from mmengine import fileio

from gersp_mm.utils.errors import UserError

DATABASE = "images.lmdb"  # written by gersp prepare pack
LISTING, LABELLED_LISTING = "images.txt", "labelled.txt"

_INSIDE = re.compile(r"(?P<database>.*?\.lmdb)[/\\]+(?P<key>.+)", re.DOTALL)
_opened: dict[str, Any] = {}  # by every spelling of its path
_lock = threading.Lock()


def read_file(path: str, backend_args: dict | None = None) -> bytes:
    """Read a file, also one inside an LMDB database.

    Args:
        path: ``<folder>/images.lmdb/<key>``, where any component that ends with ``.lmdb`` is the
            database, or a file of any storage that ``mmengine.fileio`` reads.
        backend_args: See ``mmengine.fileio.get``; not used for databases.

    Raises:
        UserError: The path is inside a database and the package ``lmdb`` is not installed.
        FileNotFoundError: The database or the entry does not exist.
    """
    if is_local_file(path, backend_args):  # what fileio does, with less around it
        with open(path, "rb") as file:
            return file.read()
    inside = _INSIDE.fullmatch(path) if ".lmdb" in path else None
    if inside is None:
        return fileio.get(path, backend_args=backend_args)
    with _database(inside["database"]).begin() as transaction:
        content = transaction.get(os.fsencode(inside["key"]))
    if content is None:
        raise FileNotFoundError(f"no entry {inside['key']!r} in {inside['database']}")
    return content


def open_file(path: str, backend_args: dict | None = None) -> BinaryIO:
    """Open a file for reading, of which a local one is not read whole; see :func:`read_file`."""
    if is_local_file(path, backend_args):
        return open(path, "rb")
    return io.BytesIO(read_file(path, backend_args))


def is_local_file(path: str, backend_args: dict | None = None) -> bool:
    """Return whether a path belongs to the file system, and not to a database."""
    inside_database = ".lmdb" in path and _INSIDE.fullmatch(path) is not None
    return backend_args is None and "://" not in path and not inside_database


def import_lmdb() -> Any:
    """Return the module ``lmdb``.

    Raises:
        UserError: The package is not installed.
    """
    try:
        import lmdb
    except ImportError:
        raise UserError(
            "LMDB databases need a package that is not here: pip install lmdb"
        ) from None
    return lmdb


def _database(path: str) -> Any:
    """Open a database once per process, as LMDB requires."""
    lmdb = import_lmdb()
    with _lock:
        if path not in _opened:
            real = osp.realpath(path)
            if not osp.isdir(real):
                raise FileNotFoundError(f"there is no database {path}")
            if real not in _opened:
                # Training reads in random order, so that read-ahead would not help.
                _opened[real] = lmdb.open(
                    real, readonly=True, lock=False, readahead=False, create=False
                )
            _opened[path] = _opened[real]
        return _opened[path]


def _forget_databases() -> None:
    """Close the databases of the parent in a forked child."""
    global _lock
    _lock = threading.Lock()  # Another thread of the parent may have held the old one.
    for database in _opened.values():
        database.close()
    _opened.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_databases)
