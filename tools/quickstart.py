#!/usr/bin/env python3
"""Pre-train GeRSP on the demo images, export the backbone and see what it is worth.

Fetches the demo images (or lists your own), draws the training pairs, trains
configs/pretrain/gersp_r18_demo.py, and evaluates the exported backbone by kNN and linear probe
against the same network at random initialisation. Ctrl-C loses nothing: the same command goes on
where it stopped. A finished run is not trained again, only evaluated, unless --force is given.
"""

# Also read by the Python of a bare machine, to check arguments: standard library only up here.
from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "pretrain" / "gersp_r18_demo.py"
SETTINGS = "quickstart_settings.json"
REPORT = "quickstart.json"
RANDOM_DRAWS = 3
EVAL_SIZE = 64  # px, the side of the demo's site tiles
VALUES = ("loss_ct", "loss_ce", "acc_ct", "acc_ce_top1")  # shown during pre-training
NOTABLE = ("kNN top-1", "resumed")
PROGRESS = re.compile(r"Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\]")


def parse_args(argv=None):
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        prog="bash tools/quickstart.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  bash tools/quickstart.sh
  bash tools/quickstart.sh --seed 1 --work-dir work_dirs/quickstart_1
  bash tools/quickstart.sh --epochs 1                          # just to see it work
  bash tools/quickstart.sh --remote-sensing my/tiles --natural my/photographs

Sub-folders of --natural are its classes. Sub-folders of --remote-sensing, if there are two or
more, are the classes of the evaluation; pre-training does not use them.""",
    )
    add = parser.add_argument
    add("--remote-sensing", type=Path, metavar="DIR", help="own remote-sensing images")
    add("--natural", type=Path, metavar="DIR", help="own natural images, one sub-folder per class")
    add("--epochs", type=int, help="epochs of pre-training; default: as in the config")
    add("--seed", type=int, default=0, help="seed of pre-training and evaluation; default 0")
    add("--work-dir", type=Path, default=ROOT / "work_dirs" / "quickstart", metavar="DIR",
        help="where results go; default work_dirs/quickstart")  # fmt: skip
    add("--force", action="store_true", help="discard the run in the work directory and train anew")
    add("--check-arguments", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for option in ("remote_sensing", "natural"):
        folder = getattr(args, option)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{option.replace('_', '-')} {folder}: there is no such folder")
    if args.epochs is not None and args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    return args


class Steps:
    """Announce the steps and take their time."""

    def __init__(self, total):
        self.total = total
        self.seconds = {}

    def run(self, name, function, *arguments):
        """Call ``function`` and note its seconds under ``name``."""
        print(f"\n[{len(self.seconds) + 1}/{self.total}] {name}", flush=True)
        started = time.perf_counter()
        result = function(*arguments)
        self.seconds[name] = round(time.perf_counter() - started, 1)
        return result


def fail(message):
    """End with one line."""
    raise SystemExit(f"\nerror: {message}")


def prepare_images(own, work_dir):
    """Run demo/prepare_demo.py; return its folder and manifest.

    The lists of own images belong to one run, the demo images to all.
    """
    used = {name: folder for name, folder in own.items() if folder is not None}
    folder = work_dir / "images" if used else ROOT / "data" / "demo"
    command = [sys.executable, str(ROOT / "demo" / "prepare_demo.py"), "--out", str(folder)]
    for name, path in used.items():
        command += [f"--{name.replace('_', '-')}", path]
    code = subprocess.call(command)
    if code:
        raise SystemExit(code)
    return folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def run_tool(name, *arguments):
    """Run a tool of this checkout that must succeed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        fail(f"tools/{name} failed:\n{done.stdout[-3000:]}")
    print(done.stdout.strip().splitlines()[-1])


