"""Memory does not grow with a cohort: recordings of full width through qc, shards and one epoch of the tiny preset."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

RECORDINGS = 1000
MARGINS = {"qc": 0.05, "shards": 0.05, "pretrain": 0.15}
"""GiB. What the larger cohort has more, 800 recordings, is 0.25 GiB as float32 and 0.12 GiB as the shards' float16; the
allocator of a training grows by 0.1 GiB over its first 15 steps, and not after them."""


@pytest.mark.slow
def test_a_cohort_five_times_as_large_takes_no_more_memory(tmp_path: Path) -> None:
    """What ``benchmarks/shards.py`` does with 5,000 recordings, with fewer."""
    words = [sys.executable, str(REPOSITORY / "benchmarks/shards.py")]
    words += ["--recordings", str(RECORDINGS), "--folder", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "workflow"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = re.findall(r"^(\w+) +(\d+) recordings .* s +([\d.]+) GiB at most$", result.stdout, flags=re.MULTILINE)
    memory = {(stage, int(size)): float(most) for stage, size, most in found}
    assert {stage for stage, _ in memory} == set(MARGINS)
    for stage, margin in MARGINS.items():
        few, many = memory[stage, RECORDINGS // 5], memory[stage, RECORDINGS]
        assert few > 0.05, f"{stage} was not looked at"
        assert many < few + margin, f"{stage}: {few} GiB for {RECORDINGS // 5} recordings, {many} for {RECORDINGS}"
    assert not list(tmp_path.iterdir()), "the benchmark leaves nothing behind"
