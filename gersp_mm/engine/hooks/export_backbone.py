"""Export the backbone next to the checkpoints."""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from torch import nn

from gersp_mm.backbones.architectures import Architecture
from gersp_mm.backbones.exported import export_backbone
from gersp_mm.backbones.normalisation import Normalisation
from gersp_mm.checkpoints.find import RUN_ID
from gersp_mm.datasets.loading import PIXEL_SCALE
from gersp_mm.engine.hooks.checkpoint_check import averaged_model
from gersp_mm.engine.precision import precision_of
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError, check_choice
from gersp_mm.utils.model import unwrap


@HOOKS.register_module()
class ExportBackboneHook(Hook):
    """Write ``<work_dir>/<config name>_backbone.pth`` whenever a checkpoint is saved.

    The file holds the student's backbone of the newest checkpoint and the facts that a downstream
    model needs; see :func:`gersp_mm.backbones.export_backbone`. The file is moved into place when
    it is complete.

    Args:
        method: Name of the pre-training in the file; by default the model's class. Baselines that
            consist of GeRSP's parts set it.
        weights: ``'ema'`` for the averaged weights of the run's ``EMAHook``, ``'raw'`` for the
            weights that the optimizer updates. The default is ``'ema'`` if there is an ``EMAHook``;
            MMEngine writes the same weights into the checkpoint. ``meta['weights']`` of the export
            and of the checkpoint holds the choice.

    Raises:
        UserError: The data preprocessor has no mean and std for the file; or averaged weights are
            requested and the run has no ``EMAHook``.
    """

    priority = "NORMAL"

    def __init__(self, method: str | None = None, weights: str | None = None) -> None:
        if weights is not None:
            check_choice("default_hooks.export_backbone.weights", weights, ("raw", "ema"))
        self.method = method
        self.weights = weights

    def before_train(self, runner: Any) -> None:
        """Refuse a run whose backbone cannot be exported."""
        preprocessor = unwrap(runner.model).data_preprocessor
        if Normalisation.of(preprocessor) is None:
            raise UserError(
                "the exported backbone has to hold the normalisation of its images: set mean and "
                f"std of model.data_preprocessor ({type(preprocessor).__name__}), or set "
                "default_hooks.export_backbone=None"
            )
        if self.weights == "ema" and averaged_model(runner) is None:
            raise UserError(
                "default_hooks.export_backbone.weights='ema' needs averaged weights, but the run "
                "has no EMAHook. Add custom_hooks=[dict(type='EMAHook')] or set weights='raw'"
            )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Export the weights of the checkpoint that is about to be saved, on rank 0 only."""
        model, averaged = unwrap(runner.model), averaged_model(runner)
        weights = self.weights or ("raw" if averaged is None else "ema")
        # Whether EMAHook has swapped the weights in the checkpoint depends on the hooks' order.
        state = (averaged.module if weights == "ema" else model).state_dict()
        checkpoint["meta"]["weights"] = weights
        scale = Normalisation.of(model.data_preprocessor)
        assert scale is not None
        config = runner.cfg.get("model")
        config = config.get("backbone") if isinstance(config, Mapping) else None
        path = osp.join(runner.work_dir, f"{config_name(runner)}_backbone.pth")
        export_backbone(
            state,
            path,
            arch=Architecture.of(model.backbone, config).name,
            method=self.method or type(model).__name__,
            mean=scale.mean,
            std=scale.std,
            epoch=checkpoint["meta"]["epoch"],
            iterations=checkpoint["meta"]["iter"],
            config=runner.cfg.pretty_text,
            backbone=config,
            frozen=_frozen_stages(model.backbone),
            run_id=checkpoint["meta"].get(RUN_ID),
            weights=weights,
            precision=precision_of(runner.optim_wrapper),
            pixel_scale=_pixel_scale(runner),
        )
        self.path = path

    def after_train(self, runner: Any) -> None:
        """Print the line to paste into a downstream config."""
        if runner.rank == 0 and hasattr(self, "path"):
            runner.logger.info(
                "backbone for downstream configs: "
                f"init_cfg=dict(type='Pretrained', checkpoint='{self.path}', prefix='backbone.')"
            )


def _frozen_stages(backbone: nn.Module) -> int | None:
    """Return ``frozen_stages``; -1 if no stage is frozen, which some networks call 0."""
    stages = getattr(backbone, "frozen_stages", None)
    learns = all(parameter.requires_grad for parameter in backbone.parameters())
    return -1 if stages is not None and learns else stages


def _pixel_scale(runner: Any) -> dict[str, Any] | None:
    """Return the pixel scale of rasters among the remote-sensing images; None without rasters."""
    source = getattr(runner.train_dataloader.dataset, "remote_sensing", None)
    scale = getattr(source, PIXEL_SCALE, None)
    return scale.as_dict() if scale is not None and scale.limits else None


def config_name(runner: Any) -> str:
    """Return the config's file name without its ending, or the experiment's name without a file."""
    filename = getattr(runner.cfg, "filename", None)
    return osp.splitext(osp.basename(filename))[0] if filename else runner.experiment_name