def claim_work_dir(work_dir, settings, force):
    """Make sure that the work directory holds this very run, or none.

    What is not a quickstart's is never removed.
    """
    known = None
    if (work_dir / SETTINGS).is_file():
        known = json.loads((work_dir / SETTINGS).read_text(encoding="utf-8"))
    elif work_dir.is_dir() and any(work_dir.iterdir()):
        fail(f"{work_dir} holds something else than a quickstart: choose another --work-dir")
    if known is not None and force:
        for pattern in ("*.pth", "last_checkpoint", "*.png", REPORT, "bad_images.txt"):
            for path in work_dir.glob(pattern):
                path.unlink()
        for scalars in work_dir.glob("*/vis_data"):
            shutil.rmtree(scalars.parent)
    elif known is not None and known != settings:
        changed = [
            f"{name} {known.get(name)!r} instead of {value!r}"
            for name, value in settings.items()
            if known.get(name) != value
        ]
        fail(
            f"{work_dir} holds a run with {'; '.join(changed)}: add --force to replace it, or "
            "choose another --work-dir"
        )
    work_dir.mkdir(parents=True, exist_ok=True)
    partial = work_dir / f".{SETTINGS}.partial"
    partial.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    os.replace(partial, work_dir / SETTINGS)


def train(config, work_dir, options, values, notable):
    """Run tools/train.py, show how far it is, and wait for it also when interrupted.

    Args:
        config: file to train.
        work_dir: of the run, which goes on if there is one.
        options: config values to replace, as ``key=value``.
        values: names in the log that are shown beside the progress.
        notable: texts of log lines that are shown as they are.
    """
    command = [
        sys.executable, str(ROOT / "tools" / "train.py"), str(config), "--work-dir", str(work_dir),
        "--resume", "auto", "--cfg-options", *options,
    ]  # fmt: skip
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert child.stdout is not None
    last = deque(maxlen=40)
    interrupted = False
    while True:
        try:
            line = child.stdout.readline()
            if not line:
                break
            last.append(line.rstrip())
            show(line, values, notable)
        except KeyboardInterrupt:
            if not interrupted:
                print("\nstopping ...", flush=True)
                child.terminate()  # SIGINT would be ignored below a background job of a script
            interrupted = True
    code = child.wait()
    if sys.stdout.isatty():
        print()
    if interrupted:
        raise KeyboardInterrupt
    if code:
        print("\n".join(last), file=sys.stderr)
        fail(f"training failed (exit code {code}); the whole log is in {work_dir}")


def show(line, values, notable):
    """Show one line of the training's log, if it is of interest; arguments as for :func:`train`."""
    found = PROGRESS.search(line)
    if found:
        parts = [f"epoch {found[1]}, iteration {found[2]} of {found[3]}"]
        for name in values:
            value = re.search(rf"\b{name}: (\S+)", line)
            if value:
                parts.append(f"{name} {float(value[1]):.2f}")
        eta = re.search(r"eta: (.*?)  ", line)
        parts.append(f"{eta[1]} left" if eta else "")
        text = "   " + "   ".join(parts)
        print(f"\r{text:<100}" if sys.stdout.isatty() else text,
              end="" if sys.stdout.isatty() else "\n", flush=True)  # fmt: skip
    elif re.search(r" - (WARNING|ERROR) - ", line) and "deprecated" not in line:
        print(line.rstrip(), flush=True)
    elif any(text in line for text in notable):
        print("   " + line.rstrip().rsplit(" - ", 1)[-1], flush=True)


def evaluate(cfg, exported, folder, seed):
    """Return kNN and linear-probe accuracies of random networks and of the exported backbone."""
    import warnings

    import torch

    warnings.filterwarnings("ignore", message="Fail to import", module="mmcv")  # no operators here

    from gersp_mm.backbones.architectures import Architecture
    from gersp_mm.backbones.exported import ExportedBackbone
    from gersp_mm.evaluation import EvalImages, extract_features, knn_accuracy, linear_probe

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = [EvalImages(folder / f"sites_{part}.txt", EVAL_SIZE) for part in ("train", "test")]
    trained = ExportedBackbone.read(exported)
    scale = dict(mean=trained.meta.normalisation.mean, std=trained.meta.normalisation.std)

    def measure(name, draw, backbone):
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

    rows = dict(random=[], gersp=[])
    for number in range(RANDOM_DRAWS):
        name = f"random {number + 1} of {RANDOM_DRAWS}"
        draw = 1000 * (seed + 1) + number
        drawn = ExportedBackbone.random(Architecture.parse(cfg.model.backbone), draw)
        rows["random"].append(measure(name, draw, drawn.build()))
    rows["gersp"].append(measure("GeRSP", seed, trained.build()))
    return rows


def summary(values):
    """Say mean and range of some percentages."""
    mean = sum(values) / len(values)
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{mean:.1f}{spread}"


