"""What is wrong for everybody: folders, tables, atlases, disks. One message with what to do, and exit code 2."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import synthetic_images as synthetic
from bids_trees import cohort, derivative, raw
from conftest import REPOSITORY, run_without_privileges
from semantoks import atlas, index, networks
from semantoks.batches import update_batches
from semantoks.errors import run_command
from semantoks.fmriprep_outputs import read_bids_filter
from semantoks.label_images import write_label_image
from semantoks.recordings import list_recordings


def listed(folder: Path, **settings: Any) -> None:
    list_recordings(cohort({"type": "fmriprep", "path": str(folder / "data")}, **settings))


def two_resolutions(folder: Path) -> None:
    derivative(folder / "data", "sub-01_task-rest", res="1")
    derivative(folder / "data", "sub-01_task-rest", res="2")
    listed(folder)


def shell_characters(folder: Path) -> None:
    (folder / "data" / "sub-01; rm -rf $HOME" / "func").mkdir(parents=True)
    listed(folder)


def unknown_participant(folder: Path) -> None:
    derivative(folder / "data", "sub-01_task-rest")
    listed(folder, include=["sub-77"])


def twice_in_the_table(folder: Path) -> None:
    derivative(folder / "data", "sub-01_task-rest")
    (folder / "participants.tsv").write_text("participant_id\tsite\nsub-01\tA\n01\tB\n")
    participants = {"path": str(folder / "participants.tsv"), "id_column": "participant_id"}
    settings = cohort({"type": "fmriprep", "path": str(folder / "data")}, participants=participants, site_column="site")
    update_batches(settings, folder / "batches", 10)


def missing_column(folder: Path) -> None:
    derivative(folder / "data", "sub-01_task-rest")
    (folder / "participants.tsv").write_text("participant_id\nsub-01\n")
    participants = {"path": str(folder / "participants.tsv"), "id_column": "participant_id"}
    settings = cohort({"type": "fmriprep", "path": str(folder / "data")}, participants=participants, site_column="site")
    update_batches(settings, folder / "batches", 10)


def hdf5(folder: Path, **changes: Any) -> None:
    path = folder / "data.h5"
    with h5py.File(path, "w") as file:
        file["ts"], file["id"] = np.zeros((2, 3, 4), np.float32), [b"01", b"01"]
    source = {"type": "hdf5", "path": str(path), "datasets": ["ts"], "id": "id", "id_pattern": "{participant_id}"}
    list_recordings(cohort(source | {"roi_names": None, "length": "ts_len", "tr": "tr"} | changes))


def not_hdf5(folder: Path) -> None:
    (folder / "text.h5").write_text("text")
    hdf5(folder, path=str(folder / "text.h5"))


def nothing_usable(folder: Path) -> None:
    raw(folder / "raw", "sub-01_task-rest")
    settings = cohort({"type": "bids", "path": str(folder / "raw"), "derivatives": str(folder / "empty")})
    (folder / "empty").mkdir()
    update_batches(settings, folder / "batches", 10)
    arguments = ["--settings", json.dumps(settings), "--output", str(folder / "index.parquet")]
    index.main([*arguments, "--batch", str(folder / "batches" / "part-0001.tsv")])
    shutil.copy(folder / "index.parquet", folder / "part.parquet")
    index.main([*arguments, "--join", str(folder / "part.parquet")])


def atlas_with(folder: Path, labels: str | None = None, **changes: Any) -> None:
    write_label_image(folder / "boxes.nii.gz", synthetic.atlas_labels(), synthetic.affine())
    settings = {"name": "boxes", "space": synthetic.SPACE, "folder": None, "resolution": 2, "transform": None}
    settings |= {"image": str(folder / "boxes.nii.gz"), "labels": None, "drop_labels": [], "empty_labels": []}
    if labels is not None:
        (folder / "labels.tsv").write_text("index\tname\n" + labels)
        settings["labels"] = str(folder / "labels.tsv")
    atlas.main(["--settings", json.dumps(settings | changes), "--output-folder", str(folder / "atlas")])


def probabilities_as_atlas(folder: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), 0.3), np.eye(4)), folder / "map.nii.gz")
    atlas_with(folder, image=str(folder / "map.nii.gz"))


def networks_of_another_space(folder: Path) -> None:
    synthetic.atlas_folder(folder / "atlas")
    (folder / "names.tsv").write_text("index\tname\n1\tA\n")
    settings = {"method": "overlap", "image": str(folder / "atlas/atlas.nii.gz"), "space": "MNI152NLin2009cAsym"}
    settings |= {"names": str(folder / "names.tsv"), "drop_labels": [], "minimum_share": 0.1, "file": None}
    settings |= {"unassigned_name": "none"}
    given = ["--settings", json.dumps(settings), "--atlas", str(folder / "atlas")]
    networks.main([*given, "--output", str(folder / "networks.tsv")])


def zeros_as_atlas(folder: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), folder / "zeros.nii.gz")
    atlas_with(folder, image=str(folder / "zeros.nii.gz"))


def bids_filter(content: Any) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        (folder / "filter.json").write_text(json.dumps(content))
        read_bids_filter(str(folder / "filter.json"))

    return read


FIVE = "1\ta\n2\tb\n3\tc\n4\td\n5\te\n"
COMMANDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "two files for one recording": (two_resolutions, "expected one file for sub-01_task-rest, found 2: .*res-1.*res-2"),
    "participant label with shell characters": (shell_characters, "expected participant folders named sub-<letters"),
    "participant who is not there": (unknown_participant, "key 'include': expected participants of .* found 77"),
    "participant twice in the table": (twice_in_the_table, "expected one row per participant, found several for 01"),
    "table without a named column": (missing_column, "expected the columns 'site', found participant_id"),
    "no data folder": (listed, "key 'source.path': expected a folder of fMRIPrep derivatives, found nothing"),
    "HDF5 file that is none": (not_hdf5, "expected an HDF5 file"),
    "HDF5 without the dataset": (lambda f: hdf5(f, datasets=["x"]), "expected the dataset 'x', found id, ts"),
    "the same recording twice in an HDF5 file": (
        hdf5,
        "expected an id of its own .* found '01' and '01'",
    ),
    "nothing usable at all": (nothing_usable, "none of 1 recordings can be used: fMRIPrep wrote no desc-preproc_bold"),
    "label table with a gap": (lambda f: atlas_with(f, FIVE.replace("5\te", "7\te")), "found 1 to 7 without 5"),
    "label table with an index twice": (lambda f: atlas_with(f, FIVE.replace("5\te", "4\te")), "found 4 twice"),
    "label table with a name twice": (lambda f: atlas_with(f, FIVE.replace("5\te", "5\ta")), "found a twice"),
    "label table with the background": (
        lambda f: atlas_with(f, "0\tUnknown\n" + FIVE),
        "found 'Unknown' with index 0, which is the background; delete that row",
    ),
    "atlas without a label": (zeros_as_atlas, "zeros.nii.gz: expected labels, found no voxel above 0"),
    "BIDS filter that is a list": (bids_filter([{"bold": {}}]), "filter.json: expected queries with entities as in"),
    "BIDS filter without entities": (bids_filter({"bold": "rest"}), "expected queries .* found {'bold': 'rest'}"),
    "atlas with labels beyond the table": (
        lambda f: atlas_with(f, FIVE.replace("5\te\n", "")),
        r"expected only labels of the table \(1 to 4\), found 5; .*drop_labels",
    ),
    "table with labels beyond the atlas": (lambda f: atlas_with(f, FIVE + "6\tf\n"), "found none for 6"),
    "atlas of probabilities": (probabilities_as_atlas, "is it a probability map"),
    "atlas that is not there": (lambda f: atlas_with(f, image="gone.nii.gz"), "gone.nii.gz: .* found no file"),
    "networks in another space": (networks_of_another_space, "spaces are not converted silently"),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_what_concerns_everybody_is_one_message_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    command, message = COMMANDS[kind]
    with pytest.raises(SystemExit) as ended:
        run_command(lambda _: command(tmp_path))
    assert ended.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert re.search(message, told)


# --- disk full ---


def test_a_full_disk_is_one_message_and_leaves_no_half_file(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the same error reaches the program."""
    rows = [synthetic.index_row("sub-01", bold_path="gone")] * 2000
    table = synthetic.write_index(
        tmp_path / "index.parquet", [row | {"recording_id": str(i)} for i, row in enumerate(rows)]
    )
    output = tmp_path / "joined.parquet"
    command = [sys.executable, "-m", "semantoks.index", "--settings", '{"name": "boxes"}', "--join", str(table)]
    output.write_bytes(b"what was there before")
    ended = subprocess.run(
        [*command, "--output", str(output)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow"), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: {output}: expected to write it, found ")
    assert "free some space" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert output.read_bytes() == b"what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.parquet", "joined.parquet"]


def test_a_disk_that_is_really_full_is_one_message(small_disk: Path, tmp_path: Path) -> None:
    names = np.random.default_rng(0).integers(10**15, size=100_000).astype(str)
    rows = [synthetic.index_row(f"sub-{name}", bold_path=f"{name}.nii.gz") for name in names]
    table = synthetic.write_index(tmp_path / "index.parquet", rows)
    output = small_disk / "joined.parquet"
    output.write_bytes(b"what was there before")
    given = ["--settings", '{"name": "boxes"}', "--join", str(table), "--output", str(output)]
    ended = run_without_privileges("index", *given)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: {output}: "), ended.stderr
    assert "free some" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert output.read_bytes() == b"what was there before"
    assert [path.name for path in small_disk.iterdir()] == ["joined.parquet"]
