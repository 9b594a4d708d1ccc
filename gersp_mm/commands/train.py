r"""Train any config of this package: pre-training and downstream.

Examples:
  gersp train configs/pretrain/gersp_r18_demo.py
  gersp train configs/pretrain/gersp_r50.py --amp bf16 --resume      (an interrupted run)
  gersp train configs/pretrain/gersp_r50.py --cfg-options \
      train_dataloader.dataset.remote_sensing.data_root=/my/images train_dataloader.batch_size=64
  bash tools/dist_train.sh configs/pretrain/gersp_r50.py 8     (several GPUs, or CPU processes)
  gersp train configs/downstream/eurosat/finetune_r50_eurosat.py --cfg-options \
      pretrained=work_dirs/gersp_r50/gersp_r50_backbone.pth    (or pretrained=None: from scratch)

Configs that only evaluate frozen features (knn, fewshot) are evaluated.
"""

from __future__ import annotations

import argparse

from gersp_mm.commands.options import add_common_arguments, run_tool
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.errors import UserError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="write to this folder [work_dirs/<config name>]")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="CKPT",
        help="resume from CKPT; without a value, from the checkpoint of this run that is furthest "
        "in training; 'auto': likewise, or start a new run where there is none",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start a new run where an older one has left checkpoints, and remove them and its "
        "exported backbones before the first step; other files stay",
    )
    parser.add_argument(
        "--amp",
        nargs="?",
        const="auto",
        choices=("auto", "fp16", "bf16", "fp32"),
        help="train with automatic mixed precision; without a value, bf16 where the GPU or the "
        "processor (AMX, or AVX-512 BF16 of AMD) multiplies it, fp16 on older GPUs, else fp32 "
        "[as in the config: fp32]",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by batch size / auto_scale_lr.base_batch_size",
    )
    parser.add_argument(
        "--log-to",
        nargs="+",
        default=[],
        choices=("tensorboard", "wandb", "mlflow"),
        help="write the scalars to these trackers as well",
    )
    parser.add_argument(
        "--log",
        choices=("full", "summary"),
        default="full",
        help="show the whole log on the console, or a summary, a bar and warnings; the log file "
        "always gets all [full; summary if called by gersp]",
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)


def to_continue(args: argparse.Namespace, resumes: bool = False) -> str:
    """Return how to run the same command so that it continues this run after a stop.

    Args:
        args: The arguments of this command.
        resumes: Whether the config itself asks for the newest checkpoint.
    """
    if args.overwrite:
        return "with --resume in place of --overwrite"
    if args.resume in (True, "auto") or (resumes and not args.resume):
        return "again"
    return "with --resume" + (" alone, without the checkpoint," if args.resume else "")


def run(args: argparse.Namespace, how: str | None = None) -> None:
    """Train the config, or resume its run.

    Args:
        args: The arguments of this command.
        how: How a command that calls this one continues after a stop, see :func:`to_continue`.
    """
    from gersp_mm.datasets.annotations import check_data
    from gersp_mm.engine import launch
    from gersp_mm.engine.config import load_as_trained, require_weights
    from gersp_mm.engine.resume import choose_checkpoint
    from gersp_mm.engine.runs import sole_run

    cfg = launch.load_config(args)
    if not cfg.get("train_cfg"):
        require_weights(cfg)
        check_data(cfg, ["test"])
        launch.join_processes(cfg)
        with sole_run(cfg.work_dir):
            launch.build_runner(cfg).test()
        return
    if args.amp:
        launch.use_amp(cfg, args.amp)
    if args.auto_scale_lr:
        if not (cfg.get("auto_scale_lr") or {}).get("base_batch_size"):
            raise UserError(f"--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size")
        cfg.auto_scale_lr.enable = True
        # MMEngine scales by the batch of an iteration; a step of the optimiser may hold several.
        cfg.auto_scale_lr.base_batch_size /= cfg.optim_wrapper.get("accumulative_counts", 1)
    for name in args.log_to:
        launch.log_to(cfg, name)
    if not (args.resume or cfg.get("resume")):
        require_weights(cfg)  # Fail before the work directory is created.
    how = how or to_continue(args, bool(cfg.get("resume") and not cfg.get("load_from")))
    check_data(cfg, ["train", "val"])
    launch.join_processes(cfg)
    with sole_run(cfg.work_dir):
        replaced = choose_checkpoint(cfg, args.resume, args.overwrite)
        if cfg.get("load_from"):
            load_as_trained(cfg, cfg.load_from)
        require_weights(cfg)
        launch.train(cfg, replaced, args.log == "summary", how)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    run_tool(run, parse_args(argv))
