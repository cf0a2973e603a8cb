"""Parcellation of a batch: whatever one recording does, the others keep their results."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic_images as synthetic
from parcellate_cases import SETTINGS
from semantoks import parcellate
from semantoks.denoise import load_strategy
from semantoks.errors import UserError
from semantoks.files import read_metadata, read_table
from synthetic_images import N_VOLUMES, NAMES


def truncated(row: dict[str, Any]) -> None:
    path = Path(row["bold_path"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_one_broken_recording_leaves_its_batch_alone(random: np.random.Generator, atlas: Path, tmp_path: Path) -> None:
    rows = []
    for number in range(4):
        image = synthetic.bold_image(synthetic.planted_series(random), random, noise=5)
        rows.append(synthetic.write_recording(tmp_path, f"sub-0{number}", image, synthetic.confounds_table(random)))
    truncated(rows[1])
    rows[2]["exclude_reason"] = "empty image"
    rows += [synthetic.index_row("sub-09", batch="batch-0002")]
    index = synthetic.write_index(tmp_path / "index.parquet", rows)
    arguments = ["--index", str(index), "--batch", "batch-0001", "--atlas", str(atlas), "--workers", "2"]
    settings = json.dumps(SETTINGS | {"denoising": "24P"})
    outputs = [tmp_path / "first.parquet", tmp_path / "second.parquet"]
    for output in outputs:
        parcellate.main(["--settings", settings, *arguments, "--output", str(output)])
    table = read_table(outputs[0])
    assert table["recording_id"].tolist() == ["sub-00", "sub-01", "sub-02", "sub-03"]
    assert table["exclude_reason"].isna().tolist() == [True, False, False, True]
    assert table["exclude_reason"][2] == "empty image"
    assert table.loc[1, ["bold", "kept", "mean_fd", "n_frames"]].isna().all()
    assert len(table["bold"][0]) == 5 * N_VOLUMES
    assert table["denoising"].tolist() == ["24P"] * 4
    metadata = read_metadata(outputs[0])
    assert metadata["roi_names"] == NAMES
    assert metadata["atlas"]["name"] == "boxes"
    assert "motion parameters" in metadata["strategy"]["description"]
    assert metadata["fmriprep_versions"] == ["25.2.3", None], "as the index says"
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_an_unknown_batch_and_an_atlas_without_image_are_errors(atlas: Path, tmp_path: Path) -> None:
    index = synthetic.write_index(tmp_path / "index.parquet", [synthetic.index_row()])
    arguments = ["--settings", json.dumps(SETTINGS), "--index", str(index), "--atlas", str(atlas)]
    arguments += ["--output", str(tmp_path / "out.parquet")]
    with pytest.raises(UserError, match="recordings of batch 'batch-7', found none"):
        parcellate.main([*arguments, "--batch", "batch-7"])
    (atlas / "atlas.nii.gz").unlink()
    with pytest.raises(UserError, match="atlas without image"):
        parcellate.main([*arguments, "--batch", "batch-0001"])
    assert not (tmp_path / "out.parquet").exists()


def segfault() -> None:
    faulthandler.disable()
    ctypes.string_at(0)


def surprise() -> None:
    raise ZeroDivisionError("what nobody expected")


def exceed_a_limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
    np.ones(10**8)


def exhaust_a_control_group() -> None:
    (CONTROL_GROUP / "cgroup.procs").write_text(str(os.getpid()))
    np.ones(10**8)


CONTROL_GROUP = Path("/sys/fs/cgroup/memory") / f"semantoks-test-{os.getpid()}"


@pytest.fixture
def control_group() -> Iterator[None]:
    """A control group of 64 MiB, as Slurm makes one for a job; version 1, where the kernel offers it to us."""
    try:
        CONTROL_GROUP.mkdir()
        (CONTROL_GROUP / "memory.limit_in_bytes").write_text(str(2**26))
    except OSError as error:
        pytest.skip(f"no memory control group can be made here: {error}")
    yield
    CONTROL_GROUP.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux enforces them")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (surprise, "parcellation failed: ZeroDivisionError: what nobody expected"),
        (segfault, "parcellation crashed: its process was ended by SIGSEGV"),
        (exceed_a_limit, "Unable to allocate"),
        (exhaust_a_control_group, "parcellation crashed: its process was ended by SIGKILL (out of memory?)"),
    ],
)
def test_a_recording_that_crashes_or_eats_all_memory_leaves_its_batch_alone(
    random: np.random.Generator,
    atlas: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    fault: Callable[[], None],
    reason: str,
) -> None:
    if fault is exhaust_a_control_group:
        request.getfixturevalue("control_group")
    real = parcellate.parcellate_recording

    def faulty(row: Mapping[str, Any], *arguments: Any) -> dict[str, Any]:
        if row["recording_id"] == "sub-01":
            fault()
        return real(row, *arguments)

    monkeypatch.setattr(parcellate, "parcellate_recording", faulty)
    image = synthetic.bold_image(synthetic.planted_series(random), random, noise=5)
    rows = [synthetic.write_recording(tmp_path, f"sub-0{number}", image, None) for number in range(3)]
    settings = parcellate.ParcellateSettings(**SETTINGS)
    files = parcellate.AtlasFiles.read(atlas)
    table = parcellate.parcellate_batch(pd.DataFrame(rows), files, load_strategy("none"), settings, workers=2)
    found = dict(zip(table["recording_id"].to_pylist(), table["exclude_reason"].to_pylist(), strict=True))
    assert found["sub-00"] is None
    assert found["sub-02"] is None
    assert found["sub-01"].startswith(reason)
    assert table["bold"].null_count == 1
