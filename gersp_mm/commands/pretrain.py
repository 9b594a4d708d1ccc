"""Pre-train a backbone on images of your own, or by a config.

`gersp pretrain CONFIG …` is `gersp train CONFIG …`. With --images, the settings follow from the
number and size of the images and from the machine. Each is printed with its reason, and all are
written as a config that `gersp train` repeats. Ctrl-C loses nothing: the same command resumes.

Natural images are half of GeRSP: the backbone learns to classify them while it learns from yours.
--natural takes any folder with one sub-folder of images per class, such as ImageNet's train/.
--natural none leaves this branch out (MoCo on your images alone).

Examples:
  gersp pretrain --images tiles/ --natural ImageNet/train --out work_dirs/mine
  gersp pretrain --images scenes/ --bands 4 3 2 --window '384 m' --natural ImageNet/train
  gersp pretrain --images tiles/ --natural none --arch resnet18 --epochs 10
  gersp pretrain --images tiles/ --natural ImageNet/train --from gersp_r50_backbone.pth
  gersp pretrain configs/pretrain/gersp_r50.py
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from gersp_mm.commands.options import CfgOptions, run_tool
from gersp_mm.planning.defaults import ARCHITECTURES
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.errors import UserError

if TYPE_CHECKING:
    from gersp_mm.engine.runs import RunFolder
    from gersp_mm.planning.defaults import Decision
    from gersp_mm.planning.images import Look

WITHOUT = "none"  # Value of --natural that leaves the natural branch out.
SETTINGS = "pretrain_settings.json"
UNSTORED = ("out", "overwrite", "dry_run")  # These arguments are not settings of the run.
LIST = "images.txt"
LARGE = 2048  # Pixels. Larger photographs get a hint, as each sample decodes them whole.
NO_RASTER = "--bands and --scale have no effect: none of the sampled images is a raster"
SLOW = (
    "images of {} pixels are decoded whole for each pair; `gersp prepare pack` shrinks, and "
    "`gersp prepare tiles` cuts them once"
)
NO_NATURAL = (
    "--natural is missing. GeRSP learns from labelled natural images next to yours; without them "
    "it is MoCo on your images alone. Choose one: --natural DIR with one sub-folder of images per "
    "class (ImageNet's train/, or any photographs by subject), or --natural none"
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--images", nargs="+", required=True, metavar="PATH",
        help="use these remote-sensing images: a folder, a list (.txt), or files")  # fmt: skip
    add("--natural", metavar="DIR", help="use natural images in one sub-folder per class; or none")
    add("--arch", choices=tuple(ARCHITECTURES), default="resnet50",
        help="train this backbone [resnet50]")  # fmt: skip
    add("--from", dest="weights", metavar="FILE", help="start from exported weights [random]")
    add("--epochs", type=int, help="pass N times over the remote-sensing images [by their number]")
    add("--batch-size", type=int, help="use this many pairs per step [by the memory]")
    add("--size", type=int, help="crop to this side in pixels [by the images, at most 224]")
    add("--bands", nargs="+", help="read these bands as red, green and blue, or one for all three")
    add("--scale", nargs="+",
        help="scale by 'percentile', or by the lowest and highest value [percentile]")  # fmt: skip
    add("--window", help="read windows with this side from large images: 512, or '384 m' [512]")
    add("--amp", choices=("auto", "fp16", "bf16", "fp32"), default="auto",
        help="train in this precision [auto: what the GPU or processor multiplies]")  # fmt: skip
    add("--seed", type=int, default=0, help="seed all random draws [0]")
    add("--out", type=Path, default=Path("work_dirs/pretrain"), metavar="DIR",
        help="write config, checkpoints and backbone to DIR [work_dirs/pretrain]")  # fmt: skip
    add("--overwrite", action="store_true", help="discard the run in --out and start a new one")
    add("--dry-run", action="store_true", help="write the config and stop")
    add("--cfg-options", nargs="+", action=CfgOptions, help="replace config values: a.b=1")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Choose the settings, write the config and train by it."""
    from gersp_mm.engine.preflight.classes import count_classes
    from gersp_mm.engine.runs import RunFolder
    from gersp_mm.planning.images import look_at

    if args.natural is None:
        raise UserError(NO_NATURAL)
    if args.natural != WITHOUT and not Path(args.natural).is_dir():
        raise UserError(f"--natural {args.natural}: there is no such folder (or write none).")
    if args.epochs is not None and args.epochs < 1:
        raise UserError(f"--epochs must be at least 1, got {args.epochs}")
    if args.natural != WITHOUT:
        count_classes(dict(type="gersp_mm.LabelledImages", data_root=args.natural))
    found = look_at(args.images, _number(args.window))
    config = args.out / f"{args.arch.replace('-', '_')}.py"
    folder = RunFolder(args.out)
    asked = {name: _plain(value) for name, value in vars(args).items() if name not in UNSTORED}
    known = _run_in(folder, args)
    if known is not None:
        known.setdefault("amp", args.amp)  # Older runs have it in their config alone.
        remedy = "repeat its options to resume it, or add --overwrite, or choose another --out"
        folder.require_settings(known, asked, remedy)
    with _old_run_kept(args.out, config):
        if known is None:
            _write_config(args, found, config)
            folder.write(SETTINGS, asked)
        again = f"gersp train {quote(str(config))}"
        print(f"{'config':<18}{config}   ({again} repeats the run)", flush=True)
        if not args.dry_run:
            _train(args, config, resume=known is not None)


