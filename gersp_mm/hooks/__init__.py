"""What happens around the training step: teacher, checkpoints, exact resume, monitors, checks."""

from gersp_mm.hooks.alpha_schedule import AlphaScheduleHook
from gersp_mm.hooks.bad_images import BadImageHook
from gersp_mm.hooks.checkpoint import AtomicCheckpointHook
from gersp_mm.hooks.class_check import ClassCheckHook
from gersp_mm.hooks.collapse_monitor import CollapseMonitorHook
from gersp_mm.hooks.device_images import DeviceImagesHook
from gersp_mm.hooks.export_backbone import ExportBackboneHook
from gersp_mm.hooks.knn_eval import KNNEvalHook
from gersp_mm.hooks.preflight import PreflightHook
from gersp_mm.hooks.pretrained_check import PretrainedCheckHook
from gersp_mm.hooks.rng_state import RNGStateHook
from gersp_mm.hooks.runtime_info import DeferredRuntimeInfoHook
from gersp_mm.hooks.segmentation_pictures import SegmentationPicturesHook
from gersp_mm.hooks.teacher_update import TeacherUpdateHook

__all__ = [
    "AlphaScheduleHook",
    "AtomicCheckpointHook",
    "BadImageHook",
    "ClassCheckHook",
    "CollapseMonitorHook",
    "DeferredRuntimeInfoHook",
    "DeviceImagesHook",
    "ExportBackboneHook",
    "KNNEvalHook",
    "PreflightHook",
    "PretrainedCheckHook",
    "RNGStateHook",
    "SegmentationPicturesHook",
    "TeacherUpdateHook",
]
