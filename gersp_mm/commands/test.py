"""Evaluate a checkpoint with the config it belongs to; draw or submit its predictions.

A downstream config runs its test data; a pre-training config runs the kNN evaluation of its
KNNEvalHook. For a config that evaluates frozen features (knn, fewshot), CHECKPOINT is the
pre-trained backbone; for all others it is the checkpoint of a training run.

Examples:
  gersp test configs/pretrain/gersp_r18_demo.py work_dirs/gersp_r18_demo/epoch_6.pth
  gersp test CONFIG CHECKPOINT --results work_dirs/mine.jsonl
  gersp test CONFIG CHECKPOINT --tta
  gersp test CONFIG CHECKPOINT --show-dir work_dirs/pictures --score-thr 0.5
  gersp test configs/downstream/loveda/psanet_r50-d8_80k_loveda.py CHECKPOINT --submission
  bash tools/dist_test.sh CONFIG CHECKPOINT 8
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from gersp_mm.commands.options import add_common_arguments, run_tool
from gersp_mm.resources import find_config
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.errors import UserError, counted


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument("config", help="evaluate by this config")
    parser.add_argument("checkpoint", help="evaluate this checkpoint of a run with CONFIG")
    parser.add_argument("--work-dir", help="write to this folder [work_dirs/<config name>]")
    parser.add_argument("--show-dir", metavar="DIR", help="draw the predictions into DIR")
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="draw boxes with a higher score [0.3]"
    )
    parser.add_argument(
        "--max-pictures", type=int, metavar="N", help="draw N evenly spaced images [all]"
    )
    parser.add_argument(
        "--submission",
        nargs="?",
        const="",
        metavar="DIR",
        help="predict the images of a test server and write the files for it into DIR "
        "[<work dir>/submission]",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average the predictions of flipped images, by the config's tta_model and "
        "tta_pipeline [off]",
    )
    parser.add_argument(
        "--results", metavar="FILE.jsonl", help="append the results as rows to this file"
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Evaluate one checkpoint and print, store or submit its results."""
    from mmengine.config import Config
    from mmengine.dist import is_main_process

    from gersp_mm.checkpoints.origin import origin_of
    from gersp_mm.datasets.annotations import check_data
    from gersp_mm.engine import launch
    from gersp_mm.engine.changes import changes_of_run
    from gersp_mm.engine.checkpoint_loading import read_weights, require_trained_model
    from gersp_mm.engine.config import (
        apply_switches,
        load_as_trained,
        require_trained_switches,
        use_tta,
    )
    from gersp_mm.engine.preflight.building import told_in_one_line
    from gersp_mm.engine.preflight.classes import require_trained_classes
    from gersp_mm.engine.submission import choose_submission
    from gersp_mm.evaluation.measurement import Measurement, config_name
    from gersp_mm.results import store
    from gersp_mm.visualization.predictions import add_pictures, require_pictures

    cfg = launch.load_config(args)
    if args.max_pictures is not None and not args.show_dir:
        raise UserError("--max-pictures without --show-dir draws nothing. Add --show-dir DIR.")
    if args.results and os.path.isdir(args.results):
        raise UserError(f"--results: {args.results} is a folder. Name a file, such as rows.jsonl.")
    if not os.path.isfile(args.checkpoint):
        raise UserError(f"there is no checkpoint {args.checkpoint}")
    if args.submission is None and not cfg.get("test_dataloader"):
        evaluate_pretraining(args, cfg)
        return
    checkpoint = read_weights(args.checkpoint)
    meta = checkpoint.get("meta") or {}
    frozen_features = "pretrained" in cfg and not cfg.get("train_cfg")
    if frozen_features:
        cfg.pretrained = args.checkpoint
        apply_switches(cfg)
    else:
        cfg.load_from = args.checkpoint
        require_trained_switches(cfg, meta, args.checkpoint)
        load_as_trained(cfg, args.checkpoint, meta)
    submission = choose_submission(cfg, args.config, args.submission, args.cfg_options)
    measured = submission is None and check_evaluation(args, cfg)
    if submission is not None and args.results:
        raise UserError(
            "--results: a submission gives no values, because the test server computes them. "
            "Leave --results out."
        )
    measurement = None
    if measured:
        shipped = Config.fromfile(find_config(args.config))
        trained = None if frozen_features else meta
        changes = changes_of_run(shipped, cfg, trained)
        if args.tta:
            changes["test_time_augmentation"] = True
        measurement = Measurement(cfg, args.config, trained, changes)
    if args.tta:
        if frozen_features or args.submission is not None:
            raise UserError(
                "--tta augments the test of a trained model with labels, not frozen features and "
                "no submission. Leave --tta out."
            )
        use_tta(cfg, args.config)
    if args.show_dir:
        if frozen_features:
            raise UserError(
                f"--show-dir: {args.config} classifies the features of all images at once and "
                "draws none. Use a config that trains a classifier."
            )
        require_pictures(cfg, args.config)
    check_data(cfg, ["test"])
    runner = launch.build_runner(cfg)
    if not frozen_features:
        require_trained_model(runner, args.checkpoint, checkpoint, args.config)
        require_trained_classes(runner, args.checkpoint, meta)
    pictures = None
    if args.show_dir:
        pictures = add_pictures(runner, args.show_dir, args.max_pictures, args.score_thr)

    started = time.perf_counter()
    with told_in_one_line(cfg):
        metrics = runner.test()
    seconds = time.perf_counter() - started
    if not is_main_process():
        return
    if pictures is not None:
        print(f"\npictures drawn into {pictures.out_dir}: {pictures.count}")
    if submission is not None:
        print(f"\nto submit: {submission.finish(runner.test_loop.dataloader.dataset)}")
        return
    if measurement is None:
        print("\n" + ", ".join(f"{name} {value}" for name, value in metrics.items()))
        return
    print("\n" + measurement.summary(metrics))
    if args.results:
        new = measurement.rows(
            metrics,
            config=config_name(find_config(args.config)),
            seed=meta.get("seed", (cfg.get("randomness") or {}).get("seed")),
            pretrained=origin_of(args.checkpoint, meta)
            if frozen_features
            else meta.get("pretrained"),
            seconds=seconds,
        )
        store.append_rows(args.results, new)
        print(f"appended to {args.results}: {counted(len(new), 'row')}")


