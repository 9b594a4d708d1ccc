"""Evaluate a checkpoint with the config it belongs to; draw or submit its predictions.

A downstream config runs its test data; a pre-training config runs the kNN evaluation of its
KNNEvalHook. For a config that evaluates frozen features (knn, fewshot) CHECKPOINT is the
pre-trained backbone, for all others the checkpoint of a training run.

Examples:
  python tools/test.py configs/pretrain/gersp_r18_demo.py work_dirs/gersp_r18_demo/epoch_10.pth
  python tools/test.py CONFIG CHECKPOINT --results results/mine.jsonl
  python tools/test.py CONFIG CHECKPOINT --tta
  python tools/test.py CONFIG CHECKPOINT --show-dir pictures --max-pictures 20 --score-thr 0.5
  python tools/test.py configs/downstream/loveda/psanet_r50-d8_80k_loveda.py CHECKPOINT --submission
  bash tools/dist_test.sh CONFIG CHECKPOINT 8
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gersp_mm.backbones.agreement import require_same_input, require_whole_model, without_module
from gersp_mm.backbones.resized import resized_by_host
from gersp_mm.checkpoints.origin import origin_of
from gersp_mm.checkpoints.read import config_values, tensors_of
from gersp_mm.commands.options import add_common_arguments, run_tool
from gersp_mm.engine.checkpoint_loading import read_weights
from gersp_mm.engine.config import apply_switches
from gersp_mm.engine.launch import build_runner, load_config
from gersp_mm.engine.options import parse_options, value_at
from gersp_mm.engine.preflight.building import told_in_one_line
from gersp_mm.resources import find_config, list_configs, resource
from gersp_mm.utils.errors import UserError, check_flag
from gersp_mm.utils.model import unwrap

# By default scope, the hook that draws and the visualizer that it needs.
HOST_HOOKS = {
    "mmpretrain": ("mmpretrain.VisualizationHook", "UniversalVisualizer"),
    "mmdet": ("mmdet.DetVisualizationHook", "DetLocalVisualizer"),
    "mmrotate": ("mmdet.DetVisualizationHook", "RotLocalVisualizer"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file of a training run with this config")
    parser.add_argument("--work-dir", help="where to write; default work_dirs/<config name>")
    parser.add_argument("--show-dir", metavar="DIR", help="draw the predictions into DIR")
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="draw boxes with a higher score; default 0.3"
    )
    parser.add_argument(
        "--max-pictures", type=int, metavar="N", help="draw N images, evenly chosen; default all"
    )
    parser.add_argument(
        "--submission",
        nargs="?",
        const="",
        metavar="DIR",
        help="predict the images of a test server and write what it takes into DIR; default "
        "<work dir>/submission",
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
    from mmengine.config import Config
    from mmengine.dist import is_main_process

    from gersp_mm.datasets.annotations import check_data
    from gersp_mm.engine.changes import changes_of_run
    from gersp_mm.evaluation.measurement import Measurement, config_name
    from gersp_mm.results import store

    cfg = load_config(args)
    if args.max_pictures is not None and not args.show_dir:
        raise UserError("--max-pictures without --show-dir: there is nothing to draw")
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
        check_switches(cfg, meta, args.checkpoint)
    submission = choose_submission(args, cfg)
    measured = submission is None and check_evaluation(args, cfg)
    if submission is not None and args.results:
        raise UserError("--results: a submission gives no values, the test server does")
    measurement = None
    if measured:
        shipped = Config.fromfile(find_config(args.config))
        trained = None if frozen_features else meta
        changes = changes_of_run(shipped, cfg, trained)
        if args.tta:
            changes["test_time_augmentation"] = True
        measurement = Measurement(cfg, args.config, trained, changes)
    if args.tta:
        use_tta(args, cfg, frozen_features)
    if args.show_dir:
        prepare_pictures(args, cfg, frozen_features)
    check_data(cfg, ["test"])
    runner = build_runner(cfg)
    if not frozen_features:
        check_complete(args, runner, checkpoint)
        check_classes(args, runner, meta)
    pictures = add_pictures(args, runner) if args.show_dir else None

    started = time.perf_counter()
    with told_in_one_line(cfg):
        metrics = runner.test()
    seconds = time.perf_counter() - started
    if not is_main_process():
        return
    if pictures is not None:
        print(f"\npictures drawn into {pictures.out_dir}: {pictures.count}")
    if submission is not None:
        finish_submission(submission, runner)
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
        print(f"appended to {args.results}: {len(new)} row{'s' * (len(new) != 1)}")


def evaluate_pretraining(args: argparse.Namespace, cfg: Any) -> None:
    """Run the kNN evaluation of a pre-training config.

    Raises:
        UserError: it has none, or something else is asked for.
    """
    from gersp_mm.engine.hooks import KNNEvalHook
    from gersp_mm.engine.preflight.classes import fill_class_count

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
            f"{args.config} has neither test_dataloader nor a KNNEvalHook: there is nothing to "
            "evaluate; add default_hooks.knn_eval as in configs/pretrain/gersp_r18_demo.py"
        )
    fill_class_count(cfg, args.checkpoint)
    runner = build_runner(cfg)
    checkpoint = read_weights(args.checkpoint)
    check_complete(args, runner, checkpoint)
    state = without_module(tensors_of(args.checkpoint, checkpoint))
    unwrap(runner.model).load_state_dict(state, strict=False)  # counters of batches may be missing
    for hook in runner.hooks:
        if isinstance(hook, KNNEvalHook):
            hook.evaluate(runner)


# ----------------------------------------------------------------------------- what is tested


def check_complete(args: argparse.Namespace, runner: Any, checkpoint: Mapping[str, Any]) -> None:
    """Make sure that the model is the checkpoint's, tensor for tensor, and gets the same input.

    MMEngine itself warns of missing tensors, leaves them random, and goes on.

    Raises:
        UserError: it is not, with the likely reason.
    """
    model = unwrap(runner.model)
    given, resized = resized_by_host(model, without_module(tensors_of(args.checkpoint, checkpoint)))
    for note in resized:
        runner.logger.info(f"{args.checkpoint}: {note}")
    require_whole_model(args.checkpoint, model.state_dict(), given, args.config)
    part = getattr(model, "backbone", None)
    require_same_input(args.checkpoint, checkpoint.get("meta"), model.data_preprocessor, part)


def check_classes(args: argparse.Namespace, runner: Any, meta: Mapping[str, Any]) -> None:
    """Make sure that the test's labels mean the classes that the checkpoint was trained with.

    Raises:
        UserError: they mean others.
    """
    from gersp_mm.engine.preflight.classes import difference_of_classes

    known = (meta.get("dataset_meta") or {}).get("classes")
    with told_in_one_line(runner.cfg):
        dataset = runner.test_loop.dataloader.dataset
    given = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if problem := difference_of_classes(known or (), given or (), dataset):
        raise UserError(
            f"{args.checkpoint} was trained with other classes: {problem}. Set "
            "test_dataloader.dataset.metainfo.classes to those of the training."
        )


def check_switches(cfg: Any, meta: Mapping[str, Any], checkpoint: str) -> None:
    """Make sure that results get the protocol that the checkpoint was trained with.

    Raises:
        UserError: other layers were frozen than the config says.
    """
    frozen = config_values(meta.get("cfg")).get("frozen")
    if isinstance(frozen, str) and cfg.get("frozen", frozen) != frozen:
        raise UserError(
            f"{checkpoint} was trained with frozen={frozen}, not {cfg.frozen}: add --cfg-options "
            f"frozen={frozen}"
        )


def check_evaluation(args: argparse.Namespace, cfg: Any) -> bool:
    """Return whether the config names the values of the test.

    Raises:
        UserError: There is no evaluator, a metric is unknown, or ``--results`` is given for values
            without names.
    """
    from gersp_mm.evaluation.metrics import wanted_metrics

    missing = [name for name in ("test_cfg", "test_evaluator") if cfg.get(name) is None]
    if missing:
        raise UserError(f"{args.config} has a test_dataloader but no {' and no '.join(missing)}")
    evaluation = cfg.get("evaluation")
    evaluators = cfg.test_evaluator
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    if any(evaluator.get("format_only") for evaluator in evaluators):  # gives no values
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


def use_tta(args: argparse.Namespace, cfg: Any, frozen_features: bool) -> None:
    """Put the config's model and data into its test-time augmentation.

    Raises:
        UserError: the config has none, or there is nothing that it could augment.
    """
    from gersp_mm.datasets.annotations import leaves

    if cfg.get("default_scope") == "mmrotate":
        raise UserError("--tta: mmrotate has no test-time augmentation. Leave --tta out.")
    if frozen_features or args.submission is not None:
        raise UserError(
            "--tta augments the test of a trained model with labels, not frozen features and no "
            "submission. Leave --tta out."
        )
    missing = [name for name in ("tta_model", "tta_pipeline") if not cfg.get(name)]
    if missing:
        raise UserError(f"--tta: {args.config} has no {' and no '.join(missing)}. Leave --tta out.")
    cfg.model = dict(cfg.tta_model, module=cfg.model)
    for dataset in leaves(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.tta_pipeline


# --------------------------------------------------------------------------------- submissions


class Submission:
    """Where a submission is written: beside the old one until it is whole.

    Args:
        kind: ``dota`` or ``loveda``.
        folder: of the files.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.partial = folder / ".Task1.partial"

    def prepare(self, evaluator: Any) -> None:
        """Tell the evaluator where to write."""
        from mmengine.dist import is_main_process

        if self.kind == "loveda":  # replaces each file at once
            evaluator.output_dir = str(self.folder)
            return
        target = self.folder / "Task1"
        if target.is_dir():
            foreign = [p.name for p in target.iterdir() if not p.name.startswith("Task1")]
            if foreign:
                raise UserError(f"{target} holds {foreign[0]} too: choose another --submission DIR")
        if is_main_process():
            if (self.partial / "old").is_dir() and not target.exists():
                os.replace(self.partial / "old", target)  # a run was killed in between
            shutil.rmtree(self.partial, ignore_errors=True)
        evaluator.outfile_prefix = str(self.partial / "Task1")  # must not exist

    def replace(self) -> Path:
        """Put the new files into place and return the one to submit."""
        from gersp_mm.evaluation.submission import LOVEDA_ZIP

        if self.kind == "loveda":
            return self.folder / LOVEDA_ZIP
        target, old = self.folder / "Task1", self.partial / "old"
        if target.exists():
            os.replace(target, old)
        os.replace(self.partial / "Task1", target)
        shutil.rmtree(self.partial)
        return target / "Task1.zip"


