"""Writing files and folders so that no reader ever sees half of one."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path next to ``path`` and move it into place when the block succeeds.

    Raises:
        OSError: The file cannot be written. The error names ``path``, not the temporary file.
    """
    path = Path(path)
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(TEMPORARY_SUFFIX, f".{path.name}.", path.parent)
        os.close(handle)
        yield Path(name)
        with open(name, "r+b") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except OSError as error:
        if error.errno is None or str(error.filename or TEMPORARY_SUFFIX)[-4:] != TEMPORARY_SUFFIX:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file without changing line ends; its folder is created if necessary."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def save_atomically(content: Any, path: str | os.PathLike) -> None:
    """``torch.save`` that leaves either the old file or the whole new one.

    The same content gives the same bytes: given a path, ``torch.save`` would write the temporary
    name into the file.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder next to ``path`` and move it into place when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(TEMPORARY_SUFFIX, f".{path.name}.", path.parent))
    try:
        new = scratch / "new"
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, scratch / "old")
        os.replace(new, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_temporaries(folder: str | os.PathLike, name: str | None = None) -> None:
    """Delete temporary files of the two functions above in ``folder`` after a killed process.

    Args:
        folder: Folder of the files; it need not exist.
        name: Delete only temporary files for the file of this name; by default all.
    """
    start = "." if name is None else f".{glob.escape(name)}."
    for leftover in Path(folder).glob(f"{start}*{TEMPORARY_SUFFIX}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def file_sha256(path: str | os.PathLike) -> str:
    """Hash the content of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def escape_name(name: str) -> str:
    r"""Write a file name in one line of UTF-8 text, from which :func:`unescape_name` reads it.

    Line breaks, tabs and other control characters become ``\\n``, ``\\t``, ``\\u2028`` and so on, a
    byte that is not UTF-8 becomes ``\\xe9``, and a backslash becomes two.
    """
    return name if name.isprintable() and "\\" not in name else _ODD.sub(_escaped, name)


def unescape_name(text: str) -> str:
    """Return the file name that :func:`escape_name` wrote."""
    return _ESCAPE.sub(_meant, text)


_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
_LONG = {text: character for character, text in _SHORT.items()}
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\\\\]")
_ESCAPE = re.compile(r"\\(?:[nrt\\]|x[0-9a-f]{2}|u[0-9a-f]{4})")


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)  # a byte that is not UTF-8 is read as U+DC80 to U+DCFF
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _meant(match: re.Match[str]) -> str:
    text = match[0]
    if text in _LONG:
        return _LONG[text]
    return chr(int(text[2:], 16) + (0xDC00 if text[1] == "x" else 0))


def append_missing_entries(path: str | os.PathLike, entries: Mapping[str, str]) -> dict[str, str]:
    """Append a line ``key<tab>value`` for each key that the file does not hold yet.

    Safe with several processes at once, and after one that was killed while it wrote.

    Args:
        path: Created when it does not exist; its folder has to.
        entries: Keys are file names of any kind, values any texts; both are escaped.

    Returns:
        All entries that the file now has, whichever process wrote them.
    """
    with open(path, "a+b") as file, locked(file):
        file.seek(0)
        *lines, unfinished = os.fsdecode(file.read()).split("\n")
        pairs = (line.rpartition("\t") for line in lines if "\t" in line)
        known = {unescape_name(key): unescape_name(value) for key, _, value in pairs}
        fresh = {key: value for key, value in entries.items() if key not in known}
        text = "".join(f"{escape_name(k)}\t{escape_name(v)}\n" for k, v in fresh.items())
        file.write(("\n" if unfinished else "").encode() + text.encode())
        file.flush()
        return {**known, **fresh}


@contextlib.contextmanager
def locked(file: Any) -> Iterator[None]:
    """Hold the exclusive lock of an open file, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system; one process writes at a time there
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
