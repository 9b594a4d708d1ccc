"""Where a number comes from: commit, hardware, versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.dist import get_world_size

from gersp_mm.resources import resource_root

LIBRARIES = (
    "gersp_mm", "torch", "torchvision", "mmengine", "mmcv", "mmpretrain", "mmdet", "mmrotate",
    "mmseg", "sklearn",
)  # fmt: skip


def commit() -> str | None:
    """Commit of the checkout, with ``-dirty`` if files differ from it; None without a checkout.

    Files of ``results/`` do not count: runs add their rows there.
    """
    root = resource_root().resolve()

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *command], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # of another project, inside which this package is installed
        changed = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        dirty = git(*changed)
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> str:
    """GPUs that this run uses, or processor cores: ``2 cores of AMD EPYC``."""
    if torch.cuda.is_available():
        return f"{get_world_size()} x {torch.cuda.get_device_name()}"
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M)
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {cpu}"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that this process has loaded."""
    loaded = {name: sys.modules[name] for name in LIBRARIES if name in sys.modules}
    return dict(
        python=platform.python_version(),
        **{name: str(module.__version__) for name, module in loaded.items()},
    )
