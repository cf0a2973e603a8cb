"""Which recordings an HDF5 file or a folder of time-series files holds, how long they are, and what is wrong there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from bids_trees import cohort, index_of
from semantoks.errors import UserError
from semantoks.recordings import list_recordings
from test_import_timeseries import import_cohort

ROIS = ["a", "b", "c"]


def hdf5(path: Path, ids: list[str], change: Callable[[h5py.File], None] | None = None, **source) -> dict:
    """A cohort of an HDF5 file: recordings of 40 frames of three ROIs, at 2 s; ``change`` spoils the file."""
    with h5py.File(path, "w") as file:
        file["ts"] = np.random.default_rng(0).normal(size=(len(ids), 3, 40)).astype(np.float16)
        file["long_subject_id"] = np.array(ids, dtype="S")
        file["tr"] = np.full(len(ids), 2.0, np.float32)
        file["ts_len"] = np.full(len(ids), 40, np.int32)
        file.create_group("folder")
        file["names"] = np.array(ROIS, dtype="S")
        if change:
            change(file)
    layout = {"datasets": ["ts"], "id": "long_subject_id", "id_pattern": "{participant_id}", "tr": "tr"}
    layout |= {"length": "ts_len", "roi_names": None}
    return cohort({"type": "hdf5", "path": str(path), **layout, **source})


def instead(name: str, value: object) -> Callable[[h5py.File], None]:
    """Another dataset under that name; None for none."""

    def change(file: h5py.File) -> None:
        del file[name]
        if value is not None:
            file[name] = value

    return change


def first(name: str, value: float) -> Callable[[h5py.File], None]:
    """Another value for the first recording; the second keeps its own."""
    return instead(name, np.array([value, 40 if name == "ts_len" else 2.0]))


def frames_without_data(file: h5py.File, start: int) -> None:
    file["ts"][0, :, start:] = np.nan


def test_hdf5_in_the_layout_of_the_authors_code(tmp_path):
    settings = hdf5(tmp_path / "a.h5", ["sub-07_ses-2", "sub-07_ses-1"], first("ts_len", 37))
    settings["source"]["id_pattern"] = "sub-{participant_id}_ses-{session_id}"
    index = index_of(settings)
    assert index["recording_id"].tolist() == ["sub-07_ses-1", "sub-07_ses-2"]
    assert index["session_id"].tolist() == ["1", "2"]
    assert index["n_frames"].tolist() == [40, 37]


LAYOUTS: dict[str, tuple[Callable[[h5py.File], None] | None, dict, str]] = {
    "no such dataset": (None, {"datasets": ["x"]}, "source.datasets': expected the dataset 'x', found .*ts"),
    "a group": (None, {"datasets": ["folder"]}, "source.datasets': expected the dataset 'folder', found .*ts"),
    "two dimensions": (
        instead("ts", np.zeros((2, 40))),
        {},
        r"expected time series \[recording, ROI, time\] in 'ts', found the shape \(2, 40\)",
    ),
    "no recording": (instead("ts", np.zeros((0, 3, 40))), {}, r"found the shape \(0, 3, 40\)"),
    "series of text": (instead("ts", np.full((2, 3, 40), b"x")), {}, r"expected numbers in 'ts', found \|S1"),
    "parts of other recordings": (
        lambda file: file.create_dataset("more", data=np.zeros((3, 3, 40))),
        {"datasets": ["ts", "more"]},
        r"expected 2 recordings of 40 frames as in 'ts' in 'more', found the shape \(3, 3, 40\)",
    ),
    "no ids": (None, {"id": "ids"}, "source.id': expected the dataset 'ids', found .*long_subject_id"),
    "more ids than recordings": (
        instead("long_subject_id", [b"01", b"02", b"03"]),
        {},
        r"source.id': expected 2 values in 'long_subject_id', one for each recording, found the shape \(3,\)",
    ),
    "fewer ids than recordings": (instead("long_subject_id", [b"01"]), {}, r"expected 2 values .*shape \(1,\)"),
    "one id": (instead("long_subject_id", b"01"), {}, r"expected 2 values .*shape \(\)"),
    "the same id twice": (
        instead("long_subject_id", [b"01", b"01"]),
        {},
        "expected an id of its own for every recording, found '01' and '01' .rows 0 and 1., both read as sub-01",
    ),
    "the same id with and without prefix": (
        instead("long_subject_id", [b"01", b"sub-01"]),
        {},
        "found '01' and 'sub-01' .rows 0 and 1., both read as sub-01; .*'source.id_pattern'",
    ),
    "ids of another pattern": (None, {"id_pattern": "x{participant_id}"}, "expected ids like 'x{.*found '01'"),
    "short lengths": (instead("ts_len", [40]), {}, r"source.length': expected 2 values .*shape \(1,\)"),
    "lengths of text": (instead("ts_len", [b"40", b"40"]), {}, "source.length': expected numbers in 'ts_len'"),
    "lengths that are not there": (None, {"length": "n"}, "source.length': expected the dataset 'n', found .*ts_len"),
    "one TR": (instead("tr", 2.0), {}, r"source.tr': expected 2 values .*shape \(\); .*set 'tr' in the cohort file"),
    "no TR": (instead("tr", None), {}, "source.tr': expected the dataset 'tr', found .*; .*set 'tr' in the cohort"),
    "no ROI names": (None, {"roi_names": "nope"}, "source.roi_names': expected the dataset 'nope', found .*names"),
    "fewer ROI names": (
        instead("names", [b"a", b"b"]),
        {"roi_names": "names"},
        r"source.roi_names': expected 3 values in 'names', one for each ROI of ts, found the shape \(2,\)",
    ),
    "more ROI names": (instead("names", [b"a"] * 4), {"roi_names": "names"}, r"expected 3 values .*shape \(4,\)"),
    "other ROI names": (
        instead("names", [b"a", b"c", b"b"]),
        {"roi_names": "names"},
        "names: expected the ROIs in the order of the atlas, found 'c' at position 2 instead of 'b'",
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_what_is_wrong_with_an_hdf5_file_is_one_line_that_names_file_and_key(tmp_path, case):
    change, source, message = LAYOUTS[case]
    settings = hdf5(tmp_path / "a.h5", ["01", "02"], change, **source)
    with pytest.raises(UserError, match=message) as caught:
        import_cohort(tmp_path, settings, ROIS)
    assert str(caught.value).startswith(f"{tmp_path / 'a.h5'}: ")
    assert "\n" not in str(caught.value)


RECORDINGS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "longer than stored": (first("ts_len", 90), "ts_len: expected 1 to 40 frames as stored, found 90"),
    "length 0": (first("ts_len", 0), "ts_len: expected 1 to 40 frames as stored, found 0"),
    "negative length": (first("ts_len", -3), "ts_len: expected 1 to 40 frames as stored, found -3"),
    "length NaN": (first("ts_len", np.nan), "ts_len: expected 1 to 40 frames as stored, found nan"),
    "half a frame": (first("ts_len", 30.5), "ts_len: expected 1 to 40 frames as stored, found 30.5"),
    "TR NaN": (first("tr", np.nan), "TR: expected 0.05 to 30 s, found nan"),
    "TR in ms": (first("tr", 2000), "TR: expected 0.05 to 30 s, found 2000.0"),
    "a label for a shell": (instead("long_subject_id", [b"$(x)", b"02"]), "participant_id: expected letters, digits"),
    "an id that is no text": (instead("long_subject_id", [b"\xe9", b"02"]), r"found '\\xe9'"),
    "shorter than said": (lambda file: frames_without_data(file, 35), "NaN or infinity in some frames of 3 of 3 ROIs"),
}


@pytest.mark.parametrize("case", RECORDINGS)
def test_what_is_wrong_with_one_recording_is_its_reason(tmp_path, case):
    change, reason = RECORDINGS[case]
    table = import_cohort(tmp_path, hdf5(tmp_path / "a.h5", ["01", "02"], change), ROIS)
    assert reason in table.drop(index="02")["exclude_reason"].item()
    assert table.loc["02", "exclude_reason"] is None


def test_a_damaged_part_of_an_hdf5_file_is_the_reason_of_its_recording(tmp_path):
    def packed(file: h5py.File) -> None:
        del file["ts"]
        data = np.random.default_rng(0).normal(size=(2, 3, 400)).astype("f4")
        file.create_dataset("ts", data=data, chunks=(1, 3, 400), compression="gzip")

    settings = hdf5(tmp_path / "a.h5", ["01", "02"], packed)
    with h5py.File(tmp_path / "a.h5") as file:
        where = file["ts"].id.get_chunk_info(0)
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[where.byte_offset + 50 : where.byte_offset + 90] = bytes(40)
    (tmp_path / "a.h5").write_bytes(content)
    table = import_cohort(tmp_path, settings, ROIS)
    assert table.loc["01", "exclude_reason"].startswith("unreadable a.h5: ")
    assert table.loc["02", "exclude_reason"] is None


def test_without_lengths_frames_that_are_nan_in_all_rois_at_the_end_are_padding(tmp_path):
    def change(file: h5py.File) -> None:
        del file["ts_len"]
        frames_without_data(file, 30)
        file["ts"][1, 0, 20:] = np.nan  # one ROI only: a gap, no padding
        file["ts"][2] = np.nan
        file["ts"][3, 1] = np.nan  # a parcel without data

    settings = hdf5(tmp_path / "a.h5", ["01", "02", "03", "04"], change)
    table = import_cohort(tmp_path, settings, ROIS)
    assert table["n_frames"].iloc[[0, 3]].tolist() == [30, 40]
    assert table.loc["02", "exclude_reason"] == "NaN or infinity in some frames of 1 of 3 ROIs"
    assert table.loc["03", "exclude_reason"] == "no frame with data: all are NaN"
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["more"] = np.zeros((4, 1, 40))
    settings["source"]["datasets"] = ["ts", "more"]
    assert index_of(settings)["n_frames"].tolist() == [40] * 4, "a frame with data in one dataset is no padding"


def files(folder: Path, names: list[str], *patterns: str, **settings) -> dict:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(folder / name, np.random.default_rng(0).normal(size=(40, 3)), delimiter="\t")
    source = {"type": "files", "path": str(folder), "patterns": list(patterns), "delimiter": "\t", "header": False}
    return cohort({**source, "orientation": "time_by_roi"}, tr=2.0, **settings)


def test_time_series_files_by_pattern(tmp_path):
    names = ["A_01_cortex.tsv", "A_01_sub.tsv", "A_02_cortex.tsv"]
    settings = files(tmp_path, names, "A_{participant_id}_cortex.tsv", "A_{participant_id}_sub.tsv")
    index = index_of(settings).set_index("participant_id")
    assert index.loc["01", "exclude_reason"] is None
    assert [Path(path).name for path in index.loc["01", "bold_path"].split("\n")] == names[:2]
    assert index.loc["02", "exclude_reason"] == "no file for A_{participant_id}_sub.tsv"
    reason = index_of({**settings, "tr": None}).set_index("participant_id").loc["01", "exclude_reason"]
    assert "no TR: set 'tr'" in reason


NAMES: dict[str, tuple[str, str, tuple[str | None, ...]]] = {
    "label": ("01_ts.tsv", "{participant_id}_ts.tsv", ("01", None, None, None)),
    "prefix in the file": ("sub-01_ts.tsv", "{participant_id}_ts.tsv", ("01", None, None, None)),
    "prefix in the folder": ("sub-01/ts.tsv", "{participant_id}/ts.tsv", ("01", None, None, None)),
    "prefix in the pattern": ("sub-01/ts.tsv", "sub-{participant_id}/ts.tsv", ("01", None, None, None)),
    "id of ABIDE": ("Caltech_0051456.1D", "{participant_id}.1D", ("Caltech_0051456", None, None, None)),
    "all with prefixes": (
        "sub-01/ses-2/task-rest_run-1.tsv",
        "{participant_id}/{session_id}/{task}_{run}.tsv",
        ("01", "2", "rest", "1"),
    ),
    "the same field twice": (
        "sub-01/ses-2/sub-01_ses-2_task-rest_x.tsv",
        "{participant_id}/{session_id}/sub-01_{session_id}_{task}_*.tsv",
        ("01", "2", "rest", None),
    ),
    "as in docs/cohorts.md": (
        "sub-01/func/sub-01_task-rest_space-x_timeseries.tsv",
        "sub-{participant_id}/func/sub-{participant_id}_task-rest_*_timeseries.tsv",
        ("01", None, None, None),
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_labels_have_no_prefix_whether_the_names_of_files_have_it_or_not(tmp_path, case):
    name, pattern, expected = NAMES[case]
    row = index_of(files(tmp_path / "ts", [name], pattern)).iloc[0]
    assert tuple(row[["participant_id", "session_id", "task", "run"]]) == expected
    values = zip(("sub", "ses", "task", "run"), expected, strict=True)
    assert row["recording_id"] == "_".join(f"{key}-{value}" for key, value in values if value)


@pytest.mark.parametrize("stored", ["01", "sub-01"])
@pytest.mark.parametrize("asked", ["01", "sub-01"])
def test_participants_are_chosen_with_or_without_prefix(tmp_path, stored, asked):
    settings = files(tmp_path / "ts", [f"{stored}/ts.tsv", "02/ts.tsv"], "{participant_id}/ts.tsv")
    assert index_of({**settings, "include": [asked]})["participant_id"].tolist() == ["01"]
    assert index_of({**settings, "exclude": [asked]})["participant_id"].tolist() == ["02"]
    settings = hdf5(tmp_path / "a.h5", [stored, "02"])
    assert index_of({**settings, "include": [asked]})["recording_id"].tolist() == ["sub-01"]
    assert index_of({**settings, "exclude": [asked]})["recording_id"].tolist() == ["sub-02"]


def test_tasks_and_entities_choose_among_imported_recordings_too(tmp_path):
    ids = [f"{one}_{task}_run-{run}" for one in ("01", "02") for task in ("rest", "nback") for run in (1, 2)]
    described = hdf5(tmp_path / "a.h5", ids, id_pattern="{participant_id}_{task}_run-{run}")
    assert len(list_recordings(described)) == 8
    chosen = list_recordings(described | {"tasks": ["rest"], "entities": {"run": ["1"]}})
    assert chosen["recording_id"].tolist() == ["sub-01_task-rest_run-1", "sub-02_task-rest_run-1"]
    with pytest.raises(UserError, match=r"found none that fit; check 'tasks'"):
        list_recordings(described | {"tasks": ["movie"]})


def test_two_files_of_one_recording_are_named(tmp_path):
    settings = files(tmp_path / "ts", ["01/ts.tsv", "sub-01/ts.tsv"], "{participant_id}/ts.tsv")
    with pytest.raises(UserError, match=r"expected one file for a recording, found .*/01/ts.tsv and .*/sub-01/ts.tsv"):
        list_recordings(settings)


@pytest.mark.parametrize("label", ["$(x)", "a;rm", "a b", "`x`", "a'b", "é", "a\tb", "_"])
def test_labels_that_could_do_harm_are_rows_with_the_reason(tmp_path, label):
    table = import_cohort(tmp_path, files(tmp_path / "ts", [f"{label}.tsv", "02.tsv"], "{participant_id}.tsv"), ROIS)
    reason = f"participant_id: expected letters, digits, '_', '-', '+' and '.', found {label!r}"
    assert table.drop(index="02")["exclude_reason"].str.startswith(reason).all()
    assert table.loc["02", "exclude_reason"] is None


def test_every_allowed_character_goes_through(tmp_path):
    label = "Az_0-9+x.y"
    table = import_cohort(tmp_path, files(tmp_path / "ts", [f"{label}.tsv"], "{participant_id}.tsv"), ROIS)
    assert table["exclude_reason"].to_dict() == {label: None}


def test_an_unknown_field_of_a_pattern_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape("unknown field {subject} in 'x{subject}'; known: {participant_id}")):
        list_recordings(files(tmp_path / "ts", ["x1"], "x{subject}"))
