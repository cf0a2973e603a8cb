"""Time series that were extracted elsewhere: HDF5 and files, into the same table as parcellation."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from bids_trees import cohort
from scipy import signal
from semantoks import import_timeseries
from semantoks.batches import update_batches
from semantoks.errors import UserError
from semantoks.files import read_metadata, read_table, write_json
from semantoks.import_timeseries import clean_imported, main
from semantoks.index import main as index_main

DONE = {"band_pass": [0.01, 0.1], "global_signal_regression": True, "z_score": False}


def atlas(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"index": range(1, len(names) + 1), "name": names, "voxels": 5})
    table.to_csv(folder / "labels.tsv", sep="\t", index=False)
    write_json(folder / "atlas.json", {"name": "own", "space": None, "sha256": {"labels": "0"}})
    return folder


def import_cohort(
    tmp_path: Path, settings: dict, names: list[str], band_pass: Sequence | None = (0.01, 0.1), detrend: bool = True
) -> pd.DataFrame:
    """Run index and import of the whole cohort as the workflow does."""
    update_batches(settings, tmp_path / "batches", 1000)
    batch, index = tmp_path / "batches/part-0001.tsv", tmp_path / "index.parquet"
    index_main(["--settings", json.dumps(settings), "--batch", str(batch), "--output", str(index)])
    stage = json.dumps({"cohort": settings, "band_pass": band_pass, "detrend": detrend})
    output = tmp_path / "part-0001.parquet"
    paths = [
        "--index",
        str(tmp_path / "index.parquet"),
        "--atlas",
        str(atlas(tmp_path / "atlas", names)),
        "--output",
        str(output),
    ]
    main(["--settings", stage, "--batch", "part-0001", *paths])
    assert read_metadata(output)["roi_names"] == names
    return read_table(output).set_index("participant_id")


def bold_of(row: pd.Series, n_rois: int) -> np.ndarray:
    return np.asarray(row["bold"]).reshape(n_rois, -1)


def text_files(folder: Path, values: np.ndarray, header: list[str], name: str = "01_ts.tsv") -> dict:
    folder.mkdir(exist_ok=True)
    pd.DataFrame(values.T, columns=header).to_csv(folder / name, sep="\t", index=False)
    source = {"type": "files", "path": str(folder), "patterns": ["{participant_id}_ts.tsv"], "delimiter": "\t"}
    return cohort({**source, "header": True, "orientation": "time_by_roi"}, tr=2.0, already_done=DONE)


def test_what_was_done_is_not_done_twice_and_what_was_not_is_done():
    time = np.arange(200) * 2.0
    slow, middle, fast = (np.sin(2 * np.pi * f * time) for f in (0.002, 0.05, 0.2))
    bold = (slow + middle + fast)[None]
    untouched = clean_imported(bold, 2.0, {"band_pass": [0.01, 0.1]}, (0.01, 0.1), True)
    expected = signal.detrend(bold, axis=1)
    np.testing.assert_allclose(untouched, expected, atol=1e-5)
    filtered = clean_imported(bold, 2.0, {"band_pass": None}, (0.01, 0.1), True)
    np.testing.assert_allclose(filtered[0, 30:-30], middle[30:-30], atol=0.15)


def test_trends_stay_where_they_are_not_to_be_removed(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 40)) + np.arange(40) + 100
    settings = text_files(tmp_path / "ts", values, ["a", "b", "c"])
    kept = import_cohort(tmp_path, settings, ["a", "b", "c"], detrend=False).loc["01"]
    np.testing.assert_allclose(bold_of(kept, 3), values, rtol=1e-6)
    removed = import_cohort(tmp_path, settings, ["a", "b", "c"], detrend=True).loc["01"]
    np.testing.assert_allclose(bold_of(removed, 3), signal.detrend(values, axis=1), atol=1e-4)


def test_constant_and_missing_rois_are_parcels_without_data():
    bold = np.random.default_rng(0).normal(size=(4, 50))
    bold[1], bold[2] = 0.0, np.nan
    result = clean_imported(bold, 2.0, DONE, (0.01, 0.1), True)
    assert np.isnan(result).all(axis=1).tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="no ROI with data"):
        clean_imported(bold[1:3], 2.0, DONE, (0.01, 0.1), True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_throughout_is_a_parcel_without_data_and_in_some_frames_a_reason(value):
    bold = np.random.default_rng(0).normal(size=(4, 50))
    bold[1] = value
    result = clean_imported(bold, 2.0, DONE, (0.01, 0.1), True)
    assert np.isnan(result).all(axis=1).tolist() == [False, True, False, False]
    bold[0, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity in some frames of 1 of 4 ROIs"):
        clean_imported(bold, 2.0, DONE, (0.01, 0.1), True)


def test_padding_is_left_behind_and_planted_values_stay_with_their_roi(tmp_path):
    rng = np.random.default_rng(1)
    series = rng.normal(size=(2, 3, 40)).astype(np.float16)
    series[1, :, 30:] = np.nan
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["timeseries/cortex"], file["timeseries/sub"] = series[:, :2], series[:, 2:]
        file["long_subject_id"] = np.array(["b", "a"], dtype="S")
        file["tr"], file["ts_len"] = np.array([2.0, 2.5]), np.array([40, 30])
    source = {
        "type": "hdf5",
        "path": str(path),
        "datasets": ["timeseries/cortex", "timeseries/sub"],
        "id": "long_subject_id",
    }
    source |= {"id_pattern": "{participant_id}", "length": "ts_len", "tr": "tr", "roi_names": None}
    table = import_cohort(tmp_path, cohort(source, already_done=DONE), ["x", "y", "z"])
    assert table["n_frames"].to_dict() == {"a": 30, "b": 40}
    assert table["tr"].to_dict() == {"a": 2.5, "b": 2.0}
    for position, participant in enumerate("ba"):
        n_frames = int(table.loc[participant, "n_frames"])
        expected = signal.detrend(series[position, :, :n_frames].astype(np.float64), axis=1)
        np.testing.assert_allclose(bold_of(table.loc[participant], 3), expected, atol=1e-5)
    assert table.loc["a", "minutes_kept"] == pytest.approx(30 * 2.5 / 60)
    assert "global signal regression before import" in table.loc["a", "denoising"]
    with pytest.raises(
        UserError, match=r"expected 4 ROIs as in the atlas, found 3 in timeseries/cortex \+ timeseries/sub"
    ):
        import_cohort(tmp_path, cohort(source, already_done=DONE), ["x", "y", "z", "w"])


BROKEN = {
    "other number of ROIs": (
        lambda values, header: (values[:2], header[:2]),
        "expected 3 ROIs as in the atlas, found 2",
    ),
    "labels in another order": (
        lambda values, header: (values, ["b", "a", "c"]),
        "found 'b' at position 1 instead of 'a'",
    ),
    "NaN in some frames": (
        lambda values, header: (np.where(np.arange(40) == 3, np.nan, values), header),
        "NaN or infinity in some frames of 3 of 3 ROIs",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_a_row_with_its_reason_and_the_rest_goes_on(tmp_path, case):
    change, message = BROKEN[case]
    values = np.random.default_rng(2).normal(size=(3, 40))
    settings = text_files(tmp_path / "ts", values, ["a", "b", "c"])
    broken, header = change(values, ["a", "b", "c"])
    text_files(tmp_path / "ts", broken, header, "02_ts.tsv")
    table = import_cohort(tmp_path, settings, ["a", "b", "c"])
    assert message in table.loc["02", "exclude_reason"]
    assert table.loc["02", "bold"] is None
    assert table.loc["01", "exclude_reason"] is None
    np.testing.assert_allclose(bold_of(table.loc["01"], 3), signal.detrend(values, axis=1), atol=1e-5)


def table_text(values: np.ndarray, ending: str = "") -> str:
    return "".join("\t".join(f"{value:.6f}" for value in row) + ending + "\n" for row in values.T)


def damaged_gzip(values: np.ndarray) -> bytes:
    packed = bytearray(gzip.compress(table_text(values).encode()))
    packed[10] = 0xFF  # no kind of block that there is
    return bytes(packed)


def archive(values: np.ndarray) -> bytes:
    np.savez(file := io.BytesIO(), values)
    return file.getvalue()


def array(values: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), values)
    return file.getvalue()


UNREADABLE: dict[str, tuple[str, Callable[[np.ndarray], bytes], str]] = {
    "cut NPY": ("npy", lambda values: b"\x93NUMPY\x01", ""),
    "NPZ named NPY": ("npy", archive, "expected one array, found an archive of several"),
    "empty archive named NPY": ("npy", lambda values: b"PK\x05\x06", "BadZipFile: "),
    "complex NPY": ("npy", lambda values: array(values.astype(complex)), "expected real numbers, found complex128"),
    "damaged gz": ("tsv.gz", damaged_gzip, "Error -3 while decompressing data"),
    "cut gz": ("tsv.gz", lambda values: gzip.compress(table_text(values).encode())[:300], "EOFError: "),
    "gz that is none": ("tsv.gz", lambda values: b"a\tb\tc\n", "Not a gzipped file"),
    "nothing": ("tsv", lambda values: b"", "No columns to parse"),
    "a header only": ("tsv", lambda values: b"a\tb\tc\n", "No columns to parse"),
    "latin": ("tsv", lambda values: b"\xe9\tb\tc\n", "can't decode"),
    "words": ("tsv", lambda values: b"a\tb\tc\n1\t2\tx\n", "could not convert string to float: 'x'"),
    "rows that end in a tab": (
        "tsv",
        lambda values: b"a\tb\tc\n" + table_text(values, "\t").encode(),
        "expected 3 fields in every row as in the header, found 4",
    ),
    "a field more in every row": (
        "tsv",
        lambda values: b"a\tb\tc\n" + table_text(np.concatenate([values[:1], values])).encode(),
        "expected 3 fields in every row as in the header, found 4",
    ),
    "a field less in every row": (
        "tsv",
        lambda values: b"a\tb\tc\n" + table_text(values[:2]).encode(),
        "expected 3 fields in every row as in the header, found 2",
    ),
    "a field more in one row": (
        "tsv",
        lambda values: b"a\tb\tc\n" + table_text(values).encode() + b"1\t2\t3\t4\n",
        "Expected 3 fields in line 41, saw 4",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_file_is_a_row_with_its_reason(tmp_path, case):
    ending, content, message = UNREADABLE[case]
    values = np.random.default_rng(0).normal(size=(3, 40))
    settings = text_files(tmp_path / "ts", values, ["a", "b", "c"])
    settings["source"]["patterns"] = ["{participant_id}_ts.*"]
    (tmp_path / f"ts/02_ts.{ending}").write_bytes(content(values))
    table = import_cohort(tmp_path, settings, ["a", "b", "c"])
    assert table.loc["02", "exclude_reason"].startswith(f"unreadable 02_ts.{ending}: ")
    assert message in table.loc["02", "exclude_reason"]
    assert table.loc["01", "exclude_reason"] is None


def test_whatever_goes_wrong_with_one_recording_leaves_its_batch_alone(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(3, 40))
    settings = text_files(tmp_path / "ts", values, ["a", "b", "c"])
    text_files(tmp_path / "ts", values * 2, ["a", "b", "c"], "02_ts.tsv")
    errors = iter([MemoryError(), None])

    def clean(*arguments):
        if error := next(errors):
            raise error
        return clean_imported(*arguments)

    monkeypatch.setattr(import_timeseries, "clean_imported", clean)
    table = import_cohort(tmp_path, settings, ["a", "b", "c"])
    assert table["exclude_reason"].tolist() == ["MemoryError", None]


HEADERS = {
    "tabs": "a\tb\tc\n",
    "a blank line before it": "\n\na\tb\tc\n",
    "with a mark of byte order": "\ufeffa\tb\tc\n",
    "numbers of the parcels": "#1\t#2\t#3\n",
    "quoted": '"a"\t"b"\t"c"\n',
}


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_are_understood(tmp_path, header):
    values = np.random.default_rng(0).normal(size=(3, 40))
    settings = text_files(tmp_path / "ts", values, ["a", "b", "c"])
    (tmp_path / "ts/01_ts.tsv").write_text(HEADERS[header] + table_text(values), encoding="utf-8")
    row = import_cohort(tmp_path, settings, ["a", "b", "c"]).loc["01"]
    np.testing.assert_allclose(bold_of(row, 3), signal.detrend(values, axis=1), atol=1e-5)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("header", ["a\tb\tc\n", "\ta\tb\tc\n"], ids=["as of R", "as of pandas"])
def test_row_numbers_without_a_name_are_no_parcel(tmp_path, header, first):
    values = np.random.default_rng(0).normal(size=(3, 40))
    settings = text_files(tmp_path / "ts", values, ["a", "b", "c"])
    rows = [f"{number}\t{row}" for number, row in enumerate(table_text(values).splitlines(keepends=True), first)]
    (tmp_path / "ts/01_ts.tsv").write_text(header + "".join(rows))
    row = import_cohort(tmp_path, settings, ["a", "b", "c"]).loc["01"]
    np.testing.assert_allclose(bold_of(row, 3), signal.detrend(values, axis=1), atol=1e-5)


def test_columns_of_frames_have_no_names_of_parcels(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 40))
    settings = text_files(tmp_path / "ts", values.T, [f"frame {number}" for number in range(40)])
    settings["source"]["orientation"] = "roi_by_time"
    row = import_cohort(tmp_path, settings, ["a", "b", "c"]).loc["01"]
    np.testing.assert_allclose(bold_of(row, 3), signal.detrend(values, axis=1), atol=1e-5)


@pytest.mark.parametrize(
    ("band", "done", "said"),
    [
        ([0.01, 0.1], None, "imported; band-pass 0.01-0.1 Hz at import"),
        ([0.008, 0.09], [0.01, 0.1], "imported; band-pass 0.01-0.1 Hz before import"),
        ([None, 0.1], None, "imported; band-pass open-0.1 Hz at import"),
        (None, None, "imported; not band-passed"),
        ([None, None], None, "imported; not band-passed"),
    ],
)
def test_the_table_says_what_was_filtered_and_when(tmp_path, band, done, said):
    settings = text_files(tmp_path / "ts", np.random.default_rng(0).normal(size=(3, 40)), ["a", "b", "c"])
    settings["already_done"] = {"band_pass": done, "global_signal_regression": False, "z_score": False}
    assert import_cohort(tmp_path, settings, ["a", "b", "c"], band).loc["01", "denoising"] == said


def test_numpy_files_roi_by_time(tmp_path):
    values = np.random.default_rng(3).normal(size=(3, 40)).astype(np.float32)
    (tmp_path / "ts").mkdir()
    np.save(tmp_path / "ts/sub-01.npy", values)
    source = {
        "type": "files",
        "path": str(tmp_path / "ts"),
        "patterns": ["sub-{participant_id}.npy"],
        "delimiter": None,
    }
    settings = cohort({**source, "header": False, "orientation": "roi_by_time"}, tr=2.0, already_done=DONE)
    table = import_cohort(tmp_path, settings, ["a", "b", "c"])
    np.testing.assert_allclose(bold_of(table.loc["01"], 3), signal.detrend(values, axis=1), atol=1e-5)


def test_abide_text_files_agree_with_the_hdf5(shared, tmp_path):
    folder = shared / "data/abide1_cc200"
    names = [f"CC200_{number}" for number in range(1, 201)]
    source = {"type": "files", "path": str(folder / "pcp_1d"), "patterns": ["{participant_id}_rois_cc200.1D"]}
    source |= {"delimiter": None, "header": True, "orientation": "time_by_roi"}
    (tmp_path / "text").mkdir()
    text = import_cohort(tmp_path / "text", cohort(source, tr=2.0, already_done=DONE), names)
    source = {
        "type": "hdf5",
        "path": str(folder / "abide1_cc200.h5"),
        "datasets": ["timeseries/cc200"],
        "id": "long_subject_id",
    }
    source |= {"id_pattern": "{participant_id}", "length": "ts_len", "tr": "tr", "roi_names": None}
    (tmp_path / "hdf5").mkdir()
    packed = import_cohort(tmp_path / "hdf5", cohort(source, already_done=DONE, include=list(text.index)), names)
    assert len(text) == len(packed) == 14
    for participant in text.index:
        one, other = bold_of(text.loc[participant], 200), bold_of(packed.loc[participant], 200)
        with_data = ~np.isnan(other).any(axis=1)
        assert (with_data == ~np.isnan(one).any(axis=1)).all()
        difference = np.abs(one - other)[with_data].max(axis=1) / one[with_data].std(axis=1)
        assert difference.max() < 0.01
