#!/usr/bin/env python3
"""Inject each fault of faults.yml, run the public command, and record when it was noticed.

Prints a matrix (faults by gersp_mm, plain mmpretrain and lightly) and the false alarms on healthy
runs and on all shipped configs. Rows are appended to --out. Cases with a row for this commit are
not run again, so that the same command resumes an interrupted run.

Examples:
  python benchmarks/faults/run.py --jobs 2
  python benchmarks/faults/run.py --only damaged-jpeg bgr-for-rgb --sides ours --again
  python benchmarks/faults/run.py --print --docs docs/results/faults.md
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from alarms import find_alarms  # noqa: E402
from cases import PROOFS, Workshop, call, judge  # noqa: E402
from output import find_message, read_output  # noqa: E402
from shipped import shipped_configs, write_twin  # noqa: E402

from benchmarks.rows import new_parser, read_rows, run_unless_printed, write_block  # noqa: E402
from gersp_mm.utils.console import progress_bar, table  # noqa: E402
from gersp_mm.utils.provenance import Provenance, commit  # noqa: E402

SIDES = dict(ours="gersp_mm", mmpretrain="mmpretrain", lightly="lightly")
NOTICED = ("refused", "warned", "harmless")
HEALTHY = "false alarms"  # the side in rows of healthy runs
KEY = ("fault", "side")  # fields that identify a row
RECORD = "benchmarks/faults/rows.jsonl"  # path in the repository


class Task(NamedTuple):
    """One run: an entry with one side, or a healthy run."""

    name: str
    side: str
    entry: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """The fields that identify the row of the task."""
        return self.name, self.side


def read_entries(file: str) -> list[dict[str, Any]]:
    """Read a list of entries, and check that their names are unique."""
    entries = yaml.safe_load((HERE / file).read_text(encoding="utf-8"))
    names = [entry["name"] for entry in entries]
    assert len(set(names)) == len(names), f"{file}: a name appears twice"
    return entries


def peer_entry(fault: Mapping[str, Any], side: str) -> dict[str, Any] | None:
    """Return the entry of a fault's counterpart; None if there is none."""
    peer = fault.get(side)
    if peer is None:
        return None
    shared = {key: fault[key] for key in ("inject",) if key in fault}
    if side == "lightly":
        shared["run"] = f"{{lightly}} {peer.get('options', '')}"
    return {**shared, **peer}


def all_tasks(sides: Sequence[str]) -> list[Task]:
    """Return every run of the matrix, those of the faults first."""
    tasks = []
    for fault in read_entries("faults.yml"):
        for side in sides:
            entry = fault if side == "ours" else peer_entry(fault, side)
            if entry is not None:
                tasks.append(Task(fault["name"], side, entry))
    if "ours" in sides:
        tasks += [Task(entry["name"], HEALTHY, entry) for entry in read_entries("healthy.yml")]
        tasks += [Task(name, HEALTHY, dict(config=name)) for name in shipped_configs()]
    return tasks


def missing_package(task: Task) -> str | None:
    """Return the package that a task needs and that is not installed."""
    needed = [
        task.entry.get("needs"),
        task.side if task.side in ("mmpretrain", "lightly") else None,
    ]
    return next((n for n in needed if n and importlib.util.find_spec(n) is None), None)


def run_task(task: Task, shop: Workshop) -> dict[str, Any]:
    """Run a task and return its row."""
    row: dict[str, Any] = dict(fault=task.name, side=task.side)
    package = missing_package(task)
    if package:
        skipped = dict(outcome="skipped", when="never", step=None)
        return dict(row, **skipped, message=f"{package} is not installed")
    if task.side == HEALTHY:
        found, seconds = _run_healthy(task, shop)
        outcome = "alarm" if found else "quiet"
        return dict(row, outcome=outcome, message="; ".join(found)[:600], seconds=seconds)
    case, done = shop.run(task.name, task.side, task.entry)
    (case / "output.txt").write_text(done.text)
    row.update(judge(task.entry, case, done, task.side == "ours"))
    row.update(exit_code=done.code, seconds=round(done.seconds, 1))
    if task.side == "ours" and not task.entry.get("start") and "{train}" in task.entry["run"]:
        healthy = read_output((shop.healthy("pretrain") / "output.txt").read_text())
        if find_message(healthy, task.entry["noticed"]):
            row.update(outcome="void", when="never", message="a healthy run prints the same")
    return row


def _run_healthy(task: Task, shop: Workshop) -> tuple[list[str], float]:
    """Run a healthy case, and return its refusals and warnings, and the seconds."""
    if "config" in task.entry:
        case = shop.folder / "shipped" / task.name.replace("/", "-")
        last_step = write_twin(task.name, shop.folder / "shipped", case)
        done = call(f"tools/train.py {case}/twin.py --work-dir {{run}}", case, until=last_step)
    else:
        case, done = shop.run(task.name, "healthy-runs", task.entry)
    (case / "output.txt").write_text(done.text)
    found = find_alarms(done.text)
    if done.code not in (0, None):
        found.append(f"exit code {done.code}")
    proof = task.entry.get("proof")
    if proof and not PROOFS[proof](case, done):
        found.append(f"not {proof.replace('_', ' ')}")
    return found, round(done.seconds, 1)


