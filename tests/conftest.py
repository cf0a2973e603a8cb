"""What all tests share: the optional folder of reference numbers and real data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["container_engine", "fmriprep_cases", "parcellate_cases"]
REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEMANTOKS_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden numbers and real data; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data: {SHARED} is absent (set SEMANTOKS_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated cohort with all its results; tests change copies of it only."""
    from small_study import run, simulate_cohort, write_study

    folder = tmp_path_factory.mktemp("study")
    simulate_cohort(folder / "cohort")
    write_study(folder / "study", folder / "cohort")
    result = run(folder / "study")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "study"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for one megabyte, which really gets full."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def run_without_privileges(stage: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command of a stage; as root without the right to read what nobody may read."""
    words = [sys.executable, "-m", f"semantoks.{stage}", *map(str, arguments)]
    if os.geteuid() == 0:
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "workflow"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(words, capture_output=True, text=True, env=environment)
