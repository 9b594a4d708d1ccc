#!/usr/bin/env python3
"""GeRSP-mini: pre-train every row of the study with every seed, evaluate, and make the tables.

benchmarks/mini/rows.yml holds rows, seeds and options; benchmarks/mini/prepare.py prepares the
images. After an interruption, the same command resumes interrupted runs and does not repeat
finished runs.

Files in work_dirs/mini/<size>:

  <row>/seed_<n>/             each pre-training: its log, checkpoints, finished.json
  frozen.yml, finetune.yml    the plans given to tools/benchmarks/run.py
  results.jsonl               rows of the evaluation
  results_pretraining.json    command, commit, losses and time of each pre-training
  tables/                     tables of these rows and the recorded ones

The recorded rows, results/mini_<size>.jsonl, do not change. If both hold a seed, the tables use the
recorded value and list the new value with its difference.

Examples:
  python benchmarks/mini/run.py --dry-run                       # list the commands, run none
  python benchmarks/mini/run.py                                 # everything, one run per core
  python benchmarks/mini/run.py --rows GeRSP IMP --seeds 0      # two rows, one seed
  python benchmarks/mini/run.py --size gpu --jobs 1
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from mmengine.config import Config

from gersp_mm.benchmark import read_plan
from gersp_mm.commands import table
from gersp_mm.commands.options import run_tool
from gersp_mm.engine.runs import POLL, TRAINING_LOG, ChildRun, RunFolder
from gersp_mm.resources import data_root
from gersp_mm.results.row import RANDOM
from gersp_mm.utils import provenance
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.console import progress_bar
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import file_sha256, write_text
from gersp_mm.utils.provenance import Provenance

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EVALUATED = re.compile(r"^\[(\d+/\d+)\] ", re.MULTILINE)  # a job of tools/benchmarks/run.py
TASKS = dict(
    frozen=[
        dict(protocol="knn", k=20, temperature=0.07),
        dict(protocol="linear", sweep=[0.01, 0.1]),
        dict(protocol="fewshot", shots=[5], draws=5),
    ],
    finetune=[dict(protocol="finetune", config="benchmarks/mini/configs/finetune.py")],
)
KINDS = {**TASKS, "knn": TASKS["frozen"][:1]}  # the last for environments without scikit-learn
LAST = 50  # iterations whose losses are averaged for the record


class Run(NamedTuple):
    """One pre-training of the study."""

    row: str
    seed: int
    config: Path
    options: Mapping[str, Any]
    folder: Path
    finetune: bool
    processes: int

    @property
    def title(self) -> str:
        """Row and seed of the run."""
        return f"{self.row}, seed {self.seed}"

    @property
    def command(self) -> list[str]:
        """Command that starts or resumes the training."""
        options = [f"{key}={value}" for key, value in self.options.items()]
        start = [sys.executable, str(ROOT / "tools" / "train.py"), os.path.relpath(self.config)]
        if self.processes > 1:
            launch = ["-m", "torch.distributed.run", "--standalone"]
            start[1:1] = [*launch, f"--nproc_per_node={self.processes}"]
            start += ["--launcher", "pytorch"]
        return [
            *start,
            *("--work-dir", str(self.folder), "--resume", "auto"),
            *("--cfg-options", f"randomness.seed={self.seed}", *options),
        ]

    @property
    def words(self) -> str:
        """The command as typed in the root of the repository."""
        words = [word.removeprefix(f"{ROOT}{os.sep}") for word in self.command[1:]]
        return shlex.join(["python", *words])

    @property
    def backbone(self) -> Path:
        """The exported backbone."""
        return self.folder / f"{self.config.stem}_backbone.pth"

    @property
    def finished(self) -> Path:
        """File that is written when the training has ended."""
        return self.folder / "finished.json"


def read_rows(path: Path, folder: Path) -> list[Run]:
    """Return all runs of the study, row by row.

    Raises:
        UserError: The file is not a list of this kind.
    """
    runs = []
    for name, group in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for row, what in group["rows"].items():
            config = HERE / "configs" / what["config"]
            if not config.is_file():
                raise UserError(f"{path}: {name}.{row}: there is no {config}")
            slug = re.sub(r"[^a-z0-9.+]+", "-", row.lower().replace("α", "alpha")).strip("-")
            for seed in group["seeds"]:
                run = Run(
                    row,
                    seed,
                    config,
                    what.get("options", {}),
                    folder / slug / f"seed_{seed}",
                    bool(group.get("finetune")),
                    what.get("processes", 1),
                )
                runs.append(run)
    return runs


def chosen(runs: list[Run], rows: list[str] | None, seeds: list[int] | None) -> list[Run]:
    """Return the requested runs."""
    known = list(dict.fromkeys(run.row for run in runs))
    for row in rows or []:
        if row not in known:
            raise UserError(f"--rows {row}: there are {', '.join(known)}")
    found = [r for r in runs if (not rows or r.row in rows) and (not seeds or r.seed in seeds)]
    if not found:
        raise UserError(f"--seeds {seeds}: no row of those has such a seed")
    return found


class Pool:
    """A pool that runs several commands at once, shows their progress, and stops them together."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def run(self, waiting: list[tuple[str, list[str], Path]], after: Any = None) -> None:
        """Run (title, command, log) each; ``after(title, seconds)`` follows a success.

        Raises:
            UserError: A command failed. The others are stopped first.
        """
        waiting = list(waiting)
        running: dict[ChildRun, float] = {}
        jobs: dict[ChildRun, str] = {}  # progress of evaluations, which have no scalars.json
        with (
            ExitStack() as stack,  # It stops all commands if one of them fails.
            progress_bar("the study", "run", len(waiting), shown=bool(waiting)) as bar,
        ):
            try:
                while waiting or running:
                    while waiting and len(running) < self.jobs:
                        child = stack.enter_context(ChildRun(*waiting.pop(0)))
                        running[child] = time.perf_counter()
                    time.sleep(POLL)
                    for child in [child for child in running if not child.running]:
                        seconds = time.perf_counter() - running.pop(child)
                        child.require_success()
                        if after is not None:
                            after(child.title, seconds)
                        bar.write(f"{child.title}: done in {seconds:.0f} s")
                        bar.advance()
                    for child in running:
                        if found := EVALUATED.findall("\n".join(child.new_lines())):
                            jobs[child] = f"job {found[-1]}"
                    shown = [
                        f"{child.title}: {jobs.get(child) or child.position()}" for child in running
                    ]
                    bar.advance(0, "; ".join(shown))
            finally:  # All commands are stopped before the first wait.
                for child in running:
                    child.stop()


