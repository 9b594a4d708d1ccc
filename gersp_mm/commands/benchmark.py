"""Evaluate checkpoints x tasks x seeds of a YAML file and write result rows.

Examples:
  gersp benchmark tools/benchmarks/example.yml --dry-run
  gersp benchmark tools/benchmarks/example.yml --out work_dirs/mine.jsonl
  gersp table work_dirs/mine.jsonl --out work_dirs/tables

The file (paths are relative to the current folder):

  checkpoints:              # name in the tables, and a backbone file of this package,
    GeRSP: gersp_backbone.pth
    random: null            #   null for random weights, drawn for each seed,
    IMP: {0: imp_0.pth, 1: imp_1.pth}    # or {seed of pre-training: file}
  arch: resnet18            # network of the random weights: resnet18, 34, 50, 101, 152,
                            #   or {type: ..., ...}
  seeds: [0, 1, 2]
  datasets:                 # your own: a folder of class folders, or a list of `path label` lines
    RESISC12: {train: data/NWPU-RESISC12/train, test: data/NWPU-RESISC12/test, size: 64}
  tasks:                    # data: eurosat, resisc45, ucmerced, aid, your own name, or several
    - {protocol: knn, data: [eurosat, RESISC12], k: 20, temperature: 0.07}
    - {protocol: linear, data: eurosat, sweep: [0.001, 0.01, 0.1]}
    - {protocol: fewshot, data: RESISC12, shots: [1, 5, 10], draws: 5}
    - {protocol: finetune, config: configs/downstream/eurosat/finetune_r18_eurosat.py,
       cfg_options: {train_dataloader.batch_size: 32}}
  work_dir: work_dirs/benchmarks/mine    # features, fine-tuned models, results.jsonl

The data sets with known names lie below $GERSP_DATA (default: data):

  data/eurosat, data/resisc45    after `gersp prepare eurosat` and `gersp prepare resisc45`, whose
                                 --help says where to download the images
  data/ucmerced/.../<class>/*    21 classes, http://weegee.vision.ucmerced.edu/datasets/landuse.html
  data/aid/.../<class>/*         30 classes, https://captain-whu.github.io/AID/

Finished rows are not repeated: after an interruption the same command resumes. Several processes
may work on one file, each with its own --device.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from gersp_mm.backbones.own import add_import_argument, import_modules
from gersp_mm.commands.options import run_tool
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.called import as_called
from gersp_mm.utils.errors import UserError, counted


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument("plan", metavar="FILE.yml", help="read checkpoints, tasks and seeds")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.jsonl", help="append to FILE [<work dir>/results.jsonl]"
    )
    parser.add_argument("--work-dir", help="write to this folder [work_dir of FILE.yml]")
    parser.add_argument("--device", help="run on cpu, cuda or cuda:N [the first GPU, else cpu]")
    parser.add_argument(
        "--num-workers", type=int, default=0, help="decode images in this many worker processes [0]"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="evaluate only these checkpoints [all]",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the jobs and run none of them")
    add_import_argument(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Evaluate every checkpoint of the plan and append the result rows."""
    import torch

    from gersp_mm import benchmark

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"--device {device} is no device. Give cpu, cuda or cuda:N.")
    number = int(device.partition(":")[2] or 0)
    if device != "cpu" and number >= torch.cuda.device_count():
        raise UserError(
            f"--device {device} does not exist: this machine has "
            f"{counted(torch.cuda.device_count(), 'GPU')}. Give the number of one of them, or cpu."
        )
    import_modules(args.imports)
    plan = benchmark.read_plan(args.plan, args.work_dir)
    jobs = benchmark.make_jobs(plan, args.only)
    out = args.out or plan.work_dir / "results.jsonl"
    runner = benchmark.Runner(plan, out, device, args.num_workers)
    done = runner.finished()
    left = [job for job in jobs if not done.issuperset(job.identities)]
    ready = f"{counted(len(jobs), 'job')}, {len(jobs) - len(left)} of them done"
    print(f"{ready}; rows go to {out}", flush=True)
    if any(job.seed is None for job in jobs):
        print("a result that does not change with the seed is computed once, with the seed null")
    if args.dry_run:
        for count, job in enumerate(jobs, 1):
            state = "to do" if job in left else "done"
            print(f"[{count}/{len(jobs)}] {state}: {job.title} ({job.identities[0].sentence})")
        return
    ran = runner.run(jobs)
    print(as_called(f"{counted(ran, 'job')} run; next: gersp table {out}"))


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    run_tool(run, parse_args(argv))
