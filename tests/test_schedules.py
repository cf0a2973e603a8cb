"""The four curves against the published ones and their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from semantoks.objectives.schedules import Schedules

PUBLISHED = Schedules(n_steps=7600, warmup_steps=228, peak_learning_rate=7e-4 * 512 / 256)


def test_published_curves(shared):
    """Every step of 100 epochs of 76 steps, to 1e-9."""
    golden = np.load(shared / "golden" / "reference_schedules.npz")
    curves = {
        "learning_rate": PUBLISHED.learning_rate_at,
        "weight_decay": PUBLISHED.weight_decay_at,
        "teacher_momentum": PUBLISHED.momentum_at,
        "ttr_weight": PUBLISHED.ttr_weight_at,
    }
    assert set(curves) == set(golden.files)
    for name, curve in curves.items():
        found = np.array([curve(step) for step in range(7600)])
        assert np.abs(found - golden[name]).max() <= 1e-9 * np.abs(golden[name]).max(), name


def test_ends():
    assert PUBLISHED.learning_rate_at(0) == 0
    assert PUBLISHED.learning_rate_at(228) == 1.4e-3
    assert PUBLISHED.learning_rate_at(7600) == pytest.approx(0, abs=1e-18)
    assert (PUBLISHED.weight_decay_at(0), PUBLISHED.weight_decay_at(7600)) == pytest.approx((0.05, 0.3))
    assert (PUBLISHED.momentum_at(0), PUBLISHED.momentum_at(7600)) == pytest.approx((0.99, 1.0))
    assert PUBLISHED.ttr_weight_at(0) == 0.5
    assert PUBLISHED.ttr_weight_at(379) > 0
    assert PUBLISHED.ttr_weight_at(380) == 0


def test_ttr_counts_a_share_of_steps_whatever_the_epochs():
    """5 % of 200 steps: a cosine over ten steps, half its weight at the fifth."""
    schedules = Schedules(200, 0, 1e-3)
    assert schedules.ttr_weight_at(5) == pytest.approx(0.25)
    assert [schedules.ttr_weight_at(step) > 0 for step in (9, 10)] == [True, False]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_ttr_share_of_nothing_and_all(share):
    schedules = Schedules(10, 0, 1e-3, ttr_share=share)
    assert [schedules.ttr_weight_at(step) > 0 for step in range(10)] == [share == 1.0] * 10


def test_no_warmup_starts_at_the_peak():
    schedules = Schedules(10, 0, 2e-3)
    assert schedules.learning_rate_at(0) == 2e-3
    assert schedules.learning_rate_at(5) == pytest.approx(2e-3 * 0.5 * (1 + math.cos(math.pi / 2)))