def choose_submission(args: argparse.Namespace, cfg: Any) -> Submission | None:
    """Replace the config's test by its submission if that is asked for, or all it has.

    Raises:
        UserError: the config has no submission.
    """
    from mmengine.config import Config

    known = cfg.get("submission")
    only = known is not None and is_only_submission(args, known)
    if args.submission is None:
        if not only:
            return None
        print(f"{args.config} has no test but its submission, so this is --submission")
    if known is None:
        names = [name for name in list_configs() if name.startswith("downstream/")]
        names = [n for n in names if "submission" in Config.fromfile(resource("configs", n))]
        raise UserError(
            f"--submission: {args.config} has no `submission`; these configs have: "
            f"{', '.join(f'configs/{name}' for name in names)}"
        )
    if known.get("kind") not in ("dota", "loveda"):
        raise UserError(
            f"--submission: submission.kind of {args.config} must be 'dota' or 'loveda', got "
            f"{known.get('kind')!r}"
        )
    options = parse_options(args.cfg_options, cfg)
    if not only:
        carry_options(known, options)
        cfg.test_dataloader, cfg.test_evaluator = known.test_dataloader, known.test_evaluator
    refuse_evaluator_options(cfg, options)
    if not cfg.test_dataloader.get("num_workers"):
        cfg.test_dataloader.persistent_workers = False  # which PyTorch refuses without workers
    folder = Path(args.submission or os.path.join(cfg.work_dir, "submission"))
    submission = Submission(known.kind, folder)
    submission.prepare(cfg.test_evaluator)
    return submission


