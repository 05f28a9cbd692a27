"""Statistics of runs: means, and differences from dense.

Runs of one seed share weights, data order and masks of the first step as far
as their networks allow, so that networks are compared seed by seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean and spread of a metric over runs.

    Attributes:
        mean (float): Mean.
        deviation (float): Standard deviation of the sample; 0 of one run.
        n (int): Number of runs.
    """

    mean: float
    deviation: float
    n: int

    def to_text(self, digits: int) -> str:
        """Return the mean and, of several runs, the standard deviation.

        >>> summarize([92, 94]).to_text(1), summarize([92]).to_text(2)
        ('93.0 ± 1.4', '92.00')
        """
        spread = f' ± {self.deviation:.{digits}f}' if self.n > 1 else ''
        return f'{self.mean:.{digits}f}{spread}'


@dataclass(frozen=True)
class Estimate:
    """Estimated value with its confidence interval.

    Attributes:
        value (float): Point estimate.
        low (float): Lower end of the interval, which covers all possible
            values where n is too small for an interval.
        high (float): Upper end of the interval.
        n (int): Number of pairs.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def is_clear(self) -> bool:
        """Truth of "the interval leaves out zero"."""
        return self.low > 0 or self.high < 0


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and number of at least one value."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Summary(float(np.mean(values)), deviation, len(values))


def paired_difference(
    values: Mapping[int, float],
    dense: Mapping[int, float],
    confidence: float = CONFIDENCE,
) -> Estimate | None:
    """Return the mean difference from dense over the seeds of both.

    The interval is that of the paired t test.

    Args:
        values (Mapping[int, float]): Metric of each seed.
        dense (Mapping[int, float]): Metric of the dense network, of each seed.
        confidence (float): Probability that the interval covers the mean.

    Returns:
        Estimate, optional: None if no seed is common.
    """
    pairs = [values[s] - dense[s] for s in sorted(values.keys() & dense)]
    if not pairs:
        return None
    found = summarize(pairs)
    half = inf
    if found.n > 1:
        quantile = stats.t.ppf((1 + confidence) / 2, found.n - 1)
        half = float(quantile) * found.deviation / sqrt(found.n)
    return Estimate(found.mean, found.mean - half, found.mean + half, found.n)
