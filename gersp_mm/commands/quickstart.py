"""Pre-train GeRSP on the demo images, export the backbone and evaluate it.

Fetches the demo images (or lists your own), draws the training pairs, trains
configs/pretrain/gersp_r18_demo.py, and evaluates the exported backbone by kNN and linear probe
next to the same network at random initialisation. Ctrl-C loses nothing: the same command resumes
where it stopped. A finished run is not trained again, only evaluated, unless --force is given.
"""

# The launcher checks the arguments by this file alone, with the Python of a bare machine: only the
# standard library is imported up here.
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gersp_mm.engine.runs import RunFolder
    from gersp_mm.results import Row

CONFIG = "configs/pretrain/gersp_r18_demo.py"
NAME = "gersp_r18_demo"
SETTINGS = "quickstart_settings.json"
REPORT, ROWS = "quickstart.json", "rows.jsonl"
RANDOM_DRAWS = 3
RECORDED = ("results", "demo.jsonl")  # The runs that README quotes.
METRICS = dict(knn=("knn", "kNN"), linear_probe=("linear", "linear probe"))  # Kind, name in print.
EVAL_SIZE = 64  # Pixels: the side of the demo's site tiles.
VALUES = ("loss_ct", "loss_ce", "acc_ct", "acc_ce_top1")  # The values shown during pre-training.
NOTABLE = ("kNN top-1", "resumed")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        prog=_as_called("bash tools/quickstart.sh"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_as_called("""examples:
  bash tools/quickstart.sh
  bash tools/quickstart.sh --seed 1 --work-dir work_dirs/quickstart_1
  bash tools/quickstart.sh --epochs 1                          # a quick trial
  bash tools/quickstart.sh --remote-sensing my/tiles --natural my/photographs

Sub-folders of --natural are its classes. Sub-folders of --remote-sensing, if there are two or
more, are the classes of the evaluation; pre-training does not use them. Where there are few
remote-sensing images, batches and queue get smaller: the queue holds at most one pass."""),
    )
    add = parser.add_argument
    add("--remote-sensing", type=Path, metavar="DIR", help="use these remote-sensing images")
    add("--natural", type=Path, metavar="DIR",
        help="use these natural images, one sub-folder per class")  # fmt: skip
    add("--epochs", type=int, help="pre-train for this many epochs [as in the config]")
    add("--seed", type=int, default=0, help="seed pre-training and evaluation [0]")
    add("--amp", choices=("auto", "fp16", "bf16", "fp32"), default="fp32",
        help="train in this precision [fp32]")  # fmt: skip
    add("--work-dir", type=Path, metavar="DIR", help="write results to DIR [work_dirs/quickstart]")
    add(
        "--force", action="store_true", help="discard the run in the work directory and train again"
    )
    args = parser.parse_args(argv)
    for option in ("remote_sensing", "natural"):
        folder = getattr(args, option)
        if folder is not None and not folder.expanduser().is_dir():
            parser.error(f"--{option.replace('_', '-')} {folder}: there is no such folder")
    if args.epochs is not None and args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    return args


def _as_called(text: str) -> str:
    """Name the commands of ``gersp`` in a help text, not the launchers, where it was called."""
    if not sys.argv[0].startswith("gersp "):
        return text
    return re.sub(r"bash tools/(\w+)\.sh", r"gersp \1", text)


