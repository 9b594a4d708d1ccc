"""kNN accuracy of the backbone's features while it is being pre-trained."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook

from gersp_mm.registry import HOOKS


@HOOKS.register_module()
class KNNEvalHook(Hook):
    """placeholder until the evaluation module is there"""
