"""Interleaved timing, printing and recording, shared by the scripts of this folder.

The contenders of a comparison take turns in one process: in every round each runs once, and the
order rotates from round to round. Whatever slows the machine down for a while then hits all of
them, and the ratio of two contenders is taken within each round before anything is averaged.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.jsonl")
DISTRIBUTIONS = (
    "torch", "torchvision", "onedl-mmengine", "mmengine", "onedl-mmcv", "mmcv", "onedl-mmpretrain",
    "mmpretrain", "lightly", "pillow", "opencv-python", "opencv-python-headless", "numpy", "numba",
)  # fmt: skip
QUARTILES = ("min", "q1", "median", "q3", "max")

Times = dict[str, list[float]]


# ------------------------------------------------------------------------------------------ timing
def synchronise(device: str | torch.device = "cpu") -> None:
    """Wait for everything that was started on the device; nothing to do on CPUs."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    device: str | torch.device = "cpu",
    calls: int = 1,
) -> Times:
    """Time every contender once per round, in an order that rotates.

    Args:
        contenders: name to what is timed.
        rounds: timed rounds.
        warmup: rounds before them that are not timed.
        device: synchronised before and after each timing.
        calls: calls of one timing; the result is seconds a call.

    Returns:
        Seconds of every round, by name.
    """
    names = list(contenders)
    times: Times = {name: [] for name in names}
    for number in range(-warmup, rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            synchronise(device)
            begin = time.perf_counter()
            for _ in range(calls):
                contenders[name]()
            synchronise(device)
            if number >= 0:
                times[name].append((time.perf_counter() - begin) / calls)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return minimum, quartiles and maximum."""
    return dict(zip(QUARTILES, map(float, np.percentile(values, (0, 25, 50, 75, 100)))))


def paired_ratio(times: Times, numerator: str, denominator: str) -> dict[str, float]:
    """Return the spread of the ratios of two contenders, taken round by round."""
    return spread([a / b for a, b in zip(times[numerator], times[denominator])])


# ---------------------------------------------------------------------------------------- printing
def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns, numbers with four digits."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        print("  ".join([first, *others]).rstrip())


def print_times(title: str, times: Times, unit: str = "ms") -> None:
    """Print the median and spread of every contender's time."""
    factor = dict(s=1, ms=1e3, us=1e6)[unit]
    rows = [[n, *(v * factor for v in spread(s).values())] for n, s in times.items()]
    print_table(f"{title} [{unit}]", ["", *QUARTILES], rows)


def print_ratios(title: str, ratios: Mapping[str, Mapping[str, float]]) -> None:
    """Print the spread of ratios."""
    rows = [[name, *ratio.values()] for name, ratio in ratios.items()]
    print_table(title, ["", *QUARTILES], rows)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------------------- recording
def hardware(device: str | torch.device = "cpu") -> str:
    """Describe the machine in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    text = f"{cores} cores of {name}, {torch.get_num_threads()} threads"
    if torch.device(device).type == "cuda":
        text = f"{torch.cuda.get_device_name(device)}; {text}"
    return text


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that are here."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def quiet() -> None:
    """Keep MMEngine from logging how every weight was initialised."""
    MMLogger.get_instance("mmengine", log_level="WARNING")


def commit() -> str | None:
    """Return the commit of the checkout, with ``+changes`` when files differ from it."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS}")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def add_arguments(
    parser: argparse.ArgumentParser, rounds: int, warmup: int = 1, devices: bool = False
) -> None:
    """Add the arguments that every script takes."""
    parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds (%(default)s)")
    parser.add_argument(
        "--warmup", type=int, default=warmup, help="rounds before them (%(default)s)"
    )
    parser.add_argument("--threads", type=int, help="threads of PyTorch; its own choice by default")
    if devices:
        parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    add_record_argument(parser)


def add_record_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--record``."""
    parser.add_argument(
        "--record",
        nargs="?",
        type=Path,
        const=RESULTS,
        metavar="FILE",
        help=f"append the result as one line of JSON; without FILE to {RESULTS.name} beside this",
    )


def record(
    args: argparse.Namespace,
    setting: str,
    values: Mapping[str, Any],
    ratios: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Append one row to the file that ``--record`` named, if it was given.

    Args:
        args: what :func:`add_arguments` parsed.
        setting: what was compared, in short.
        values: contender to its value or values, the unit in the name.
        ratios: name to spread.
    """
    if args.record is None:
        return
    row = dict(
        script=Path(sys.argv[0]).name,
        setting=setting,
        rounds=getattr(args, "rounds", 1),
        values=values,
        ratios=ratios or {},
        hardware=hardware(getattr(args, "device", "cpu")),
        versions=versions(),
        commit=commit(),
        command=shlex.join(["python", *_portable(sys.argv)]),
    )
    with open(args.record, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _portable(arguments: Sequence[str]) -> list[str]:
    """Write paths of the checkout as seen from its root."""
    return [argument.replace(f"{ROOT}{os.sep}", "") for argument in arguments]


def medians(times: Times, factor: float = 1e3) -> dict[str, dict[str, float]]:
    """Return every contender's spread, in milliseconds unless told otherwise."""
    return {
        name: {key: value * factor for key, value in spread(seconds).items()}
        for name, seconds in times.items()
    }