def run(args: argparse.Namespace) -> None:
    """Run all steps."""
    from mmengine.config import Config

    from gersp_mm.commands import show
    from gersp_mm.commands.options import require_optional
    from gersp_mm.commands.steps import Steps, checkout, environment
    from gersp_mm.engine.runs import TRAINING_LOG, ChildRun, RunFolder
    from gersp_mm.engine.schedule import as_options, fitted_options, run_length, with_epochs
    from gersp_mm.resources import find_config, resource
    from gersp_mm.results import append_new_rows

    require_optional()
    config = find_config(CONFIG)
    cfg = Config.fromfile(config)
    epochs = args.epochs or cfg.train_cfg.max_epochs
    work_dir = (args.work_dir or checkout() / "work_dirs" / "quickstart").resolve()
    folder = RunFolder(work_dir)
    own = {
        name: str(getattr(args, name).resolve()) if getattr(args, name) else None
        for name in ("remote_sensing", "natural")
    }
    settings = dict(epochs=epochs, seed=args.seed, amp=args.amp, **own)
    claim(folder, settings, args.force)
    steps = Steps(total=5)
    images, manifest = steps.run("images", prepare_images, own, work_dir)
    os.environ["GERSP_DEMO_DATA"] = str(images)
    exported = work_dir / f"{NAME}_backbone.pth"
    begun = any(work_dir.glob("*.pth"))  # The duration of an interrupted run is unknown.
    pictures = dict(pairs=work_dir / "pairs.png", curves=work_dir / "curves.png")

    fitted = fitted_to_images(cfg, manifest) | fitted_options(cfg, epochs)
    options = [f"randomness.seed={args.seed}", *as_options(fitted)]
    if manifest["evaluation"] is None:
        options.append("default_hooks.knn_eval=None")  # The hook needs the same images.
    drawn = [str(config), "--out", str(pictures["pairs"]), "--cfg-options", *options]
    steps.run("picture of training pairs", show.main, "pairs", drawn)
    if exported.is_file() and folder.checkpoint(epochs):
        print(f"\n{work_dir} holds the finished run; it is evaluated again (--force trains again)")
        steps.run("pre-training (done before)", lambda: None)
    else:
        command = [sys.executable, resource("tools", "train.py"), config, "--work-dir", work_dir]
        command += ["--resume", "auto", "--amp", settings["amp"], "--cfg-options", *options]
        length = run_length(with_epochs(cfg, epochs))
        steps.run(
            "pre-training",
            lambda: ChildRun("pre-training", command, work_dir / TRAINING_LOG, length).follow(
                VALUES, NOTABLE
            ),
        )
    rows = found = recorded = None
    if manifest["evaluation"] is not None:
        rows = steps.run("evaluation", evaluate, cfg, exported, images, args.seed)
        counts = manifest["counts"]
        print(f"\n{manifest['evaluation']['what']}, {counts['train']} train and "
              f"{counts['test']} test images:")  # fmt: skip
        print(result_table(rows, epochs, 100 / len(manifest["evaluation"]["classes"])))
        if not any(own.values()):
            seconds = None if begun else steps.seconds.get("pre-training")
            found = as_rows(rows, exported, epochs, seconds)
            recorded = beside_recorded(rows["gersp"][0], epochs)
        print(f"\n{said(recorded)}")
    else:
        print("\nno evaluation, because --remote-sensing has fewer than two sub-folders (classes)")
    drawn = [str(work_dir), "--out", str(pictures["curves"])]
    if rows:
        start = [row["knn"] for row in rows["random"]]
        drawn += ["--random-knn", str(sum(start) / len(start))]
    steps.run("curves", show.main, "curves", drawn)

    times = steps.finish()
    line = f"init_cfg=dict(type='Pretrained', checkpoint='{exported}', prefix='backbone.')"
    report = dict(
        settings=settings,
        evaluation=manifest["evaluation"],
        counts=manifest["counts"],
        results=rows,
        recorded=recorded,
        rows=None if found is None else [one.as_dict() for one in found],
        seconds=times,
        files={name: str(path) for name, path in dict(pictures, backbone=exported).items()},
        init_cfg=line,
        **environment(),
    )
    folder.write(REPORT, report)
    if found:
        append_new_rows(work_dir / ROWS, found)
        print(f"\nresult rows         {work_dir / ROWS}", end="")
    print(f"""
training pairs      {pictures["pairs"]}
loss curves         {pictures["curves"]}
backbone            {exported}
this report         {work_dir / REPORT}
for the backbone of a downstream config:
  {line}""")


def claim(folder: RunFolder, settings: dict[str, Any], force: bool) -> None:
    """Make sure that a work directory holds this run or no run.

    Files that do not belong to a quickstart are never removed.

    Args:
        folder: The work directory.
        settings: Settings of the run. The run goes on in the precision of an older one.
        force: Whether the files of an older run are removed.

    Raises:
        UserError: The folder holds other files, or a run with other settings.
    """
    from gersp_mm.engine.runs import SCALARS, TRAINING_LOG
    from gersp_mm.utils.errors import UserError

    work_dir = folder.path
    known = folder.read(SETTINGS)
    if known is None and work_dir.is_dir() and any(work_dir.iterdir()):
        raise UserError(f"{work_dir} holds files of another tool. Choose another --work-dir.")
    if known is not None and force:
        written = ("*.pth", "last_checkpoint", "*.png", REPORT, "bad_images.txt", TRAINING_LOG)
        for path in (path for pattern in written for path in work_dir.glob(pattern)):
            path.unlink()
        for scalars in work_dir.glob(str(Path(SCALARS).parent)):
            shutil.rmtree(scalars.parent)
    elif known is not None:
        if "amp" not in known:  # an older run, which was in fp32
            known["amp"] = settings["amp"] = "fp32"
        remedy = "add --force to replace it, or choose another --work-dir"
        folder.require_settings(known, settings, remedy)
    folder.write(SETTINGS, settings)


