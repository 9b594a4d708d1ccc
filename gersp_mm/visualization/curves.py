"""Draw the losses and monitored values of one or several runs into one picture."""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gersp_mm.checkpoints.read import config_values
from gersp_mm.engine.runs import SCALARS, read_run
from gersp_mm.evaluation.features import read_source
from gersp_mm.utils.errors import UserError
from gersp_mm.visualization.features import new_figure, save_figure
from gersp_mm.visualization.panels import SERIES

TITLES = {
    "loss": "total loss",
    "loss_ct": "contrastive loss (remote sensing)",
    "loss_ce": "cross-entropy (natural images)",
    "acc_ct": "contrastive top-1, training batch (%)",
    "acc_ce_top1": "natural images top-1, training batch (%)",
    "acc_ce_top5": "natural images top-5, training batch (%)",
    "knn_top1": "kNN top-1 (%)",
    "sim_pos": "cosine similarity, positive pairs",
    "sim_neg": "cosine similarity, negatives",
    "feat_std": "spread of the queries (0: collapsed)",
    "queue_age": "age of the oldest key (iterations)",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
}
LEFT_OUT = {"iter", "epoch", "step", "time", "data_time", "memory", "base_lr"}
GUESSES = {"loss_ct": "ln(queue length)", "loss_ce": "α·ln(classes)"}  # what a guess costs
STYLES = ("-", "--", "-.")  # of more runs than there are colours
LEAST_SPAN = 20  # points of an axis of per cent, so that noise does not look like a trend

Curve = list[tuple[float, float]]


class Setting(NamedTuple):
    """The facts in the config of a run about its curves.

    Attributes:
        note: Temperature and queue length, which decide the height of the contrastive loss.
        chance: Value of a guess by its name: an accuracy in per cent, or a loss.
    """

    note: str
    chance: Mapping[str, float]


def find_logs(run: Path) -> list[Path]:
    """Return the scalar files of a run, the oldest first.

    Raises:
        UserError: There is none.
    """
    if run.is_file():
        return [run]
    logs = sorted(run.glob(SCALARS)) or sorted(run.glob("vis_data/scalars.json"))
    if not logs:
        raise UserError(
            f"{run}: no */vis_data/scalars.json in it; give the work directory of a run or the file"
        )
    return logs


def read_curves(run: Path) -> dict[str, Curve]:
    """Read all scalars of a run.

    Where a run was interrupted and resumed, each iteration counts once, as its last start logged
    it. Values of a validation are placed at their iteration, or at the one logged last before them.

    Returns:
        For every name its (iteration, value) pairs, in order.

    Raises:
        UserError: There is no file, or nothing in it can be read.
    """
    values: dict[str, dict[float, float]] = defaultdict(dict)
    for iteration, entry in read_run(find_logs(run)):
        for name, value in entry.items():
            if name not in LEFT_OUT and isinstance(value, (int, float)):
                values[name][iteration] = float(value)
    if not values:
        raise UserError(f"{run}: its scalars.json holds no values yet; train a little longer")
    return {name: sorted(points.items()) for name, points in values.items()}


def read_setting(run: Path) -> Setting:
    """Read the settings in the config next to the scalars of a run, without running its code."""
    file = find_logs(run)[-1].with_name("config.py")
    values = config_values(file.read_text(encoding="utf-8")) if file.is_file() else {}
    temperature = _at(values, "model", "head", "temperature")
    queue = _at(values, "model", "queue_len")
    parts = [f"T = {temperature:g}"] if isinstance(temperature, (int, float)) else []
    parts += [f"queue {queue:,}"] if isinstance(queue, int) else []
    chance: dict[str, float] = {}
    if isinstance(queue, int) and queue > 0:
        chance.update(loss_ct=math.log(queue), acc_ct=100 / (1 + queue))
    classes = _at(values, "model", "natural_head", "num_classes")
    natural = _at(values, "train_dataloader", "dataset", "natural") or {}
    alpha = _at(values, "model", "alpha")
    if isinstance(classes, int) and classes > 1:  # Unused outputs cost at the start, too.
        chance["loss_ce"] = math.log(classes) * (alpha if isinstance(alpha, (int, float)) else 1)
    if isinstance(classes, int) and isinstance(listed := natural.get("ann_file"), str) and listed:
        with suppress(UserError, OSError):  # A list may skip numbers, so that outputs stay unused.
            source = Path(str(natural.get("data_root") or ""), listed)
            classes = len({label for _, label in read_source(source)})
    if isinstance(classes, int):
        chance.update(acc_ce_top1=100 / classes, acc_ce_top5=min(100.0, 500 / classes))
    if isinstance(source := _at(values, "default_hooks", "knn_eval", "train"), str):
        with suppress(UserError, OSError):  # The images may have been moved since.
            chance["knn_top1"] = 100 / len({label for _, label in read_source(source)})
    return Setting(", ".join(parts), chance)


