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


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def exclude(files: dict[str, Path], names: list[str]) -> None:
    decisions = [{"recording_id": name, "exclude_reason": "too short", "n_frames": LENGTHS[name]} for name in names]
    kept = [name for name in LENGTHS if name not in names]
    decisions += [{"recording_id": name, "exclude_reason": None, "n_frames": LENGTHS[name]} for name in kept]
    types = pa.schema([("recording_id", pa.string()), ("exclude_reason", pa.string()), ("n_frames", pa.int64())])
    write_table(files["qc"], pa.Table.from_pylist(decisions, schema=types), {})


@pytest.mark.parametrize("n_excluded", [1, 2, 3])
def test_what_an_earlier_export_wrote_and_this_one_does_not_is_gone(
    files: dict[str, Path], tmp_path: Path, n_excluded: int
) -> None:
    folder, arguments = tmp_path / "bids", ["--bids", str(tmp_path / "bids"), "--labels", str(files["labels"])]
    export(files, *arguments)
    before = written(folder)
    gone = list(LENGTHS)[:n_excluded]
    exclude(files, gone)
    export(files, *arguments)
    assert written(folder) == {path for path in before if not any(name in path for name in gone)}
    assert {path.name for path in folder.glob("sub-*")} == {name[:6] for name in LENGTHS if name not in gone}


def test_another_atlas_replaces_the_first(files: dict[str, Path], tmp_path: Path) -> None:
    folder, arguments = tmp_path / "bids", ["--bids", str(tmp_path / "bids"), "--labels", str(files["labels"])]
    export(files, *arguments)
    before = written(folder)
    table = pa.Table.from_pandas(export_timeseries.read_table(files["ts"]), schema=SCHEMA, preserve_index=False)
    metadata = export_timeseries.read_metadata(files["ts"])
    write_table(files["ts"], table, metadata | {"atlas": metadata["atlas"] | {"name": "other", "space": None}})
    export(files, *arguments)
    place = "_space-MNI152NLin6Asym_atlas-myatlas"
    renamed = {path.replace(place, "_atlas-other").replace("atlas-myatlas_", "atlas-other_") for path in before}
    assert written(folder) == renamed


def test_an_export_touches_nothing_that_it_did_not_write(files: dict[str, Path], tmp_path: Path) -> None:
    folder, arguments = tmp_path / "bids", ["--bids", str(tmp_path / "bids"), "--labels", str(files["labels"])]
    export(files, *arguments)
    place = folder / "sub-01/func"
    foreign = {
        place / "sub-01_task-rest_desc-own_bold.nii.gz": "image",
        place / "sub-01_task-rest_atlas-x_stat-mean_timeseries.tsv": "table of another program",
        place / "sub-01_task-rest_atlas-x_stat-mean_timeseries.json": json.dumps({"SoftwareVersions": {"xcp_d": "1"}}),
        folder / "sub-09/func/sub-09_task-rest_atlas-x_stat-mean_timeseries.json": "no JSON",
        folder / "atlas-x_dseg.tsv": "index",
        folder / "atlas-x_description.json": json.dumps([1]),
        folder / "participants.tsv": "participant_id",
    }
    for path, text in foreign.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    exclude(files, list(LENGTHS))
    export(files, *arguments)
    assert {path: path.read_text() for path in foreign} == foreign
    assert not list(folder.rglob("*atlas-myatlas_stat-mean_timeseries.*"))


def test_the_folder_of_another_dataset_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids/dataset_description.json").write_text(json.dumps({"GeneratedBy": [{"Name": "fMRIPrep"}]}))
    with pytest.raises(UserError, match="bids: expected a folder of this export, found another dataset's"):
        export(files, "--bids", str(tmp_path / "bids"), "--labels", str(files["labels"]))
    assert len(written(tmp_path / "bids")) == 1


def test_hdf5_without_a_kept_recording_is_a_clear_error(files: dict[str, Path], tmp_path: Path) -> None:
    exclude(files, list(LENGTHS))
    with pytest.raises(UserError, match=r"out.h5: expected a recording that quality control kept, found none of 3"):
        export(files, "--hdf5", str(tmp_path / "out.h5"))


LABELS = {
    ("01", None, "sub-01_task-rest"): "sub-01_task-rest",
    ("01", "2", "sub-01_ses-2_task-rest_acq-x_run-01"): "sub-01_ses-2_task-rest_acq-x_run-01",
    ("01", None, "sub-01_task-rest_bold"): "sub-01_task-rest",
    ("Caltech_0051456", None, "sub-Caltech_0051456"): "sub-Caltech0051456",
    ("a_ses-b.c", "x_1", "sub-a_ses-b.c_ses-x_1_task-re-st_run-1"): "sub-asesbc_ses-x1_task-rest_run-1",
    ("a+b", None, "sub-a+b_task-eyes_open_run-1"): "sub-a+b_task-eyesopen_run-1",
}


@pytest.mark.parametrize("record", LABELS)
def test_names_hold_what_bids_allows_in_labels(record: tuple[str, str | None, str]) -> None:
    participant, session, recording = record
    keys = {"participant_id": participant, "session_id": session, "recording_id": recording}
    assert "_".join(export_timeseries.bids_name(keys)) == LABELS[record]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (("a_1", "sub-a_1_task-x"), ("a-1", "sub-a-1_task-y"), "found a_1 and a-1, both sub-a1"),
        (("01", "sub-01_task-x_y"), ("01", "sub-01_task-xy"), "found sub-01_task-x_y and sub-01_task-xy, both sub-01_"),
    ],
)
def test_recordings_that_bids_cannot_tell_apart_are_named(
    files: dict[str, Path], tmp_path: Path, first: tuple[str, str], second: tuple[str, str], message: str
) -> None:
    bold = np.ones((3, 4), np.float32)
    records = [
        {"participant_id": participant, "session_id": None, "recording_id": name, "bold": bold, "tr": 2.0}
        for participant, name in (first, second)
    ]
    metadata = export_timeseries.read_metadata(files["ts"])
    with pytest.raises(UserError, match=message):
        export_timeseries.write_bids(iter(records), metadata, pd.DataFrame(), {}, tmp_path / "bids")