def prepare_images(own: dict[str, str | None], work_dir: Path) -> tuple[Path, dict[str, Any]]:
    """Run demo/prepare_demo.py, and return its folder and manifest.

    The lists of own images belong to one run, the demo images to all.
    """
    from gersp_mm.commands.steps import checkout
    from gersp_mm.resources import resource

    used = {name: folder for name, folder in own.items() if folder is not None}
    folder = work_dir / "images" if used else checkout() / "data" / "demo"
    command = [sys.executable, str(resource("demo", "prepare_demo.py")), "--out", str(folder)]
    for name, path in used.items():
        command += [f"--{name.replace('_', '-')}", path]
    if code := subprocess.call(command):
        raise SystemExit(code)
    return folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def fitted_to_images(cfg: Any, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the options that make batches and queue fit few images.

    The queue holds whole batches of at most one pass, so that no image is among its own negatives.
    The learning rate stays that of the config. The demo images need no option.

    Args:
        cfg: The config of the pre-training.
        manifest: Manifest that demo/prepare_demo.py wrote.

    Returns:
        Values by dotted key.

    Raises:
        UserError: There is only one remote-sensing image.
    """
    from gersp_mm.utils.errors import UserError

    images = manifest["counts"]["remote_sensing"]
    if images < 2:
        folder = manifest["request"]["remote_sensing"]
        raise UserError(
            f"--remote-sensing {folder} has one image, and pre-training contrasts at least two. "
            "Add images."
        )
    batch = min(cfg.train_dataloader.batch_size, images)
    fitted = {
        "train_dataloader.batch_size": batch,
        "auto_scale_lr.base_batch_size": batch,
        "model.queue_len": min(cfg.model.queue_len, images // batch * batch),
    }
    return {
        key: value for key, value in fitted.items() if value != reduce(getitem, key.split("."), cfg)
    }


def evaluate(cfg: Any, exported: Path, folder: Path, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return kNN and linear-probe accuracies of random networks and of the exported backbone."""
    import warnings

    import torch

    warnings.filterwarnings(
        "ignore", message="Fail to import", module="mmcv"
    )  # Operators are not used.

    from gersp_mm.backbones.architectures import Architecture
    from gersp_mm.backbones.exported import ExportedBackbone
    from gersp_mm.evaluation import EvalImages, extract_features, knn_accuracy, linear_probe

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = [EvalImages(folder / f"sites_{part}.txt", EVAL_SIZE) for part in ("train", "test")]
    trained = ExportedBackbone.read(exported)
    scale: dict[str, Any] = dict(
        mean=trained.meta.normalisation.mean, std=trained.meta.normalisation.std
    )

    def measure(name: str, draw: int, backbone: Any) -> dict[str, Any]:
        backbone.to(device)
        (x, y), (x_test, y_test) = (
            extract_features(backbone, part, progress=f"   {name}, {side}", **scale)
            for part, side in zip(parts, ("train", "test"))
        )
        probe = linear_probe(x, y, x_test, y_test, seed=seed)
        return dict(
            knn=knn_accuracy(x, y, x_test, y_test),
            linear_probe=probe.accuracy,
            chosen_c=probe.chosen_c,
            validation_of_c=probe.sweep,
            draw=draw,
        )

    rows: dict[str, list[dict[str, Any]]] = dict(random=[], gersp=[])
    for number in range(RANDOM_DRAWS):
        name = f"random {number + 1} of {RANDOM_DRAWS}"
        draw = 1000 * (seed + 1) + number
        drawn = ExportedBackbone.random(Architecture.parse(cfg.model.backbone), draw)
        rows["random"].append(measure(name, draw, drawn.build()))
    rows["gersp"].append(measure("GeRSP", seed, trained.build()))
    return rows


def as_rows(
    results: dict[str, list[dict[str, Any]]], exported: Path, epochs: int, seconds: float | None
) -> list[Row]:
    """Return the rows of a run on the demo images, as ``results/demo.jsonl`` holds them.

    Args:
        results: Result of :func:`evaluate`.
        exported: The backbone.
        epochs: Length of its pre-training.
        seconds: Duration of the pre-training; None if unknown.
    """
    from gersp_mm.constants import KNN_K, KNN_TEMPERATURE
    from gersp_mm.evaluation.linear_probe import DEFAULT_SWEEP
    from gersp_mm.results import Row
    from gersp_mm.results.protocol import FrozenKNN, FrozenLinear, ImageInput
    from gersp_mm.results.row import Pretraining, SplitRef
    from gersp_mm.utils.files import file_sha256
    from gersp_mm.utils.provenance import Provenance

    image = ImageInput(size=EVAL_SIZE)
    protocols: dict[str, FrozenKNN | FrozenLinear] = dict(
        knn=FrozenKNN(image=image, k=KNN_K, temperature=KNN_TEMPERATURE),
        linear_probe=FrozenLinear(
            image=image, solver="lbfgs", sweep=list(DEFAULT_SWEEP), chosen_on="train_fifth"
        ),
    )
    random = dict(
        pretraining="random initialisation",
        checkpoint_sha256=None,
        settings=Pretraining(method="random"),
        seconds=None,
    )
    trained = dict(
        pretraining=f"GeRSP demo, {epochs} epochs",
        checkpoint_sha256=file_sha256(exported),
        settings=Pretraining(method="GeRSP", epochs=epochs),
        seconds=seconds,
    )
    shared = dict(
        dataset="NEON demo sites",
        split=SplitRef(name="demo-sites"),
        model="ResNet-18",
        metric="top-1",
        config=CONFIG,
        **dict(Provenance.now()),
    )
    return [
        Row(measured_by=protocol, value=round(one[name], 4), seed=one["draw"], **shared, **weights)
        for kind, weights in (("random", random), ("gersp", trained))
        for one in results[kind]
        for name, protocol in protocols.items()
    ]


def beside_recorded(result: dict[str, Any], epochs: int) -> dict[str, dict[str, Any]] | None:
    """Compare a run on the demo images with the recorded runs.

    Args:
        result: ``knn`` and ``linear_probe`` of the run, in per cent.
        epochs: Length of its pre-training.

    Returns:
        For each metric the value, ``low`` and ``high``, between which 95 % of further runs are
        expected, and whether it is ``inside``. None where no runs of this length are recorded.
    """
    from gersp_mm.resources import resource
    from gersp_mm.results import read_rows
    from gersp_mm.results.statistics import further_run

    rows = [
        row
        for row in read_rows(resource(*RECORDED))
        if row.settings.method == "GeRSP" and row.settings.epochs == epochs
    ]
    compared = {}
    for name, (kind, _) in METRICS.items():
        values = [row.value for row in rows if row.measured_by.kind == kind]
        if len(values) < 2:
            return None
        low, high = further_run(values)
        inside = low <= result[name] <= high
        compared[name] = dict(value=result[name], low=low, high=high, inside=inside)
    return compared


def said(recorded: dict[str, dict[str, Any]] | None) -> str:
    """Format the comparison of a run with the recorded runs.

    Args:
        recorded: Result of :func:`beside_recorded`; None where there is nothing to compare.
    """
    if recorded is None:
        return (
            "not compared with the recorded runs, which used the demo images and the epochs of\n"
            "the config"
        )
    lines = ["expected by the recorded runs (95 % of further runs):"]
    for name, one in recorded.items():
        where = "inside" if one["inside"] else "OUTSIDE"
        lines.append(
            f"  {METRICS[name][1]} {one['low']:.1f} to {one['high']:.1f} %, "
            f"and {one['value']:.1f} % is {where}"
        )
    if not all(one["inside"] for one in recorded.values()):
        lines.append(
            "Another processor, GPU, number of threads or library version rounds differently and\n"
            "so trains another network, and one value in twenty is outside by chance. If the\n"
            "value is no better than random initialisation, something is wrong. Compare the\n"
            "losses with those in README."
        )
    return "\n".join(lines)


def result_table(rows: dict[str, list[dict[str, Any]]], epochs: int, chance: float) -> str:
    """Format the accuracies, in per cent."""
    from gersp_mm.commands.steps import mean_and_range
    from gersp_mm.utils.console import table
    from gersp_mm.utils.errors import counted

    names = dict(
        random=f"random initialisation, {RANDOM_DRAWS} draws",
        gersp=f"GeRSP, {counted(epochs, 'epoch')}",
    )
    lines: list[tuple[str, ...]] = [("chance", f"{chance:.1f}", f"{chance:.1f}")]
    for key, name in names.items():
        measured = ([row[metric] for row in rows[key]] for metric in ("knn", "linear_probe"))
        lines.append((name, *map(mean_and_range, measured)))
    return table(["backbone", "kNN top-1 (%)", "linear probe (%)"], lines)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    from gersp_mm.commands.steps import start

    start(run, args)


if __name__ == "__main__":
    parse_args()
