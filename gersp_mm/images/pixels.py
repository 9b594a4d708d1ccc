"""From the values of a raster to the 8-bit RGB that a network takes: bands and pixel scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gersp_mm.images.rasters import Raster, RasterInfo
from gersp_mm.utils.errors import UserError

PERCENTILES = (0.5, 99.5)
PERCENTILE, NONE = "percentile", "none"
EIGHT_BITS = " x uint8"
# One value that fills this share of an image's border, and this share of the image, is suspected to
# stand for no data.
BORDER_SHARE, FILLED_SHARE = 0.2, 0.01
STRETCHES = 8  # of the border at most, or it is a pattern of the image

Limits = tuple[tuple[float, float], ...]  # lowest and highest value of each band that is used
Scale = str | Sequence[float] | Sequence[Sequence[float]]


class BandsError(ValueError):
    """The bands of a file do not fit the choice of bands; the message says why."""


@dataclass(frozen=True)
class PixelScale:
    """Which bands of a raster are used, and which of their values become black and white.

    Photographs (8 bits, three bands or one, with or without transparency) are used
    unchanged with every scale. Rasters of 8 bits are also unchanged, unless limits are given.

    Attributes:
        scale: ``'percentile'``: limits are found for each kind of raster and band as the 0.5 and
            99.5 per cent points over valid pixels of a sample of the whole source. ``(lo, hi)``
            or one such pair for each band: given limits. ``'none'``: values are grey levels from
            0 to 255 already.
        bands: The bands that stand for red, green and blue, or the one that stands for all three,
            by number from 1 or by name; by default the first three of three, or the only one.
        limits: For each kind of raster (``4 bands x uint16``) the limits of the used bands, in
            the order red, green, blue.
        fill: For each kind of raster the grey level of each used band that stands where there is
            no data: that of the band's median.
        nodata: For some kinds of raster a value that stands for no data where all used bands have
            it, in addition to declared values.
    """

    scale: Scale = PERCENTILE
    bands: tuple[int | str, ...] | None = None
    limits: Mapping[str, Limits] = field(default_factory=dict)
    fill: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    nodata: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _checked_scale(self.scale))
        if self.bands is not None:
            object.__setattr__(self, "bands", _checked_bands(self.bands))
        if not isinstance(self.scale, str) and isinstance(self.scale[0], tuple):
            used = 1 if self.bands and len(self.bands) == 1 else 3
            if len(self.scale) not in (1, used):
                raise UserError(
                    f"scale={self.scale}: give one (lowest, highest) pair, or one for each of the "
                    f"{used} bands"
                )

    def choose(self, info: RasterInfo) -> tuple[int, ...]:
        """Return the numbers of the three bands of a raster that become red, green and blue.

        Raises:
            BandsError: The raster has other than one or three bands and none are chosen, or does
                not have a chosen band.
        """
        if self.bands is None:
            if len(info.bands) not in (1, 3):
                example = "(3, 2, 1)" if len(info.bands) > 2 else "(1,)"
                raise BandsError(
                    f"{info.describe()}: choose the bands for red, green and blue, or one for "
                    f"all, such as bands={example}"
                )
            chosen = info.bands
        else:
            chosen = tuple(self._number(band, info) for band in self.bands)
        return chosen * 3 if len(chosen) == 1 else chosen

    def find(self, samples: Mapping[str, Sequence[np.ndarray]]) -> PixelScale:
        """Return this scale with the limits and fill values of some samples.

        Args:
            samples: For each kind of raster, valid pixels of the three chosen bands: 3×N each.
        """
        limits, fill = dict(self.limits), dict(self.fill)
        for kind, parts in samples.items():
            values = np.concatenate([np.asarray(part, np.float64) for part in parts], axis=1)
            values = values[:, ~is_nodata(values, self.nodata.get(kind))]
            if values.shape[1] == 0:
                continue
            found = self.given_limits(kind) or tuple(
                _spread(*np.percentile(band, PERCENTILES)) for band in values
            )
            limits[kind] = found
            medians = np.median(values, axis=1)
            fill[kind] = tuple(int(level) for level in _levels(medians[:, None], found)[:, 0])
        return replace(self, limits=limits, fill=fill)

    def to_rgb(self, raster: Raster, kind: str) -> np.ndarray:
        """Turn values into grey levels.

        Args:
            raster: The three chosen bands of a raster or of a window of it.
            kind: Kind of the raster, see :attr:`RasterInfo.kind`.

        Returns:
            3×H×W uint8; what has no data is filled with the band's median.

        Raises:
            BandsError: No limits are known for this kind.
        """
        limits = self.limits_of(kind)
        if limits is None:
            known = ", ".join(self.limits) or "none"
            raise BandsError(
                f"{kind}: no pixel scale is known for this kind of raster ({known}). Give the "
                "limits of all kinds by scale=(lowest, highest)"
            )
        levels = _levels(raster.values, limits)
        lacking = ~raster.valid | is_nodata(raster.values, self.nodata.get(kind))
        if lacking.any():
            fill = self.fill.get(kind) or (128,) * 3
            for band, level in zip(levels, fill):
                band[lacking] = level
        return levels

    def describe(self) -> list[str]:
        """Return a line for each kind of raster with its bands and limits."""
        names = "all" if self.bands is None else ", ".join(map(str, self.bands))
        return [
            f"{kind}, bands {names}: "
            + ", ".join(f"{low:.6g} to {high:.6g}" for low, high in limits)
            + " become 0 to 255"
            + (f", {self.nodata[kind]:g} is no data" if kind in self.nodata else "")
            for kind, limits in self.limits.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return it in plain Python, as ``pixel_scale.json`` and a file's meta hold it."""
        return dict(
            scale=self.scale if isinstance(self.scale, str) else _lists(self.scale),
            bands=None if self.bands is None else list(self.bands),
            limits={kind: _lists(limits) for kind, limits in self.limits.items()},
            fill={kind: list(levels) for kind, levels in self.fill.items()},
            **(dict(nodata=dict(self.nodata)) if self.nodata else {}),
        )

    @classmethod
    def stored(cls, found: Any) -> PixelScale | None:
        """Return what :meth:`as_dict` gave; None for anything else."""
        try:
            scale = cls(
                scale=_tuples(found["scale"]),
                bands=None if found["bands"] is None else tuple(found["bands"]),
                limits={kind: _tuples(limits) for kind, limits in found["limits"].items()},
                fill={kind: tuple(levels) for kind, levels in found["fill"].items()},
                nodata={kind: float(value) for kind, value in found.get("nodata", {}).items()},
            )
            whole = all(np.shape(limits) == (3, 2) for limits in scale.limits.values())
            whole = whole and all(np.shape(fill) == (3,) for fill in scale.fill.values())
        except (KeyError, TypeError, AttributeError, ValueError, UserError):
            return None  # ValueError: lists of several lengths
        return scale if whole else None

    def limits_of(self, kind: str) -> Limits | None:
        """Return the limits of a kind of raster, given or found; None where none are known."""
        return self.given_limits(kind) or self.limits.get(kind)

    def given_limits(self, kind: str) -> Limits | None:
        """Return the limits that need no sample; None where they have to be found."""
        if self.scale == NONE or (self.scale == PERCENTILE and kind.endswith(EIGHT_BITS)):
            return ((0.0, 255.0),) * 3
        if isinstance(self.scale, str):
            return None
        pairs: Any = self.scale if isinstance(self.scale[0], tuple) else (self.scale,)
        return tuple(pairs) * (3 // len(pairs))

    def _number(self, band: int | str, info: RasterInfo) -> int:
        if isinstance(band, str):
            same = [b for b, name in zip(info.bands, info.names) if name.lower() == band.lower()]
            if not same:
                raise BandsError(f"{info.describe()}: no band is called {band!r}")
            return same[0]
        if band not in info.bands + info.transparency:
            raise BandsError(f"{info.describe()}: there is no band {band}")
        return band


def is_nodata(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """Return where all bands (the first axis) have the value that stands for no data."""
    if nodata is None:
        return np.zeros(values.shape[1:], bool)
    return (values == nodata).all(axis=0)


def suspect_nodata(picture: np.ndarray) -> float | None:
    """Return the value that seems to stand for no data: equal in all bands, on a large border.

    It has to fill few stretches of the border, and of 8-bit values only black and white are
    suspected.

    Args:
        picture: Bands×H×W, none of which is known to lack data.
    """
    sides = (picture[:, 0], picture[:, :, -1], picture[:, -1, ::-1], picture[:, ::-1, 0])
    border = np.concatenate(sides, axis=1)  # once around
    constant = border[0][(border == border[0]).all(axis=0)]
    if picture.dtype == np.uint8:
        constant = constant[(constant == 0) | (constant == 255)]
    if not constant.size:
        return None
    found, counts = np.unique(constant, return_counts=True)
    value = found[counts.argmax()]
    there = is_nodata(border, value)
    stretches = int((there & ~np.roll(there, 1)).sum())
    if counts.max() < BORDER_SHARE * border.shape[1] or stretches > STRETCHES:
        return None
    return float(value) if is_nodata(picture, value).mean() >= FILLED_SHARE else None


def check_nodata(owner: str, nodata: Any) -> None:
    """Refuse an invalid choice of a source's value for no data.

    Raises:
        UserError: It is neither a number nor ``'auto'`` or None.
    """
    if nodata not in ("auto", None) and (
        isinstance(nodata, bool) or not isinstance(nodata, (int, float))
    ):
        raise UserError(f"{owner}: nodata={nodata!r}: give a number, 'auto' or None")


def _levels(values: np.ndarray, limits: Limits) -> np.ndarray:
    """Scale bands×… values to uint8: the lowest limit becomes 0, the highest 255."""
    levels = np.empty(values.shape, np.uint8)
    for band, out, (low, high) in zip(values, levels, limits):
        with np.errstate(invalid="ignore", over="ignore"):  # no data, which the fill replaces
            exact = np.float32 if band.dtype.itemsize < 4 else np.float64
            grey = (band.astype(exact) - exact(low)) * exact(255 / (high - low))
            out[...] = np.clip(np.rint(grey), 0, 255)
    return levels


def _spread(low: float, high: float) -> tuple[float, float]:
    """Keep the limits of a constant band apart, so that it becomes mid-grey."""
    if high > low:
        return float(low), float(high)
    half = max(0.5, abs(low) * 1e-3)
    return float(low) - half, float(low) + half


def _checked_scale(scale: Any) -> Scale:
    wrong = UserError(
        f"scale={scale!r}: choose 'percentile', 'none', a pair such as (0, 10000), or one pair "
        "for each band"
    )
    if isinstance(scale, str):
        if scale not in (PERCENTILE, NONE):
            raise wrong
        return scale
    try:
        values = _tuples(scale)
        pairs = values if isinstance(values[0], tuple) else (values,)
        if not all(len(p) == 2 and np.isfinite(p).all() and p[0] < p[1] for p in pairs):
            raise wrong
    except (TypeError, IndexError, ValueError):
        raise wrong from None
    return (
        tuple(tuple(map(float, p)) for p in pairs) if values is pairs else tuple(map(float, values))
    )


def _checked_bands(bands: Any) -> tuple[int | str, ...]:
    given = tuple(bands) if isinstance(bands, (list, tuple)) else (bands,)
    if len(given) not in (1, 3) or not all(
        isinstance(b, str) or (isinstance(b, int) and not isinstance(b, bool) and b >= 1)
        for b in given
    ):
        raise UserError(
            f"bands={bands!r}: choose three bands, or one, by number from 1 or by name, such as "
            "(4, 3, 2)"
        )
    return given


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, (list, tuple)) else value
