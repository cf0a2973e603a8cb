"""The table of time series: one row per recording, as written to ``results/<cohort>/timeseries``."""

from __future__ import annotations

import pyarrow as pa

from semantoks.files import KEY

SCHEMA = pa.schema(
    [(name, pa.string()) for name in [*KEY, "task", "site", "atlas"]]
    + [("tr", pa.float64()), ("n_frames", pa.int64()), ("kept", pa.list_(pa.bool_()))]
    + [(name, pa.float64()) for name in ["mean_fd", "minutes_kept", "share_censored", "longest_gap"]]
    + [("coverage", pa.list_(pa.float32())), ("tsnr", pa.list_(pa.float32())), ("bold", pa.list_(pa.float32()))]
    + [("denoising", pa.string()), ("exclude_reason", pa.string())]
)
"""Columns of the contract; see docs/data-contracts.md for units and shapes."""
