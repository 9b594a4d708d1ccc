"""The memory of the process."""

from __future__ import annotations

import ctypes
import platform


def keep_freed_memory() -> None:
    """Keep glibc from returning memory to the system between two tensors.

    Otherwise every large tensor on the host gets new memory from the system, whose zeroing of pages
    costs a tenth of a training step on CPUs and more of an image's loading. The process then stays
    as large as it was at its largest. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
