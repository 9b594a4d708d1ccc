"""Making sure that a downstream backbone really starts from the checkpoint that it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from gersp_mm.checkpoints.origin import origin_of
from gersp_mm.checkpoints.read import read_checkpoint
from gersp_mm.engine.config import require_weights
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.model import unwrap

SHOWN = 5  # names in a message
# What the names of backbones start with in files that are about.
STARTS = ("backbone.", "module.backbone.", "encoder_q.", "module.encoder_q.", "module.")


@HOOKS.register_module()
class PretrainedCheckHook(Hook):
    """Fail before the first iteration unless all of a ``Pretrained`` checkpoint was loaded.

    MMEngine's ``init_cfg=dict(type='Pretrained', …)`` loads what fits and only logs the rest, so a
    wrong prefix or another stem trains from scratch without a word. This hook compares every tensor
    of the backbone with the file, in mmpretrain, mmdet, mmrotate and mmseg alike, and the
    normalisation of the data preprocessor with the one that the file's ``meta`` names.

    A run that is resumed, or whose weights come from ``load_from``, is left alone. Every checkpoint
    of the run notes in ``meta['pretrained']`` what it started from: path, sha256, method, arch and
    epoch of the file, or ``method='from scratch'``.

    Args:
        module: name of the part of the model that is looked at.

    Raises:
        UserError: a tensor is missing, too many, of another shape or of other values than in the
            file; or mean, std or channel order differ. With the likely reason. Also if a config of
            ours was given no weights, or its switches did not reach the model.
    """

    priority = "VERY_LOW"  # after whatever else may touch the weights

    def __init__(self, module: str = "backbone") -> None:
        self.module = module
        self._file: dict[str, Any] | None = None  # between the two looks
        self._source: dict[str, Any] | None = None

    def before_run(self, runner: Any) -> None:
        """Compare names and shapes before MMEngine loads the file."""
        if not (runner._resume or runner._load_from):
            require_weights(runner.cfg)
        self._check(runner, values=False)

    def before_train(self, runner: Any) -> None:
        """Compare values and normalisation after MMEngine has loaded the file."""
        self._check(runner, values=True)

    def before_test(self, runner: Any) -> None:
        """Do so where a test starts from the file itself (frozen features)."""
        if getattr(runner.test_loop, "starts_from_pretrained", False):
            self._check(runner, values=True)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep what the run that is gone on with started from."""
        self._source = (checkpoint.get("meta") or {}).get("pretrained")

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Note what the run started from."""
        checkpoint["meta"]["pretrained"] = self._source

    def _check(self, runner: Any, values: bool) -> None:
        if runner._resume or runner._load_from:
            return
        model = unwrap(runner.model)
        part = getattr(model, self.module, None)
        init_cfg = _pretrained(part)
        if part is None or init_cfg is None:
            if values:
                self._source = dict(method="from scratch", path=None, sha256=None)
                runner.logger.info(f"model.{self.module} starts from no checkpoint")
                _warn_of_fixed_random_parts(runner, part)
            return
        path, prefix = init_cfg["checkpoint"], init_cfg.get("prefix") or ""
        checkpoint = self._file or _read(path)
        self._file = None if values else checkpoint
        own, stored = part.state_dict(), _state_dict(checkpoint)
        problems = compare(own, stored, prefix, values)
        if problems:
            raise UserError(
                f"model.{self.module} {'was not' if values else 'cannot be'} loaded from {path}: "
                f"{'; '.join(problems)}. {likely_reason(own, stored, prefix)}"
            )
        if not values:
            return
        meta = checkpoint.get("meta") or {}
        self._source = origin_of(path, meta)
        if meta.get("normalisation"):
            _check_style(path, part)
            _check_normalisation(path, meta["normalisation"], model.data_preprocessor)
        runner.logger.info(
            f"{len(own)}/{len(own)} tensors of model.{self.module} are those of {path}"
        )


def _warn_of_fixed_random_parts(runner: Any, part: Any) -> None:
    if getattr(part, "frozen_stages", -1) >= 0:
        runner.logger.warning(
            f"frozen_stages={part.frozen_stages} without a checkpoint: these layers stay random"
        )
    if getattr(part, "norm_eval", False):
        runner.logger.warning(
            "norm_eval=True without a checkpoint: BatchNorm stays at mean 0 and variance 1, as in "
            "the released code; model.backbone.norm_eval=False lets it learn its statistics"
        )


def _pretrained(part: nn.Module | None) -> Mapping[str, Any] | None:
    cfgs = getattr(part, "init_cfg", None) or []
    cfgs = [cfgs] if isinstance(cfgs, Mapping) else cfgs
    return next((cfg for cfg in cfgs if cfg.get("type") == "Pretrained"), None)


def _read(path: str) -> dict[str, Any]:
    if "://" not in path:
        try:
            return dict(read_checkpoint(path).data)
        except UserError as error:
            raise UserError(
                f"{error}   (a training starts from plain files alone: "
                "tools/model_converters/convert_checkpoint.py makes one of any other)"
            ) from None
    try:
        return dict(CheckpointLoader.load_checkpoint(path, map_location="cpu"))
    except Exception as error:  # of storage, zip files and pickles
        raise UserError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {error}): is the address "
            "right, and does this machine reach it?"
        ) from error


def _state_dict(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    state = checkpoint.get("state_dict", checkpoint)
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}


def compare(
    own: Mapping[str, torch.Tensor],
    stored: Mapping[str, torch.Tensor],
    prefix: str,
    values: bool = True,
) -> list[str]:
    """Say what differs between a module and the part of a file below ``prefix``.

    Args:
        own: state dict of the module.
        stored: state dict of the file.
        prefix: what the module's names have in front of them in the file.
        values: whether values are compared, or names and shapes alone.

    Returns:
        One sentence a kind of difference; none if every tensor is the same.
    """
    given = {k[len(prefix) :]: v for k, v in stored.items() if k.startswith(prefix)}
    shared = [name for name in own if name in given]
    shapes = [name for name in shared if own[name].shape != given[name].shape]
    changed = [
        name
        for name in shared
        if values
        and name not in shapes
        and not torch.equal(own[name].cpu(), given[name].to(own[name].dtype))
    ]
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    extra = [name for name in given if name not in own] if prefix else []
    kinds = {
        "are not in the file": missing,
        "of the file are not in the model": extra,
        "have other shapes": shapes,
        "have other values": changed,
    }
    return [
        f"{len(names)} tensors {what} ({', '.join(names[:SHOWN])}{', …' * (len(names) > SHOWN)})"
        for what, names in kinds.items()
        if names
    ]


def likely_reason(
    own: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor], prefix: str
) -> str:
    """Guess why a file does not fit, in one sentence with the fix."""
    names = list(stored)
    given = {k[len(prefix) :]: v for k, v in stored.items() if k.startswith(prefix)}
    if not names:
        return "The file holds no tensors."
    if not given or not set(given) & set(own):
        start = next((s for s in STARTS if any(name.startswith(s) for name in names)), None)
        if start is not None:
            return f"Its names start with {start!r}: set init_cfg.prefix={start!r}."
        if set(names) & set(own):
            return "Its names have no prefix: leave init_cfg.prefix out."
        if all(name.startswith(("neck.", "head.", "projector", "fc")) for name in names):
            return "It holds a projector or head alone, no backbone."
        return f"None of its names fits, the first is {names[0]!r}."
    if any(name.startswith("stem.") for name in own) != any(n.startswith("stem.") for n in given):
        return (
            "One of them has the deep stem of ResNetV1c or V1d: use type='ResNet' for the backbone."
        )
    blocks = [{n.rpartition(".conv")[0] for n in side if ".conv" in n} for side in (own, given)]
    if blocks[0] != blocks[1]:
        return "They have different blocks: is backbone.depth the checkpoint's?"
    if any(own[k].shape != given[k].shape for k in own if k in given):
        return "Widths differ: is it the same architecture?"
    return "Something loads other weights afterwards, or the model changed them at initialisation."


def _check_style(path: str, part: nn.Module) -> None:
    if getattr(part, "style", "pytorch") == "caffe":
        raise UserError(
            f"the backbone has style='caffe', with its strides elsewhere than where {path} had "
            "them, although the tensors fit: set style='pytorch'"
        )


def _check_normalisation(path: str, expected: Mapping[str, Any], preprocessor: Any) -> None:
    if not hasattr(preprocessor, "mean"):
        raise UserError(
            f"{path} was trained with mean={expected['mean']} and std={expected['std']}, but "
            "model.data_preprocessor does not normalise: give it mean and std"
        )
    names = ("to_rgb", "bgr_to_rgb", "channel_conversion", "_channel_conversion")
    converts = any(getattr(preprocessor, name, False) for name in names)
    # MMCV reads images as BGR; our own preprocessor gets them as it says
    order = getattr(preprocessor, "channel_order", "RGB" if converts else "BGR")
    found = dict(
        mean=preprocessor.mean.flatten().tolist(),
        std=preprocessor.std.flatten().tolist(),
        channel_order=order,
    )
    for name in ("mean", "std"):
        same = torch.allclose(torch.tensor(found[name]), torch.tensor(expected[name]), atol=1e-2)
        if not same:
            raise UserError(
                f"{path} was trained with {name}={expected[name]} ({expected['channel_order']}), "
                f"but model.data_preprocessor has {found[name]}: set it to the checkpoint's"
            )
    if order != expected["channel_order"]:
        raise UserError(
            f"{path} was trained on {expected['channel_order']} images, but "
            f"model.data_preprocessor gives {order}: set its bgr_to_rgb (to_rgb in mmpretrain)"
        )
