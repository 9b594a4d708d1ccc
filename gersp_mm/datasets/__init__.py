"""Data sets for training: sources of images, pairs of two sources, and annotations."""

from gersp_mm.augmentation.view import ViewAugmentation
from gersp_mm.datasets.collate import collate_pairs
from gersp_mm.datasets.loading import LoadImage
from gersp_mm.datasets.paired import PairedDataset
from gersp_mm.datasets.sampler import PairedSampler, PairIndex
from gersp_mm.datasets.scenes import Scenes
from gersp_mm.datasets.sources import LabelledImages, MillionAID
from gersp_mm.images.decode import BadImageError, load_pixels, load_rgb

__all__ = [
    "BadImageError",
    "LabelledImages",
    "LoadImage",
    "MillionAID",
    "PairIndex",
    "PairedDataset",
    "PairedSampler",
    "Scenes",
    "ViewAugmentation",
    "collate_pairs",
    "load_pixels",
    "load_rgb",
]
