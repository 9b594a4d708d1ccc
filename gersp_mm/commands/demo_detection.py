"""Fine-tune Faster R-CNN on the tree crowns of the demo scenes, from GeRSP and from random weights.

Cuts the annotated scenes into tiles, trains configs/downstream/demo/faster-rcnn_r18_fpn_trees.py
from the backbone of the quickstart and from random initialisation, evaluates both on tiles from
other areas of the scenes, and prints AP50 side by side. Ctrl-C loses only the current epoch: the
same command resumes where it stopped, and finished runs are not repeated.
"""

# The launcher checks the arguments by this file alone, with the Python of a bare machine: only the
# standard library is imported up here.
from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gersp_mm.engine.runs import RunFolder

CONFIG = "configs/downstream/demo/faster-rcnn_r18_fpn_trees.py"
ROOT = Path(__file__).resolve().parents[2]
BACKBONE = "work_dirs/quickstart/gersp_r18_demo_backbone.pth"
STARTS = dict(random="random initialisation", gersp="GeRSP")
VALUES = ("loss", "loss_cls", "loss_bbox")  # The values shown during training.
NOTABLE = ("tensors of model.backbone are", "resumed")
RUN, REPORT, PICTURE = "run.json", "demo_detection.json", "trees.png"
ROWS = "rows.jsonl"
SCORE = 0.3  # Predictions with a higher score are drawn.


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        prog=_as_called("bash tools/demo_detection.sh"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_as_called("""examples:
  bash tools/quickstart.sh && bash tools/demo_detection.sh
  bash tools/demo_detection.sh --seeds 0 1 2
  bash tools/demo_detection.sh --epochs 1 --work-dir work_dirs/trees_1    # a quick trial
  bash tools/demo_detection.sh --checkpoint my/resnet18_backbone.pth --work-dir work_dirs/my_trees

environment:
  GERSP_DATA   folder of the data sets; the scenes are looked for, or fetched to, demo/ below it
               [data in the checkout]"""),
    )
    add = parser.add_argument
    add("--checkpoint", type=lambda text: Path(text).expanduser(), metavar="FILE",
        help=f"start from this exported ResNet-18 backbone [the quickstart's, {BACKBONE}]",
        default=(ROOT if (ROOT / "configs").is_dir() else Path.cwd()) / BACKBONE)  # fmt: skip
    add("--epochs", type=int, help="fine-tune for this many epochs [as in the config]")
    add("--seeds", type=int, nargs="+", default=[0], metavar="SEED",
        help="run once with each of these seeds [0]")  # fmt: skip
    add("--work-dir", type=Path, metavar="DIR",
        help="write results to DIR [work_dirs/demo_detection]")  # fmt: skip
    args = parser.parse_args(argv)
    if not args.checkpoint.is_file():
        how = _as_called("Run bash tools/quickstart.sh first, or name another file.")
        parser.error(f"--checkpoint: there is no {args.checkpoint}. {how}")
    if args.epochs is not None and args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds must be different and not negative, got {args.seeds}")
    return args


def _as_called(text: str) -> str:
    """Name the commands of ``gersp`` in a help text, not the launchers, where it was called."""
    if not sys.argv[0].startswith("gersp "):
        return text
    return re.sub(r"bash tools/(\w+)\.sh", r"gersp \1", text)


def run(args: argparse.Namespace) -> None:
    """Run all steps."""
    import warnings

    warnings.filterwarnings("ignore")  # The hosts warn about settings that this tool cannot change.
    from mmengine.config import Config

    from gersp_mm.commands.steps import Steps, checkout, environment
    from gersp_mm.engine.runs import RunFolder
    from gersp_mm.resources import data_root, find_config
    from gersp_mm.results import Row, append_new_rows
    from gersp_mm.visualization.boxes import draw_scenes

    data = data_root(checkout()).resolve()
    os.environ["GERSP_DATA"] = str(data)
    work_dir = (args.work_dir or checkout() / "work_dirs" / "demo_detection").resolve()
    steps = Steps(total=1 + len(STARTS) * len(args.seeds))
    coco = steps.run("test and training tiles", prepare, data / "demo")
    epochs = args.epochs or Config.fromfile(find_config(CONFIG)).train_cfg.max_epochs
    runs: dict[str, list[dict[str, Any]]] = {start: [] for start in STARTS}
    for seed in args.seeds:
        for start, name in STARTS.items():
            folder = RunFolder(work_dir / f"{start}_seed{seed}")
            backbone = args.checkpoint.resolve() if start == "gersp" else None
            one = steps.run(f"{name}, seed {seed}", one_run, folder, start, seed, epochs, backbone)
            print("   " + ", ".join(f"{r['metric']} {r['value']:.1f} %" for r in one["rows"]))
            runs[start].append(one)

    print(f"\n{len(coco['images'])} test tiles with {len(coco['annotations'])} trees, from other "
          "areas than the training tiles:")  # fmt: skip
    print(result_table(runs, epochs))
    if len(args.seeds) == 1:
        print("Runs may differ by some points. Add --seeds 0 1 2 to see by how much.")
    predictions = {
        name: work_dir / f"{start}_seed{args.seeds[0]}" / "predictions.bbox.json"
        for start, name in STARTS.items()
    }
    picture = work_dir / PICTURE
    draw_scenes(coco, data / "demo" / "trees", predictions, SCORE, picture)
    report = dict(
        epochs=epochs,
        seeds=args.seeds,
        checkpoint=str(args.checkpoint.resolve()),
        tiles=len(coco["images"]),
        trees=len(coco["annotations"]),
        runs=runs,
        seconds=steps.finish(),
        **environment(),
    )
    RunFolder(work_dir).write(REPORT, report)
    rows = [Row(**row) for found in runs.values() for one in found for row in one["rows"]]
    append_new_rows(work_dir / ROWS, rows)
    print(f"""
predictions         {picture}
detectors           {work_dir}/*/epoch_{epochs}.pth
this report         {work_dir / REPORT}
result rows         {work_dir / ROWS}""")


