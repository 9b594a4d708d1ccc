"""The time of a run, from a few of its steps on this machine."""

from __future__ import annotations

from typing import NamedTuple

from gersp_mm.planning.trial import Trial

LONG_STEP = 2.0  # Seconds. From steps of this length on, no larger batch is tried.
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


class Range(NamedTuple):
    """Seconds, from ``low`` to ``high``."""

    low: float
    high: float

    def times(self, number: float) -> Range:
        """Return this range for something that happens ``number`` times."""
        return Range(self.low * number, self.high * number)

    def __str__(self) -> str:
        """Return the range in words, both ends in the unit of the higher one."""
        unit, size = next((u for u in UNITS if self.high >= 2 * u[1]), UNITS[-1])
        return f"{self.low / size:.3g} to {self.high / size:.3g} {unit}"


class StepTimes(dict[int, list[float]]):
    """Durations in seconds of measured steps, by the number of samples in their batches."""

    def at(self, batch: int) -> Range:
        """Return the duration of a step with a batch.

        At a measured batch it is what was measured. For a larger one, the high end takes the time
        of the largest measured batch for each of its samples; the low end goes on along the line
        through the two largest, since what a step costs for any batch is paid once.

        Args:
            batch: Number of samples.
        """
        *_, largest = sorted(self)
        if batch in self:
            return Range(min(self[batch]), max(self[batch]))
        factor = batch / largest
        high = max(self[largest]) * factor
        smaller = [size for size in self if size < largest]
        if not smaller:
            return Range(min(self[largest]) * factor, high)
        slope = (min(self[largest]) - min(self[max(smaller)])) / (largest - max(smaller))
        line = min(self[largest]) + max(slope, 0.0) * (batch - largest)
        return Range(min(line, high), high)

    def describe(self) -> str:
        """Say how many steps of which batches were measured."""
        steps = sum(map(len, self.values()))
        return f"{steps} steps at batches of {' and '.join(map(str, sorted(self)))}"


def measure_steps(trial: Trial, batch: int, repeats: int) -> StepTimes:
    """Time some steps, with twice the batch each time until it is reached or a step is long.

    Args:
        trial: The model on this device.
        batch: Number of samples that the run is planned with.
        repeats: Timed steps of each batch.

    Returns:
        The times of the two largest batches that were tried.
    """
    times = StepTimes()
    size = min(2, batch)
    while True:
        times[size] = trial.seconds(size, repeats)
        if size >= batch or min(times[size]) >= LONG_STEP:
            return StepTimes((one, times[one]) for one in sorted(times)[-2:])
        size = min(2 * size, batch)


def cores_needed(batch: int, step: Range, sample: float) -> float:
    """Return how many cores make samples as fast as the shortest step uses them up.

    Args:
        batch: Samples of a step.
        step: Its duration.
        sample: Seconds in which a core makes one sample.
    """
    return batch * sample / step.low
