"""Everything that can be wrong with a user's data, as tables: what is broken, and what the user is told.

Recordings are spoilt each in its own way inside one batch, which goes through the real command once: each must become
a row with its reason, and the healthy ones among them must come out as if they were alone.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import synthetic_images as synthetic
from bids_trees import cohort, derivative
from conftest import run_without_privileges
from semantoks.batches import update_batches
from semantoks.files import read_table
from synthetic_images import SHAPE
from test_bad_settings import COMMANDS

Row = dict[str, Any]


# --- recordings whose images, masks or confounds are broken: the stage parcellate ---


def truncated(row: Row) -> Row:
    path = Path(row["bold_path"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return row


def corrupted(row: Row) -> Row:
    path = Path(row["bold_path"])
    content = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(content)))
    packed[-8:-4] = b"\0\0\0\0"
    path.write_bytes(bytes(packed))
    return row


def damaged_inside(row: Row) -> Row:
    path = Path(row["bold_path"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(bytes(content))
    return row


def short_uncompressed(row: Row) -> Row:
    content = gzip.decompress(Path(row["bold_path"]).read_bytes())
    path = Path(row["bold_path"]).with_suffix("")
    path.write_bytes(content[: len(content) // 2])
    return row | {"bold_path": str(path)}


def rewritten(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Row], Row]:
    def spoil(row: Row) -> Row:
        image = nibabel.load(row["bold_path"])
        nibabel.save(nibabel.Nifti1Image(change(np.asarray(image.dataobj).copy()), image.affine), row["bold_path"])
        return row

    return spoil


def in_colour(row: Row) -> Row:
    colours = np.zeros((*SHAPE, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, synthetic.affine()), row["bold_path"])
    return row


def without_permission(name: str) -> Callable[[Row], Row]:
    def spoil(row: Row) -> Row:
        Path(row[name]).chmod(0)
        return row

    return spoil


def not_an_image(row: Row) -> Row:
    Path(row["bold_path"]).write_text("/annex/objects/SHA256E-s100--abc.nii.gz")
    return row


def nan_volume(data: np.ndarray) -> np.ndarray:
    data[..., 36] = np.nan
    return data


def link_to_nothing(row: Row) -> Row:
    Path(row["bold_path"]).unlink()
    Path(row["bold_path"]).symlink_to("nowhere.nii.gz")
    return row


def with_mask(values: np.ndarray) -> Callable[[Row], Row]:
    def spoil(row: Row) -> Row:
        nibabel.save(nibabel.Nifti1Image(values.astype(np.uint8), synthetic.affine()), row["mask_path"])
        return row

    return spoil


def with_confounds(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Row], Row]:
    def spoil(row: Row) -> Row:
        table = pd.read_csv(row["confounds_path"], sep="\t", na_values="n/a")
        synthetic.write_confounds(Path(row["confounds_path"]), change(table))
        return row

    return spoil


def missing_in_row_57(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[56, "rot_y"] = np.nan
    return table


def marked_late(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(non_steady_state_outlier00=(table.index == 9).astype(float))


def in_row_57(column: str, value: str) -> Callable[[Row], Row]:
    def spoil(row: Row) -> Row:
        table = pd.read_csv(row["confounds_path"], sep="\t", dtype=str, keep_default_na=False)
        table.loc[56, column] = value
        table.to_csv(row["confounds_path"], sep="\t", index=False)
        return row

    return spoil


def with_a_field_too_many(row: Row) -> Row:
    path = Path(row["confounds_path"])
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *(f"{number}\t{line}" for number, line in enumerate(lines))]))
    return row


def with_sidecar(content: Any) -> Callable[[Row], Row]:
    def spoil(row: Row) -> Row:
        Path(row["confounds_path"]).with_suffix(".json").write_text(json.dumps(content))
        return row

    return spoil


def mask_of_unknown_type(row: Row) -> Row:
    path = Path(row["mask_path"])
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[70:72] = (9999).to_bytes(2, "little")  # field datatype of NIfTI-1
    path.write_bytes(gzip.compress(bytes(content)))
    return row


def mask_on_a_plane(row: Row) -> Row:
    affine = synthetic.affine()
    affine[:3, 2] = 0
    mask = nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), None)
    mask.header.set_sform(affine, code=1)
    nibabel.save(mask, row["mask_path"])
    return row


RECORDINGS = {
    "no file": (lambda row: row | {"bold_path": "gone_bold.nii.gz"}, "gone_bold.nii.gz.*found no file"),
    "link to nothing": (link_to_nothing, "found a link to nothing"),
    "annex pointer": (not_an_image, "found something unreadable"),
    "truncated gz": (truncated, "found a damaged file|found [0-9]+"),
    "damaged compression": (damaged_inside, "found a damaged file|found something unreadable"),
    "wrong gz checksum": (corrupted, "found a damaged file"),
    "truncated nii": (short_uncompressed, "expected 200 volumes, found [0-9]+"),
    "3D image": (rewritten(lambda data: data[..., 0]), "expected a 4D image, found 3D"),
    "one volume": (rewritten(lambda data: data[..., :1]), "expected a time series, found 1 volume"),
    "colour image": (in_colour, "expected real numbers, found "),
    "image without permission": (without_permission("bold_path"), "found something unreadable .Could not read file"),
    "mask without permission": (without_permission("mask_path"), "found something unreadable .Could not read file"),
    "confounds without permission": (without_permission("confounds_path"), "Permission denied"),
    "complex numbers": (rewritten(lambda data: data.astype(np.complex64)), "expected real numbers, found .*complex64"),
    "NaN volume": (rewritten(nan_volume), "NaN or infinity in volume 37"),
    "constant image": (rewritten(lambda data: np.full_like(data, 7)), "no parcel with data"),
    "other space": (lambda row: row | {"space": "MNI152NLin2009cAsym"}, "space MNI152NLin2009cAsym, the atlas"),
    "no space": (lambda row: row | {"space": None}, "in space None"),
    "mask of another grid": (with_mask(np.ones((5, 5, 5))), "expected the grid of the image"),
    "empty mask": (with_mask(np.zeros(SHAPE)), "found no voxel in it"),
    "mask of probabilities": (
        lambda row: row | {"mask_path": row["bold_path"]},
        "expected a 3D label image, found 4 dimensions",
    ),
    "no confounds": (lambda row: row | {"confounds_path": None}, "no confounds file"),
    "confounds gone": (lambda row: row | {"confounds_path": "gone.tsv"}, "gone.tsv: expected a table"),
    "other rows": (with_confounds(lambda table: table.iloc[:-5]), "expected 200 rows, one per volume, found 195"),
    "n/a in the wrong place": (with_confounds(missing_in_row_57), "'rot_y'.*row 57"),
    "n/a among displacements": (in_row_57("framewise_displacement", "n/a"), "'framewise_displacement'.*row 57"),
    "text in a column of numbers": (in_row_57("trans_x", "bad"), "'trans_x': expected numbers, found 'bad' in row 57"),
    "a field too many": (with_a_field_too_many, "expected as many fields in a row as the header has"),
    "sidecar that is a list": (with_sidecar(["w_comp_cor_00"]), "expected a JSON object that describes columns"),
    "sidecar without objects": (with_sidecar({"w_comp_cor_00": "WM"}), "expected a JSON object that describes columns"),
    "mask of an unknown type": (mask_of_unknown_type, "expected a NIfTI label image, found something unreadable"),
    "mask on a plane": (mask_on_a_plane, "expected an affine that leads from voxels to mm"),
    "no motion columns": (with_confounds(lambda table: table.drop(columns="trans_z")), "'trans_z', found none"),
    "no aCompCor": (
        with_confounds(lambda table: table.filter(regex="^(?!w_comp)")),
        "aCompCor components of white_matter, found 0",
    ),
    "no cosines": (with_confounds(lambda table: table.filter(regex="^(?!cosine)")), "expected cosine columns"),
    "steady state later": (with_confounds(marked_late), "expected the first volumes to be marked"),
    "all censored": (
        with_confounds(lambda table: table.assign(framewise_displacement=2.0)),
        "every volume is censored",
    ),
    "TR too long for the band": (lambda row: row | {"tr": 6.0}, "Nyquist"),
    "too few degrees of freedom": (lambda row: row | {"tr": 0.5}, "degrees of freedom -.* below 10: 200 kept"),
}
HEALTHY = ("sub-healthy1", "sub-healthy2")


@pytest.fixture(scope="module")
def parcellated(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """One batch with every kind of broken recording between two healthy ones, through the command."""
    folder = tmp_path_factory.mktemp("broken")
    image = synthetic.bold_image(
        synthetic.planted_series(np.random.default_rng(11)), np.random.default_rng(12), noise=5
    )
    confounds = synthetic.confounds_table(np.random.default_rng(13))
    rows = [synthetic.write_recording(folder, HEALTHY[0], image, confounds)]
    for number, (spoil, _) in enumerate(RECORDINGS.values()):
        rows.append(spoil(synthetic.write_recording(folder, f"sub-{number}", image, confounds)))
    rows.append(synthetic.write_recording(folder, HEALTHY[1], image, confounds))
    settings = {"denoising": "24P+acompcor+scrubbing", "band_pass": [0.01, 0.1], "detrend": True}
    settings |= {"minimum_coverage": 0.5, "minimum_degrees_of_freedom": 10}
    arguments = ["--settings", json.dumps(settings), "--atlas", str(synthetic.atlas_folder(folder / "atlas"))]
    arguments += ["--index", str(synthetic.write_index(folder / "index.parquet", rows)), "--batch", "batch-0001"]
    ended = run_without_privileges("parcellate", *arguments, "--output", folder / "out.parquet", "--workers", "2")
    assert ended.returncode == 0, ended.stderr
    return read_table(folder / "out.parquet").set_index("recording_id")


@pytest.mark.parametrize("kind", RECORDINGS)
def test_a_broken_recording_becomes_its_reason(parcellated: pd.DataFrame, kind: str) -> None:
    row = parcellated.loc[f"sub-{list(RECORDINGS).index(kind)}"]
    assert re.search(RECORDINGS[kind][1], row["exclude_reason"])
    assert row[["bold", "coverage", "kept"]].isna().all(), "no half-made data"


def test_the_recordings_between_broken_ones_survive(parcellated: pd.DataFrame) -> None:
    assert len(parcellated) == len(RECORDINGS) + 2
    healthy = parcellated.loc[list(HEALTHY)]
    assert healthy["exclude_reason"].isna().all()
    np.testing.assert_array_equal(healthy["bold"].iloc[0], healthy["bold"].iloc[1])


# --- recordings that are seen to be unusable before any image is read: the stage index ---


def sidecar_of(image: Path) -> Path:
    return image.with_name(image.name.replace(".nii.gz", ".json"))


def with_tr(tr: Any) -> Callable[[Path], None]:
    return lambda image: sidecar_of(image).write_text(json.dumps({"RepetitionTime": tr})) and None


def with_volume_timing(image: Path) -> None:
    sidecar_of(image).write_text(json.dumps({"VolumeTiming": [0, 10, 20]}))


def without_sidecar_and_tr(image: Path) -> None:
    sidecar_of(image).unlink()
    loaded = nibabel.load(image)
    loaded.header.set_zooms((1, 1, 1, 0))
    nibabel.save(loaded, image)


def without_sidecar_and_unit(image: Path) -> None:
    """As nibabel writes an image when nobody tells it the TR: 1, in no unit."""
    sidecar_of(image).unlink()
    loaded = nibabel.load(image)
    loaded.header.set_zooms((1, 1, 1, 1))
    loaded.header.set_xyzt_units("mm", "unknown")
    nibabel.save(loaded, image)


def as_pointer(image: Path) -> None:
    image.write_text("/annex/objects/SHA256E-s100--abc.nii.gz\n")


def as_link_to_nothing(image: Path) -> None:
    image.unlink()
    image.symlink_to("../../.git/annex/objects/gone.nii.gz")


def flat(image: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), image)


def only_echoes(image: Path) -> None:
    image.rename(image.with_name(image.name.replace("_space", "_echo-1_space")))


def damaged(image: Path) -> None:
    content = bytearray(image.read_bytes())
    content[30:60] = bytes(30)
    image.write_bytes(bytes(content))


def cut_in_header(image: Path) -> None:
    image.write_bytes(gzip.compress(gzip.decompress(image.read_bytes())[:200]))


INDEXED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "TR of zero": (with_tr(0.0), "TR: expected 0.05 to 30 s in the sidecar or header, found 0"),
    "negative TR": (with_tr(-2.0), "TR: expected 0.05 to 30 s .* found -2.0"),
    "TR in milliseconds": (with_tr(2000), "TR: expected 0.05 to 30 s .* found 2000"),
    "no TR anywhere": (without_sidecar_and_tr, "TR: expected 0.05 to 30 s .* found none"),
    "TR of the header without unit": (without_sidecar_and_unit, "TR: expected 0.05 to 30 s .* found none"),
    "TR as text": (with_tr("2.0"), "TR: expected 0.05 to 30 s .* found '2.0'"),
    "TR in a list": (with_tr([2.0]), r"TR: expected 0.05 to 30 s .* found \[2.0\]"),
    "TR that is true": (with_tr(True), "TR: expected 0.05 to 30 s .* found True"),
    "sparse acquisition": (with_volume_timing, r"sparse acquisition \(VolumeTiming\)"),
    "empty image": (lambda image: image.write_bytes(b""), "empty image"),
    "annex pointer": (as_pointer, "unreadable image"),
    "image without permission": (lambda image: image.chmod(0), "unreadable image: .*Permission denied"),
    "sidecar without permission": (
        lambda image: sidecar_of(image).chmod(0),
        "unreadable sidecar of .*: .*Permission denied",
    ),
    "link to nothing": (as_link_to_nothing, "is a link to nothing"),
    "damaged start": (damaged, "unreadable image"),
    "cut inside the header": (cut_in_header, "unreadable image"),
    "broken sidecar": (lambda image: sidecar_of(image).write_text("{"), "unreadable sidecar of sub-.*bold.nii.gz"),
    "3D image": (flat, "expected a 4D image, found 3D"),
    "only single echoes": (only_echoes, "only echo-wise volumes"),
}


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """All kinds in one derivatives folder beside a healthy recording, through the command."""
    folder = tmp_path_factory.mktemp("index")
    for number, (spoil, _) in enumerate(INDEXED.values()):
        spoil(derivative(folder / "data", f"sub-{number:02d}_task-rest"))
    derivative(folder / "data", "sub-99_task-rest")
    settings = cohort({"type": "fmriprep", "path": str(folder / "data")})
    update_batches(settings, folder / "batches", 100)
    output = folder / "index.parquet"
    batch = folder / "batches" / "part-0001.tsv"
    ended = run_without_privileges("index", "--settings", json.dumps(settings), "--batch", batch, "--output", output)
    assert ended.returncode == 0, ended.stderr
    return read_table(output).set_index("participant_id")


@pytest.mark.parametrize("kind", INDEXED)
def test_an_unusable_file_becomes_its_reason(indexed: pd.DataFrame, kind: str) -> None:
    reason = indexed.loc[f"{list(INDEXED).index(kind):02d}", "exclude_reason"]
    assert re.search(INDEXED[kind][1], reason)


def test_the_recording_beside_unusable_ones_is_usable(indexed: pd.DataFrame) -> None:
    assert indexed.loc["99", "exclude_reason"] is None
    assert len(indexed) == len(INDEXED) + 1


def test_the_tables_hold_at_least_thirty_kinds() -> None:
    assert len({*RECORDINGS, *INDEXED, *COMMANDS}) + 1 >= 30
