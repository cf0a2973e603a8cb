"""Stage index: which recordings a cohort has, and what is known of them before any image is read."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pandas as pd
import pytest
from bids_trees import cohort, derivative, fmriprep, index_of, raw, write_image
from semantoks.batches import current_batches, fmriprep_targets, update_batches
from semantoks.errors import UserError
from semantoks.files import read_metadata, read_table
from semantoks.index import COLUMNS, _header, _header_tr, main
from semantoks.recordings import list_recordings

EXAMPLES = {"7t_trt": 132, "ds001": 48, "ds003": 13, "ds102": 52, "ds114": 100, "synthetic": 30}


@pytest.mark.parametrize(("name", "count"), EXAMPLES.items())
def test_counts_of_the_bids_examples(shared, name, count):
    settings = cohort({"type": "bids", "path": str(shared / "data/bids_examples" / name), "derivatives": "absent"})
    assert len(list_recordings(settings)) == count


def test_reports_under_figures_and_other_descriptions_are_no_recordings(shared):
    root = shared / "data/bids_examples/ds000001-fmriprep"
    assert len(list_recordings(fmriprep(root, space="MNI152NLin2009cAsym"))) == 12
    with pytest.raises(
        UserError, match=r"none that fit; there are preprocessed volumes in the spaces \['MNI152NLin2009cAsym'\]"
    ):
        list_recordings(fmriprep(root, space="MNI152NLin6Asym"))


def test_a_raw_dataset_without_bold_is_a_clear_error(shared):
    with pytest.raises(UserError, match="pheno004, found none"):
        list_recordings(
            cohort({"type": "bids", "path": str(shared / "data/bids_examples/pheno004"), "derivatives": "x"})
        )


def test_real_tuples_text_entities_and_unequal_sessions(tmp_path):
    for name in [
        "sub-01_ses-1_task-rest_run-01",
        "sub-01_ses-1_task-rest_run-1",
        "sub-01_ses-2_task-rest",
        "sub-002_task-rest",
    ]:
        derivative(tmp_path, name)
    index = index_of(fmriprep(tmp_path)).set_index("recording_id")
    assert list(index.index) == sorted(
        ["sub-002_task-rest", "sub-01_ses-1_task-rest_run-01", "sub-01_ses-1_task-rest_run-1", "sub-01_ses-2_task-rest"]
    )
    assert index.loc["sub-01_ses-1_task-rest_run-01", "run"] == "01"
    assert index.loc["sub-002_task-rest", "participant_id"] == "002"
    assert index.loc["sub-002_task-rest", "session_id"] is None
    assert index["tr"].eq(2.0).all()
    assert index["n_frames"].eq(60).all()
    assert index["mask_path"].notna().all()
    assert index["confounds_path"].notna().all()


def test_filters(tmp_path):
    for name in [
        "sub-01_task-rest_run-1",
        "sub-01_task-rest_run-2",
        "sub-02_task-nback_run-1",
        "sub-03_task-rest_run-1",
    ]:
        derivative(tmp_path, name)
    assert len(list_recordings(fmriprep(tmp_path, tasks=["rest"]))) == 3
    assert len(list_recordings(fmriprep(tmp_path, tasks=["rest"], entities={"run": ["1"]}))) == 2
    assert list(list_recordings(fmriprep(tmp_path, include=["sub-02"]))["participant_id"]) == ["02"]
    assert set(list_recordings(fmriprep(tmp_path, exclude=["02"]))["participant_id"]) == {"01", "03"}
    with pytest.raises(UserError, match=r"key 'exclude'.*found 99"):
        list_recordings(fmriprep(tmp_path, exclude=["99"]))
    names = tmp_path / "names.txt"
    names.write_text("sub-01\n\n03\n")
    assert set(list_recordings(fmriprep(tmp_path, include=str(names)))["participant_id"]) == {"01", "03"}
    assert list(list_recordings(fmriprep(tmp_path, exclude=str(names)))["participant_id"]) == ["02"]
    with pytest.raises(UserError, match=r"key 'include'.*a text file with one participant per line at .*absent"):
        list_recordings(fmriprep(tmp_path, include=str(tmp_path / "absent.txt")))


def test_filters_for_absence_and_any_label_as_in_fmriprep(tmp_path):
    for name in ["sub-01_task-rest", "sub-01_task-rest_acq-fast", "sub-01_task-rest_acq-slow"]:
        derivative(tmp_path, name)
    found = {
        wanted: [
            row["acq"] for row in list_recordings(fmriprep(tmp_path, entities={"acq": list(wanted)})).to_dict("records")
        ]
        for wanted in [(None,), ("*",), (None, "slow")]
    }
    assert found == {(None,): [None], ("*",): ["fast", "slow"], (None, "slow"): [None, "slow"]}


def test_the_cohort_of_a_template_belongs_to_the_space(tmp_path):
    image = derivative(tmp_path, "sub-01_task-rest", space="MNIPediatricAsym", cohort="2", res="1")
    listing = list_recordings(fmriprep(tmp_path, space="MNIPediatricAsym"))
    assert listing["recording_id"].tolist() == ["sub-01_task-rest"]
    confounds = image.with_name("sub-01_task-rest_desc-confounds_timeseries.tsv")
    assert listing["paths"][0][2] == str(confounds)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub-01_task-re-st", "its name is not BIDS: 'task-re-st'"),
        ("sub-01_task-re st", "its name is not BIDS: 'task-re st'"),
        ("sub-01_rest", "its name is not BIDS: 'rest'"),
        ("sub-02_task-rest", "its name is not that of the participant 01"),
    ],
)
def test_names_that_are_not_bids_are_rows_with_the_reason(tmp_path, name, reason):
    good = derivative(tmp_path, "sub-01_task-rest")
    good.rename(good.with_name(f"{name}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"))
    confounds = "desc-confounds_timeseries.tsv"
    good.with_name(f"sub-01_task-rest_{confounds}").rename(good.with_name(f"{name}_{confounds}"))
    index = index_of(fmriprep(tmp_path))
    assert index["exclude_reason"].tolist() == [reason]
    assert index["recording_id"].tolist() == [name]


def test_recordings_without_the_wanted_volumes_are_rows_with_the_reason(tmp_path):
    """Of another space, of another grid, of the run's own space; of a run that broke off; other tasks are no rows."""
    nlin6, adult, wanted = "MNI152NLin6Asym", "MNI152NLin2009cAsym", "no desc-preproc_bold in MNI152NLin6Asym"
    derivative(tmp_path, "sub-01_task-rest", res="2")
    derivative(tmp_path, "sub-01_task-rest", space=adult)
    derivative(tmp_path, "sub-02_task-rest", space=adult, res="2")
    own = derivative(tmp_path, "sub-02_task-rest", space=adult)
    own.rename(own.with_name("sub-02_task-rest_desc-preproc_bold.nii.gz"))
    derivative(tmp_path, "sub-03_task-rest")
    derivative(tmp_path, "sub-04_ses-1_task-rest").unlink()
    derivative(tmp_path, "sub-05_task-rest_part-mag", space=adult)
    derivative(tmp_path, "sub-06_task-other", space=adult)
    alone = derivative(tmp_path, "sub-07_task-rest", res="2")
    alone.rename(alone.with_name("sub-07_task-rest_bold_confounds.tsv"))
    alone.with_name("sub-07_task-rest_desc-confounds_timeseries.tsv").unlink()
    broken_off = "a confounds table only (did fMRIPrep break off?)"
    expected = {
        "sub-01_task-rest": None,
        "sub-02_task-rest": f"{wanted}; there is {adult}:res-2, the run's own space",
        "sub-03_task-rest": None,
        "sub-04_ses-1_task-rest": f"{wanted}; there is {broken_off}",
        "sub-05_task-rest": f"{wanted}; there is {adult}",
        "sub-07_task-rest": f"{wanted}; there is {broken_off}",
    }
    index = index_of(fmriprep(tmp_path, tasks=["rest"])).set_index("recording_id")
    assert index["exclude_reason"].to_dict() == expected
    assert index["bold_path"].notna().to_dict() == {name: reason is None for name, reason in expected.items()}
    index = index_of(fmriprep(tmp_path, tasks=["rest"], resolution="2")).set_index("recording_id")
    assert index["exclude_reason"]["sub-01_task-rest"] is None
    assert index["exclude_reason"]["sub-03_task-rest"] == f"{wanted}:res-2; there is {nlin6}"
    with pytest.raises(UserError, match=r"none that fit; there are preprocessed volumes in the spaces"):
        list_recordings(fmriprep(tmp_path, space="MNI152Lin"))