def prepare(data: Path) -> dict[str, Any]:
    """Fetch missing scenes, cut them, and return the annotations of the test tiles."""
    from gersp_mm.resources import resource

    for tool, arguments in (("prepare_demo.py", ["--out", data]), ("cut_trees.py", [data])):
        if code := subprocess.call([sys.executable, resource("demo", tool), *map(str, arguments)]):
            raise SystemExit(code)
    return json.loads((data / "trees" / "coco" / "test.json").read_text(encoding="utf-8"))


def claim(folder: RunFolder, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a finished run, or None if it has to be run.

    Raises:
        UserError: The folder holds a run with other settings.
    """
    known = folder.read(RUN)
    if known is None:
        folder.write(RUN, dict(settings=settings))
        return None
    remedy = "choose another --work-dir, or remove that folder"
    folder.require_settings(known["settings"], settings, remedy)
    return known if "metrics" in known else None


def one_run(
    folder: RunFolder, start: str, seed: int, epochs: int, backbone: Path | None
) -> dict[str, Any]:
    """Train and evaluate once, or return the result of a finished run.

    Args:
        folder: Where the run writes.
        start: A key of ``STARTS``.
        seed: Seed of the run.
        epochs: Epochs of fine-tuning.
        backbone: Exported backbone, None for random weights.
    """
    from mmengine.config import Config

    from gersp_mm.engine.runs import TRAINING_LOG, ChildRun
    from gersp_mm.engine.schedule import as_options, fitted_options, run_length, with_epochs
    from gersp_mm.evaluation.measurement import Measurement, config_name
    from gersp_mm.resources import find_config, resource
    from gersp_mm.utils.files import file_sha256

    sha256 = file_sha256(backbone) if backbone else None
    settings = dict(start=start, seed=seed, epochs=epochs, checkpoint_sha256=sha256)
    if known := claim(folder, settings):
        print(f"   {folder.path} holds the finished run")
        return known
    config = find_config(CONFIG)
    # The time of a run that was interrupted is not known.
    started = None if any(folder.path.glob("epoch_*.pth")) else time.perf_counter()
    if not folder.checkpoint(epochs):
        cfg = Config.fromfile(config)
        options = [f"pretrained={backbone}", f"randomness.seed={seed}"]
        options += as_options(fitted_options(cfg, epochs))
        # Only the last epoch is evaluated, after the training.
        options += ["val_dataloader=None", "val_cfg=None", "val_evaluator=None"]
        command = [sys.executable, resource("tools", "train.py"), config]
        command += ["--work-dir", folder.path, "--resume", "auto", "--cfg-options", *options]
        length = run_length(with_epochs(cfg, epochs))
        training = ChildRun("training", command, folder.path / TRAINING_LOG, length)
        training.follow(VALUES, NOTABLE)
    seconds = None if started is None else round(time.perf_counter() - started, 1)
    last = folder.path / f"epoch_{epochs}.pth"
    cfg, metrics = evaluate(last, folder.path)
    meta = read_meta(last)
    pretrained = meta["pretrained"]
    rows = Measurement(cfg, str(config), meta).rows(
        metrics, seed=seed, seconds=seconds, config=config_name(config), pretrained=pretrained
    )
    found: dict[str, Any] = dict(
        settings=settings, metrics=metrics, pretrained=pretrained, seconds=seconds
    )
    found["rows"] = [row.as_dict() for row in rows]
    folder.write(RUN, found)
    return found


def evaluate(checkpoint: Path, folder: Path) -> tuple[Any, dict[str, float]]:
    """Test a checkpoint.

    Writes the predictions to ``predictions.bbox.json`` in the folder.

    Returns:
        The config that was tested, and the metrics as the host names them.
    """
    from mmengine.runner import Runner

    from gersp_mm.engine.launch import load

    print("   evaluating ...", flush=True)
    with redirect_stdout(StringIO()):  # pycocotools prints every step.
        cfg = load(CONFIG, work_dir=str(folder / "test"))
        cfg.load_from, cfg.log_level = str(checkpoint), "ERROR"
        cfg.test_evaluator.outfile_prefix = str(folder / "predictions")
        # The host returns no metrics where no tile has a prediction.
        metrics = Runner.from_cfg(cfg).test() or dict.fromkeys(cfg.evaluation.metrics, 0.0)
    return cfg, metrics


def read_meta(checkpoint: Path) -> Any:
    """Return the ``meta`` of a trained checkpoint."""
    from gersp_mm.checkpoints.read import read_checkpoint

    return read_checkpoint(checkpoint).data["meta"]


def result_table(runs: dict[str, list[dict[str, Any]]], epochs: int) -> str:
    """Format mean and range of both starts.

    Args:
        runs: The runs of each start.
        epochs: Epochs of fine-tuning.
    """
    from gersp_mm.commands.steps import mean_and_range
    from gersp_mm.utils.console import table

    metrics = [row["metric"] for row in runs["random"][0]["rows"]]
    lines = []
    for start, found in runs.items():
        rows = [row for one in found for row in one["rows"]]
        values = ([row["value"] for row in rows if row["metric"] == name] for name in metrics)
        lines.append((STARTS[start], str(len(found)), *map(mean_and_range, values)))
    return table([f"start of {epochs} epochs", "runs", *(f"{name} (%)" for name in metrics)], lines)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    from gersp_mm.commands.steps import start

    start(run, args)


if __name__ == "__main__":
    parse_args()