def pretrain(runs: list[Run], pool: Pool, record: Path) -> None:
    """Train the unfinished runs, and record each run once.

    Raises:
        UserError: A finished run was trained by another command than the study's.
    """
    by_title = {run.title: run for run in runs}
    for run in runs:
        if run.finished.is_file():
            before = json.loads(run.finished.read_text(encoding="utf-8"))["command"]
            as_now = before.replace(" --resume --", " --resume auto --")  # as in earlier versions
            if as_now != run.words:
                raise UserError(
                    f"{run.folder} holds a run of\n  {before}\nand the study now says\n  "
                    f"{run.words}\nremove the folder, or take another --work-dir"
                )

    def finish(title: str, seconds: float) -> None:
        run = by_title[title]
        facts = facts_of(run, seconds)
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
        lines = [json.dumps(other) for other in known if not _is_same(other, facts)]
        text = ",\n".join([*lines, json.dumps(facts)])
        write_text(record, f"[\n{text}\n]\n")
        write_text(run.finished, json.dumps(facts, indent=1) + "\n")

    left = [run for run in runs if not run.finished.is_file()]
    print(f"{len(runs)} pre-trainings, {len(runs) - len(left)} of them done", flush=True)
    pool.run([(run.title, run.command, run.folder / TRAINING_LOG) for run in left], finish)


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two records belong to one pre-training with the same weights."""
    return all(one[name] == other[name] for name in ("row", "seed", "checkpoint_sha256"))


def facts_of(run: Run, seconds: float) -> dict[str, Any]:
    """Return the facts of a finished pre-training."""
    scalars = [entry for entry in RunFolder(run.folder).scalars() if "iter" in entry]
    cfg = Config.fromfile(run.config)
    cfg.merge_from_dict(dict(run.options))
    if not (run.folder / f"epoch_{cfg.train_cfg.max_epochs}.pth").is_file():
        raise UserError(f"{run.title} was stopped before its end: run again")
    updates = scalars[-1]["iter"]
    last = [entry for entry in scalars if entry["iter"] > updates - LAST]
    names = [n for n in ("loss_ct", "loss_ce", "acc_ct", "acc_ce_top1", "feat_std") if n in last[0]]
    return dict(
        row=run.row,
        seed=run.seed,
        command=run.words,
        updates=updates,
        last={n: round(sum(e[n] for e in last) / len(last), 4) for n in names},
        checkpoint_sha256=file_sha256(run.backbone),
        **dict(Provenance.now()),
        seconds=round(seconds, 1),
    )


def evaluate(runs: list[Run], args: argparse.Namespace, pool: Pool) -> None:
    """Evaluate all finished runs of the study, and random weights, into rows of results."""
    data = data_root()
    lists = data / f"mini_{args.size}"
    sets = {
        "EuroSAT": (lists / "eurosat_train.txt", lists / "eurosat_test.txt"),
        "RESISC12": (data / "NWPU-RESISC12" / "train", data / "NWPU-RESISC12" / "test"),
        "NEON demo sites": (data / "demo" / "sites_train.txt", data / "demo" / "sites_test.txt"),
    }
    there = {name: pair for name, pair in sets.items() if all(path.exists() for path in pair)}
    for name in sorted(set(sets) - set(there)):
        print(f"{name} is left out: there is no {sets[name][0]} (see benchmarks/mini/prepare.py)")
    done = [run for run in runs if run.finished.is_file()]
    seeds = sorted({run.seed for run in runs})
    for kind in args.evaluate:
        checkpoints: dict[str, Any] = {RANDOM: None}
        for run in done:
            if kind != "finetune" or run.finetune:
                checkpoints.setdefault(run.row, {})[run.seed] = os.path.relpath(run.backbone)
        tasks = [dict(task) for task in KINDS[kind]]
        plan = dict(checkpoints=checkpoints, arch="resnet18", seeds=seeds, tasks=tasks)
        if kind != "finetune":
            plan["datasets"] = {
                name: dict(train=str(train), test=str(test), size=64)
                for name, (train, test) in there.items()
            }
            for task in tasks:
                task["data"] = list(there)
        plan["work_dir"] = str(args.work_dir / "evaluation")
        path = args.work_dir / f"{kind}.yml"
        write_text(path, yaml.safe_dump(plan, sort_keys=False, allow_unicode=True))
        read_plan(path)  # Reports errors before processes start.
        tool = [sys.executable, str(ROOT / "tools" / "benchmarks" / "run.py"), str(path)]
        tool += ["--out", str(args.out)]
        log = args.work_dir / "evaluation"
        print(f"{kind}: {len(checkpoints)} rows; log in {log}", flush=True)
        pool.run(
            [
                (f"{kind}, process {n}", tool, log / f"{kind}_{n}.log")
                for n in range(1, pool.jobs + 1)
            ]
        )


def make_tables(args: argparse.Namespace) -> None:
    """Make the tables of the recorded rows, if there are any, and of the new rows."""
    if importlib.util.find_spec("scipy") is None:
        print(f"no tables, because their statistics need scipy; rows: {args.out}")
        return
    files = [path for path in (args.recorded, args.out) if path.is_file()]
    if files[0].samefile(files[-1]):
        files = files[:1]
    out = ["--out", str(args.work_dir / "tables"), "--title", "GeRSP-mini"]
    print(f"rows: {args.out}")
    table.run(table.parse_args([*map(str, files), *out]))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this script."""
    parser = new_parser(__doc__)
    parser.add_argument("--size", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="run only these rows [all]")
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="N", help="run only these seeds [all]"
    )
    parser.add_argument("--rows-file", type=Path, default=HERE / "rows.yml")
    parser.add_argument(
        "--jobs", type=int, help="run N processes at once [cpu: one per core, gpu: 1]"
    )
    parser.add_argument("--work-dir", type=Path, help="write here [work_dirs/mini/<size>]")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.jsonl",
        help="append the rows to FILE [<work dir>/results.jsonl]",
    )  # fmt: skip
    parser.add_argument(
        "--recorded", type=Path, metavar="FILE.jsonl",
        help="compare with the rows of FILE [results/mini_<size>.jsonl]",
    )  # fmt: skip
    parser.add_argument(
        "--evaluate",
        nargs="*",
        choices=tuple(KINDS),
        default=tuple(TASKS),
        help="evaluate by these protocols [frozen finetune]; frozen includes knn",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Run the pre-trainings of the study, then their evaluation."""
    args.work_dir = args.work_dir or Path("work_dirs", "mini", args.size)
    args.out = args.out or args.work_dir / "results.jsonl"
    args.recorded = args.recorded or ROOT / "results" / f"mini_{args.size}.jsonl"
    every = read_rows(args.rows_file, args.work_dir)
    runs = chosen(every, args.rows, args.seeds)
    if args.dry_run:
        for run in runs:
            state = "done" if run.finished.is_file() else "to do"
            print(f"# {run.title}: {state}\nGERSP_MINI_SIZE={args.size} {run.words}")
        return
    lists = data_root() / f"mini_{args.size}"
    if not (lists / "natural.txt").is_file():
        raise UserError(f"there is no {lists}. Run python benchmarks/mini/prepare.py first.")
    cores = provenance.cores()
    jobs = args.jobs or (cores if args.size == "cpu" else 1)
    environment = dict(GERSP_MINI_SIZE=args.size)
    if args.size == "cpu":
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // jobs))
        environment.update(OMP_NUM_THREADS=threads, CUDA_VISIBLE_DEVICES="")
    os.environ.update(environment)
    pool = Pool(jobs)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    record = args.out.with_name(f"{args.out.stem}_pretraining.json")
    record.parent.mkdir(parents=True, exist_ok=True)
    pretrain(runs, pool, record)
    if args.evaluate:
        evaluate(runs, args, pool)
        make_tables(args)


if __name__ == "__main__":
    run_tool(main, parse_args())
