"""Interleaved timing, printing and recording, shared by the scripts of this folder.

The contenders of a comparison take turns: each runs once per round, and the order rotates from
round to round. A temporary slowdown of the machine then affects all contenders, and the ratio
of two contenders is taken within each round before averaging. ``torch.utils.benchmark`` times one
contender after the other, so it does not support this.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger

from gersp_mm.utils.console import table
from gersp_mm.utils.provenance import Provenance, commit, cores, processor

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.jsonl")
PEERS = ("numpy", "numba", "PIL", "cv2", "lightly")
QUARTILES = ("min", "q1", "median", "q3", "max")

Times = dict[str, list[float]]


def synchronise(device: str | torch.device = "cpu") -> None:
    """Wait for all work on the device; a CPU needs no waiting."""
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
        contenders: Functions to time, by name.
        rounds: Timed rounds.
        warmup: Rounds before them that are not timed.
        device: Device that is synchronised before and after each timing.
        calls: Calls per timing; the result is in seconds per call.

    Returns:
        Seconds per call in every round, by name.
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


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns, numbers with four digits."""
    cells = [[f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in rows]
    print(f"\n{title}\n{table(header, cells)}")


def print_spreads(title: str, spreads: Mapping[str, Mapping[str, float]]) -> None:
    """Print minimum, quartiles and maximum of named values, in the unit that the title names."""
    print_table(title, ["", *QUARTILES], [[name, *s.values()] for name, s in spreads.items()])


def quiet() -> None:
    """Keep MMEngine from logging how every weight was initialised."""
    MMLogger.get_instance("mmengine", log_level="WARNING")


def add_arguments(
    parser: argparse.ArgumentParser, rounds: int, warmup: int = 1, devices: bool = False
) -> None:
    """Add the arguments that every script takes."""
    parser.add_argument("--rounds", type=int, default=rounds, help="time N rounds [%(default)s]")
    parser.add_argument(
        "--warmup", type=int, default=warmup, help="run N rounds before timing [%(default)s]"
    )
    parser.add_argument("--threads", type=int, help="use N threads of PyTorch [PyTorch's choice]")
    if devices:
        parser.add_argument("--device", default="cpu", help="run on cpu or cuda [%(default)s]")
    add_record_argument(parser)


def add_record_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--record``."""
    parser.add_argument(
        "--record",
        nargs="?",
        type=Path,
        const=RESULTS,
        metavar="FILE",
        help=f"append the result as one line of JSON; without FILE to {RESULTS.name} next to this",
    )


def record(
    args: argparse.Namespace,
    setting: str,
    values: Mapping[str, Any],
    ratios: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Append one row to the file that ``--record`` named, if it was given.

    Args:
        args: Parsed arguments of a script, ``--record`` among them.
        setting: What was compared, in short.
        values: Value or values of each contender, with the unit in the name.
        ratios: Spread of each ratio.
    """
    if args.record is None:
        return
    origin = dict(Provenance.now())
    origin["commit"] = commit(leave_out="benchmarks/speed/results.jsonl")
    origin["versions"] = {**origin["versions"], **_versions_of_peers()}
    if getattr(args, "device", "cpu") == "cpu":  # also on a machine with a GPU
        origin["hardware"] = f"{cores()} cores of {processor()}"
    command = [argument.replace(f"{ROOT}{os.sep}", "") for argument in sys.argv]
    row = dict(
        script=Path(sys.argv[0]).name,
        setting=setting,
        rounds=getattr(args, "rounds", 1),
        values=values,
        ratios=ratios or {},
        **origin,
        command=shlex.join(["python", *command]),
    )
    with open(args.record, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _versions_of_peers() -> dict[str, str]:
    """Return the versions of libraries that decode, draw or are compared."""
    loaded = {name: sys.modules[name] for name in PEERS if name in sys.modules}
    return {name: str(module.__version__) for name, module in loaded.items()}


def spreads(times: Times, factor: float = 1e3) -> dict[str, dict[str, float]]:
    """Return the spread of every contender's time, by default in milliseconds."""
    return {name: spread([factor * s for s in seconds]) for name, seconds in times.items()}
