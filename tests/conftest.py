"""What all tests share: the optional folder of reference numbers and real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEMANTOKS_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden numbers and real data; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data: {SHARED} is absent (set SEMANTOKS_SHARED)")
    return SHARED
