"""Hooks around the training step: teacher, checkpoints, exact resume, monitors, checks."""

from gersp_mm.engine.hooks.alpha_schedule import AlphaScheduleHook
from gersp_mm.engine.hooks.bad_images import BadImageHook
from gersp_mm.engine.hooks.census import CensusHook
from gersp_mm.engine.hooks.checkpoint import AtomicCheckpointHook
from gersp_mm.engine.hooks.checkpoint_check import CheckpointCheckHook
from gersp_mm.engine.hooks.class_check import ClassCheckHook
from gersp_mm.engine.hooks.collapse_monitor import CollapseMonitorHook
from gersp_mm.engine.hooks.device_images import DeviceImagesHook
from gersp_mm.engine.hooks.export_backbone import ExportBackboneHook
from gersp_mm.engine.hooks.knn_eval import KNNEvalHook
from gersp_mm.engine.hooks.pixel_scale import PixelScaleHook
from gersp_mm.engine.hooks.pretrained_check import PretrainedCheckHook
from gersp_mm.engine.hooks.rng_state import RNGStateHook
from gersp_mm.engine.hooks.runtime_info import DeferredRuntimeInfoHook
from gersp_mm.engine.hooks.teacher_update import TeacherUpdateHook
from gersp_mm.engine.hooks.watch import WatchHook
from gersp_mm.engine.preflight.hook import PreflightHook

__all__ = [
    "AlphaScheduleHook",
    "AtomicCheckpointHook",
    "BadImageHook",
    "CensusHook",
    "CheckpointCheckHook",
    "ClassCheckHook",
    "CollapseMonitorHook",
    "DeferredRuntimeInfoHook",
    "DeviceImagesHook",
    "ExportBackboneHook",
    "KNNEvalHook",
    "PixelScaleHook",
    "PreflightHook",
    "PretrainedCheckHook",
    "RNGStateHook",
    "TeacherUpdateHook",
    "WatchHook",
]
