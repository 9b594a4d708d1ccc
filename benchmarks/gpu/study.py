"""Part 4: the study GeRSP-mini at size ``gpu``, for as long as there is time."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from measuring import Context, measurement

from gersp_mm.results import read_rows

MINI = Path(__file__).resolve().parents[1] / "mini"
FIRST = "GeRSP"  # of the rows with one seed; the baselines follow
# What makes a row of the study tiny: the rehearsal runs the same commands.
TINY = {
    "model.backbone.stem_channels": 8, "model.backbone.base_channels": 8, "model.queue_len": 64,
    "model.neck.in_channels": 64, "model.natural_head.in_channels": 64,
    "train_dataloader.batch_size": 8, "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "train_dataloader.dataset.remote_sensing.indices": 16,
    "train_dataloader.dataset.natural.indices": 16,
    "train_dataloader.dataset.rs_pipeline.0.size": 32,
    "train_dataloader.dataset.natural_pipeline.0.size": 32, "train_cfg.max_epochs": 1,
}  # fmt: skip


def read_plan(ctx: Context, folder: Path) -> tuple[Path, list[tuple[str, int]]]:
    """Return the file of rows, and rows with seeds in their order; tiny in a rehearsal."""
    file = MINI / "rows.yml"
    main = yaml.safe_load(file.read_text(encoding="utf-8"))["main"]
    names = sorted(main["rows"], key=lambda name: name != FIRST)
    if not ctx.small:
        return file, [(name, seed) for seed in main["seeds"] for name in names]
    row = dict(main["rows"][FIRST], options=TINY)
    file = folder / "rows.yml"
    file.write_text(yaml.safe_dump(dict(main=dict(seeds=[0], rows={FIRST: row}))))
    return file, [(FIRST, 0)]


@measurement(part=4, limit=float("inf"))
def study(ctx: Context) -> None:
    """Pre-train and evaluate GeRSP and the baselines, one row and seed after another.

    With ``--scratch``, a later call resumes the run that the end of the time interrupted.
    """
    folder = ctx.scratch / "study"
    folder.mkdir(exist_ok=True)
    out = ctx.out / "study.jsonl"
    rows_file, plan = read_plan(ctx, folder)
    known = len(read_rows(out)) if out.is_file() else 0
    # The bundle has no room for scikit-learn and scipy, which linear probes need.
    kind = "frozen" if importlib.util.find_spec("sklearn") else "knn"
    for name, seed in plan:
        if ctx.left() < 20:
            ctx.put("skipped", what=f"{name}, seed {seed}", why="no time is left")
            return
        command = [
            sys.executable, str(MINI / "run.py"), "--size", "gpu", "--jobs", "1",
            "--rows-file", str(rows_file), "--rows", name, "--seeds", str(seed),
            "--evaluate", kind, "--work-dir", str(folder), "--out", str(out),
        ]  # fmt: skip
        begin = time.time()
        environment = dict(os.environ, GERSP_DATA=str(ctx.images))
        with open(ctx.out / "study.log", "ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log,
                                       cwd=MINI.parents[1])  # fmt: skip
            try:
                code = process.wait(timeout=max(ctx.left() - 5, 1))
            except subprocess.TimeoutExpired:
                process.terminate()  # It saves a checkpoint, to be resumed.
                process.wait(timeout=30)
                ctx.put("unfinished", what=f"{name}, seed {seed}", why="no time is left")
                return
        seconds = time.time() - begin
        if code:
            ctx.put("error", what=f"{name}, seed {seed}", error=f"exit code {code}; see study.log")
            continue
        rows = [row.model_dump(mode="json") for row in read_rows(out)[known:]]
        known += len(rows)
        ctx.put(what=f"{name}, seed {seed}", seconds=seconds, images=_images(ctx),
                pretraining=_pretraining(out, name, seed), values=list(_values(rows)))  # fmt: skip


def _images(ctx: Context) -> dict[str, int]:
    """Return how many different images each list names; the bundle may repeat a part of them."""
    lists = ctx.images / "mini_gpu"
    return {f.stem: len(set(f.read_text().splitlines())) for f in sorted(lists.glob("*.txt"))}


def _pretraining(out: Path, name: str, seed: int) -> dict[str, Any] | None:
    """Return what the study recorded of a pre-training."""
    file = out.with_name(f"{out.stem}_pretraining.json")
    known = json.loads(file.read_text(encoding="utf-8"))
    found = [entry for entry in known if (entry["row"], entry["seed"]) == (name, seed)]
    return {k: found[-1][k] for k in ("updates", "last", "seconds")} if found else None


def _values(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    fields = ("settings", "dataset", "protocol", "metric", "value", "seed")
    for row in rows:
        yield {name: row[name] for name in fields if name in row}