def test_a_raw_run_of_which_fmriprep_made_another_space_is_told_so(tmp_path):
    raw(tmp_path / "raw", "sub-01_task-rest")
    derivative(tmp_path / "out", "sub-01_task-rest", space="MNI152NLin2009cAsym")
    settings = cohort({"type": "bids", "path": str(tmp_path / "raw"), "derivatives": str(tmp_path / "out")})
    assert index_of(settings)["exclude_reason"].tolist() == [
        "no desc-preproc_bold in MNI152NLin6Asym; there is MNI152NLin2009cAsym"
    ]


def test_figures_logs_and_other_folders_are_not_looked_into(tmp_path):
    good = derivative(tmp_path, "sub-01_ses-1_task-rest")
    for folder in ("figures", "log", "ses-1/figures", "ses-1/anat", "ses-1/func/extra"):
        (tmp_path / "sub-01" / folder).mkdir(parents=True)
        (tmp_path / "sub-01" / folder / good.name.replace("rest", "other")).write_bytes(b"")
    (tmp_path / "sourcedata").mkdir()
    (tmp_path / "sub-01.html").touch()
    assert list_recordings(fmriprep(tmp_path))["recording_id"].tolist() == ["sub-01_ses-1_task-rest"]


def test_volume_timing_of_the_raw_data_excludes_what_fmriprep_made_of_it(tmp_path):
    raw(tmp_path / "raw", "sub-01_task-rest")
    raw(tmp_path / "raw", "sub-01_task-sparse")
    (tmp_path / "raw" / "task-sparse_bold.json").write_text('{"VolumeTiming": [0, 5, 10]}')
    for task in ("rest", "sparse"):
        derivative(tmp_path / "out", f"sub-01_task-{task}")
    settings = cohort({"type": "bids", "path": str(tmp_path / "raw"), "derivatives": str(tmp_path / "out")})
    reasons = index_of(settings)["exclude_reason"].tolist()
    assert reasons == [None, "sparse acquisition (VolumeTiming): no regular sampling interval"]


