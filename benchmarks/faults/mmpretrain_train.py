"""Train or test a config with MMEngine's plain Runner, as mmpretrain's own tools do."""

from __future__ import annotations

import argparse

from mmengine.config import Config, DictAction
from mmengine.runner import Runner


def main() -> None:
    """Run the training or the test of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--work-dir", required=True)
    parser.add_argument("--resume", metavar="CKPT", help="resume from this file, or from 'auto'")
    parser.add_argument("--test", metavar="CKPT", help="test this file instead of training")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    if args.test:
        cfg.load_from = args.test
        Runner.from_cfg(cfg).test()
    else:
        Runner.from_cfg(cfg).train()


if __name__ == "__main__":
    main()
