#!/usr/bin/env python3
"""Fine-tune Faster R-CNN on the tree crowns of the demo scenes, from GeRSP and from nothing.

Cuts the annotated scenes into tiles, trains configs/downstream/demo/faster-rcnn_r18_fpn_trees.py
from the backbone of the quickstart and from random initialisation, evaluates both on tiles from
other areas, and prints AP50 side by side. Ctrl-C loses nothing but the epoch under way: the same
command goes on where it stopped, and finished runs are not repeated.
"""

# Also read by the Python of a bare machine, to check arguments: standard library only up here.
from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from quickstart import (  # noqa: E402
    Steps,
    environment,
    fail,
    summary,
    table,
    train,
)

CONFIG = ROOT / "configs" / "downstream" / "demo" / "faster-rcnn_r18_fpn_trees.py"
BACKBONE = ROOT / "work_dirs" / "quickstart" / "gersp_r18_demo_backbone.pth"
STARTS = dict(random="random initialisation", gersp="GeRSP")
VALUES = ("loss", "loss_cls", "loss_bbox")  # shown during training
NOTABLE = ("tensors of model.backbone are", "resumed")
RUN, REPORT, PICTURE = "run.json", "demo_detection.json", "trees.png"
SCORE = 0.3  # drawn are predictions above it


def parse_args(argv=None):
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        prog="bash tools/demo_detection.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  bash tools/quickstart.sh && bash tools/demo_detection.sh
  bash tools/demo_detection.sh --seeds 0 1 2
  bash tools/demo_detection.sh --epochs 1 --work-dir work_dirs/trees_1    # just to see it work
  bash tools/demo_detection.sh --checkpoint my/resnet18_backbone.pth --work-dir work_dirs/my_trees

