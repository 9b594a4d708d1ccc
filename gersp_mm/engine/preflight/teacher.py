"""Checks of the teacher: its update, its start, the optimizer and its BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import nn

from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.models.batch_norm import GroupedBatchNorm
from gersp_mm.models.key_norm import KEY_NORMS, Place, chosen, describe
from gersp_mm.models.preprocessor import PairedDataPreprocessor
from gersp_mm.utils.model import unwrap


def check_colour(runner: Any) -> Iterator[Finding]:
    """Find colour changes that are left to a preprocessor which does not apply them."""
    model, dataset = unwrap(runner.model), runner.train_dataloader.dataset
    for name in ("rs_pipeline", "natural_pipeline"):
        transforms = getattr(getattr(dataset, name, None), "transforms", ())
        left = any(getattr(transform, "on_device", False) for transform in transforms)
        if left and not isinstance(model.data_preprocessor, PairedDataPreprocessor):
            yield Finding(
                "model.data_preprocessor",
                f"dataset.{name} leaves colours and flips to the data preprocessor, which "
                f"{type(model.data_preprocessor).__name__} does not do.",
                "Use gersp_mm.PairedDataPreprocessor, or colour='workers' in ViewAugmentation.",
            )


def check_teacher_moves(runner: Any) -> Iterator[Finding]:
    """Find a teacher that no hook updates."""
    from gersp_mm.engine.hooks.teacher_update import TeacherUpdateHook  # It imports the checks.

    if getattr(unwrap(runner.model), "teacher", None) is None:
        return
    if not any(isinstance(hook, TeacherUpdateHook) for hook in runner.hooks):
        yield Finding(
            "default_hooks.teacher_update",
            "No hook updates the teacher.",
            "Add default_hooks=dict(teacher_update=dict(type='gersp_mm.TeacherUpdateHook')).",
        )


def check_optimizer(runner: Any) -> Iterator[Finding]:
    """Find parameters of the teacher in the optimizer."""
    teacher = getattr(unwrap(runner.model), "teacher", None)
    if teacher is None:
        return
    own = {id(parameter) for parameter in teacher.parameters()}
    groups = runner.optim_wrapper.optimizer.param_groups
    if any(id(parameter) in own for group in groups for parameter in group["params"]):
        yield Finding(
            "optim_wrapper.constructor",
            "The optimizer holds the teacher's parameters.",
            "Set optim_wrapper.constructor='gersp_mm.TrainableParamsConstructor'.",
        )


def check_teacher_start(runner: Any) -> Iterator[Finding]:
    """Find a teacher that should start as a copy of the student and does not."""
    model = unwrap(runner.model)
    if getattr(model, "teacher", None) is None or model.teacher_init != "copy":
        return
    if runner._resume or runner._load_from or runner.iter:
        return
    student = [*model.backbone.parameters(), *model.neck.parameters()]
    if not all(map(torch.equal, student, model.teacher.parameters())):
        yield Finding(
            "model.teacher_init",
            "The teacher does not start as a copy of the student: something changed the weights "
            "after model.init_weights().",
            "Start from other weights with --cfg-options pretrained=PATH.",
        )


def check_batch_norm(runner: Any) -> Iterator[Finding]:
    """Find a BatchNorm whose statistics reveal which images belong together."""
    model = unwrap(runner.model)
    teacher = getattr(model, "teacher", None)
    if teacher is None:
        return
    layers = [m for m in teacher.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    place = Place(
        world_size=get_world_size(),
        batch_size=runner.train_dataloader.batch_size,
        on_cpu=next(model.parameters()).device.type == "cpu",
        split_size=model.split_size,
        other_layers=tuple(
            sorted({type(m).__name__ for m in layers if not isinstance(m, GroupedBatchNorm)})
        ),
    )
    if text := describe(model.key_bn, place):
        runner.logger.info(text)
    for problem in KEY_NORMS[chosen(model.key_bn, place.world_size)].problems(place):
        if problem.fix:
            yield Finding(*problem)
        else:
            runner.logger.warning(problem.text)
