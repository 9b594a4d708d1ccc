"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import remove_temporaries, replacing

ATOMIC_BACKEND = "gersp_mm.atomic"


class AtomicLocalBackend(LocalBackend):
    """The local file system, written to by way of a temporary file that is moved into place."""

    def put(self, obj: bytes, filepath: str) -> None:
        """Write bytes; a reader sees the old content or the new one, never a part."""
        with replacing(filepath) as temporary:
            temporary.write_bytes(obj)


register_backend(ATOMIC_BACKEND, AtomicLocalBackend, force=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` with checkpoints moved into place when they are complete.

    A run killed while it saves leaves the checkpoints before, all of them readable.

    Args:
        **kwargs: as for ``CheckpointHook``. ``max_keep_ckpts`` must not be 1: the old checkpoint
            is removed before the new one is complete, and a kill between the two would lose both.

    Raises:
        UserError: ``max_keep_ckpts`` is 1.
    """

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("max_keep_ckpts") == 1:
            raise UserError(
                "default_hooks.checkpoint.max_keep_ckpts must be 2 or more (or -1 for all): with "
                "1, a run killed while it saves would be left without any checkpoint"
            )
        kwargs.setdefault("backend_args", dict(backend=ATOMIC_BACKEND))
        super().__init__(**kwargs)

    def before_train(self, runner: Any) -> None:
        """Remove what an earlier run left half-written."""
        super().before_train(runner)
        if runner.rank == 0 and osp.isdir(self.out_dir):
            remove_temporaries(self.out_dir)