def evaluate_pretraining(args: argparse.Namespace, cfg: Any) -> None:
    """Run the kNN evaluation of a pre-training config.

    Raises:
        UserError: The config has no KNNEvalHook, or an option asks for predictions.
    """
    from gersp_mm.backbones.agreement import without_module
    from gersp_mm.checkpoints.read import tensors_of
    from gersp_mm.engine.checkpoint_loading import read_weights, require_trained_model
    from gersp_mm.engine.hooks import KNNEvalHook
    from gersp_mm.engine.launch import build_runner
    from gersp_mm.engine.preflight.classes import fill_class_count
    from gersp_mm.utils.model import unwrap

    for option in ("show_dir", "tta", "results"):
        if getattr(args, option):
            raise UserError(
                f"--{option.replace('_', '-')}: {args.config} has no test_dataloader, so there is "
                "no test of predictions"
            )
    kinds = [hook.get("type") for hook in (cfg.get("default_hooks") or {}).values() if hook]
    kinds += [hook.get("type") for hook in cfg.get("custom_hooks") or []]
    if not any(str(kind).endswith("KNNEvalHook") for kind in kinds):
        raise UserError(
            f"{args.config} has neither a test_dataloader nor a KNNEvalHook. There is nothing to "
            "evaluate. Add default_hooks.knn_eval as in configs/pretrain/gersp_r18_demo.py."
        )
    fill_class_count(cfg, args.checkpoint)
    runner = build_runner(cfg)
    checkpoint = read_weights(args.checkpoint)
    require_trained_model(runner, args.checkpoint, checkpoint, args.config)
    state = without_module(tensors_of(args.checkpoint, checkpoint))
    unwrap(runner.model).load_state_dict(state, strict=False)  # Batch counters may be missing.
    for hook in runner.hooks:
        if isinstance(hook, KNNEvalHook):
            hook.evaluate(runner)


def check_evaluation(args: argparse.Namespace, cfg: Any) -> bool:
    """Return whether the config names the metrics of the test.

    Raises:
        UserError: There is no evaluator, a metric is unknown, or ``--results`` is given for values
            without names.
    """
    from gersp_mm.evaluation.metrics import wanted_metrics

    missing = [name for name in ("test_cfg", "test_evaluator") if cfg.get(name) is None]
    if missing:
        raise UserError(
            f"{args.config} has a test_dataloader but no {' and no '.join(missing)}. Add it."
        )
    evaluation = cfg.get("evaluation")
    evaluators = cfg.test_evaluator
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    if any(
        evaluator.get("format_only") for evaluator in evaluators
    ):  # Such an evaluator only writes files.
        evaluation = None
    if evaluation and wanted_metrics(evaluation):
        return True
    if args.results:
        raise UserError(
            f"--results: {args.config} has no evaluation=dict(dataset=..., split=..., "
            "measured_by=dict(kind=...), metrics={key: name}) that names its values, or an "
            "evaluator with format_only=True, which gives none."
        )
    return False


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    run_tool(run, parse_args(argv))
