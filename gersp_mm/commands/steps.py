"""Parts of the two demonstrations: timed steps, and the description of the machine."""

from __future__ import annotations

import argparse
import platform
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gersp_mm.commands.options import run_tool
from gersp_mm.utils.console import table


def start(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run a demonstration; a signal that ends its process acts like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_tool(run, args, "interrupted; the same command resumes from here")


class Steps:
    """Steps that are announced and timed.

    Args:
        total: Number of steps.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.seconds: dict[str, float] = {}

    def run(self, name: str, function: Callable, *arguments: Any) -> Any:
        """Call a function, note its seconds under a name, and return its result."""
        print(f"\n[{len(self.seconds) + 1}/{self.total}] {name}", flush=True)
        started = time.perf_counter()
        result = function(*arguments)
        self.seconds[name] = round(time.perf_counter() - started, 1)
        return result

    def finish(self) -> dict[str, float]:
        """Print the seconds of all steps, and return them with their sum as ``all``."""
        seconds = {**self.seconds, "all": round(sum(self.seconds.values()), 1)}
        print("\n" + table(["step", "seconds"], [(k, f"{v:.1f}") for k, v in seconds.items()]))
        return seconds


def mean_and_range(values: Sequence[float]) -> str:
    """Write the mean of some percentages, and their range if there are several."""
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.1f}{spread}"


def checkout() -> Path:
    """Return the folder below which the demonstrations keep data and results."""
    from gersp_mm.resources import resource_root

    root = resource_root()
    return Path.cwd() if root.name == ".mim" else root


def environment() -> dict[str, Any]:
    """Return versions, hardware and the time for a report."""
    import torch

    from gersp_mm.utils import provenance

    return dict(
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        versions=provenance.versions(),
        platform=platform.platform(),
        cpu=provenance.processor(),
        cores=provenance.cores(),
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    )
