"""Refusing, before the first step, what cannot work."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from torch import nn

from gersp_mm.engine.hooks.teacher_update import TeacherUpdateHook
from gersp_mm.models.preprocessor import PairedDataPreprocessor
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.model import unwrap


@HOOKS.register_module()
class PreflightHook(Hook):
    """Check data, model and optimizer against each other before the first iteration.

    Raises:
        UserError: with the numbers and the fix, when the queue is smaller than the global batch, a
            batch of 1 meets BatchNorm, a label lies outside the classifier, SyncBN would run on
            CPUs, colour work is left to a preprocessor that does not do it, nothing would move the
            teacher, or it does not start as the student.
    """

    priority = "VERY_HIGH"
    told = False

    def before_train(self, runner: Any) -> None:
        """Run every check; each is quick."""
        model = unwrap(runner.model)
        loader = runner.train_dataloader
        batch = loader.batch_size
        global_batch = batch * get_world_size()
        self._check_labels(model, loader.dataset)
        self._check_colour(model, loader.dataset)
        if getattr(model, "teacher", None) is not None:
            self._check_teacher(runner, model)
            self._check_queue(model, batch, global_batch)
            self._check_batch_norm(runner, model, batch)
        self._compare_batch_size(runner, batch, global_batch)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Say once what shuffling costs."""
        sent = getattr(unwrap(runner.model), "exchanged_bytes", 0)
        if sent and not self.told:
            runner.logger.info(
                f"key_bn='shuffle' sends {sent / 2**20:.1f} MiB of images a step from each process"
            )
            self.told = True

    @staticmethod
    def _check_labels(model: Any, dataset: Any) -> None:
        head, natural = getattr(model, "natural_head", None), getattr(dataset, "natural", None)
        num_classes = getattr(head, "num_classes", None)
        if natural is None or num_classes is None or not hasattr(natural, "get_gt_labels"):
            return
        labels = natural.get_gt_labels()
        outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if outside.size:
            info = natural.get_data_info(int(outside[0]))
            raise UserError(
                f"{outside.size} of {len(labels)} natural images have a label outside "
                f"0 to {num_classes - 1}, the first being {info['img_path']} with label "
                f"{info['gt_label']}: set model.natural_head.num_classes to "
                f"{int(labels.max()) + 1} or mend the labels"
            )

    @staticmethod
    def _check_colour(model: Any, dataset: Any) -> None:
        for name in ("rs_pipeline", "natural_pipeline"):
            transforms = getattr(getattr(dataset, name, None), "transforms", ())
            left = any(getattr(transform, "on_device", False) for transform in transforms)
            if left and not isinstance(model.data_preprocessor, PairedDataPreprocessor):
                raise UserError(
                    f"dataset.{name} leaves colours and flips to the data preprocessor, which "
                    f"{type(model.data_preprocessor).__name__} does not do: use "
                    "gersp_mm.PairedDataPreprocessor, or colour='workers' in ViewAugmentation"
                )

    @staticmethod
    def _check_teacher(runner: Any, model: Any) -> None:
        if not any(isinstance(hook, TeacherUpdateHook) for hook in runner.hooks):
            raise UserError(
                "no hook moves the teacher: add "
                "default_hooks=dict(teacher_update=dict(type='gersp_mm.TeacherUpdateHook'))"
            )
        own = {id(parameter) for parameter in model.teacher.parameters()}
        groups = runner.optim_wrapper.optimizer.param_groups
        if any(id(parameter) in own for group in groups for parameter in group["params"]):
            raise UserError(
                "the optimizer holds the teacher's parameters: set "
                "optim_wrapper.constructor='gersp_mm.TrainableParamsConstructor'"
            )
        fresh = not (runner._resume or runner._load_from) and runner.iter == 0
        if fresh and model.teacher_init == "copy":
            student = [*model.backbone.parameters(), *model.neck.parameters()]
            if not all(map(torch.equal, student, model.teacher.parameters())):
                raise UserError(
                    "the teacher does not start as a copy of the student: something changed the "
                    "weights after model.init_weights(); to start from other weights use "
                    "--cfg-options pretrained=PATH"
                )

    @staticmethod
    def _check_queue(model: Any, batch: int, global_batch: int) -> None:
        queue_len = len(model.queue)
        if queue_len < global_batch:
            raise UserError(
                f"the queue holds {queue_len} keys, fewer than the {global_batch} of one step "
                f"({batch} a process, {global_batch // batch} processes): raise model.queue_len "
                "or lower train_dataloader.batch_size"
            )

    @staticmethod
    def _check_batch_norm(runner: Any, model: Any, batch: int) -> None:
        if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.teacher.modules()):
            return
        world_size = get_world_size()
        on_cpu = next(model.parameters()).device.type == "cpu"
        if model.key_bn == "sync" and world_size > 1 and on_cpu:
            raise UserError(
                "model.key_bn='sync' needs GPUs, SyncBN does not run on CPUs: use 'shuffle'"
            )
        if batch == 1 and not (model.key_bn == "sync" and world_size > 1):
            raise UserError(
                "train_dataloader.batch_size=1 with BatchNorm: the keys would be normalised by "
                "themselves; use at least 2 images a process"
            )
        if model.key_bn == "shuffle" and world_size == 1:
            runner.logger.warning(
                "key_bn='shuffle' cannot work with one process: a key's BatchNorm statistics come "
                "from the images that the query's come from, so a run on one GPU is not the run "
                "on several"
            )

    @staticmethod
    def _compare_batch_size(runner: Any, batch: int, global_batch: int) -> None:
        scaling = runner.cfg.get("auto_scale_lr") or {}
        base = scaling.get("base_batch_size")
        accumulated = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        effective = global_batch * accumulated
        if base is None or base == effective or scaling.get("enable"):
            return
        runner.logger.warning(
            "\n" + "!" * 96 + f"\n  The learning rate of this config is meant for batches of {base}"
            f" pairs; this run has {effective}\n  ({batch} a process x {get_world_size()} processes"
            f" x {accumulated} accumulated) and leaves the learning rate as it is.\n"
            "  Add --auto-scale-lr to scale it, or set optim_wrapper.optimizer.lr yourself.\n"
            + "!" * 96
        )