def _at(values: Any, *names: str) -> Any:
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def comparable(runs: Mapping[str, Mapping[str, Curve]]) -> set[str]:
    """Return the names to draw: without the total loss where runs sum different terms."""
    names = {name for curves in runs.values() for name in curves}
    terms = [{name for name in curves if name.startswith("loss_")} for curves in runs.values()]
    return names - {"loss"} if any(one != terms[0] for one in terms) else names


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


def draw(
    runs: Mapping[str, Mapping[str, Curve]],
    out: Path,
    settings: Mapping[str, Setting] | None = None,
    random_knn: float | None = None,
) -> Path:
    """Draw one panel per value, one colour per run.

    Args:
        runs: Label of each run and its curves, as :func:`read_curves` gives them.
        out: The png to write.
        settings: Setting of each run, by its label.
        random_knn: KNN top-1 of random weights in per cent, drawn as a line.
    """
    from matplotlib.lines import Line2D

    settings = settings or {}
    names = order(comparable(runs))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    size = (4.6 * columns, 2.9 * rows + 0.6)
    figure, axes = new_figure(rows, columns, size)
    last = max(curve[-1][0] for curves in runs.values() for curve in curves.values())
    for axis, name in zip(axes.flat, names):
        for number, (label, curves) in enumerate(runs.items()):
            curve = curves.get(name, [])
            if not curve:
                continue
            colour, style = _look(number)
            if len(curve) >= 40 and name != "lr":
                axis.plot(*zip(*curve), color=colour, alpha=0.25, linewidth=0.8, linestyle=style)
                curve = moving_average(curve, max(3, len(curve) // 20))
            marker = "o" if len(curve) <= 20 else None
            axis.plot(
                *zip(*curve),
                color=colour,
                label=label,
                linestyle=style,
                marker=marker,
                markersize=3,
            )
        guesses = {setting.chance[name] for setting in settings.values() if name in setting.chance}
        lines = {value: GUESSES.get(name, "chance") for value in guesses}
        if name == "knn_top1" and random_knn is not None:
            lines[random_knn] = "random weights"
        for value, text in lines.items():
            axis.axhline(value, color="0.4", linestyle="--" if text == "random weights" else ":")
            below = name in GUESSES  # A loss mostly stays below its guess, at the top of the panel.
            axis.annotate(
                text, (last, value), (0, -2 if below else 2), textcoords="offset points",
                color="0.3", fontsize=7, ha="right", va="top" if below else "bottom",
            )  # fmt: skip
        title = TITLES.get(name, name.replace("_", " ").replace("/", ": "))
        if name in TITLES and title.endswith("(%)"):
            _widen(axis)
        if name == "queue_age":  # The age is constant once the queue is full.
            axis.set_ylim(bottom=0)
        notes = {setting.note for setting in settings.values()} - {""}
        if name == "loss_ct" and notes:
            title += f"\n{notes.pop() if len(notes) == 1 else 'T and queue differ, see the legend'}"
        axis.set_title(title, fontsize=10)
        axis.set_xlim(0, last * 1.02)
        axis.set_xlabel("iteration", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    if len(runs) > 1:
        differ = len({setting.note for setting in settings.values()}) > 1
        labels = [f"{r} ({settings[r].note})" if differ and settings[r].note else r for r in runs]
        looks = map(_look, range(len(runs)))
        handles = [Line2D([], [], color=colour, linestyle=style) for colour, style in looks]
        figure.legend(
            handles, labels, loc="outside upper center", ncols=min(4, len(runs)), fontsize=9
        )
    else:
        figure.suptitle(next(iter(runs)), fontsize=11)
    save_figure(figure, out)
    return out


def _look(number: int) -> tuple[str, Any]:
    """Return colour and line style of a run."""
    return SERIES[number % len(SERIES)], STYLES[number // len(SERIES) % len(STYLES)]


def _widen(axis: Any) -> None:
    """Give an axis of per cent at least ``LEAST_SPAN`` points, within 0 to 100."""
    low, high = axis.get_ylim()
    missing = max(0.0, LEAST_SPAN - (high - low))
    below = max(0.0, missing / 2 - low)  # of zero
    axis.set_ylim(low - missing / 2 + below, high + missing / 2 + below)


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
    curves = {label: read_curves(run) for label, run in zip(labels, args.runs)}
    settings = {label: read_setting(run) for label, run in zip(labels, args.runs)}
    if "loss" not in comparable(curves) and any("loss" in own for own in curves.values()):
        print("the total loss is not drawn: the runs sum different terms")
    draw(curves, out, settings, args.random_knn)
    print(f"wrote {out}")
