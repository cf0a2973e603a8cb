"""Killed processes cost time, never results; ``make chaos`` does with fifty kills what is done here with three."""

from __future__ import annotations

import pytest
from chaos import chaos


@pytest.mark.slow
def test_three_random_kills_leave_a_complete_study(finished_study, tmp_path):
    happened = chaos(finished_study, tmp_path, kills=3, seed=1, longest=15)
    assert sum(happened.killed.values()) == 3
    assert happened.studies >= 1
