"""Images: sources without labels, pairs of two sources, and their augmentation."""

from gersp_mm.datasets.augmentation import ViewAugmentation
from gersp_mm.datasets.collate import collate_pairs
from gersp_mm.datasets.image_io import BadImageError, load_pixels, load_rgb
from gersp_mm.datasets.million_aid import LabelledImages, MillionAID
from gersp_mm.datasets.paired import PairedDataset, PairedSampler, PairIndex

__all__ = [
    "BadImageError",
    "LabelledImages",
    "MillionAID",
    "PairIndex",
    "PairedDataset",
    "PairedSampler",
    "ViewAugmentation",
    "collate_pairs",
    "load_pixels",
    "load_rgb",
]
