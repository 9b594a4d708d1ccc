"""Writing the downstream file beside the checkpoints."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmengine.hooks import Hook

from gersp_mm.backbones.architectures import arch_name
from gersp_mm.backbones.exported import export_backbone
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.model import unwrap


@HOOKS.register_module()
class ExportBackboneHook(Hook):
    """Write ``<work_dir>/<config name>_backbone.pth`` whenever a checkpoint is saved.

    The file holds the student's backbone of the newest checkpoint and what a downstream model has
    to know about it; see :func:`gersp_mm.backbones.export_backbone`. It is moved into place
    when complete.

    Args:
        method: name of the pre-training that the file carries; by default that of the model's
            class. Baselines that are made of GeRSP's parts name themselves here.

    Raises:
        UserError: the data preprocessor has no mean and std to note in the file.
    """

    priority = "NORMAL"

    def __init__(self, method: str | None = None) -> None:
        self.method = method

    def before_train(self, runner: Any) -> None:
        """Refuse at once what could not be exported at the first checkpoint."""
        preprocessor = unwrap(runner.model).data_preprocessor
        if not hasattr(preprocessor, "mean") or not hasattr(preprocessor, "std"):
            raise UserError(
                "the exported backbone has to say how its images were normalised: set mean and "
                f"std of model.data_preprocessor ({type(preprocessor).__name__}), or set "
                "default_hooks.export_backbone=None"
            )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Export from the state dict that is about to be saved (rank 0 alone gets here)."""
        model = unwrap(runner.model)
        preprocessor: Any = model.data_preprocessor
        path = osp.join(runner.work_dir, f"{config_name(runner)}_backbone.pth")
        export_backbone(
            checkpoint["state_dict"],
            path,
            arch=arch_name(model.backbone),
            method=self.method or type(model).__name__,
            mean=preprocessor.mean.flatten().tolist(),
            std=preprocessor.std.flatten().tolist(),
            epoch=checkpoint["meta"]["epoch"],
            config=runner.cfg.pretty_text,
            run_id=checkpoint["meta"].get("run_id"),
        )
        self.path = path

    def after_train(self, runner: Any) -> None:
        """Print the line to paste into a downstream config."""
        if runner.rank == 0 and hasattr(self, "path"):
            runner.logger.info(
                "backbone for downstream configs: "
                f"init_cfg=dict(type='Pretrained', checkpoint='{self.path}', prefix='backbone.')"
            )


def config_name(runner: Any) -> str:
    """Return the config's file name without its ending, or the experiment's name without a file."""
    filename = getattr(runner.cfg, "filename", None)
    return osp.splitext(osp.basename(filename))[0] if filename else runner.experiment_name


