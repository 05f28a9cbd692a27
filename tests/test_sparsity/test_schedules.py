from math import sqrt

import pytest

from sift_mm.sparsity import Constant, Cosine, Linear, UpdateSchedule


def due(interval, end, steps):
    schedule = UpdateSchedule(interval, end)
    return [step for step in range(steps + 1) if schedule.is_due(step)]


# Every 100 steps until 75 % of 1000: 800 would be too late, step 0 is none.
@pytest.mark.parametrize(
    'interval, end, expected',
    [
        (100, 750, [100, 200, 300, 400, 500, 600, 700]),
        (100, 700, [100, 200, 300, 400, 500, 600, 700]),
        (100, 699, [100, 200, 300, 400, 500, 600]),
        (300, 300, [300]),
        (1, 4, [1, 2, 3, 4]),
    ],
)
def test_steps_at_which_masks_are_updated(interval, end, expected):
    assert due(interval, end, 1000) == expected


def test_an_interval_longer_than_training_is_refused():
    with pytest.raises(
        ValueError, match="never be updated.* 100 .* step 75.*'Static'"
    ):
        UpdateSchedule(100, 75)


# Cosine: 0.15 (1 + cos(pi t / T)); cos is 1, sqrt(1/2), 1/2, 0, -1/2, -1.
@pytest.mark.parametrize(
    'schedule, step, end, expected',
    [
        (Cosine(), 0, 100, 0.3),
        (Cosine(), 25, 100, 0.15 * (1 + sqrt(0.5))),
        (Cosine(), 100, 300, 0.225),
        (Cosine(), 50, 100, 0.15),
        (Cosine(), 200, 300, 0.075),
        (Cosine(), 100, 100, 0),
        (Cosine(0.5), 50, 100, 0.25),
        (Linear(), 0, 100, 0.3),
        (Linear(), 25, 100, 0.225),
        (Linear(), 100, 100, 0),
        (Linear(0.5), 30, 120, 0.375),
        (Constant(), 0, 100, 0.3),
        (Constant(0.2), 100, 100, 0.2),
    ],
)
def test_drop_fraction(schedule, step, end, expected):
    assert schedule.at(step, end) == pytest.approx(expected, abs=1e-12)
