"""What tests of parcellation share: settings, noise and an atlas of boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic_images as synthetic

SETTINGS = {
    "denoising": "none",
    "band_pass": [0.01, 0.1],
    "detrend": True,
    "minimum_coverage": 0.5,
    "minimum_degrees_of_freedom": 10,
}


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    return synthetic.atlas_folder(tmp_path / "atlas")