def _run_in(folder: RunFolder, args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the settings of the run to resume: the one that left checkpoints in a folder."""
    from gersp_mm.checkpoints.find import find_checkpoints

    found, unread = find_checkpoints(folder.path)
    if not found and not unread:
        return None  # A start that was refused leaves settings, but no run.
    if args.overwrite and args.dry_run:
        raise UserError(
            f"--dry-run --overwrite would replace the config of the run in {folder.path} and keep "
            "its checkpoints. Choose another --out."
        )
    if args.overwrite:
        return None
    known = folder.read(SETTINGS)
    if known is None:
        raise UserError(
            f"{folder.path} holds checkpoints of another run. Add --overwrite to discard them, or "
            "choose another --out."
        )
    return known


@contextlib.contextmanager
def _old_run_kept(out: Path, config: Path) -> Iterator[None]:
    """Give another run its files back where this one ends before it writes a checkpoint."""
    checkpoints = sorted(out.glob("*.pth"))
    files = [path for path in (config, out / SETTINGS, out / LIST) if path.is_file()]
    contents = [path.read_bytes() for path in files]
    try:
        yield
    except BaseException:
        if sorted(out.glob("*.pth")) == checkpoints:
            for path, content in zip(files, contents):
                path.write_bytes(content)
        raise


def _write_config(args: argparse.Namespace, found: Look, config: Path) -> None:
    """Choose the settings, print each with its reason, and write the config."""
    from gersp_mm.planning.defaults import decide

    source = _source(args, found)
    count = _window_count(source) if found.scenes else found.number
    side = _window_side(source) if found.scenes else found.side
    decisions = decide(count, side, args.arch, _machine(), args.epochs, args.batch_size, args.size)
    for one in decisions:
        if one.reason:
            print(f"{one.name:<18}{one.value:<31}{one.reason}")
    if (args.bands or args.scale) and not found.rasters:
        print(f"{'note':<18}{NO_RASTER}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {args.out} cannot be written to ({error.strerror}). Choose another folder."
        ) from error
    if not found.scenes:
        _list_files(source, args.out)
        if found.longer > LARGE:
            print(f"{'note':<18}{SLOW.format(found.longer)}")
    cfg = compose(args, source, decisions)
    cfg.dump(str(config))


def _train(args: argparse.Namespace, config: Path, resume: bool) -> None:
    """Train by the config, as ``gersp train`` does."""
    from gersp_mm.commands import train

    words = [str(config), "--work-dir", str(args.out), "--log", "summary"]
    if resume or args.overwrite:
        words += ["--overwrite"] if args.overwrite else ["--resume", "auto"]
    called, sys.argv[0] = sys.argv[0], "gersp train"
    try:
        train.run(train.parse_args(words), "without --overwrite" if args.overwrite else "again")
    except UserError as error:  # Name the options of this command.
        text = str(error).replace("--work-dir", "--out")
        raise UserError(text.replace(", or name another one", ", or add --overwrite")) from error
    finally:
        sys.argv[0] = called
    exported = args.out / f"{config.stem}_backbone.pth"
    hub = quote(f"hub/{args.out.name}")
    print(f"backbone: {exported}\n  gersp export {quote(str(args.out))} --to hub {hub}")


def compose(args: argparse.Namespace, source: dict[str, Any], decisions: list[Decision]) -> Any:
    """Return the config of the pre-training."""
    from gersp_mm.engine.config import apply_switches, merge_options, read_config
    from gersp_mm.engine.launch import use_amp
    from gersp_mm.engine.options import parse_options
    from gersp_mm.engine.preflight.findings import refuse_errors
    from gersp_mm.engine.preflight.names import check_options
    from gersp_mm.planning.defaults import options_of, schedule
    from gersp_mm.resources import find_config

    base, channels = ARCHITECTURES[args.arch]
    crop = next(one.options["size"] for one in decisions if "size" in one.options)
    options = options_of(decisions)
    epochs = options["train_cfg.max_epochs"]
    cfg, _ = read_config(find_config(base), {
        **options,
        "model.neck.in_channels": channels,
        "model.natural_head.in_channels": channels,
        "train_dataloader.sampler.epoch_length": "remote_sensing",
        "randomness.seed": args.seed,
        "default_hooks.logger.interval": 10,
        "default_hooks.checkpoint.interval": max(1, epochs // 20),
    })  # fmt: skip
    cfg.param_scheduler = schedule(epochs, args.arch)
    if args.arch.startswith("resnet"):
        cfg.model.backbone.depth = int(args.arch.removeprefix("resnet"))
        cfg.model.neck.hid_channels = channels
    else:
        cfg.model.backbone.img_size = crop
    dataset = cfg.train_dataloader.dataset
    view = dict(type="gersp_mm.ViewAugmentation", preset="overhead", size=crop)
    dataset.remote_sensing, dataset.rs_pipeline = source, [view]
    if args.natural == WITHOUT:
        dataset.natural = None
        cfg.model.natural_head = None
    else:
        dataset.natural.data_root = str(Path(args.natural).resolve())
        dataset.natural_pipeline[0].size = crop
    if args.weights:
        cfg.pretrained = args.weights
    use_amp(cfg, args.amp)
    given = parse_options(args.cfg_options, cfg)
    refuse_errors(check_options(cfg, given))
    merge_options(cfg, given)
    apply_switches(cfg)
    return cfg


def _source(args: argparse.Namespace, found: Look) -> dict[str, Any]:
    source = dict(found.source)
    if args.bands:
        source["bands"] = tuple(map(_number, args.bands))
    if args.scale:
        values = [_number(value) for value in args.scale]
        source["scale"] = values[0] if len(values) == 1 else tuple(values)
    return source


def _list_files(source: dict[str, Any], out: Path) -> None:
    """Write the files that were named one by one to a list that the source reads."""
    from gersp_mm.images.listing import write_list

    if names := source.pop("files", None):
        write_list(out / LIST, names)
        source["ann_file"] = str((out / LIST).resolve())


def _window_count(source: dict[str, Any]) -> int:
    from gersp_mm.registry import DATASETS

    return len(DATASETS.build(dict(source)))


def _window_side(source: dict[str, Any]) -> int:
    window = source["window"]
    return window if isinstance(window, int) else 512


def _machine() -> Any:
    import torch

    from gersp_mm.planning.defaults import Machine
    from gersp_mm.utils.provenance import cores

    memory = None
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return Machine(memory, cores())


def _number(text: str | None) -> Any:
    for kind in (int, float):
        try:
            return kind(text)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
    return text


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float, list)) else str(value)


def main(argv: list[str] | None = None) -> None:
    """Train by a config if the first word is none of the options, else on the given images."""
    words = sys.argv[1:] if argv is None else argv
    if words and not words[0].startswith("-"):
        from gersp_mm.commands import train

        train.main(["--log", "summary", *words])
        return
    run_tool(run, parse_args(words), "interrupted; the same command resumes from here")
