"""Interrupt small runs of tools/train.py by signals, resume them, and compare with unbroken runs.

Examples:
  python benchmarks/resume/run.py                                    # all tasks and signals
  python benchmarks/resume/run.py --tasks detection --signals KILL --again
  python benchmarks/resume/run.py --print --docs docs/guide/downstream.md  # the table of rows.jsonl
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # another number of threads rounds differently

import argparse
import itertools
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.rows import new_parser, read_rows, run_unless_printed, write_block  # noqa: E402

INTERRUPTION = "GERSP_INTERRUPT"  # "<signal>,<moment>,<iteration>" for the hook below
ITERATIONS = 6
TIME_LIMIT = 600  # s, of a run
# Configs. All but segmentation are trained by epoch.
TASKS = {
    "classification": "eurosat/finetune_r50_eurosat.py",
    "detection": "dior/faster-rcnn_r50_fpn_24e_dior.py",
    "rotated detection": "dior/oriented-rcnn_le90_r50_fpn_1x_dior-r.py",
    "segmentation": "loveda/deeplabv3plus_r50-d8_80k_loveda.py",
    "pre-training": "gersp_r18_demo.py",
}
SIGNALS = ("INT", "TERM", "HUP", "KILL")
# A method of MMEngine's hooks, and the number of finished iterations from which it interrupts, for
# a signal that saves and for KILL, which needs an earlier checkpoint.
MOMENTS = {
    "before step 2": ("before_train_iter", 1, 1),
    "in the middle": ("after_train_iter", 2, 4),
    "while saving": ("before_save_checkpoint", 3, 4),
}


class Case(NamedTuple):
    """One interruption."""

    task: str
    signal: str
    moment: str


def prepare(folder: Path) -> None:
    """Write small images of every data set and the configs of all tasks, if they do not exist."""
    from mmengine.config import Config

    from tests.support.downstream import downstream_twin, write_all
    from tests.support.runs import demo_config
    from tests.support.smoke import write_pair

    if not (folder / "data").exists():
        write_all(folder / "data.part")
        write_pair(folder / "data.part" / "pair")
        (folder / "data.part").rename(folder / "data")
    warm_up = dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=5)
    for task, config in TASKS.items():
        cfg: Config
        if task == "pre-training":
            cfg = demo_config(folder / "data" / "pair", folder, ITERATIONS // 2, epochs=2)
        else:
            cfg = downstream_twin(config, folder / "data", folder, ITERATIONS // 2)
            cfg.pretrained = cfg.model.backbone.init_cfg = None
            cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
            cfg.param_scheduler = [warm_up]
            if task == "segmentation":
                cfg.train_cfg.update(max_iters=ITERATIONS, val_interval=100)
                cfg.default_hooks.checkpoint.interval = 2
            elif task == "classification":
                cfg.train_cfg.update(max_epochs=2, val_interval=100)
            else:
                cfg.train_dataloader.batch_size = 1
                cfg.train_cfg.update(max_epochs=3, val_interval=100)
        cfg.train_dataloader.update(num_workers=1, persistent_workers=True)
        cfg.default_hooks.checkpoint.max_keep_ckpts = -1
        cfg.custom_hooks = [dict(type="InterruptHook", priority="LOWEST")]
        cfg.log_level = "INFO"
        cfg.pop("work_dir")
        cfg.dump(folder / f"{task.replace(' ', '_')}.py")


def register_hook() -> None:
    """Register the hook that sends a signal to this process."""
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    class InterruptHook(Hook):
        """A hook that sends the signal of ``GERSP_INTERRUPT`` once, if the variable is set."""

        def _reach(self, moment: str, runner: Any) -> None:
            name, chosen, iteration = os.environ.get(INTERRUPTION, ",,").split(",")
            if chosen == moment and runner.iter >= int(iteration):
                os.environ.pop(INTERRUPTION)
                os.kill(os.getpid(), getattr(signal, f"SIG{name}"))

        def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            self._reach("before_train_iter", runner)

        def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            self._reach("after_train_iter", runner)

        def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
            self._reach("before_save_checkpoint", runner)

    HOOKS.register_module(module=InterruptHook)


def train(task: str, folder: Path, work_dir: Path, *options: str, interrupt: str = "") -> int:
    """Run tools/train.py in a separate process; return its exit code, or minus its signal.

    The process is forked from this process, which has imported the hosts, so that it takes seconds.
    """
    from gersp_mm.resources import resource
    from tests.support.forked import Forked

    work_dir.mkdir(parents=True, exist_ok=True)
    return Forked(
        resource("tools", "train.py"),
        folder / f"{task.replace(' ', '_')}.py",
        *("--work-dir", work_dir, *options),
        output=work_dir / "output.txt",
        env={**os.environ, INTERRUPTION: interrupt or ",,"},
        new_session=True,
    ).wait(TIME_LIMIT)


def last_checkpoint(work_dir: Path) -> Path | None:
    """Return the checkpoint that is furthest in training."""
    from gersp_mm.checkpoints import latest_checkpoint

    found = latest_checkpoint(work_dir)
    return Path(found) if found else None


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """Interrupt, resume and compare; return the row."""
    from tests.support.runs import assert_same_training_state

    start = time.time()
    work_dir = folder / "runs" / "-".join(case).replace(" ", "_")
    moment, *iterations = MOMENTS[case.moment]
    iteration = iterations[case.signal == "KILL"]
    code = train(case.task, folder, work_dir, interrupt=f"{case.signal},{moment},{iteration}")
    number = getattr(signal, f"SIG{case.signal}")
    saved = last_checkpoint(work_dir)
    row = dict(case._asdict(), exit=code, resumed_from=saved.name if saved else None)
    if code != (-number if case.signal == "KILL" else 128 + number):
        return dict(row, outcome=f"the run ended with {code}")
    code = train(case.task, folder, work_dir, "--resume", "auto")
    if code:
        return dict(row, outcome=f"the resumed run ended with {code}")
    whole = last_checkpoint(folder / "runs" / case.task.replace(" ", "_"))
    end = last_checkpoint(work_dir)
    try:
        assert whole is not None and end is not None
        assert_same_training_state(end, whole)
        outcome = "identical"
    except AssertionError as error:
        outcome = f"differs: {str(error).splitlines()[0]}"
    return dict(row, outcome=outcome, seconds=round(time.time() - start, 1))


def matrix(rows: Mapping[tuple[str, ...], Mapping[str, Any]]) -> list[list[str]]:
    """Return the lines of the table: one per task and moment, with a column per signal."""
    lines = [["task", "interrupted", *SIGNALS]]
    for task, moment in itertools.product(TASKS, MOMENTS):
        cells = [rows.get(Case(task, name, moment)) for name in SIGNALS]
        if any(cells):
            lines.append([task, moment, *(row["outcome"] if row else "-" for row in cells)])
    return lines


def write_docs(path: Path, rows: Mapping[tuple[str, ...], Mapping[str, Any]]) -> None:
    """Replace the block between the markers of a page by the table."""
    same = sum(row["outcome"] == "identical" for row in rows.values())
    some = next(iter(rows.values()))
    text = (
        f"{same} of {len(rows)} resumed runs ended identical to the unbroken one "
        f"(torch {some['versions'].get('torch')}, {some['hardware']})."
    )
    write_block(path, "resume", [text], matrix(rows))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return new_parser(__doc__, HERE, tasks=TASKS, signals=SIGNALS).parse_args(argv)


def run_all(args: argparse.Namespace, folder: Path) -> None:
    """Run the cases that have no row, and append a row for each as soon as it is known."""
    known = {} if args.again else read_rows(args.out, *Case._fields)
    chosen = itertools.product(args.tasks, args.signals, MOMENTS)
    cases = [case for case in itertools.starmap(Case, chosen) if case not in known]
    if not cases:
        return
    import yapf.yapflib.yapf_api as formatter

    from gersp_mm.engine import launch  # noqa: F401
    from gersp_mm.utils.provenance import Provenance, commit

    # MMEngine formats every config that it writes, which takes most of the time of a small run.
    formatter.FormatCode = lambda text, **options: (text, True)
    # In the background, a shell lets both be ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    register_hook()
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    shared = dict(Provenance.now(), commit=commit(leave_out="benchmarks/resume/rows.jsonl"))

    def one(case: Case) -> None:
        row = {**run_case(case, folder), **shared}
        with open(args.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{' / '.join(case):45} {row['resumed_from'] or 'no checkpoint':14} {row['outcome']}")
        sys.stdout.flush()

    with ThreadPool(args.jobs) as pool:
        for task in dict.fromkeys(case.task for case in cases):
            work_dir = folder / "runs" / task.replace(" ", "_")
            if last_checkpoint(work_dir) is None and train(task, folder, work_dir):
                raise SystemExit(f"error: {task} does not train, see {work_dir}/output.txt")
            pool.map(one, [case for case in cases if case.task == task])


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and write according to the command line."""
    args = parse_args(argv)
    from gersp_mm.utils.console import table

    run_unless_printed(args, run_all)
    rows = read_rows(args.out, *Case._fields)
    head, *lines = matrix(rows)
    print(table(head, lines))
    if args.docs:
        write_docs(args.docs, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
