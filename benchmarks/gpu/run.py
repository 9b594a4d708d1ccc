"""Measure gersp_mm on a GPU: whether it computes what a CPU computes, how fast, in what memory.

The parts are 1 correctness, 2 speed, 3 memory and 4 the study GeRSP-mini at size ``gpu``. The
machine needs torch with CUDA, torchvision, NumPy and Pillow, and no network: everything else comes
from the bundle ``.gpu/`` that ``--prepare`` builds beforehand. Every measurement has a time limit
of its own and adds lines to ``DIR/results.jsonl`` as soon as they are known. A measurement that
fails, hangs or breaks the CUDA context is recorded, and the next one runs in a new process.

Examples:
  python benchmarks/gpu/run.py --prepare                        (with a network, before)
  python benchmarks/gpu/run.py --minutes 10 --out DIR           (on the machine with the GPU)
  python benchmarks/gpu/run.py --parts 1 --minutes 3.5 --out DIR
  python benchmarks/gpu/run.py --only no_sync amp --out DIR
  python benchmarks/gpu/run.py --rehearse --out DIR             (tiny, on a CPU, minutes)
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = {1: "correctness", 2: "speed", 3: "memory", 4: "study"}
SHARES = {1: 0.35, 2: 0.45, 3: 0.08, 4: 0.12}  # of the time; what a part leaves goes to the next
FAILURES = ("fail", "error", "timeout")  # these make the exit code 1
NO_TIME = "no time is left"
CONTEXT_LOST = 75  # exit code of a child whose CUDA context is broken
GRACE = 3.0  # seconds that a measurement may exceed its limit by


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = os.environ.get("OUT", "work_dirs/gpu")
    parser.add_argument(
        "--out", type=Path, default=out, help="write the results here [%(default)s]"
    )
    parser.add_argument("--minutes", type=float, help="stop after this time [10; rehearsal: 60]")
    parser.add_argument(
        "--parts", type=int, nargs="+", choices=PARTS, default=list(PARTS), help="run these [all]"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run these [all]")
    parser.add_argument("--rehearse", action="store_true", help="run at a tiny size on the CPU")
    parser.add_argument("--bundle", type=Path, default=ROOT / ".gpu", help="the bundle [.gpu here]")
    parser.add_argument("--scratch", type=Path, help="keep files and runs of the study here")
    prepare = parser.add_argument_group("the bundle")
    prepare.add_argument("--prepare", action="store_true", help="build the bundle and measure none")
    prepare.add_argument("--demo", type=Path, help="demo images [made by demo/prepare_demo.py]")
    prepare.add_argument(
        "--data", type=Path, help="take the study's images from this folder, which holds mini_gpu/"
    )
    prepare.add_argument(
        "--parts-of-bundle", nargs="+", choices=("wheels", "images", "project"),
        default=("wheels", "images", "project"), metavar="PART",
        help="rebuild these: wheels, images, project [all]",
    )  # fmt: skip
    parser.add_argument("--measurements", type=Path, help=argparse.SUPPRESS)  # in place of PARTS
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)  # {part: its end}
    args = parser.parse_args(argv)
    args.minutes = args.minutes or (60.0 if args.rehearse else 10.0)
    return args


# ---------------------------------------------------------------------------------- the supervisor
class Results:
    """The lines of ``results.jsonl``; each is on the disk before the next measurement begins."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.jsonl"
        self.origin: dict[str, Any] = {}  # commit, hardware, versions

    def add(self, part: int, name: str, status: str, **values: Any) -> None:
        """Append one line."""
        row = dict(part=part, name=name, status=status, **values, **self.origin)
        row["time"] = round(time.time(), 1)
        text = json.dumps(row, default=str) + "\n"
        with open(self.path, "a+b") as file:
            file.seek(max(file.tell() - 1, 0))
            if file.read(1) not in (b"", b"\n"):  # A killed child has left a part of a line.
                text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def rows(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the lines from byte ``since`` on."""
        if not self.path.exists():
            return []
        with open(self.path, encoding="utf-8") as file:
            file.seek(since)
            lines = list(file)
        rows = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # of a child that was killed
                rows.append(json.loads(line))
        return rows


class Progress:
    """What the child is at, in files that the supervisor reads after the child has died."""

    def __init__(self, scratch: Path) -> None:
        self.now, self.done, self.origin = (
            scratch / name for name in ("now.json", "done.json", "origin.json")
        )

    def begin(self, part: int, name: str, end: float, why: str) -> None:
        """Note the measurement that begins, when it has to have ended, and why."""
        new = self.now.with_suffix(".new")
        new.write_text(json.dumps([part, name, end, why]))
        new.replace(self.now)  # The supervisor never reads half a file.

    def current(self) -> tuple[int, str, float, str] | None:
        """Return what is noted of the measurement that runs."""
        try:
            return tuple(json.loads(self.now.read_text()))
        except FileNotFoundError:
            return None

    def finish(self, name: str) -> None:
        """Note that a measurement is over, whatever came of it."""
        self.done.write_text(json.dumps([*self.finished(), name]))
        self.now.unlink(missing_ok=True)

    def finished(self) -> list[str]:
        """Return the names of the measurements that are over."""
        return json.loads(self.done.read_text()) if self.done.exists() else []


def part_ends(parts: list[int], begin: float, seconds: float) -> dict[int, float]:
    """Divide the time among the parts, which run one after the other."""
    total = sum(SHARES[part] for part in parts)
    ends, used = {}, 0.0
    for part in sorted(parts):
        used += SHARES[part] / total
        ends[part] = begin + used * seconds
    return ends


def supervise(args: argparse.Namespace, scratch: Path) -> int:
    """Run the measurements in child processes and print the results; return the exit code."""
    import bundle

    begin = time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    results, progress = Results(args.out), Progress(scratch)
    for file in (progress.now, progress.done, progress.origin):
        file.unlink(missing_ok=True)  # of an earlier call with the same --scratch
    start = results.path.stat().st_size if results.path.exists() else 0
    installed = bundle.install(args.bundle, scratch / "site", HERE / "stubs")
    path = [str(ROOT), str(scratch / "site"), os.environ.get("PYTHONPATH", "")]
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(filter(None, path)),
        PYTHONUNBUFFERED="1",
        NO_ALBUMENTATIONS_UPDATE="1",
    )
    if args.rehearse:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    print(f"installed from the bundle: {' '.join(installed) or 'nothing'}", flush=True)
    results.add(0, "start", "ok", command=sys.argv, installed=installed,
                setup_s=time.time() - begin)  # fmt: skip
    ends = part_ends(args.parts, begin, 60 * args.minutes)
    command = [
        sys.executable, str(HERE / "run.py"), "--child", json.dumps(ends),
        "--out", str(args.out), "--scratch", str(scratch), "--bundle", str(args.bundle),
    ]  # fmt: skip
    command += ["--rehearse"] * args.rehearse + (["--only", *args.only] if args.only else [])
    command += ["--measurements", str(args.measurements)] if args.measurements else []
    while run_child(command, environment, max(ends.values()), results, progress):
        pass
    rows = results.rows(start)
    print_summary(rows, args.out / "summary.txt", time.time() - begin)
    return int(any(row["status"] in FAILURES for row in rows))


def run_child(
    command: list[str],
    environment: dict[str, str],
    end: float,
    results: Results,
    progress: Progress,
) -> bool:
    """Run one child until it ends or has to be killed; return whether another one has work left."""
    why = ""
    with (
        open(results.path.with_name("log.txt"), "a") as log,
        killed_with_us(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as child,
    ):
        while child.poll() is None:
            time.sleep(0.2)
            current = progress.current()
            if current and time.time() > current[2] + GRACE:
                why = current[3]
                break
            if time.time() > end + GRACE:
                why = NO_TIME
                break
    if progress.origin.exists():
        results.origin = json.loads(progress.origin.read_text())
    if child.returncode == 0:
        return False
    current = progress.current()
    if child.returncode == CONTEXT_LOST and not current:
        return time.time() < end
    if not current:
        text = f"exit code {child.returncode} outside of a measurement; see log.txt"
        results.add(0, "child", "error", error=text)
        return False
    part, name, *_ = current
    if why:
        results.add(part, name, "unfinished" if why == NO_TIME else "timeout", why=why)
    else:
        results.add(part, name, "error", error=f"the process ended with {child.returncode}")
    progress.finish(name)
    return time.time() < end


@contextlib.contextmanager
def killed_with_us(command: list[str], **options: Any) -> Iterator[subprocess.Popen]:
    """Start a process group and kill it at the end, also where a signal ends this process."""
    child = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # also the workers of a child that has ended
        child.wait()


def print_summary(rows: list[dict[str, Any]], path: Path, seconds: float) -> None:
    """Write a line for every row to a file, print them, and at the end what is not ok."""
    hidden = ("part", "name", "status", "trace", "command", "installed", "time", "threads",
              "commit", "hardware", "versions")  # fmt: skip
    lines = []
    for row in rows:
        values = json.dumps({k: v for k, v in row.items() if k not in hidden}, default=str)
        lines.append(f"{row['part']} {row['status']:10} {row['name']:18} {values[:400]}")
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(line[:200] for line in lines))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    print(f"{counts} in {seconds:.0f} s; not ok:")
    for row, line in zip(rows, lines):
        if row["status"] not in ("ok", "done"):
            print(line[:600])


# --------------------------------------------------------------------------------------- the child
def load_measurements(args: argparse.Namespace, parts: list[int]) -> list[Any]:
    """Import the parts and return their measurements in order."""
    from measuring import MEASUREMENTS

    if args.measurements:
        spec = importlib.util.spec_from_file_location("measurements", args.measurements)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    else:
        for part in sorted(parts):
            importlib.import_module(PARTS[part])
    chosen = [entry for entry in MEASUREMENTS if entry.part in parts]
    unknown = set(args.only) - {entry.name for entry in chosen}
    if unknown:
        names = ", ".join(entry.name for entry in chosen)
        sys.exit(f"error: --only {' '.join(sorted(unknown))}: the measurements are {names}")
    return [entry for entry in chosen if not args.only or entry.name in args.only]


def child(args: argparse.Namespace) -> int:
    """Run the measurements that are not over yet."""
    sys.path.append(str(ROOT / "benchmarks" / "speed"))
    # PyTorch's containers often have transformers, whose import takes seconds for nothing here.
    sys.modules.setdefault("transformers", None)  # type: ignore[arg-type]
    ends = {int(part): end for part, end in args.child.items()}
    entries = load_measurements(args, list(ends))
    from measuring import Context, broken, reset

    progress, results = Progress(args.scratch), Results(args.out)
    ctx = Context(results, args.bundle, args.scratch, rehearsal=args.rehearse)
    progress.origin.write_text(json.dumps(results.origin))
    for entry in entries:
        if entry.name in progress.finished():
            continue
        end = ends[entry.part]
        limit = entry.limit * (4 if args.rehearse else 1)
        if end - time.time() < 5:
            results.add(entry.part, entry.name, "skipped", why=NO_TIME)
            progress.finish(entry.name)
            continue
        print(f"--- {entry.name}", flush=True)
        own = time.time() + limit
        ctx.begin(entry, min(own, end))
        why = f"it exceeded its limit of {limit:g} s" if own < end else NO_TIME
        progress.begin(entry.part, entry.name, ctx.end, why)
        reset(ctx)
        ctx.run(entry.function)
        progress.finish(entry.name)
        if broken(ctx):
            os._exit(CONTEXT_LOST)  # Python's own end would wait for the device.
    return 0


# --------------------------------------------------------------------------------------------- main
def main(argv: list[str] | None = None) -> int:
    """Prepare the bundle or measure; return the exit code."""
    args = parse_args(argv)
    args.out, args.bundle = args.out.resolve(), args.bundle.resolve()
    if args.prepare:
        import bundle

        return bundle.prepare(args.bundle, args.demo, args.data, args.parts_of_bundle)
    if args.child:
        return child(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        if args.scratch:
            scratch = args.scratch.resolve()
            scratch.mkdir(parents=True, exist_ok=True)
        else:
            folder = tempfile.TemporaryDirectory(prefix="gersp_gpu_", ignore_cleanup_errors=True)
            scratch = Path(stack.enter_context(folder))
        return supervise(args, scratch)


if __name__ == "__main__":
    sys.exit(main())
