"""Run `snakemake --lint` on a small fake cohort, so that it needs no data; exit with its code."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bids_trees import derivative
from test_workflow import derivatives, snakemake, write_config

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    derivative(folder / "data", "sub-01_task-rest")
    write_config(folder, {"study": derivatives(folder / "data")})
    result = snakemake(folder, "--lint")
    print(result.stdout + result.stderr)
    sys.exit(result.returncode)
