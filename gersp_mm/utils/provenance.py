"""Where a number comes from: commit, hardware, threads, versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.dist import get_world_size
from pydantic import BaseModel

from gersp_mm.resources import resource_root
from gersp_mm.utils.errors import counted

LIBRARIES = (
    "gersp_mm", "torch", "torchvision", "mmengine", "mmcv", "mmpretrain", "mmdet", "mmrotate",
    "mmseg", "sklearn",
)  # fmt: skip


class Provenance(BaseModel, frozen=True):
    """Where a number comes from.

    Attributes:
        commit: Commit of the checkout, see :func:`commit`.
        hardware: Devices, see :func:`hardware`.
        threads: Threads of PyTorch in this process.
        versions: Versions of Python and of the loaded libraries.
    """

    commit: str | None
    hardware: str
    threads: int
    versions: dict[str, str]

    @classmethod
    def now(cls) -> Provenance:
        """Describe this process, its checkout and its machine."""
        return cls(
            commit=commit(),
            hardware=hardware(),
            threads=torch.get_num_threads(),
            versions=versions(),
        )


def commit(leave_out: str = "results") -> str | None:
    """Return the commit of the checkout, with ``-dirty`` if files differ from it.

    Args:
        leave_out: Folder or file, relative to the checkout, in which runs record their rows.
            Changes there do not count.

    Returns:
        None without a checkout.
    """
    root = resource_root().resolve()

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *command], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # The package is installed inside another project's checkout.
        changed = ("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{leave_out}")
        dirty = git(*changed)
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> str:
    """Name the GPUs that this run uses, or the processor: ``2 cores of AMD EPYC``."""
    if torch.cuda.is_available():
        return f"{get_world_size()} x {torch.cuda.get_device_name()}"
    return f"{counted(cores(), 'core')} of {processor()}"


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M)
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that this process has loaded."""
    loaded = {name: sys.modules[name] for name in LIBRARIES if name in sys.modules}
    return dict(
        python=platform.python_version(),
        **{name: str(module.__version__) for name, module in loaded.items()},
    )