def is_only_submission(args: argparse.Namespace, known: Any) -> bool:
    """Whether the test of a config is its submission: ``submission.only``.

    Configs that earlier versions wrote do not say so; DOTA's had no other test.

    Raises:
        UserError: the section or the field is of another type.
    """
    if not isinstance(known, Mapping):
        raise UserError(f"submission={known!r} is no section. Write submission=dict(kind=...).")
    only = known.get("only", known.get("kind") == "dota")
    check_flag("submission.only", only)
    return only


def carry_options(known: Any, options: Mapping[str, Any]) -> None:
    """Give a submission the options that were given to the test that it replaces.

    Raises:
        UserError: the submission has no such value.
    """
    for key, value in options.items():
        section = key.partition(".")[0]
        if section not in ("test_dataloader", "test_evaluator"):
            continue
        if "." not in key or value_at(known, key) is None:
            raise UserError(
                f"--submission: {key} is of the test with labels, and the submission has no such "
                f"value. Leave it out, or set submission.{key}."
            )
        if f"submission.{key}" not in options:
            holder = value_at(known, key.rpartition(".")[0])
            holder[key.rpartition(".")[2]] = value


def refuse_evaluator_options(cfg: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that a submission replaces, or with which there would be none.

    Raises:
        UserError: there is such an option.
    """
    for key in options:
        if key.rpartition(".")[2] in ("outfile_prefix", "output_dir") and "test_evaluator" in key:
            raise UserError(f"{key}: a submission is written elsewhere. Use --submission DIR.")
    for name in ("format_only", "merge_patches"):
        if cfg.test_evaluator.get(name) is False:
            raise UserError(
                f"test_evaluator.{name}=False gives no submission. Leave it out, or set "
                "submission.only=False for a test with labels."
            )


def finish_submission(submission: Submission, runner: Any) -> None:
    """Put the files into place, check them, and say where they are.

    Raises:
        UserError: they are not fit to submit.
    """
    from gersp_mm.evaluation import submission as files

    path = submission.replace()
    dataset = runner.test_loop.dataloader.dataset
    paths = [dataset.get_data_info(number)["img_path"] for number in range(len(dataset))]
    images = files.image_sizes(paths, tiles=submission.kind == "dota")
    check = getattr(files, f"check_{submission.kind}")(path, images)
    for note in check.notes:
        print(f"note: {note}")
    if check.problems:
        raise UserError(f"{path} is not fit to submit:\n  " + "\n  ".join(check.problems))
    print(f"\nto submit: {path}")


# ------------------------------------------------------------------------------------ pictures


def prepare_pictures(args: argparse.Namespace, cfg: Any, frozen_features: bool) -> None:
    """Make sure that the predictions can be drawn, and that there is a visualizer to do so.

    Raises:
        UserError: there are no predictions to draw.
    """
    scope = cfg.get("default_scope")
    if frozen_features:
        raise UserError(
            f"--show-dir: {args.config} classifies the features of all images at once and draws "
            "none; use a config that trains a classifier"
        )
    if scope != "mmseg" and scope not in HOST_HOOKS:
        raise UserError(
            f"--show-dir: default_scope of {args.config} is {scope!r}, not one of "
            f"{', '.join([*HOST_HOOKS, 'mmseg'])}"
        )
    visualizer = cfg.get("visualizer") or {}
    plain = ("Visualizer", "mmengine.Visualizer")  # without boxes and labels
    if scope != "mmseg" and visualizer.get("type", plain[0]) in plain:
        cfg.visualizer = dict(visualizer, type=HOST_HOOKS[scope][1])


def add_pictures(args: argparse.Namespace, runner: Any) -> Any:
    """Register the hook that draws the predictions, and return it.

    Raises:
        UserError: there are several processes.
    """
    from mmengine.registry import HOOKS

    from gersp_mm.visualization.predictions import HostPicturesHook, SegmentationPicturesHook

    if runner.world_size > 1:
        raise UserError("--show-dir: the hosts draw in one process only, start one")
    scope = runner.cfg.default_scope
    if scope == "mmseg":
        hook = SegmentationPicturesHook(args.show_dir, args.max_pictures)
    else:
        options = dict(draw=True, score_thr=args.score_thr)
        if scope == "mmpretrain":
            options = dict(enable=True, interval=1)
        host = HOOKS.build(dict(type=HOST_HOOKS[scope][0], **options))
        hook = HostPicturesHook(host, args.show_dir, args.max_pictures)
    runner.register_hook(hook)
    return hook


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    run_tool(run, parse_args(argv))
