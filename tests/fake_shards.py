"""Small shards for tests, in the layout of docs/data-contracts.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from semantoks.files import write_table


def write_shard(
    path: Path,
    n_scans: int = 8,
    n_frames: int | list[int] = 60,
    sizes: tuple[int, ...] = (5, 3, 4),
    seed: int = 0,
    recordings_per_participant: int = 1,
    valid: np.ndarray | None = None,
    prefix: str = "",
    **metadata: Any,
) -> Path:
    """Random z-scored scans of interleaved networks; ``valid`` [scan, ROI] marks ROIs with data."""
    rng = np.random.default_rng(seed)
    networks = interleaved(sizes)
    lengths = [n_frames] * n_scans if isinstance(n_frames, int) else n_frames
    valid = np.ones((len(lengths), len(networks)), dtype=bool) if valid is None else valid
    rows = []
    for index, length in enumerate(lengths):
        bold = rng.standard_normal((len(networks), length)).cumsum(axis=1)
        bold = (bold - bold.mean(1, keepdims=True)) / (bold.std(1, keepdims=True) + 1e-8) * valid[index][:, None]
        participant = f"{prefix}{index // recordings_per_participant:03d}"
        run = index % recordings_per_participant
        rows.append(
            {
                "cohort": "fake",
                "participant_id": participant,
                "session_id": None,
                "recording_id": f"sub-{participant}_task-rest_run-{run + 1}",
                "task": "rest",
                "site": None,
                "tr": 2.0,
                "n_rois": len(networks),
                "n_frames": length,
                "valid": valid[index].tolist(),
                "bold": bold.astype("<f2").tobytes(),
            }
        )
    made = {
        "atlas": {"name": "fake", "sha256": "0" * 64},
        "roi_names": [f"roi-{index}" for index in range(len(networks))],
        "networks": networks,
        "settings": {"tr": 2.0, "band_pass": [0.01, 0.1]},
    }
    write_table(path, pd.DataFrame(rows), made | metadata)
    return path


def interleaved(sizes: tuple[int, ...]) -> list[str]:
    """Network names of ROIs such that no network is a contiguous block, e.g. A B C A B C A A."""
    left = list(sizes)
    names: list[str] = []
    while any(left):
        for index, remaining in enumerate(left):
            if remaining:
                names.append("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index])
                left[index] -= 1
    return names