def result_table(rows, epochs, chance):
    """Format the accuracies."""
    names = dict(
        random=f"random initialisation, {RANDOM_DRAWS} draws",
        gersp=f"GeRSP, {epochs} epoch" + "s" * (epochs != 1),
    )
    lines = [("backbone", "kNN top-1 (%)", "linear probe (%)")]
    lines.append(("chance", f"{chance:.1f}", f"{chance:.1f}"))
    for key, name in names.items():
        lines.append((name, *(summary([r[m] for r in rows[key]]) for m in ("knn", "linear_probe"))))
    return table(lines)


def table(lines):
    """Align columns, with a rule below the first line."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = ["  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:]])


def environment():
    """Describe versions and hardware."""
    from importlib import import_module

    import torch

    versions = dict(python=platform.python_version())
    for name in ("gersp_mm", "torch", "torchvision", "mmengine", "mmcv", "mmpretrain", "sklearn"):
        versions[name] = str(import_module(name).__version__)
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M)
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return dict(versions=versions, platform=platform.platform(), cpu=cpu, cores=cores, gpus=gpus)


def main(args):
    """Run all steps."""
    from mmengine.config import Config

    from gersp_mm.engine.schedule import as_options, fitted_options

    work_dir = args.work_dir.expanduser().resolve()
    cfg = Config.fromfile(CONFIG)
    epochs = args.epochs or cfg.train_cfg.max_epochs
    own = {
        name: str(getattr(args, name).expanduser().resolve()) if getattr(args, name) else None
        for name in ("remote_sensing", "natural")
    }
    settings = dict(epochs=epochs, seed=args.seed, **own)
    claim_work_dir(work_dir, settings, args.force)
    steps = Steps(total=5)
    folder, manifest = steps.run("images", prepare_images, own, work_dir)
    os.environ["GERSP_DEMO_DATA"] = str(folder)
    exported = work_dir / f"{CONFIG.stem}_backbone.pth"
    pairs, curves = work_dir / "pairs.png", work_dir / "curves.png"

    options = [f"randomness.seed={args.seed}", *as_options(fitted_options(cfg, epochs))]
    if manifest["evaluation"] is None:
        options.append("default_hooks.knn_eval=None")  # it has no images either

    tool = Path("visualization")
    steps.run("picture of training pairs", run_tool, tool / "browse_pairs.py", CONFIG, "--out",
              pairs, "--cfg-options", *options)  # fmt: skip
    if exported.is_file() and (work_dir / f"epoch_{epochs}.pth").is_file():
        print(f"\n{work_dir} holds the finished run; it is evaluated again (--force trains anew)")
        steps.run("pre-training (done before)", lambda: None)
    else:
        steps.run("pre-training", train, CONFIG, work_dir, options, VALUES, NOTABLE)
    steps.run("curves", run_tool, tool / "curves.py", work_dir, "--out", curves)
    rows = None
    if manifest["evaluation"] is not None:
        rows = steps.run("evaluation", evaluate, cfg, exported, folder, args.seed)
        print(f"\n{manifest['evaluation']['what']}, {manifest['counts']['train']} train and "
              f"{manifest['counts']['test']} test images:")  # fmt: skip
        print(result_table(rows, epochs, 100 / len(manifest["evaluation"]["classes"])))
    else:
        print("\nno evaluation: --remote-sensing has no two sub-folders, so there are no classes")

    seconds = {**steps.seconds, "all": round(sum(steps.seconds.values()), 1)}
    print("\n" + table([("step", "seconds"), *((k, f"{v:.1f}") for k, v in seconds.items())]))
    line = f"init_cfg=dict(type='Pretrained', checkpoint='{exported}', prefix='backbone.')"
    files = dict(pairs=str(pairs), curves=str(curves), backbone=str(exported))
    report = dict(
        settings=settings,
        evaluation=manifest["evaluation"],
        counts=manifest["counts"],
        results=rows,
        seconds=seconds,
        files=files,
        init_cfg=line,
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **environment(),
    )
    partial = work_dir / f".{REPORT}.partial"
    partial.write_text(json.dumps(report, indent=1), encoding="utf-8")
    os.replace(partial, work_dir / REPORT)
    print(f"""
training pairs      {pairs}
loss curves         {curves}
backbone            {exported}
this report         {work_dir / REPORT}
for the backbone of a downstream config:
  {line}""")


if __name__ == "__main__":
    arguments = parse_args()
    if not arguments.check_arguments:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            main(arguments)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(130)
