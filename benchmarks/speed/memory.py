#!/usr/bin/env python3
"""Measure host memory and start-up time of the data loading of a full-size pre-training.

A separate process builds the config's train_dataloader over two list files of realistic length
(990,848 remote-sensing and 1,281,167 labelled natural images by default) and loads some batches.
Every line of the lists is a different string of realistic length, but all of them lead to 16 small
JPEG files (256 px, random low-frequency content): listing, sampling, decoding and augmentation are
real; reading millions of different files from a disk is not measured.

The script prints the seconds from the start of that process to its first batch, and the memory of
the main process and its workers as proportional set size (PSS). A page that n processes share
counts 1/n for each process, so that the sum is their total memory. The sum is given at the end and
as the highest of all samples. The kernel counts the peak of the main process alone. Linux only.

Examples:
  python benchmarks/speed/memory.py
  python benchmarks/speed/memory.py --workers 4 --record
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import add_record_argument, record

from gersp_mm.utils.arguments import new_parser

FOLDERS, FILES = 400, 16
SAMPLE_EVERY = 0.2  # seconds
MIB = 2**20


def load_batches(args: argparse.Namespace) -> None:
    """Load batches as training does, report the times, and wait to be measured."""
    from mmengine.runner import Runner

    from gersp_mm.engine.launch import load_config

    def listed(name: str) -> dict[str, Any]:
        return dict(data_root=str(args.inside), ann_file=f"{name}.txt")

    loader_options = dict(
        batch_size=args.batch_size,
        num_workers=args.workers,
        dataset=dict(remote_sensing=listed("remote_sensing"), natural=listed("natural")),
    )
    args.cfg_options = dict(train_dataloader=loader_options)
    args.launcher, args.work_dir, args.local_rank = "none", None, 0
    loader = Runner.build_dataloader(load_config(args).train_dataloader, seed=0)
    report: dict[str, Any] = dict(images=sum(loader.dataset.sizes), built=time.monotonic())
    for number, _ in enumerate(loader, 1):
        report.setdefault("first", time.monotonic())
        if number == args.batches:
            break
        # Persistent workers outlive the loop, so that they can be measured.
    (args.inside / "report.tmp").write_text(json.dumps(report))
    (args.inside / "report.tmp").rename(args.inside / "report.json")
    sys.stdin.readline()


def write_lists(folder: Path, remote_sensing: int, natural: int) -> None:
    """Write the two lists and their few images."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(FOLDERS):
        (folder / f"d{number:03d}").mkdir()
    for number in range(FILES):
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        image = image.resize((256, 256), Image.Resampling.BICUBIC)
        image.save(folder / f"P{number:02d}.jpg", quality=90)

    def path(number: int) -> str:
        number, file = divmod(number, FILES)
        outer, inner = divmod(number, FOLDERS)
        return f"d{outer:03d}/../d{inner:03d}/../P{file:02d}.jpg"

    with open(folder / "remote_sensing.txt", "w") as listing:
        listing.writelines(f"{path(number)}\n" for number in range(remote_sensing))
    with open(folder / "natural.txt", "w") as listing:
        listing.writelines(f"{path(number)} {number % 1000}\n" for number in range(natural))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run :func:`load_batches` in a separate process, and sample its memory.

    Returns:
        Number of images, seconds, and memory in MiB.
    """
    write_lists(folder, args.remote_sensing, args.natural)
    report = folder / "report.json"
    highest = 0
    command = [sys.executable, __file__, *sys.argv[1:], "--inside", str(folder)]
    started = time.monotonic()  # This clock is the same for all processes of a machine.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr) as process:
        while not report.exists():
            if process.poll() is not None:
                raise SystemExit("error: the measured process failed, see above")
            highest = max(highest, sum(memory(process.pid)))
            time.sleep(SAMPLE_EVERY)
        main, *workers = memory(process.pid)
        peak = kibibytes(Path(f"/proc/{process.pid}/status"), "VmHWM")
        process.communicate(b"\n")
    times = json.loads(report.read_text())
    return dict(
        images=times["images"],
        seconds_to_dataset=round(times["built"] - started, 1),
        seconds_to_first_batch=round(times["first"] - started, 1),
        worker_processes=len(workers),
        pss_main_mib=round(main / 1024),
        pss_workers_mib=round(sum(workers) / 1024),
        pss_sum_mib=round((main + sum(workers)) / 1024),
        highest_pss_sum_mib=round(max(highest, main + sum(workers)) / 1024),
        peak_rss_main_mib=round(peak / 1024),
    )


def memory(pid: int) -> list[int]:
    """Return the PSS of a process and then of each of its children, in KiB."""
    pids = [pid]
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids += map(int, listing.read_text().split())
        except OSError:  # The thread has just ended.
            continue
    return [kibibytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in pids]


def kibibytes(file: Path, field: str) -> int:
    """Read one ``field: number kB`` line of a file in /proc; 0 if the process has ended."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--config", default="configs/pretrain/gersp_r50.py")
    parser.add_argument("--remote-sensing", type=int, default=990_848, help="lines of the list")
    parser.add_argument("--natural", type=int, default=1_281_167, help="lines of the list")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batches", type=int, default=10, help="batches before memory is read")
    add_record_argument(parser)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure start-up time and memory, print them and record them."""
    args = parse_args()
    if args.inside:
        load_batches(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        values = measure(args, Path(folder))
    for name, value in values.items():
        print(f"{name:24} {value:>12,}")
    record(args, f"{args.config}, batch {args.batch_size}, {args.workers} workers", values)


if __name__ == "__main__":
    main()
