"""Means, spreads and differences of values over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LEVEL = 0.05  # significance level
LEAST_PAIRS = 3


class Comparison(NamedTuple):
    """The comparison of two pre-trainings in one column.

    Attributes:
        difference: Difference of the means.
        words: A phrase that says whether the difference exceeds the noise.
        p: p-value of the paired t-test; None without a test.
    """

    difference: float
    words: str
    p: float | None


@dataclass(frozen=True)
class Cell:
    """The values of one pre-training in one column, by seed."""

    values: Mapping[int | None, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for one value."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def text(self) -> str:
        """Mean ± standard deviation."""
        return self.shown(2)

    def shown(self, decimals: int) -> str:
        """Return mean ± standard deviation with the given number of decimals."""
        spread = "" if self.std is None else f" ± {fixed(self.std, decimals)}"
        return fixed(self.mean, decimals) + spread


def compare(one: Cell, other: Cell) -> Comparison:
    """Return the difference of two cells and its paired t-test over the common seeds."""
    from scipy.stats import ttest_rel

    difference = one.mean - other.mean
    seeds = sorted(seed for seed in set(one.values) & set(other.values) if seed is not None)
    if len(seeds) < LEAST_PAIRS:
        return Comparison(difference, f"too few seeds ({len(seeds)} in common)", None)
    pairs = [(one.values[seed], other.values[seed]) for seed in seeds]
    gaps = [a - b for a, b in pairs]
    paired = statistics.fmean(gaps)
    if max(gaps) - min(gaps) < 1e-9:  # There is no spread to divide by.
        p = 1.0 if abs(paired) < 1e-9 else 0.0
    else:
        p = float(ttest_rel(*zip(*pairs)).pvalue)
    shown = "p<0.001" if p < 0.001 else f"p={p:.2g}" if p < 0.1 else f"p={p:.2f}"
    where = f"{shown}, {len(seeds)} paired seeds"
    if p >= LEVEL:
        return Comparison(difference, f"inside the noise ({where})", p)
    side = "better" if paired > 0 else "worse"
    return Comparison(difference, f"{side} beyond the noise, {where}", p)


def further_run(values: Sequence[float]) -> tuple[float, float]:
    """Return the range in which a further run is expected with 95 % probability.

    The range is wider than that of the values, which a further run misses twice in ``n + 1`` times.
    The values are assumed to be independent and normally distributed.

    Args:
        values: One value of each run, at least two.
    """
    from scipy.stats import t

    count = len(values)
    quantile = float(t.ppf(1 - LEVEL / 2, count - 1))
    reach = quantile * statistics.stdev(values) * (1 + 1 / count) ** 0.5
    mean = statistics.fmean(values)
    return mean - reach, mean + reach


def fixed(value: float, decimals: int = 2, sign: bool = False) -> str:
    """Return a number with a fixed number of decimals; zero has no sign."""
    rounded = round(value, decimals) + 0.0  # The sum of -0.0 and 0.0 is 0.0.
    return f"{rounded:+.{decimals}f}" if sign else f"{rounded:.{decimals}f}"
