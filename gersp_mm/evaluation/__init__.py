"""Evaluation of frozen features: extraction, k nearest neighbours, linear probe, few-shot."""

from gersp_mm.evaluation.features import EvalImages, extract_features
from gersp_mm.evaluation.knn import knn_accuracy, knn_predict
from gersp_mm.evaluation.linear_probe import LinearProbeResult, linear_probe

__all__ = [
    "EvalImages",
    "LinearProbeResult",
    "extract_features",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
]