environment:
  GERSP_DATA   folder of the data sets; the scenes are looked for, or fetched to, demo/ below it
               (default: data in the checkout)""",
    )
    add = parser.add_argument
    add("--checkpoint", type=lambda text: Path(text).expanduser(), default=BACKBONE, metavar="FILE",
        help="exported ResNet-18 backbone; default: the quickstart's, "
        "work_dirs/quickstart/gersp_r18_demo_backbone.pth")  # fmt: skip
    add("--epochs", type=int, help="epochs of fine-tuning; default: as in the config")
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        metavar="SEED",
        help="one run of each; default 0",
    )
    add("--work-dir", type=Path, default=ROOT / "work_dirs" / "demo_detection", metavar="DIR",
        help="where results go; default work_dirs/demo_detection")  # fmt: skip
    add("--check-arguments", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.checkpoint.is_file():
        how = "run bash tools/quickstart.sh first, or name another file"
        parser.error(f"--checkpoint: there is no {args.checkpoint}: {how}")
    if args.epochs is not None and args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds must be different and not negative, got {args.seeds}")
    return args


def prepare(data):
    """Fetch the scenes if need be, and cut them; return the annotations of the test tiles."""
    test = data / "trees" / "coco" / "test.json"
    for tool, arguments in (("prepare_demo.py", ["--out", data]), ("cut_trees.py", [data])):
        code = subprocess.call([sys.executable, str(ROOT / "demo" / tool), *map(str, arguments)])
        if code:
            raise SystemExit(code)
    return json.loads(test.read_text(encoding="utf-8"))


def claim(folder, settings):
    """Return the finished run of a folder, or None; stop if it holds a run with other settings."""
    path = folder / RUN
    if not path.is_file():
        write_json(path, dict(settings=settings))
        return None
    known = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{name} {known['settings'].get(name)} instead of {value}"
        for name, value in settings.items()
        if known["settings"].get(name) != value
    ]
    if changed:
        fail(
            f"{folder} holds a run with {'; '.join(changed)}: choose another --work-dir, or remove "
            "that folder"
        )
    return known if "metrics" in known else None


def write_json(path, content):
    """Write a file whole or not at all."""
    from gersp_mm.preparation.common import write_text

    write_text(path, json.dumps(content, indent=1))


def evaluate(checkpoint, folder):
    """Test a checkpoint.

    Writes the predictions to ``predictions.bbox.json`` in the folder.

    Returns:
        The config that was tested, and the metrics as the host names them.
    """
    from mmengine.runner import Runner

    from gersp_mm.engine.launch import load_config

    print("   evaluating ...", flush=True)
    with redirect_stdout(StringIO()):  # Hides the output of pycocotools.
        cfg = load_config(
            argparse.Namespace(
                config=CONFIG, work_dir=str(folder / "test"), launcher="none", local_rank=0,
                cfg_options=None,
            )
        )  # fmt: skip
        cfg.load_from, cfg.log_level = str(checkpoint), "ERROR"
        cfg.test_evaluator.outfile_prefix = str(folder / "predictions")
        # Where nothing was found in any tile, the host has no metrics.
        metrics = Runner.from_cfg(cfg).test() or dict.fromkeys(cfg.evaluation.metrics, 0.0)
    return cfg, metrics


def one_run(folder, start, seed, epochs, args, options):
    """Train and evaluate once, or return what a finished run found."""
    from gersp_mm.evaluation.measurement import Measurement, config_name
    from gersp_mm.utils.files import file_sha256

    backbone = args.checkpoint.resolve()
    sha256 = file_sha256(backbone) if start == "gersp" else None
    settings = dict(start=start, seed=seed, epochs=epochs, checkpoint_sha256=sha256)
    known = claim(folder, settings)
    if known:
        print(f"   {folder} holds the finished run")
        return known
    last = folder / f"epoch_{epochs}.pth"
    # The time of a run that was interrupted is not known.
    started = None if any(folder.glob("epoch_*.pth")) else time.perf_counter()
    if not last.is_file():
        pretrained = backbone if start == "gersp" else None
        options = [f"pretrained={pretrained}", f"randomness.seed={seed}", *options]
        train(CONFIG, folder, options, VALUES, NOTABLE)
    seconds = None if started is None else round(time.perf_counter() - started, 1)
    cfg, metrics = evaluate(last, folder)
    meta = read_meta(last)
    pretrained = meta["pretrained"]
    run = dict(settings=settings, metrics=metrics, pretrained=pretrained, seconds=seconds)
    rows = Measurement(cfg, CONFIG, meta).rows(
        metrics, seed=seed, seconds=seconds, config=config_name(CONFIG), pretrained=pretrained
    )
    run["rows"] = [row.as_dict() for row in rows]
    write_json(folder / RUN, run)
    return run


def read_meta(checkpoint):
    """Return the ``meta`` of a trained checkpoint."""
    from gersp_mm.checkpoints.read import read_checkpoint

    return read_checkpoint(checkpoint).data["meta"]


def result_table(runs, epochs):
    """Format mean and range of both starts.

    Args:
        runs: lists of runs by start.
        epochs: of fine-tuning.
    """
    metrics = [row["metric"] for row in runs["random"][0]["rows"]]
    lines = [(f"start of {epochs} epochs", "runs", *(f"{name} (%)" for name in metrics))]
    for start, found in runs.items():
        values = {
            name: [row["value"] for run in found for row in run["rows"] if row["metric"] == name]
            for name in metrics
        }
        lines.append((STARTS[start], str(len(found)), *map(summary, values.values())))
    return table(lines)


def draw(coco, tiles, predictions, out):
    """Draw the test tile with the most trees of every scene: annotation, then predictions.

    Args:
        coco: annotations of the test tiles.
        tiles: folder that their file names start from.
        predictions: file in COCO's result format, by start.
        out: the png to write.
    """
    from PIL import Image, ImageDraw, ImageFont

    from gersp_mm.utils.files import replacing

    boxes = {"annotated": coco["annotations"]}
    for start, path in predictions.items():
        found = json.loads(path.read_text(encoding="utf-8"))
        boxes[STARTS[start]] = [entry for entry in found if entry["score"] > SCORE]
    trees = [entry["image_id"] for entry in coco["annotations"]]
    best = {}
    for image in sorted(coco["images"], key=lambda image: trees.count(image["id"])):
        best[Path(image["file_name"]).name.split("_x")[0]] = image
    side = max(max(image["width"], image["height"]) for image in best.values())
    step, top = side + 6, 16
    canvas = Image.new("RGB", (step * len(boxes), top + step * len(best)), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default()
    for column, (title, entries) in enumerate(boxes.items()):
        pen.text((column * step + 2, 2), title, "black", font)
        for row, (_, image) in enumerate(sorted(best.items())):
            with Image.open(tiles / image["file_name"]) as opened:
                tile = opened.convert("RGB")
            for x, y, width, height in (
                entry["bbox"] for entry in entries if entry["image_id"] == image["id"]
            ):
                edges = (x, y, x + width - 1, y + height - 1)
                ImageDraw.Draw(tile).rectangle(edges, outline="yellow")
            canvas.paste(tile, (column * step, top + row * step))
    with replacing(out) as temporary:
        canvas.quantize(64, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)


def main(args):
    """Run all steps."""
    data = Path(os.environ.get("GERSP_DATA") or ROOT / "data").expanduser().resolve()
    os.environ["GERSP_DATA"] = str(data)
    work_dir = args.work_dir.expanduser().resolve()
    steps = Steps(total=1 + len(STARTS) * len(args.seeds))
    coco = steps.run("test and training tiles", prepare, data / "demo")

    import warnings

    warnings.filterwarnings("ignore")  # of the hosts, about what this tool cannot change
    from mmengine.config import Config

    from gersp_mm.engine.schedule import as_options, fitted_options

    cfg = Config.fromfile(CONFIG)
    epochs = args.epochs or cfg.train_cfg.max_epochs
    # Evaluated is the last epoch alone, afterwards.
    options = [*as_options(fitted_options(cfg, epochs)), "val_dataloader=None", "val_cfg=None",
               "val_evaluator=None"]  # fmt: skip
    runs = {start: [] for start in STARTS}
    for seed in args.seeds:
        for start, name in STARTS.items():
            folder = work_dir / f"{start}_seed{seed}"
            run = steps.run(f"{name}, seed {seed}", one_run, folder, start, seed, epochs, args,
                            options)  # fmt: skip
            print("   " + ", ".join(f"{r['metric']} {r['value']:.1f} %" for r in run["rows"]))
            runs[start].append(run)

    print(f"\n{len(coco['images'])} test tiles with {len(coco['annotations'])} trees, from other "
          "areas than the training tiles:")  # fmt: skip
    print(result_table(runs, epochs))
    if len(args.seeds) == 1:
        print("one run each, which may differ by some points: --seeds 0 1 2 shows by how much")
    predictions = {s: work_dir / f"{s}_seed{args.seeds[0]}/predictions.bbox.json" for s in STARTS}
    picture = work_dir / PICTURE
    draw(coco, data / "demo" / "trees", predictions, picture)
    seconds = {**steps.seconds, "all": round(sum(steps.seconds.values()), 1)}
    print("\n" + table([("step", "seconds"), *((k, f"{v:.1f}") for k, v in seconds.items())]))
    report = dict(
        epochs=epochs,
        seeds=args.seeds,
        checkpoint=str(args.checkpoint.resolve()),
        tiles=len(coco["images"]),
        trees=len(coco["annotations"]),
        runs=runs,
        seconds=seconds,
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **environment(),
    )
    write_json(work_dir / REPORT, report)
    print(f"""
predictions         {picture}
detectors           {work_dir}/*/epoch_{epochs}.pth
this report         {work_dir / REPORT}""")


if __name__ == "__main__":
    arguments = parse_args()
    if not arguments.check_arguments:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            main(arguments)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(130)
