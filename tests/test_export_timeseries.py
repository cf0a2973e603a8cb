"""Exports of time series: what is written comes back, in HDF5 within float16, in BIDS names with sidecars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bids2table
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from bids_trees import cohort
from semantoks import export_timeseries
from semantoks.batches import read_batch, update_batches
from semantoks.errors import UserError
from semantoks.files import KEY, provenance, write_table
from semantoks.import_timeseries import hdf5_reader
from semantoks.index import build_index
from semantoks.timeseries_table import SCHEMA

NAMES = ["a", "b", "c"]
LENGTHS = {"sub-01_task-rest": 30, "sub-02_ses-1_task-rest": 50, "sub-03_task-rest": 40}


def series(name: str) -> np.ndarray:
    random = np.random.default_rng(LENGTHS[name])
    bold = random.normal(0, 80, size=(3, LENGTHS[name])).astype(np.float32)
    if name == "sub-03_task-rest":
        bold[1] = np.nan  # a parcel without data
    return bold


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Time series, decisions (one recording is excluded), labels and index as the stages write them."""
    rows, decisions = [], []
    for name in [*LENGTHS, "sub-04_task-rest"]:
        key = dict.fromkeys(KEY) | {"cohort": "toy", "participant_id": name[4:6], "recording_id": name}
        key["session_id"] = "1" if "_ses-1" in name else None
        excluded = name not in LENGTHS
        bold = None if excluded else series(name).ravel()
        frames = None if excluded else LENGTHS[name]
        rows.append(key | {"tr": 2.0 if name < "sub-03" else 0.8, "n_frames": frames, "bold": bold})
        reason = "too short" if excluded else None
        decisions.append({"recording_id": name, "exclude_reason": reason, "n_frames": frames})
    about: dict[str, Any] = {"roi_names": NAMES, "strategy": {"name": "24P", "description": "Motion is regressed."}}
    about["atlas"] = {"name": "my-atlas", "space": "MNI152NLin6Asym", "sha256": {"image": "1", "labels": "2"}}
    write_table(
        tmp_path / "ts.parquet", pa.Table.from_pylist(rows, schema=SCHEMA), provenance("parcellate", {}, **about)
    )
    types = pa.schema([("recording_id", pa.string()), ("exclude_reason", pa.string()), ("n_frames", pa.int64())])
    write_table(tmp_path / "qc.parquet", pa.Table.from_pylist(decisions, schema=types), {})
    (tmp_path / "labels.tsv").write_text("index\tname\n1\ta\n2\tb\n3\tc\n")
    paths = pd.DataFrame({"recording_id": list(LENGTHS), "bold_path": ["/data/1.nii.gz", "/data/2.nii.gz", None]})
    write_table(tmp_path / "index.parquet", paths, {})
    return {name: next(tmp_path.glob(f"{name}.*")) for name in ("ts", "qc", "labels", "index")}


def export(files: dict[str, Path], *arguments: str) -> None:
    export_timeseries.main(["--timeseries", str(files["ts"]), "--qc", str(files["qc"]), *arguments])


def test_hdf5_comes_back_through_the_import_within_float16(files: dict[str, Path], tmp_path: Path) -> None:
    export(files, "--hdf5", str(tmp_path / "out.h5"))
    source = {"type": "hdf5", "path": str(tmp_path / "out.h5"), "datasets": ["timeseries/my-atlas"]}
    source |= {"id": "long_subject_id", "id_pattern": "sub-{participant_id}_*task-{task}", "length": "ts_len"}
    source |= {"tr": "tr", "roi_names": "roi_names"}
    settings = cohort(source)
    update_batches(settings, tmp_path / "batches", 10)
    index = build_index(settings, read_batch(tmp_path / "batches" / "part-0001.tsv").assign(batch="part-0001"))
    assert index["tr"].tolist() == [2.0, 2.0, 0.8]
    assert index["n_frames"].tolist() == list(LENGTHS.values())
    labels = pd.DataFrame({"index": [1, 2, 3], "name": NAMES})
    with hdf5_reader(source, labels) as read:
        for name, row in zip(LENGTHS, index.to_dict("records"), strict=True):
            np.testing.assert_allclose(read(row), series(name), rtol=1e-3, atol=0.05)
    with h5py.File(tmp_path / "out.h5") as file:
        stored = file["timeseries/my-atlas"]
        assert (stored.shape, stored.dtype) == ((3, 3, 50), np.float16)
        assert np.isnan(stored[0, :, 30:]).all(), "padded with NaN"
        assert [name.decode() for name in file["long_subject_id"][:]] == list(LENGTHS), "the excluded one is left out"


def test_values_beyond_float16_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    record = {"recording_id": "sub-01", "bold": np.full((3, 4), 7e4, np.float32), "tr": 2.0}
    with pytest.raises(UserError, match=r"sub-01: expected values below 65504, which float16 holds, found 70000"):
        export_timeseries.write_hdf5(iter([record]), NAMES, "x", 4, tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_bids_derivatives_have_names_sidecars_and_a_description(files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "bids"
    export(files, "--bids", str(folder), "--labels", str(files["labels"]), "--index", str(files["index"]))
    stems = {
        "sub-01_task-rest": "sub-01/func/sub-01_task-rest",
        "sub-02_ses-1_task-rest": "sub-02/ses-1/func/sub-02_ses-1_task-rest",
        "sub-03_task-rest": "sub-03/func/sub-03_task-rest",
    }
    assert len(list(folder.rglob("*_timeseries.tsv"))) == 3
    for name, stem in stems.items():
        path = folder / f"{stem}_space-MNI152NLin6Asym_atlas-myatlas_stat-mean_timeseries.tsv"
        table = pd.read_csv(path, sep="\t")
        assert table.columns.tolist() == NAMES
        np.testing.assert_allclose(table.to_numpy().T, series(name), rtol=1e-5)
        sidecar = json.loads(path.with_suffix(".json").read_text())
        assert sidecar["SamplingFrequency"] == pytest.approx(1 / sidecar["RepetitionTime"])
        assert sidecar["Denoising"] == "24P"
        entities = bids2table.parse_bids_entities(path)
        assert (entities["space"], entities["suffix"]) == ("MNI152NLin6Asym", "timeseries")
    sidecar = json.loads(next(folder.rglob("sub-02*.json")).read_text())
    assert sidecar["Sources"] == ["/data/2.nii.gz"]
    described = json.loads((folder / "dataset_description.json").read_text())
    assert (described["DatasetType"], described["GeneratedBy"][0]["Name"]) == ("derivative", "semantoks")
    assert (folder / "atlas-myatlas_dseg.tsv").read_text().startswith("index\tname\n1\ta\n")
