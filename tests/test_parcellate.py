"""Parcellation: planted series come back by name, nilearn agrees, and what is broken becomes a reason."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import synthetic_images as synthetic
from nilearn.image import resample_to_img
from nilearn.maskers import NiftiLabelsMasker
from nilearn.masking import compute_epi_mask
from parcellate_cases import SETTINGS
from scipy.signal import detrend
from semantoks import parcellate
from semantoks.atlas import AtlasSettings, make_atlas, write_atlas
from semantoks.confounds import read_confounds
from semantoks.denoise import design, load_strategy
from semantoks.errors import UserError
from semantoks.files import read_metadata, read_table, write_json
from semantoks.parcel_means import open_bold, parcel_means, voxels_of_parcels
from synthetic_images import INDEX, N_VOLUMES, NAMES, SHAPE, TR


def run(row: dict[str, Any], atlas: Path, **changes: Any) -> dict[str, Any]:
    """One recording, its bold as [ROI, time]."""
    settings = parcellate.ParcellateSettings(**(SETTINGS | changes))
    strategy = load_strategy(settings.denoising)
    result = parcellate.parcellate_recording(row, parcellate.AtlasFiles.read(atlas), strategy, settings)
    return result | {"bold": result["bold"].reshape(len(NAMES), -1)}


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])


def test_planted_series_come_back_under_their_names(random: np.random.Generator, atlas: Path, tmp_path: Path) -> None:
    series = synthetic.planted_series(random)
    row = synthetic.write_recording(tmp_path, "sub-01", synthetic.bold_image(series, random), None)
    result = run(row, atlas, band_pass=None, detrend=False)
    np.testing.assert_allclose(result["bold"], series, rtol=1e-6)
    assert result["coverage"].tolist() == [1] * 5
    assert result["mask_computed"] is False


@pytest.mark.parametrize("flipped", ["bold", "atlas", "both"])
def test_images_stored_las_and_ras_give_the_same_series(
    random: np.random.Generator, tmp_path: Path, flipped: str
) -> None:
    series = synthetic.planted_series(random)
    image = synthetic.bold_image(series, random)
    atlas = synthetic.atlas_folder(tmp_path / "atlas")
    if flipped != "atlas":
        image = nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1], synthetic.affine(flip=True))
    if flipped != "bold":
        las = nibabel.Nifti1Image(synthetic.atlas_labels()[::-1].astype(np.int16), synthetic.affine(flip=True))
        nibabel.save(las, atlas / "atlas.nii.gz")
    row = synthetic.write_recording(tmp_path, "sub-01", image, None)
    np.testing.assert_allclose(run(row, atlas, band_pass=None, detrend=False)["bold"], series, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
@pytest.mark.parametrize("denoising", ["24P+acompcor", "36P", "36P+scrubbing"])
def test_equals_nilearn_masker_with_the_same_cleaning(
    random: np.random.Generator, atlas: Path, tmp_path: Path, dtype: Any, denoising: str
) -> None:
    image = synthetic.bold_image(synthetic.planted_series(random), random, noise=30, dtype=dtype)
    image.header.set_slope_inter(0.5, 3)
    confounds = synthetic.confounds_table(random, n_non_steady=2)
    confounds.loc[[30, 31, 90, 150], "framewise_displacement"] = 3.0
    mask = np.ones(SHAPE, dtype=bool)
    mask[:3] = False
    row = synthetic.write_recording(tmp_path, "sub-01", image, confounds, mask)
    ours = run(row, atlas, denoising=denoising)
    table = read_confounds(row["confounds_path"])
    regressors = design(table, load_strategy(denoising), {}).to_numpy()
    masker = NiftiLabelsMasker(
        atlas / "atlas.nii.gz",
        mask_img=row["mask_path"],
        t_r=TR,
        low_pass=0.1,
        high_pass=0.01,
        detrend=True,
        standardize=None,
        standardize_confounds=True,
        verbose=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steady = nibabel.load(row["bold_path"]).slicer[..., 2:]
        kept = np.flatnonzero(ours["kept"])
        theirs = masker.fit_transform(steady, confounds=regressors[2:], sample_mask=kept).T
    theirs = dict(zip([i for i in masker.labels_ if i != "Background" and i != 0], theirs, strict=True))
    expected = np.array([theirs[index] for index in INDEX])
    assert ours["n_frames"] == N_VOLUMES - 2
    assert (len(kept) < N_VOLUMES - 2) == ("scrubbing" in denoising)
    assert np.abs(ours["bold"][:, kept] - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [">i2", "<i2", "u1", ">f4", "<f8", "<i4"])
@pytest.mark.parametrize("slope", [1.0, -0.25])
def test_means_and_tsnr_equal_plain_numpy_for_every_kind_of_number(
    random: np.random.Generator, tmp_path: Path, dtype: str, slope: float
) -> None:
    stored = random.uniform(60, 200, size=(*SHAPE, 20)).astype(dtype)
    header = nibabel.Nifti1Header(endianness=np.dtype(dtype).byteorder.replace("=", "<").replace("|", "<"))
    header.set_data_shape(stored.shape)
    header.set_data_dtype(dtype)
    header.set_slope_inter(slope, 7)
    content = header.binaryblock.ljust(352, b"\0") + stored.tobytes(order="F")
    content = content[:108] + np.array([352], header.endianness + "f4").tobytes() + content[112:]
    (tmp_path / "bold.nii").write_bytes(content)
    labels = synthetic.atlas_labels()
    voxels = voxels_of_parcels(labels, np.array(INDEX))
    found = parcel_means(open_bold(tmp_path / "bold.nii"), voxels, np.ones(SHAPE, dtype=bool), first=2)
    values = stored.astype(np.float64)[..., 2:] * slope + 7
    assert np.asarray(nibabel.load(tmp_path / "bold.nii").dataobj)[..., 2:] == pytest.approx(values)
    for position, index in enumerate(INDEX):
        inside = values[labels == index]
        np.testing.assert_allclose(found.means[position], inside.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(found.tsnr[position], (inside.mean(1) / inside.std(1)).mean(), rtol=1e-4)


def test_labels_are_matched_by_value_when_a_mask_empties_one(
    random: np.random.Generator, atlas: Path, tmp_path: Path
) -> None:
    series = synthetic.planted_series(random)
    mask = synthetic.atlas_labels() != INDEX[1]
    row = synthetic.write_recording(tmp_path, "sub-01", synthetic.bold_image(series, random), None, mask)
    result = run(row, atlas, band_pass=None, detrend=False)
    assert np.isnan(result["bold"][1]).all()
    assert result["coverage"].tolist() == [1, 0, 1, 1, 1]
    np.testing.assert_allclose(result["bold"][[0, 2, 3, 4]], series[[0, 2, 3, 4]], rtol=1e-6)


def test_coverage_counts_mask_constant_and_broken_voxels_and_half_is_enough(
    random: np.random.Generator, atlas: Path, tmp_path: Path
) -> None:
    series = synthetic.planted_series(random)
    image = synthetic.bold_image(series, random)
    data = np.array(image.dataobj)
    labels = synthetic.atlas_labels()
    voxels = [np.argwhere(labels == index) for index in INDEX]
    mask = np.ones(SHAPE, dtype=bool)
    mask[tuple(voxels[0][:32].T)] = False  # 32 of 64 outside the mask: half
    data[tuple(voxels[1][:33].T)] = 0.0  # 33 of 64 constant: less than half
    data[(*tuple(voxels[2][0]), 100)] = np.nan  # one voxel with one NaN
    row = synthetic.write_recording(tmp_path, "sub-01", nibabel.Nifti1Image(data, image.affine), None, mask)
    result = run(row, atlas, band_pass=None, detrend=False)
    np.testing.assert_allclose(result["coverage"], [0.5, 31 / 64, 35 / 36, 1, 1])
    assert np.isnan(result["bold"]).all(axis=1).tolist() == [False, True, False, False, False]
    np.testing.assert_allclose(result["bold"][[0, 2, 3, 4]], series[[0, 2, 3, 4]], rtol=1e-6)


def test_tsnr_is_mean_over_deviation_per_voxel(random: np.random.Generator, atlas: Path) -> None:
    series = np.full((5, N_VOLUMES), 1000.0)
    image = synthetic.bold_image(series, random, noise=20)
    path = atlas / "bold.nii.gz"
    nibabel.save(image, path)
    labels = synthetic.atlas_labels()
    parcels = parcel_means(
        open_bold(path), voxels_of_parcels(labels, np.array(INDEX)), np.ones(SHAPE, dtype=bool), first=3
    )
    data = np.asarray(image.dataobj)[..., 3:]
    expected = [(data.mean(-1) / data.std(-1))[labels == index].mean() for index in INDEX]
    np.testing.assert_allclose(parcels.tsnr, expected, rtol=1e-4)


def test_a_grid_that_does_not_match_is_reached_by_nearest_neighbour_and_the_loss_reported(
    random: np.random.Generator, atlas: Path, tmp_path: Path
) -> None:
    series = synthetic.planted_series(random)
    image = synthetic.bold_image(series, random)
    grid = nibabel.Nifti1Image(np.zeros((19, 20, 30)), np.diag([2.5, 2.6, 1.9, 1.0]))
    grid.affine[:3, 3] = [-22.3, -27.1, -18.9]
    moved = resample_to_img(image, grid, interpolation="nearest", force_resample=True, copy_header=True)
    row = synthetic.write_recording(tmp_path, "sub-01", moved, None)
    result = run(row, atlas, band_pass=None, detrend=False)
    np.testing.assert_allclose(result["bold"], series, rtol=1e-6)
    labels = nibabel.load(atlas / "atlas.nii.gz")
    theirs = resample_to_img(labels, grid, interpolation="nearest", force_resample=True, copy_header=True)
    after = np.bincount(np.asarray(theirs.dataobj).astype(int).ravel())[INDEX] * abs(np.linalg.det(grid.affine[:3, :3]))
    before = np.bincount(synthetic.atlas_labels().ravel())[INDEX] * 4.0**3
    np.testing.assert_allclose(result["regridded_volume"], after / before)


def test_voxels_that_are_not_finite_lower_the_coverage_and_a_volume_of_them_is_refused(
    random: np.random.Generator, atlas: Path, tmp_path: Path
) -> None:
    series = synthetic.planted_series(random)
    data = np.array(synthetic.bold_image(series, random).dataobj)
    labels = synthetic.atlas_labels()
    for index in INDEX:  # in every parcel, some always and one in one volume only
        voxels = np.argwhere(labels == index)
        data[tuple(voxels[: len(voxels) // 4].T)] = np.nan
        data[(*tuple(voxels[-1]), 7)] = np.inf
    data[labels == 0] = np.nan  # of no account
    row = synthetic.write_recording(tmp_path, "sub-01", nibabel.Nifti1Image(data, synthetic.affine()), None)
    result = run(row, atlas, band_pass=None, detrend=False)
    np.testing.assert_allclose(result["bold"], series, rtol=1e-6)
    counts = np.bincount(labels.ravel())[INDEX]
    np.testing.assert_allclose(result["coverage"], 1 - (counts // 4 + 1) / counts)
    labelled = np.argwhere(labels > 0)
    data[(*labelled[: len(labelled) // 4].T, 100)] = np.nan
    data[(*labelled[len(labelled) // 4 : len(labelled) // 2].T, 120)] = np.nan
    data[(*labelled[::2].T, 150)] = np.nan
    row = synthetic.write_recording(tmp_path, "sub-02", nibabel.Nifti1Image(data, synthetic.affine()), None)
    with pytest.raises(UserError, match=r"NaN or infinity in volume 151: in 6\d% of the atlas's voxels"):
        run(row, atlas, minimum_coverage=0.1)
    data[..., 150] = data[..., 149]  # most voxels are not finite at some time, but at no time most
    row = synthetic.write_recording(tmp_path, "sub-03", nibabel.Nifti1Image(data, synthetic.affine()), None)
    assert min(run(row, atlas, minimum_coverage=0.1, band_pass=None)["coverage"]) < 0.5


def test_a_parcel_cut_by_the_field_of_view_loses_coverage(
    random: np.random.Generator, atlas: Path, tmp_path: Path
) -> None:
    series = synthetic.planted_series(random)
    image = synthetic.bold_image(series, random)
    cut = nibabel.Nifti1Image(
        np.asarray(image.dataobj)[:, 4:], image.affine @ nibabel.affines.from_matvec(np.eye(3), [0, 4, 0])
    )
    result = run(synthetic.write_recording(tmp_path, "sub-01", cut, None), atlas, band_pass=None, detrend=False)
    cut_away = {1: 1 / 4, 3: 1 / 4, 2: 1.0, 4: 1.0, 5: 1.0}  # boxes 1 and 3 start at y = 1, the image at 4
    np.testing.assert_allclose(result["coverage"], [cut_away[index] for index in INDEX])
    assert np.isnan(result["bold"][INDEX.index(1)]).all()


def test_censored_volumes_are_interpolated_and_the_time_axis_keeps_its_length(
    random: np.random.Generator, atlas: Path, tmp_path: Path
) -> None:
    series = synthetic.planted_series(random)
    confounds = synthetic.confounds_table(random, n_non_steady=4)
    confounds["framewise_displacement"] = 0.1
    confounds.loc[[2, 50, 51, 90, 93], "framewise_displacement"] = 0.9
    confounds.loc[0, "framewise_displacement"] = np.nan
    spiked = series.copy()
    spiked[:, [50, 51, 90, 91, 92, 93]] += 500
    strategy = tmp_path / "scrubbing.yaml"
    strategy.write_text(
        "name: scrubbing\ndescription: censor only\ncensoring: {framewise_displacement: 0.5, minimum_segment: 5}\n"
    )
    clean = synthetic.write_recording(tmp_path, "sub-01", synthetic.bold_image(series, random), confounds)
    spoilt = synthetic.write_recording(tmp_path, "sub-02", synthetic.bold_image(spiked, random), confounds)
    result = run(spoilt, atlas, denoising=str(strategy))
    assert result["n_frames"] == N_VOLUMES - 4
    assert np.flatnonzero(~result["kept"]).tolist() == [46, 47, 86, 87, 88, 89]
    assert result["longest_gap"] == 4 * TR
    assert result["share_censored"] == pytest.approx(6 / 196)
    assert result["minutes_kept"] == pytest.approx(190 * TR / 60)
    assert result["mean_fd"] == pytest.approx((192 * 0.1 + 4 * 0.9) / 196)
    assert result["mean_fd_rate"] == pytest.approx(result["mean_fd"] / TR)
    np.testing.assert_allclose(result["bold"], run(clean, atlas, denoising=str(strategy))["bold"], atol=1e-3)


def test_motion_in_the_image_is_removed_and_the_signal_stays(
    random: np.random.Generator, atlas: Path, tmp_path: Path
) -> None:
    series = synthetic.planted_series(random)
    confounds = synthetic.confounds_table(random)
    artefact = 300 * (confounds["trans_x"] - confounds["trans_x"].mean()).to_numpy() + np.linspace(0, 80, N_VOLUMES)
    row = synthetic.write_recording(tmp_path, "sub-01", synthetic.bold_image(series + artefact, random), confounds)
    reference = synthetic.write_recording(tmp_path, "sub-02", synthetic.bold_image(series, random), confounds)
    dirty, cleaned = run(row, atlas)["bold"], run(row, atlas, denoising="24P")["bold"]
    wanted, kept = run(reference, atlas)["bold"], run(reference, atlas, denoising="24P")["bold"]
    assert np.var(dirty - wanted) > 10 * np.var(cleaned - kept)
    # a constant may stay, as in nilearn: z-scoring takes it away
    np.testing.assert_allclose(
        detrend(cleaned, type="constant"), detrend(kept, type="constant"), atol=1e-4 * wanted.std()
    )


def test_the_overlap_of_mask_and_template_is_their_dice(
    random: np.random.Generator, atlas: Path, tmp_path: Path
) -> None:
    mask, template = np.zeros((2, *SHAPE), dtype=bool)
    mask[:, :, :8] = template[:, :, 2:] = True
    nibabel.save(nibabel.Nifti1Image(template.astype(np.uint8), synthetic.affine()), tmp_path / "template.nii.gz")
    image = synthetic.bold_image(synthetic.planted_series(random), random)
    row = synthetic.write_recording(tmp_path, "sub-01", image, None, mask)
    assert run(row, atlas, template_mask=str(tmp_path / "template.nii.gz"))["mask_dice"] == pytest.approx(12 / 16)
    assert run(row, atlas)["mask_dice"] is None


@pytest.mark.parametrize("present", [True, False])
def test_the_template_of_the_atlas_is_compared_where_there_is_one(
    random: np.random.Generator, atlas: Path, tmp_path: Path, present: bool
) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, dtype=np.uint8), synthetic.affine()), tmp_path / "mask.nii.gz")
    told = {"path": str(tmp_path / "mask.nii.gz") if present else None, "note": None if present else "no network"}
    write_json(atlas / "template_mask.json", told)
    image = synthetic.bold_image(synthetic.planted_series(random), random)
    index = synthetic.write_index(tmp_path / "index.parquet", [synthetic.write_recording(tmp_path, "a", image, None)])
    arguments = ["--settings", json.dumps(SETTINGS | {"template_mask": "templateflow"}), "--index", str(index)]
    arguments += ["--batch", "batch-0001", "--atlas", str(atlas), "--output", str(tmp_path / "out.parquet")]
    parcellate.main(arguments)
    table, metadata = read_table(tmp_path / "out.parquet"), read_metadata(tmp_path / "out.parquet")
    assert table["exclude_reason"].isna().all()
    assert table["mask_dice"].tolist() == [1.0] if present else table["mask_dice"].isna().all()
    assert metadata["template_mask"] == told


def test_a_missing_mask_is_computed_from_the_mean_image_and_flagged(
    random: np.random.Generator, atlas: Path, tmp_path: Path
) -> None:
    image = synthetic.bold_image(synthetic.planted_series(random), random, noise=5)
    data = np.array(image.dataobj)
    data[[0, -1]] = data[:, [0, -1]] = 0
    row = synthetic.write_recording(tmp_path, "sub-01", nibabel.Nifti1Image(data, image.affine), None)
    assert run(row | {"mask_path": None}, atlas, minimum_coverage=0.4)["mask_computed"] is True
    mask, computed = parcellate.read_mask(None, open_bold(row["bold_path"]))
    expected = np.asarray(compute_epi_mask(nibabel.load(row["bold_path"])).dataobj) > 0
    assert computed
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(mask, expected)


# --- the real atlas ------------------------------------------------------------------------------------------------


def real_grid(shared: Path, space: str, flipped: bool) -> tuple[tuple[int, ...], np.ndarray]:
    """A grid not the atlas's, RAS or LAS: a real brain mask of fMRIPrep 1.0, or for NLin6 an oblique box off ties."""
    if space == "MNI152NLin2009cAsym":
        image = nibabel.load(next((shared / "data" / "fmriprep_pieces").rglob("*brain_mask.nii.gz")))
        assert image.shape == (97, 115, 98)
        shape, affine = image.shape, image.affine.copy()
    else:
        shape, affine = (70, 84, 68), nibabel.affines.from_matvec(np.diag([2.5, 2.5, 2.5]), [-86.13, -121.37, -70.23])
        affine[0, 1] = 0.05
    if flipped:
        affine = affine @ nibabel.affines.from_matvec(np.diag([-1, 1, 1]), [shape[0] - 1, 0, 0])
    return shape, affine


