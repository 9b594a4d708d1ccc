"""The method: student, teacher, queue and losses."""

from gersp_mm.models.gersp import GeRSP
from gersp_mm.models.info_nce import InfoNCEHead
from gersp_mm.models.preprocessor import PairedDataPreprocessor, TwoViewDataPreprocessor
from gersp_mm.models.teacher import Teacher

__all__ = ["GeRSP", "InfoNCEHead", "PairedDataPreprocessor", "Teacher", "TwoViewDataPreprocessor"]
