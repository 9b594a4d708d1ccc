"""Several CPU processes that train one model."""

from __future__ import annotations

from typing import Any

from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from torch import nn

from gersp_mm.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """MMEngine's ``MMDistributedDataParallel`` for processes without a GPU.

    MMEngine would pass the index of a GPU to it. SyncBN does not run on CPUs, so every process
    normalises with the statistics of its own images, and a warning is issued.

    Args:
        module: The model.
        **kwargs: Arguments of ``MMDistributedDataParallel``.
    """

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        if any(isinstance(m, nn.SyncBatchNorm) for m in module.modules()):
            print_log(
                "SyncBN does not run on CPUs: BatchNorm uses the images of each process",
                logger="current",
                level=30,
            )
            module = revert_sync_batchnorm(module)
        kwargs.update(device_ids=None, broadcast_buffers=False)
        super().__init__(module=module, **kwargs)