def test_a_corrected_sidecar_changes_its_batch(tmp_path):
    image = derivative(tmp_path / "d", "sub-01_task-rest")
    derivative(tmp_path / "d", "sub-02_task-rest")
    update_batches(fmriprep(tmp_path / "d"), tmp_path / "batches", 1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "batches").iterdir()}
    image.with_name(image.name.replace(".nii.gz", ".json")).write_text('{"RepetitionTime": 0.72}')
    update_batches(fmriprep(tmp_path / "d"), tmp_path / "batches", 1)
    changed = {path.name for path in (tmp_path / "batches").iterdir() if path.read_bytes() != before[path.name]}
    assert changed == {"part-0001.tsv"}


def test_a_sidecar_of_confounds_that_was_fetched_later_changes_its_batch(tmp_path):
    image = derivative(tmp_path / "out", "sub-01_task-rest")
    update_batches(fmriprep(tmp_path / "out"), tmp_path / "batches", 10)
    before = (tmp_path / "batches/part-0001.tsv").read_text()
    image.with_name("sub-01_task-rest_desc-confounds_timeseries.json").write_text('{"a_comp_cor_00": {"Mask": "WM"}}')
    update_batches(fmriprep(tmp_path / "out"), tmp_path / "batches", 10)
    assert (tmp_path / "batches/part-0001.tsv").read_text() != before


