"""Checks that the bytes of a file have not changed since they were written."""

from __future__ import annotations

import hashlib
import re
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from gersp_mm.utils.files import file_sha256

BLOCK = 2**22  # bytes
SETTLED = 2.0  # seconds
Identity = tuple[str, int, int, int]
# The names of torchvision's and OpenMMLab's files hold the start of their hash.
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.\w+$")


def weights_sha256(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of names, types, shapes and values of CPU tensors."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def verify_records(archive: zipfile.ZipFile) -> bool:
    """Read all records of a zip file of ``torch.save`` and compare them with their CRCs.

    PyTorch writes CRCs, but does not check them when it reads.

    Returns:
        Whether the file has CRCs; ``torch.serialization.set_crc32_options(False)`` omits them.

    Raises:
        zipfile.BadZipFile: A record does not match its CRC.
    """
    # The CRC fields are 0 in a file without CRCs, and in empty records.
    checked = [entry for entry in archive.infolist() if entry.CRC]
    for entry in checked:
        with archive.open(entry) as record:
            while record.read(BLOCK):
                pass
    return bool(checked)


def identity(path: Path) -> Identity | None:
    """Return path, inode, size and time of a file, or None if it has just changed.

    File times are too coarse to distinguish two writes in quick succession.
    """
    state = path.stat()
    settled = time.time() - state.st_mtime > SETTLED
    return (str(path), state.st_ino, state.st_size, state.st_mtime_ns) if settled else None


def named_after_its_hash(path: Path) -> bool:
    """Return whether a file's name holds the start of its own SHA-256."""
    found = HASH_IN_NAME.search(path.name)
    return found is not None and file_sha256(path).startswith(found[1])
