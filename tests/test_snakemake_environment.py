"""What the main process of Snakemake tells its jobs."""

from __future__ import annotations

import os
from pathlib import Path

from semantoks.snakemake_environment import attempts, bind_in_containers


def test_jobs_learn_the_number_of_attempts_from_the_main_process(monkeypatch):
    monkeypatch.delenv("SEMANTOKS_ATTEMPTS", raising=False)
    assert attempts(None) == 1
    assert attempts(2) == 3
    assert attempts(None) == 3


def test_own_binds_stay(monkeypatch):
    monkeypatch.setenv("APPTAINER_BIND", "/own:/own")
    bind_in_containers([Path("/data"), Path("/results")])
    assert os.environ["APPTAINER_BIND"] == "/data,/results,/own:/own"