def test_fmriprep_that_made_no_folder_leaves_rows_with_the_reason(tmp_path):
    raw(tmp_path / "raw", "sub-01_task-rest")
    settings = cohort({"type": "bids", "path": str(tmp_path / "raw"), "derivatives": str(tmp_path / "out")})
    assert index_of(settings)["exclude_reason"].tolist() == [
        "fMRIPrep wrote no desc-preproc_bold in space MNI152NLin6Asym"
    ]


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    """As root everything can be read, so that the refusal itself is imitated."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: expected a folder that can be read, found: Not a directory"):
        list_recordings(fmriprep(tmp_path / "file"))
    derivative(tmp_path / "d", "sub-01_task-rest")

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refused)
    with pytest.raises(UserError, match=r"sub-01/func: expected a folder that can be read, found: Permission denied"):
        list_recordings(fmriprep(tmp_path / "d"))


def test_unusable_images_stay_with_their_reason(tmp_path):
    derivative(tmp_path, "sub-01_task-rest")
    empty = derivative(tmp_path, "sub-02_task-rest")
    empty.write_bytes(b"")
    derivative(tmp_path, "sub-03_task-rest", tr=None)
    broken = derivative(tmp_path, "sub-04_task-rest")
    broken.write_bytes(b"not an image at all")
    flat = derivative(tmp_path, "sub-05_task-rest")
    write_image(flat)
    flat.with_suffix("").with_suffix(".json").write_text('{"RepetitionTime": 2.0, "VolumeTiming": [0, 5]}')
    index = index_of(fmriprep(tmp_path)).set_index("participant_id")
    assert index.loc["01", "exclude_reason"] is None
    assert index.loc["02", "exclude_reason"] == "empty image"
    assert pd.isna(index.loc["02", "n_frames"])
    assert "TR: expected" in index.loc["03", "exclude_reason"]
    assert "unreadable image" in index.loc["04", "exclude_reason"]
    assert "sparse" in index.loc["05", "exclude_reason"]


def test_tr_from_the_header_knows_milliseconds(tmp_path):
    import nibabel

    path = derivative(tmp_path, "sub-01_task-rest", tr=None)
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4, 30), np.int16), np.eye(4))
    image.header.set_zooms((1, 1, 1, 800))
    image.header.set_xyzt_units("mm", "msec")
    nibabel.save(image, path)
    assert index_of(fmriprep(tmp_path))["tr"].tolist() == [0.8]


def test_missing_folder_and_illegal_labels(tmp_path):
    with pytest.raises(UserError, match=r"key 'source.path'.*found nothing at"):
        list_recordings(fmriprep(tmp_path / "absent"))
    derivative(tmp_path, "sub-01_task-rest")
    (tmp_path / "sub-a b;rm").mkdir()
    with pytest.raises(UserError, match="alphanumeric"):
        list_recordings(fmriprep(tmp_path))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_headers_are_read_as_nibabel_reads_them(tmp_path, suffix, kind, order):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    image = kind(np.zeros((4, 5, 6, 7), np.int16), np.eye(4), header)
    image.header.set_zooms((1, 1, 1, 1500))
    image.header.set_xyzt_units("mm", "msec")
    path = tmp_path / f"sub-01_task-rest_bold{suffix}"
    nibabel.save(image, path)
    read = _header(path)
    assert read.get_data_shape() == nibabel.load(path).header.get_data_shape() == (4, 5, 6, 7)
    assert _header_tr(read) == _header_tr(nibabel.load(path).header) == 1.5


def test_a_tr_above_the_image_is_inherited(tmp_path):
    image = derivative(tmp_path, "sub-01_task-rest", tr=None)
    (tmp_path / "task-rest_bold.json").write_text('{"RepetitionTime": 1.1}')
    assert index_of(fmriprep(tmp_path))["tr"].tolist() == [1.1]
    image.with_name(image.name.replace(".nii.gz", ".json")).write_text('{"RepetitionTime": 0.9}')
    assert index_of(fmriprep(tmp_path))["tr"].tolist() == [0.9]


def test_raw_cohort_takes_the_derivatives_and_names_what_is_missing(tmp_path):
    for participant in ("01", "02"):
        raw(tmp_path / "raw", f"sub-{participant}_task-rest")
    derivative(tmp_path / "out", "sub-01_task-rest")
    status = tmp_path / "sub-02.json"
    ended = {"participant": "02", "session": None, "status": "failed", "reason": "recon-all exited with errors"}
    status.write_text(json.dumps(ended))
    settings = cohort({"type": "bids", "path": str(tmp_path / "raw"), "derivatives": str(tmp_path / "out")})
    index = index_of(settings, status).set_index("participant_id")
    assert "derivatives" not in index.columns
    assert index.loc["01", "exclude_reason"] is None
    assert index.loc["01", "bold_path"].endswith("sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz")
    assert index.loc["02", "exclude_reason"] == "fMRIPrep failed: recon-all exited with errors"


@pytest.mark.parametrize(
    ("session", "status", "reasons"),
    [
        (None, "failed", ["fMRIPrep failed: why"] * 2),
        (None, "incomplete", ["fMRIPrep incomplete: why"] * 2),
        (None, "done", [None, None]),
        ("1", "failed", ["fMRIPrep failed: why", None]),
    ],
)
def test_what_a_failed_fmriprep_left_is_not_used(tmp_path, session, status, reasons):
    for name in ("sub-01_ses-1_task-rest", "sub-01_ses-2_task-rest"):
        raw(tmp_path / "raw", name)
        derivative(tmp_path / "out", name)
    told = tmp_path / "status.json"
    told.write_text(json.dumps({"participant": "01", "session": session, "status": status, "reason": "why"}))
    settings = cohort({"type": "bids", "path": str(tmp_path / "raw"), "derivatives": str(tmp_path / "out")})
    assert index_of(settings, told)["exclude_reason"].tolist() == reasons


def test_the_versions_of_fmriprep_are_those_of_the_participants(tmp_path):
    for participant in ("01", "02", "03"):
        raw(tmp_path / "raw", f"sub-{participant}_task-rest")
        derivative(tmp_path / "out", f"sub-{participant}_task-rest")
    settings = cohort({"type": "bids", "path": str(tmp_path / "raw"), "derivatives": str(tmp_path / "out")})
    told = []
    for participant, status, version in (("01", "done", "24.1.1"), ("02", "failed", "23.0.0"), ("03", "done", None)):
        told.append(tmp_path / f"sub-{participant}.json")
        ended = {"participant": participant, "session": None, "status": status, "reason": "x", "version": version}
        told[-1].write_text(json.dumps(ended))
    statuses = [str(path) for path in told]
    assert versions_of(tmp_path, settings, "--fmriprep-status", *statuses) == ["24.1.1", None]
    description = {"GeneratedBy": [{"Name": "fMRIPrep", "Version": "25.2.3"}]}
    (tmp_path / "out/dataset_description.json").write_text(json.dumps(description))
    assert versions_of(tmp_path, settings, "--fmriprep-status", *statuses) == ["24.1.1", "25.2.3"]
    assert versions_of(tmp_path, fmriprep(tmp_path / "out")) == ["25.2.3"]


def versions_of(tmp_path, settings, *arguments):
    """What the index of the only batch says in its metadata."""
    folder = tmp_path / f"batches-{settings['source']['type']}"
    update_batches(settings, folder, 1000)
    output = tmp_path / "index.parquet"
    batch = ["--batch", str(folder / "part-0001.tsv"), "--output", str(output)]
    main(["--settings", json.dumps(settings), *batch, *arguments])
    return read_metadata(output)["fmriprep_versions"]


def test_sites_and_motion_come_from_the_participants_table(tmp_path):
    for participant in ("01", "02", "03"):
        derivative(tmp_path / "d", f"sub-{participant}_task-rest")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tcentre\tfd\nsub-01\tA\t0.1\nsub-02\tB\tn/a\n")
    settings = fmriprep(
        tmp_path / "d",
        participants={"path": str(table), "id_column": "participant_id"},
        site_column="centre",
        mean_fd_column="fd",
    )
    index = index_of(settings)
    assert index["site"].tolist() == ["A", "B", None]
    np.testing.assert_allclose(index["mean_fd"], [0.1, np.nan, np.nan])
    with pytest.raises(UserError, match=r"expected the columns 'center', found participant_id, centre, fd"):
        index_of({**settings, "site_column": "center"})
    table.write_text("participant_id\tcentre\tfd\nsub-01\tA\t0.1\nsub-01\tB\t0.2\n")
    with pytest.raises(UserError, match="several for 01"):
        index_of(settings)


def test_missing_codes_of_the_participants_table_are_no_site_and_no_displacement(tmp_path):
    derivative(tmp_path / "d", "sub-01_task-rest")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsite\tfd\nsub-01\t-9999\t-9999.0\n")
    participants = {"path": str(table), "id_column": "participant_id", "missing": ["-9999"]}
    settings = fmriprep(tmp_path / "d", participants=participants, mean_fd_column="fd", site_column="site")
    assert index_of(settings)[["site", "mean_fd"]].isna().all(axis=None)


@pytest.mark.parametrize("value", ["0,2", "bad", "-0.1", "inf", "-9999"])
def test_a_displacement_that_is_no_number_is_told_with_its_participant(tmp_path, value):
    derivative(tmp_path / "d", "sub-01_task-rest")
    table = tmp_path / "participants.tsv"
    table.write_text(f"participant_id\tfd\nsub-01\t{value}\nsub-02\tbad\n")
    participants = {"path": str(table), "id_column": "participant_id"}
    with pytest.raises(UserError, match=rf"participants.tsv: column 'fd': .*found '{value}' for 01 \(1 participants"):
        index_of(fmriprep(tmp_path / "d", participants=participants, mean_fd_column="fd"))


def test_batches_are_append_only(tmp_path):
    source = tmp_path / "d"
    for participant in ("02", "03", "04"):
        derivative(source, f"sub-{participant}_task-rest")
    batches = tmp_path / "batches"
    update_batches(fmriprep(source), batches, 2)
    before = {path.name: path.read_bytes() for path in batches.iterdir()}
    assert current_batches(batches) == ["part-0001", "part-0002"]
    assert fmriprep_targets(batches / "part-0001.tsv", per_session=False) == ["sub-02", "sub-03"]

    derivative(source, "sub-01_task-rest")
    changed = derivative(source, "sub-04_task-rest", n_frames=70)
    update_batches(fmriprep(source), batches, 2)
    after = {path.name: path.read_bytes() for path in batches.iterdir()}
    assert after["part-0001.tsv"] == before["part-0001.tsv"]
    assert after["part-0002.tsv"] != before["part-0002.tsv"]
    assert b"sub-01" in after["part-0003.tsv"]

    for path in changed.parent.iterdir():
        path.unlink()
    update_batches(fmriprep(source), batches, 2)
    assert current_batches(batches) == ["part-0001", "part-0003"]


def test_a_changed_site_changes_its_batch_and_a_changed_label_changes_none(tmp_path):
    for participant in ("01", "02"):
        derivative(tmp_path / "d", f"sub-{participant}_task-rest")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsite\tdiagnosis\n01\tA\tpatient\n02\tA\tcontrol\n")
    participants = {"path": str(table), "id_column": "participant_id"}
    settings = fmriprep(tmp_path / "d", participants=participants, site_column="site")
    batches = tmp_path / "batches"
    update_batches(settings, batches, 1)
    before = {path.name: path.read_bytes() for path in batches.iterdir()}
    table.write_text("participant_id\tsite\tdiagnosis\n01\tA\tcontrol\n02\tB\tcontrol\n")
    update_batches(settings, batches, 1)
    changed = {path.name for path in batches.iterdir() if path.read_bytes() != before[path.name]}
    assert changed == {"part-0002.tsv"}


def test_command_line_writes_the_contract(tmp_path):
    derivative(tmp_path / "d", "sub-01_task-rest")
    derivative(tmp_path / "d", "sub-02_task-rest")
    settings = fmriprep(tmp_path / "d")

    def run() -> None:
        update_batches(settings, tmp_path / "batches", 1)
        for batch in ("part-0001", "part-0002"):
            paths = ["--batch", str(tmp_path / f"batches/{batch}.tsv"), "--output", str(tmp_path / f"{batch}.parquet")]
            main(["--settings", json.dumps(settings), *paths])
        parts = [str(tmp_path / f"part-000{number}.parquet") for number in (1, 2)]
        main(["--settings", json.dumps(settings), "--join", *parts, "--output", str(tmp_path / "index.parquet")])

    run()
    index = read_table(tmp_path / "index.parquet")
    assert list(index.columns) == COLUMNS
    assert index["batch"].tolist() == ["part-0001", "part-0002"]
    assert read_metadata(tmp_path / "index.parquet")["settings"]["name"] == "study"
    for image in (tmp_path / "d").rglob("*preproc_bold.nii.gz"):
        image.write_bytes(b"")
    with pytest.raises(UserError, match="none of 2 recordings can be used: empty image"):
        run()


def test_names_of_fmriprep_1_0_and_1_1_are_recordings(tmp_path):
    """Masks and confounds beside them, other variants left out; entities are those of today's names."""
    func = tmp_path / "sub-01/func"
    new = derivative(tmp_path, "sub-01_task-rest_run-2", space="MNI152NLin2009cAsym")
    stem = "sub-01_task-rest_run-1_bold"
    old = func / f"{stem}_space-MNI152NLin2009cAsym_preproc.nii.gz"
    write_image(old)
    write_image(func / f"{stem}_space-T1w_preproc.nii.gz")
    write_image(func / f"{stem}_space-MNI152NLin2009cAsym_variant-smoothAROMAnonaggr_preproc.nii.gz")
    (func / f"{stem}_space-MNI152NLin2009cAsym_brainmask.nii.gz").write_bytes(b"")
    (func / f"{stem}_confounds.tsv").write_text("CSF\n")
    index = index_of(fmriprep(tmp_path, space="MNI152NLin2009cAsym")).set_index("recording_id")
    assert list(index.index) == ["sub-01_task-rest_run-1", "sub-01_task-rest_run-2"]
    row = index.loc["sub-01_task-rest_run-1"]
    assert row[["task", "run", "space", "desc", "exclude_reason"]].tolist() == [
        *("rest", "1", "MNI152NLin2009cAsym", "preproc", None)
    ]
    assert row["bold_path"] == str(old)
    assert row["mask_path"] == str(func / f"{stem}_space-MNI152NLin2009cAsym_brainmask.nii.gz")
    assert row["confounds_path"] == str(func / f"{stem}_confounds.tsv")
    assert (row["tr"], row["n_frames"]) == (2.0, 60)
    assert index["bold_path"].iloc[1] == str(new)
    assert index_of(fmriprep(tmp_path, space="T1w"))["mask_path"].isna().all()
