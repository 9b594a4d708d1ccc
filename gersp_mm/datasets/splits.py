"""Named splits of classification data sets, and few-shot subsets.

Images are ordered by the sha256 of a key and their path instead of a random number generator, so
that the result is the same on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gersp_mm.utils.errors import UserError


class Entry(NamedTuple):
    """One image of a list."""

    path: str  # class and file, such as Forest/Forest_1.jpg
    label: int


@dataclass(frozen=True)
class Split:
    """A named division of a data set, with the hash of its lists.

    The images of a class are ordered by sha256("<name>:<class>/<file>") and divided by the shares,
    so that the split does not depend on the folder of the data set.

    Args:
        name: Name of the split.
        sizes: Images of each class, in the order of the labels.
        file: File name of image ``{n}`` (from 1) of class ``{c}``.
        shares: Per cent of each class in each part; they add up to 100.
        sha256: Hash of the lists of the complete data set, see :meth:`digest`.
    """

    name: str
    sizes: Mapping[str, int]
    file: str
    shares: Mapping[str, int]
    sha256: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the labels."""
        return tuple(self.sizes)

    def paths(self) -> list[str]:
        """Return the images of the complete data set, as ``<class>/<file>``."""
        return [
            f"{c}/{self.file.format(c=c, n=n)}"
            for c, size in self.sizes.items()
            for n in range(1, size + 1)
        ]

    def cut(self, paths: Iterable[str]) -> dict[str, list[Entry]]:
        """Divide images into parts, each sorted by class and name.

        A class with at least as many images as there are parts appears in every part.

        Args:
            paths: Path ``<class>/<file>`` of each image.
        """
        by_class: dict[str, list[str]] = {name: [] for name in self.sizes}
        for path in paths:
            by_class[path.split("/")[0]].append(path)
        parts: dict[str, list[Entry]] = {part: [] for part in self.shares}
        for label, images in enumerate(by_class.values()):
            images.sort(key=lambda path: _position(self.name, path))
            start = 0
            for following, (part, share) in zip(range(len(parts) - 1, -1, -1), self.shares.items()):
                left = len(images) - start
                count = max(1, min((len(images) * share + 50) // 100, left - following))
                chosen = images[start:] if not following else images[start : start + count]
                parts[part] += [Entry(path, label) for path in sorted(chosen)]
                start += len(chosen)
        return parts

    def digest(self, parts: Mapping[str, Sequence[Entry]]) -> str:
        """Return the sha256 of the lines ``part path label`` of all parts."""
        lines = (f"{p} {e.path} {e.label}\n" for p, entries in parts.items() for e in entries)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def name_of(self, parts: Mapping[str, Sequence[Entry]]) -> str:
        """Return the split's name, with ``-incomplete`` if these parts lack images."""
        return self.name if self.digest(parts) == self.sha256 else f"{self.name}-incomplete"


def few_shot(names: Sequence[str], labels: Sequence[int], shots: int, draw: int) -> list[int]:
    """Choose ``shots`` images of each class.

    Fewer shots of the same draw are a subset of more shots.

    Args:
        names: Paths, of which the last two components (class and file) are used.
        labels: Label of each image.
        shots: Number of images per class.
        draw: Seed of the subset; each seed selects other images.

    Returns:
        Positions in ``names``, class by class.

    Raises:
        UserError: A class has fewer images.
    """
    by_class: dict[int, list[tuple[str, int]]] = {}
    for index, (name, label) in enumerate(zip(names, labels)):
        path = "/".join(re.split(r"[/\\]", name)[-2:])
        by_class.setdefault(label, []).append((_position(f"few-shot {draw}", path), index))
    chosen: list[int] = []
    for label, images in sorted(by_class.items()):
        if not 0 < shots <= len(images):
            raise UserError(
                f"class {label} has {len(images)} training images, so {shots} shots cannot be "
                f"chosen. Use 1 to {len(images)} shots."
            )
        chosen += [index for _, index in sorted(images)[:shots]]
    return chosen


def _position(key: str, path: str) -> str:
    return hashlib.sha256(f"{key}:{path}".encode("utf-8", "surrogateescape")).hexdigest()


EUROSAT_GERSP_1 = Split(
    name="eurosat-gersp-1",
    sizes={
        "AnnualCrop": 3000,
        "Forest": 3000,
        "HerbaceousVegetation": 3000,
        "Highway": 2500,
        "Industrial": 2500,
        "Pasture": 2000,
        "PermanentCrop": 2500,
        "Residential": 3000,
        "River": 2500,
        "SeaLake": 3000,
    },
    file="{c}_{n}.jpg",
    shares=dict(train=60, val=20, test=20),
    sha256="79ee5af894638118352fa7ff6c6d0f7888cd2d1117eab2c98b488cedeee71242",
)

# The usual 20 % for training are divided into train and val; the paper's split was not found.
RESISC45_GERSP_1 = Split(
    name="resisc45-gersp-1",
    sizes=dict.fromkeys(
        (
            "airplane", "airport", "baseball_diamond", "basketball_court", "beach", "bridge",
            "chaparral", "church", "circular_farmland", "cloud", "commercial_area",
            "dense_residential", "desert", "forest", "freeway", "golf_course",
            "ground_track_field", "harbor", "industrial_area", "intersection", "island", "lake",
            "meadow", "medium_residential", "mobile_home_park", "mountain", "overpass", "palace",
            "parking_lot", "railway", "railway_station", "rectangular_farmland", "river",
            "roundabout", "runway", "sea_ice", "ship", "snowberg", "sparse_residential", "stadium",
            "storage_tank", "tennis_court", "terrace", "thermal_power_station", "wetland",
        ),
        700,
    ),
    file="{c}_{n:03d}.jpg",
    shares=dict(train=18, val=2, test=80),
    sha256="d65511fcc171794c7560a447ba1e80ee7b077043fc400e609b9ee3b10a4d35d6",
)  # fmt: skip
