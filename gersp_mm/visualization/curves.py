"""Draw the losses and monitored values of one or several runs into one picture.

Examples:
  python tools/visualization/curves.py work_dirs/gersp_r18_demo
  python tools/visualization/curves.py work_dirs/a work_dirs/b --labels 0.99 0.996 --out ab.png
  python tools/visualization/curves.py work_dirs/a/20260101_120000/vis_data/scalars.json

A run is a work directory (all its starts, so that a resumed run is one curve) or one scalars.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import replacing

TITLES = {
    "loss": "total loss",
    "loss_ct": "contrastive loss (remote sensing)",
    "loss_ce": "cross-entropy (natural images)",
    "acc_ct": "contrastive top-1 (%)",
    "acc_ce_top1": "natural images top-1 (%)",
    "acc_ce_top5": "natural images top-5 (%)",
    "knn_top1": "kNN top-1 (%)",
    "sim_pos": "cosine similarity, positive pairs",
    "sim_neg": "cosine similarity, negatives",
    "feat_std": "spread of the queries (0: collapsed)",
    "queue_age": "age of the oldest key (iterations)",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
}
LEFT_OUT = {"iter", "epoch", "step", "time", "data_time", "memory", "base_lr"}

Curve = list[tuple[float, float]]


def find_logs(run: Path) -> list[Path]:
    """Return a run's scalar files, the oldest first.

    Raises:
        UserError: there is none.
    """
    if run.is_file():
        return [run]
    logs = sorted(run.glob("*/vis_data/scalars.json")) or sorted(run.glob("vis_data/scalars.json"))
    if not logs:
        raise UserError(
            f"{run}: no */vis_data/scalars.json in it; give the work directory of a run or the file"
        )
    return logs


def read_curves(run: Path) -> dict[str, Curve]:
    """Read all scalars of a run.

    Where a run was interrupted and resumed, what the later start logged for an iteration counts.
    Values of validation are placed at the iteration that was logged last before them.

    Returns:
        For every name its (iteration, value) pairs, in order.

    Raises:
        UserError: no file, or nothing in it can be read.
    """
    values: dict[str, dict[float, float]] = defaultdict(dict)
    for log in find_logs(run):
        iteration = 0.0
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                entry: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # the last line of a killed run
            # Lines of validation hold no iteration (their step may be an epoch).
            iteration = float(entry.get("iter", iteration))
            for name, value in entry.items():
                if name not in LEFT_OUT and isinstance(value, (int, float)):
                    values[name][iteration] = float(value)
    if not values:
        raise UserError(f"{run}: its scalars.json holds no values yet; train a little longer")
    return {name: sorted(points.items()) for name, points in values.items()}


def order(names: set[str]) -> list[str]:
    """Losses first, then the known values, then the others by name."""
    known = list(TITLES)

    def key(name: str) -> tuple[bool, int, str]:
        return "loss" not in name, known.index(name) if name in known else len(known), name

    return sorted(names, key=key)


def moving_average(curve: Curve, window: int) -> Curve:
    """Average over up to ``window`` neighbouring points; non-finite ones are left out."""
    finite = [point for point in curve if math.isfinite(point[1])]
    half = window // 2
    smoothed = []
    for i, (x, _) in enumerate(finite):
        part = [y for _, y in finite[max(0, i - half) : i + half + 1]]
        smoothed.append((x, sum(part) / len(part)))
    return smoothed


def draw(runs: dict[str, dict[str, Curve]], out: Path) -> Path:
    """Draw one panel per value, one colour per run.

    Args:
        runs: label of each run and its curves, as :func:`read_curves` gives them.
        out: the png to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = order({name for curves in runs.values() for name in curves})
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    size = (4.6 * columns, 2.9 * rows + 0.6)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, name in zip(axes.flat, names):
        for number, (label, curves) in enumerate(runs.items()):
            curve = curves.get(name, [])
            if not curve:
                continue
            colour = f"C{number}"
            if len(curve) >= 40 and name != "lr":
                axis.plot(*zip(*curve), color=colour, alpha=0.25, linewidth=0.8)
                curve = moving_average(curve, max(3, len(curve) // 20))
            marker = "o" if len(curve) <= 20 else None
            axis.plot(*zip(*curve), color=colour, label=label, marker=marker, markersize=3)
        axis.set_title(TITLES.get(name, name.replace("_", " ").replace("/", ": ")), fontsize=10)
        axis.set_xlabel("iteration", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    if len(runs) > 1:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=min(4, len(runs)), fontsize=9
        )
    else:
        figure.suptitle(next(iter(runs)), fontsize=11)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
    return out


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="work directories or scalars.json files")
    parser.add_argument("--labels", nargs="+", help="names of the runs; default: of their folders")
    parser.add_argument("--out", type=Path, help="png to write; default: first run/curves.png")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Draw the logged scalars of one or more runs."""
    for run in args.runs:
        if not run.exists():
            raise UserError(f"there is no run {run}")
    labels = args.labels or [str(run) if run.is_file() else run.resolve().name for run in args.runs]
    if len(labels) != len(args.runs):
        raise UserError(f"--labels names {len(labels)} runs, but {len(args.runs)} are given")
    if len(set(labels)) < len(labels):
        labels = [str(run) for run in args.runs]
    first = args.runs[0]
    out = args.out or (first if first.is_dir() else first.parent) / "curves.png"
    draw({label: read_curves(run) for label, run in zip(labels, args.runs)}, out)
    print(f"wrote {out}")