def cell(row: Mapping[str, Any] | None) -> str:
    """Say in a few words when a fault was noticed."""
    if row is None:
        return "—"
    if row["outcome"] in ("skipped", "void", "harmless"):
        return row["outcome"]
    if row["when"] == "never":
        return {"crashed": "never (unnamed crash)", "hung": "never (hangs)"}.get(
            row["outcome"], "never"
        )
    when = "before step 1" if row["when"] == "before" else f"step {row['step']}"
    if row["when"] == "step" and not row["step"]:
        when = "after the result"
    return f"{when} (crash)" if row["outcome"] == "crashed" else when


def matrix(rows: Mapping[tuple[str, ...], Mapping[str, Any]]) -> list[list[str]]:
    """Return the lines of the matrix: group, fault, description, and a cell for each side."""
    return [
        [f["group"], f["name"], f["wrong"], *(cell(rows.get((f["name"], side))) for side in SIDES)]
        for f in read_entries("faults.yml")
    ]


def summary(rows: Mapping[tuple[str, ...], Mapping[str, Any]]) -> Iterator[str]:
    """Count the noticed faults of each side, and the false alarms."""
    for side, title in SIDES.items():
        ran = [row for (_, of), row in rows.items() if of == side and row["outcome"] != "skipped"]
        if not ran:
            yield f"{title}: nothing was run"
            continue
        good = [row for row in ran if row["outcome"] in NOTICED]
        named = [row for row in ran if row["when"] != "never" and row["outcome"] != "void"]
        early = [row for row in good if row["when"] == "before"]
        noticed = good if side == "ours" else named
        if side != "ours":
            early = [row for row in named if row["when"] == "before"]
        share = f"{100 * len(early) / len(ran):.0f} %"
        if side == "ours" and (count := sum(row["outcome"] == "harmless" for row in early)):
            share += f"; {count} of them harmless"
        yield (
            f"{title}: {len(noticed)} of {len(ran)} faults noticed, {len(early)} before step 1 "
            f"({share}), {len(ran) - len(noticed)} never"
        )
    healthy = [row for (_, of), row in rows.items() if of == HEALTHY]
    alarms = [row["fault"] for row in healthy if row["outcome"] == "alarm"]
    where = f": {', '.join(alarms)}" if alarms else ""
    yield f"false alarms: {len(alarms)} of {len(healthy)} healthy runs and shipped configs{where}"


def print_matrix(rows: Mapping[tuple[str, ...], Mapping[str, Any]]) -> None:
    """Print the matrix and the summary."""
    lines = [[fault, *cells] for _, fault, _, *cells in matrix(rows)]
    print(table(["fault", *SIDES.values()], lines))
    print()
    for text in summary(rows):
        print(text)


def write_docs(path: Path, rows: Mapping[tuple[str, ...], Mapping[str, Any]]) -> None:
    """Replace the block between the markers of a page by the matrix."""
    head = ["fault", "what is wrong", *SIDES.values()]
    lines = [[f"`{name}`", wrong, *cells] for _, name, wrong, *cells in matrix(rows)]
    write_block(path, "faults", [f"- {text}" for text in summary(rows)], [head, *lines])
    print(f"wrote the matrix into {path}")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, HERE, sides=SIDES)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="run only these faults, runs or configs"
    )
    return parser.parse_args(argv)


def choose(args: argparse.Namespace) -> list[Task]:
    """Return the selected tasks."""
    tasks = all_tasks(args.sides)
    if args.only:
        unknown = set(args.only) - {task.name for task in tasks}
        if unknown:
            raise SystemExit(f"error: --only: there is no {', '.join(sorted(unknown))}")
        tasks = [task for task in tasks if task.name in args.only]
    now = commit(leave_out=RECORD)
    done = {key for key, row in read_rows(args.out, *KEY).items() if row["commit"] == now}
    return [task for task in tasks if args.again or task.key not in done]


def run_all(args: argparse.Namespace, folder: Path) -> None:
    """Run the selected tasks, and append the row of each as soon as it is known."""
    tasks = choose(args)
    shop = Workshop(folder)
    shared = dict(Provenance.now(), commit=commit(leave_out=RECORD))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with (
        ThreadPoolExecutor(args.jobs) as pool,
        open(args.out, "a", encoding="utf-8") as file,
        progress_bar("injecting faults", "run", len(tasks)) as bar,
    ):
        runs = {pool.submit(run_task, task, shop): task for task in tasks}
        for future in as_completed(runs):
            task = runs[future]
            try:
                row = future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                print(f"\n{task.name} ({task.side}) could not be run:", file=sys.stderr)
                raise
            file.write(json.dumps({**row, **shared}) + "\n")
            file.flush()
            said = row["outcome"] if task.side == HEALTHY else cell(row)
            bar.write(f"{task.side:13} {task.name:38} {said:24} {row.get('message', '')[:110]}")
            bar.advance()


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and write according to the command line."""
    args = parse_args(argv)
    run_unless_printed(args, run_all)
    rows = read_rows(args.out, *KEY)
    print_matrix(rows)
    if args.docs:
        write_docs(args.docs, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
