"""A check that a model starts from the checkpoint that its config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gersp_mm.backbones.agreement import (
    below,
    likely_reason,
    require_loadable_model,
    require_same_input,
    require_same_tensors,
    without_module,
)
from gersp_mm.backbones.normalisation import Normalisation
from gersp_mm.backbones.resized import is_resized, resized_by_host
from gersp_mm.checkpoints.origin import origin_of
from gersp_mm.checkpoints.read import tensors_of
from gersp_mm.datasets.loading import (
    PIXEL_SCALE,
    require_same_scale,
    require_same_sources,
    used_scale,
)
from gersp_mm.engine.checkpoint_loading import read_weights
from gersp_mm.engine.config import require_weights
from gersp_mm.engine.preflight.findings import RULE
from gersp_mm.registry import HOOKS
from gersp_mm.results.row import RANDOM
from gersp_mm.utils.errors import listed
from gersp_mm.utils.model import unwrap


@HOOKS.register_module()
class PretrainedCheckHook(Hook):
    """Fail before the first iteration unless all weights that a config names were loaded.

    MMEngine's ``init_cfg=dict(type='Pretrained', …)`` and ``load_from`` load what fits and only log
    the rest, so that a wrong prefix or another stem silently trains from scratch. This hook
    compares names, shapes and values of tensors with the file, in mmpretrain, mmdet, mmrotate and
    mmseg alike. It also compares the normalisation of the data preprocessor with the one in the
    file's ``meta`` or config. Position embeddings that the host resizes are compared after the
    host's own function has resized those of the file; the log names them.

    With ``init_cfg``, all tensors of ``module`` have to come from the file. With ``load_from``, all
    tensors of the model have to, except those of heads: a head that is missing or has another
    number of classes starts from random weights, and a warning names it. With ``load_from`` and in
    a resumed run, the file in ``init_cfg`` of ``module`` is not read and need not exist.

    Every checkpoint of the run describes its start in ``meta['pretrained']``: path, sha256, method,
    arch and epoch of the file, or ``method='random'`` without a file. ``meta['normalisation']``
    holds the normalisation of its images, and ``meta['pixel_scale']`` the scale with which
    :class:`gersp_mm.LoadImage` read its rasters.

    Args:
        module: Name of the part of the model that has to be complete.

    Raises:
        UserError: A tensor is missing, unexpected, of another shape or of other values than in the
            file, or mean, std, channel order or the pixel scale of rasters differ; the message
            gives the likely reason. Or a config of this package got no weights, or its switches
            did not reach the model.
    """

    priority = "VERY_LOW"  # after all hooks that may change weights

    def __init__(self, module: str = "backbone") -> None:
        self.module = module
        self._file: dict[str, Any] | None = None  # between the two checks
        self._loaded: dict[str, torch.Tensor] = {}  # by load_from, until training starts
        self._start: tuple[Mapping[str, Any], str] = ({}, "")  # meta and path of the file
        self._source: dict[str, Any] | None = None

    def before_run(self, runner: Any) -> None:
        """Compare names and shapes before MMEngine loads the file."""
        if runner._load_from:
            _forget_pretrained(getattr(unwrap(runner.model), self.module, None))
        elif not runner._resume:
            require_weights(runner.cfg)
            self._check(runner, values=False)

    def before_train(self, runner: Any) -> None:
        """Compare values and normalisation after MMEngine has loaded the file."""
        loaded, self._loaded = self._loaded, {}
        if runner._resume or runner._load_from:
            own = unwrap(runner.model).state_dict()
            kept = {name: tensor for name, tensor in own.items() if name in loaded}
            require_same_tensors("the model", runner._load_from, kept, loaded, values=True)
        else:
            self._check(runner, values=True)
        if not runner._resume:
            dataset = getattr(getattr(runner, "train_dataloader", None), "dataset", None)
            require_same_sources(dataset, *self._start)

    def before_test(self, runner: Any) -> None:
        """Compare values and normalisation if a test starts from the file (frozen features)."""
        starts_here = getattr(runner.test_loop, "starts_from_pretrained", False)
        if starts_here and not (runner._resume or runner._load_from):
            self._check(runner, values=True)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Compare the file of ``load_from`` with the model, and note the start of the run."""
        meta = checkpoint.get("meta") or {}
        self._source = meta.get("pretrained")
        if runner._resume:
            path = runner._load_from or "the checkpoint"
            if warning := require_same_scale(runner.cfg, meta, path):
                runner.logger.warning(warning)
        if runner._resume or not runner._load_from:
            return
        path, model = runner._load_from, unwrap(runner.model)
        self._start = (meta, path)
        if self._source is None and "weights_sha256" in meta:
            self._source = origin_of(path, meta)
        given, resized = resized_by_host(model, without_module(tensors_of(path, checkpoint)))
        for note in resized:
            runner.logger.info(f"load_from={path}: {note}")
        own = model.state_dict()
        random = require_loadable_model(path, own, given, self.module)
        require_same_input(path, meta, model.data_preprocessor, getattr(model, self.module, None))
        if warning := require_same_scale(runner.cfg, meta, path):
            runner.logger.warning(warning)
        self._loaded = {
            name: tensor
            for name, tensor in given.items()
            if name in own and own[name].shape == tensor.shape
        }
        if random:
            runner.logger.warning(
                f"\n{RULE}\n  load_from={path} does not hold all of this model's heads.\n"
                "  These tensors start from random weights:\n  " + "\n  ".join(random) + f"\n{RULE}"
            )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the start of the run and the normalisation of its images to the checkpoint."""
        checkpoint["meta"]["pretrained"] = self._source
        if scale := Normalisation.of(unwrap(runner.model).data_preprocessor):
            checkpoint["meta"]["normalisation"] = scale.as_dict()
        if pixels := used_scale(runner.cfg):
            checkpoint["meta"][PIXEL_SCALE] = pixels.as_dict()

    def _check(self, runner: Any, values: bool) -> None:
        model = unwrap(runner.model)
        part = getattr(model, self.module, None)
        init_cfg = _pretrained(part)
        if part is None or init_cfg is None:
            if values:
                self._source = dict(method=RANDOM, path=None, sha256=None)
                runner.logger.info(f"model.{self.module} starts from no checkpoint")
                _warn_of_fixed_random_parts(runner, part)
            return
        path, prefix = init_cfg["checkpoint"], init_cfg.get("prefix") or ""
        checkpoint = self._file or read_weights(path)
        self._file = None if values else checkpoint
        own, stored = part.state_dict(), tensors_of(path, checkpoint)
        given, resized = resized_by_host(part, below(stored, prefix))
        require_same_tensors(
            f"model.{self.module}",
            path,
            own,
            given,
            values=values,
            extra=bool(prefix),
            advice=likely_reason(own, stored, prefix),
        )
        if not values:
            return
        meta = checkpoint.get("meta") or {}
        self._source, self._start = origin_of(path, meta), (meta, path)
        require_same_input(path, meta, model.data_preprocessor, part)
        if warning := require_same_scale(runner.cfg, meta, path):
            runner.logger.warning(warning)
        for note in resized:
            runner.logger.info(f"model.{self.module}: {note}")
        runner.logger.info(
            f"{len(own)}/{len(own)} tensors of model.{self.module} are those of {path}"
        )


def _warn_of_fixed_random_parts(runner: Any, part: Any) -> None:
    if part is None:
        return
    part.train(part.training)  # Some networks freeze their layers only here, as the loop will do.
    # Fixed position embeddings are computed, not drawn.
    frozen = [n for n, p in part.named_parameters() if not (p.requires_grad or is_resized(n))]
    if frozen:
        stages = getattr(part, "frozen_stages", None)
        cause = f"frozen_stages={stages}" if stages is not None else "frozen parameters"
        runner.logger.warning(
            f"{cause} without a checkpoint: these layers stay random ({listed(frozen)})"
        )
    has_norms = any(isinstance(layer, _BatchNorm) for layer in part.modules())
    if getattr(part, "norm_eval", False) and has_norms:
        runner.logger.warning(
            "norm_eval=True without a checkpoint: BatchNorm stays at mean 0 and variance 1, as in "
            "the released code; model.backbone.norm_eval=False lets it learn its statistics"
        )


def _init_cfgs(part: nn.Module | None) -> list[Mapping[str, Any]]:
    cfgs: Any = getattr(part, "init_cfg", None) or []
    return [cfgs] if isinstance(cfgs, Mapping) else list(cfgs)


def _pretrained(part: nn.Module | None) -> Mapping[str, Any] | None:
    return next((cfg for cfg in _init_cfgs(part) if cfg.get("type") == "Pretrained"), None)


def _forget_pretrained(part: Any) -> None:
    if _pretrained(part) is not None:
        part.init_cfg = [cfg for cfg in _init_cfgs(part) if cfg.get("type") != "Pretrained"] or None