@pytest.mark.parametrize("space", ["MNI152NLin6Asym", "MNI152NLin2009cAsym"])
@pytest.mark.parametrize("flipped", [False, True])
def test_values_planted_in_named_parcels_of_the_real_atlas_come_back(
    shared: Path, tmp_path: Path, space: str, flipped: bool
) -> None:
    sources = str(shared / "data" / "atlases")
    settings = AtlasSettings("schaefer400-tian3-buckner7", space, sources, 2, None, None, [], [])
    made = make_atlas(settings)
    write_atlas(made, settings, tmp_path / "atlas")
    shape, affine = real_grid(shared, space, flipped)
    grid = nibabel.Nifti1Image(np.zeros(shape, dtype=np.int16), affine)
    labels = nibabel.load(tmp_path / "atlas" / "atlas.nii.gz")
    moved = resample_to_img(labels, grid, interpolation="nearest", force_resample=True, copy_header=True)
    moved = np.asarray(moved.dataobj).astype(np.int16)
    # the value of a parcel is its label, and in the last volume 1000 more on the left, 2000 more on the right
    side = made.table["name"].str.extract("(?P<left>_LH_|-lh$)|(?P<right>_RH_|-rh$)").notna()
    added = np.concatenate([[0], 1000 * side["left"] + 2000 * side["right"]]).astype(np.int16)
    data = np.stack([moved, moved, moved + added[moved]], axis=-1)
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "bold.nii.gz")
    index = np.arange(1, 458)
    on_image, _, volume = parcellate.atlas_on_grid(tmp_path / "atlas", shape, tuple(affine.ravel()), tuple(index))
    parcels = parcel_means(open_bold(tmp_path / "bold.nii.gz"), on_image, np.ones(shape, dtype=bool))
    assert (side.sum().tolist(), side.any(axis=1).sum()) == ([225, 225], 450), "cerebellar networks have no side"
    expected = index[:, None] + np.array([0, 0, 1]) * added[1:, None]
    there = np.bincount(moved.ravel(), minlength=458)[1:] > 0
    assert there[:450].all()
    np.testing.assert_allclose(parcels.means[:450], expected[:450])
    assert np.isnan(parcels.means[450:]).all(), "constant: without data"
    assert volume is not None
    assert np.nanmedian(volume) == pytest.approx(1, abs=0.02)


# --- what cannot be used -------------------------------------------------------------------------------------------
