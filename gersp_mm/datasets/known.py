"""Facts about the published data sets that the package knows by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gersp_mm.datasets.splits import EUROSAT_GERSP_1, RESISC45_GERSP_1, Split
from gersp_mm.resources import data_root


@dataclass(frozen=True)
class KnownDataset:
    """A published data set.

    Args:
        title: Name in result rows and messages.
        folder: Name of the folder below ``GERSP_DATA``.
        counts: Number of images in each part of the release.
        classes: Class names in the order of the labels; empty if the package does not need them.
        class_count: Number of classes; by default that of ``classes``.
        side: Width and height of the images in pixels; 0 if they differ.
        resize: Shorter side in pixels after resizing, for frozen features.
        crop: Side in pixels of the centre crop after that.
        shares: Per cent of each class in train, val and test, for frozen features.
        split: The named split that the package defines.
    """

    title: str
    folder: str
    counts: Mapping[str, int]
    classes: tuple[str, ...] = ()
    class_count: int = 0
    side: int = 0
    resize: int = 0
    crop: int = 0
    shares: Mapping[str, int] = field(default_factory=dict)
    split: Split | None = None

    def __post_init__(self) -> None:
        if not self.class_count:
            object.__setattr__(self, "class_count", len(self.classes))

    @property
    def images(self) -> int:
        """Number of images in the release."""
        return sum(self.counts.values())

    def root(self) -> Path:
        """Return the path of the folder below ``GERSP_DATA``."""
        return data_root() / self.folder


def _of_split(title: str, split: Split, side: int, resize: int, crop: int) -> KnownDataset:
    return KnownDataset(
        title,
        split.name.split("-")[0],
        dict(all=sum(split.sizes.values())),
        split.classes,
        side=side,
        resize=resize,
        crop=crop,
        shares=split.shares,
        split=split,
    )


MILLION_AID = KnownDataset("Million-AID", "million_aid", dict(train=10_000, test=990_848))
IMAGENET = KnownDataset(
    "ImageNet-1k", "ImageNet", dict(train=1_281_167, val=50_000), class_count=1000
)
EUROSAT = _of_split("EuroSAT", EUROSAT_GERSP_1, side=64, resize=64, crop=64)
RESISC45 = _of_split("NWPU-RESISC45", RESISC45_GERSP_1, side=256, resize=256, crop=224)
UCMERCED = KnownDataset(
    "UC Merced",
    "ucmerced",
    dict(all=2_100),
    class_count=21,
    side=256,
    resize=256,
    crop=224,
    shares=dict(train=70, val=10, test=20),
)
AID = KnownDataset(
    "AID",
    "aid",
    dict(all=10_000),
    class_count=30,
    side=600,
    resize=256,
    crop=224,
    shares=dict(train=45, val=5, test=50),
)
DIOR = KnownDataset(
    "DIOR",
    "dior",
    dict(train=5862, val=5863, test=11738),
    (
        "airplane",
        "airport",
        "baseballfield",
        "basketballcourt",
        "bridge",
        "chimney",
        "expressway-service-area",
        "expressway-toll-station",
        "dam",
        "golffield",
        "groundtrackfield",
        "harbor",
        "overpass",
        "ship",
        "stadium",
        "storagetank",
        "tenniscourt",
        "trainstation",
        "vehicle",
        "windmill",
    ),
    side=800,
)
DOTA = KnownDataset(
    "DOTA v1.0",
    "dota",
    dict(train=1411, val=458, test=937),
    (
        "plane",
        "baseball-diamond",
        "bridge",
        "ground-track-field",
        "small-vehicle",
        "large-vehicle",
        "ship",
        "tennis-court",
        "basketball-court",
        "storage-tank",
        "soccer-ball-field",
        "roundabout",
        "harbor",
        "swimming-pool",
        "helicopter",
    ),
)
LOVEDA = KnownDataset(
    "LoveDA",
    "loveda",
    dict(train=2522, val=1669, test=1796),
    ("background", "building", "road", "water", "barren", "forest", "agricultural"),
    side=1024,
)  # fmt: skip

# Data sets whose images a benchmark finds by name.
SCENES = {known.folder: known for known in (EUROSAT, RESISC45, UCMERCED, AID)}
