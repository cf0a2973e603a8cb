"""Metrics tell collapse from spread; the log survives a resume; training stops when it has gone wrong."""

from __future__ import annotations

import json

import pytest
import torch
from semantoks.errors import UserError
from semantoks.objectives.spread import effective_rank, token_cosine
from semantoks.training.monitor import Monitor
from semantoks.training.settings import RunSettings
from torch.nn import functional as F


def metrics(step, loss=-1.0, coding_rate=1.0, gradient_norm=1.0):
    return {"step": step, "loss": loss, "coding_rate": coding_rate, "gradient_norm": gradient_norm}


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("n", [6, 200])
def test_effective_rank_of_planted_directions(rank, n):
    """Features spread equally along `rank` orthogonal directions."""
    rank = min(rank, n - 1)
    basis = torch.linalg.qr(torch.randn(20, rank, generator=torch.Generator().manual_seed(0))).Q
    scores = torch.randn(n, rank, generator=torch.Generator().manual_seed(1))
    scores = torch.linalg.qr(scores - scores.mean(0)).Q
    assert float(effective_rank(scores @ basis.T)) == pytest.approx(rank, rel=1e-3)


def test_effective_rank_of_nan_is_nan():
    assert torch.isnan(effective_rank(torch.full((4, 3), torch.nan)))


def test_token_cosine_is_the_mean_over_pairs():
    tokens = torch.randn(3, 1 + 4, 6, generator=torch.Generator().manual_seed(0))
    units = F.normalize(tokens[:, 1:], dim=-1)
    pairs = [float(units[b, i] @ units[b, j]) for b in range(3) for i in range(4) for j in range(4) if i != j]
    assert float(token_cosine(tokens)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert float(token_cosine(torch.ones(2, 5, 6))) == pytest.approx(1.0)
    assert torch.isnan(token_cosine(tokens[:, :1]))


def test_log_drops_the_steps_that_a_resumed_training_repeats(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Monitor(path, RunSettings(), 0, 10, 4) as monitor:
        for step in range(5):
            monitor.log(metrics(step))
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    with Monitor(path, RunSettings(), 3, 10, 4) as monitor:
        monitor.log(metrics(3, loss=-2.0))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["loss"] == -2.0


@pytest.mark.parametrize("bad", [{"loss": float("nan")}, {"loss": float("inf")}, {"gradient_norm": float("nan")}])
def test_values_that_are_not_finite_stop_and_are_null_in_the_log(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    with Monitor(path, RunSettings(), 0, 10, 4) as monitor, pytest.raises(UserError, match="step 7: expected a finite"):
        monitor.log(metrics(7, **bad))
    assert json.loads(path.read_text())[next(iter(bad))] is None


def test_collapse_needs_patience_in_a_row(tmp_path):
    settings = RunSettings(collapse_factor=1.6, patience=3)
    with Monitor(tmp_path / "a.jsonl", settings, 0, 10, 4, collapsed=0.3) as monitor:
        for step, rate in enumerate([0.1, 0.1, 0.9, 0.1, 0.1]):
            monitor.log(metrics(step, coding_rate=rate))
        with pytest.raises(UserError, match="for 3 logged steps"):
            monitor.log(metrics(5, coding_rate=0.1))
    with Monitor(tmp_path / "b.jsonl", settings, 0, 10, 4, 0.3, n_low=2) as resumed, pytest.raises(UserError):
        resumed.log(metrics(0, coding_rate=0.1))
    with Monitor(tmp_path / "c.jsonl", RunSettings(collapse_factor=0.0, patience=1), 0, 10, 4, 0.3) as never:
        never.log(metrics(0, coding_rate=0.0))
