"""Evaluate a checkpoint with the config it belongs to.

A downstream config runs its test data; a pre-training config runs the kNN evaluation of its
KNNEvalHook.

Examples:
  python tools/test.py configs/pretrain/gersp_r18_demo.py work_dirs/gersp_r18_demo/epoch_10.pth
  bash tools/dist_test.sh CONFIG CHECKPOINT 8
"""

from __future__ import annotations

import argparse
import os

from gersp_mm.launch import add_common_arguments, load_config, run_tool
from gersp_mm.utils.errors import UserError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file of a training run with this config")
    parser.add_argument("--work-dir", help="where to write; default work_dirs/<config name>")
    add_common_arguments(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from mmengine.runner import Runner

    from gersp_mm.hooks import KNNEvalHook

    cfg = load_config(args)
    if not os.path.isfile(args.checkpoint):
        raise UserError(f"there is no checkpoint {args.checkpoint}")
    cfg.load_from = args.checkpoint
    runner = Runner.from_cfg(cfg)
    if cfg.get("test_dataloader"):
        runner.test()
        return
    hooks = [hook for hook in runner.hooks if isinstance(hook, KNNEvalHook)]
    if not hooks:
        raise UserError(
            f"{args.config} has neither test_dataloader nor a KNNEvalHook: there is nothing to "
            "evaluate; add default_hooks.knn_eval as in configs/pretrain/gersp_r18_demo.py"
        )
    runner.load_checkpoint(args.checkpoint, strict=True)
    for hook in hooks:
        hook.evaluate(runner)


if __name__ == "__main__":
    run_tool(main, parse_args())
