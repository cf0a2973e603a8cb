"""What counts as one recording: candidates, echoes and parts of a run, files beside an image, links to nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bids_trees import cohort, derivative, fmriprep, index_of, raw
from semantoks.batches import fmriprep_targets, update_batches
from semantoks.errors import UserError
from semantoks.recordings import list_recordings


def both(folder: Path) -> dict:
    return cohort({"type": "bids", "path": str(folder / "raw"), "derivatives": str(folder / "out")})


def test_several_candidates_are_listed(tmp_path):
    derivative(tmp_path, "sub-01_task-rest", res="1")
    derivative(tmp_path, "sub-01_task-rest", res="2")
    with pytest.raises(UserError, match=r"found 2: .*res-1.*res-2.*'resolution'"):
        list_recordings(fmriprep(tmp_path))
    assert len(list_recordings(fmriprep(tmp_path, resolution="2"))) == 1


def test_two_raw_files_of_one_run_are_no_echoes(tmp_path):
    packed = raw(tmp_path / "raw", "sub-01_task-rest")
    packed.with_suffix("").touch()
    with pytest.raises(UserError, match=r"one file for sub-01_task-rest, found 2: .*_bold.nii, .*_bold.nii.gz; choose"):
        list_recordings(both(tmp_path))


def test_echoes_of_a_run_are_one_recording(tmp_path):
    for echo in "123":
        raw(tmp_path / "raw", f"sub-01_task-rest_echo-{echo}")
    raw(tmp_path / "raw", "sub-01_task-rest", suffix="sbref")
    listing = list_recordings(cohort({"type": "bids", "path": str(tmp_path / "raw"), "derivatives": "x"}))
    assert list(listing["recording_id"]) == ["sub-01_task-rest"]
    derivative(tmp_path / "combined", "sub-01_task-rest")
    derivative(tmp_path / "combined", "sub-01_task-rest_echo-1")
    assert index_of(fmriprep(tmp_path / "combined"))["exclude_reason"].isna().tolist() == [True]
    derivative(tmp_path / "single", "sub-01_task-rest_echo-1")
    derivative(tmp_path / "single", "sub-01_task-rest_echo-2")
    reasons = index_of(fmriprep(tmp_path / "single"))["exclude_reason"]
    assert len(reasons) == 1
    assert "echo-wise" in reasons[0]


def test_magnitude_parts_keep_their_recording_through_fmriprep(tmp_path):
    raw(tmp_path / "raw", "sub-01_task-rest_part-mag")
    raw(tmp_path / "raw", "sub-01_task-rest_part-phase")
    derivative(tmp_path / "out", "sub-01_task-rest_part-mag")
    settings = cohort({"type": "bids", "path": str(tmp_path / "raw"), "derivatives": str(tmp_path / "out")})
    index = index_of(settings)
    assert index["recording_id"].tolist() == ["sub-01_task-rest"]
    assert index["exclude_reason"].tolist() == [None]
    assert index["confounds_path"][0].endswith("sub-01_task-rest_part-mag_desc-confounds_timeseries.tsv")


def test_real_and_imaginary_parts_alone_are_no_recording(tmp_path):
    raw(tmp_path / "raw", "sub-01_task-rest")
    for part in ("real", "imag", "phase"):
        raw(tmp_path / "raw", f"sub-02_task-rest_part-{part}")
    assert list_recordings(both(tmp_path))["recording_id"].tolist() == ["sub-01_task-rest"]


def test_a_mask_may_be_packed_where_its_image_is_not(tmp_path):
    image = derivative(tmp_path, "sub-01_task-rest")
    unpacked = image.with_suffix("")
    image.rename(unpacked)
    mask = image.with_name(image.name.replace("preproc_bold", "brain_mask"))
    assert list_recordings(fmriprep(tmp_path))["paths"][0][:2] == (str(unpacked), str(mask))
    own = mask.with_suffix("")
    own.touch()
    assert list_recordings(fmriprep(tmp_path))["paths"][0][1] == str(own), "its own kind goes first"


@pytest.mark.parametrize(
    ("link", "recording"),
    [("sub-02", "sub-02"), ("sub-02/ses-1", "sub-02_ses-1"), ("sub-02/ses-1/func", "sub-02_ses-1")],
)
def test_a_folder_that_is_a_link_to_nothing_is_a_row_with_its_reason(tmp_path, link, recording):
    for where in ("raw", "derivatives"):
        path = tmp_path / where / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("/nowhere/at/all")
    raw(tmp_path / "raw", "sub-01_task-rest")
    derivative(tmp_path / "derivatives", "sub-01_task-rest")
    derivative(tmp_path / "out", "sub-01_task-rest")
    for settings in (both(tmp_path), fmriprep(tmp_path / "derivatives", tasks=["rest"], resolution=None)):
        index = index_of(settings).set_index("recording_id")
        assert index["exclude_reason"].isna().tolist() == [True, False]
        reason = index.loc[recording, "exclude_reason"]
        assert re.search(rf"{link} is a link to nothing \(data not fetched, or a disk", reason)
        assert index.loc[recording, "participant_id"] == "02"
        assert index.loc[recording, "bold_path"] is None


def test_fmriprep_is_not_run_on_a_link_to_nothing(tmp_path):
    raw(tmp_path / "raw", "sub-01_task-rest")
    (tmp_path / "raw/sub-02").symlink_to("nowhere")
    update_batches(both(tmp_path), tmp_path / "batches", 10)
    assert fmriprep_targets(tmp_path / "batches" / "part-0001.tsv", per_session=False) == ["sub-01"]


def test_a_header_that_contradicts_the_sidecar_is_told(tmp_path, capsys):
    image = derivative(tmp_path, "sub-01_task-rest", tr=0.8)
    image.with_name(image.name.replace(".nii.gz", ".json")).write_text(json.dumps({"RepetitionTime": 2.0}))
    derivative(tmp_path, "sub-02_task-rest")
    assert index_of(fmriprep(tmp_path))["tr"].tolist() == [2.0, 2.0]
    told = capsys.readouterr().err
    assert "header differ in 1 recordings, the first is taken: sub-01_task-rest (2 and 0.8 s)" in told


def test_what_fmriprep_runs_on_is_a_participant_or_a_session(tmp_path):
    for name in ("sub-01_ses-1_task-rest", "sub-01_ses-2_task-rest", "sub-02_task-rest"):
        raw(tmp_path / "raw", name)
    settings = cohort({"type": "bids", "path": str(tmp_path / "raw"), "derivatives": str(tmp_path / "out")})
    update_batches(settings, tmp_path / "batches", 10)
    batch = tmp_path / "batches" / "part-0001.tsv"
    assert fmriprep_targets(batch, per_session=False) == ["sub-01", "sub-02"]
    assert fmriprep_targets(batch, per_session=True) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]
