"""The simulated cohort is what docs/demo.md says: planted in dynamics, not in variance, static FC or motion."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds
from scipy import signal
from semantoks import simulate
from semantoks.errors import UserError
from semantoks.simulation import artefacts, dynamics, participants
from semantoks.simulation.atlas import NETWORKS, PARCELS_LEFT, PARCELS_RIGHT, Atlas, build_atlas
from semantoks.simulation.confounds import confounds_table, cosine_basis
from semantoks.simulation.layout import functional_folder, recording_name
from semantoks.simulation.participants import SITES, Participant, draw_participants, draw_traits
from semantoks.simulation.recording import parcel_positions, simulate_recording
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

N_PARTICIPANTS = 8


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return build_atlas(0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    simulate.simulate_cohort(folder, N_PARTICIPANTS, seed=3, workers=2)
    return folder


def all_traits(people: list[Participant], atlas: Atlas, seed: int = 0) -> list[dynamics.Traits]:
    positions = parcel_positions(atlas)
    return [draw_traits(p, atlas.network_of_parcel, positions, seed) for p in people]


# --- the atlas ------------------------------------------------------------------------------------------------------


def test_parcels_stand_in_the_order_of_the_method_and_are_no_contiguous_blocks(atlas: Atlas) -> None:
    runs = [(name, len(list(group))) for name, group in itertools.groupby(atlas.labels["network"])]
    expected = [*zip(NETWORKS[:7], PARCELS_LEFT, strict=True), *zip(NETWORKS[:7], PARCELS_RIGHT, strict=True)]
    assert runs == [*expected, ("Subcortex", 50), ("Cerebellum", 7)]
    assert atlas.labels["network"].value_counts()[list(NETWORKS)].tolist() == [61, 77, 46, 47, 26, 52, 91, 50, 7]
    assert PARCELS_LEFT == (31, 37, 23, 22, 13, 22, 52)
    assert PARCELS_RIGHT == (30, 40, 23, 25, 13, 30, 39)


def test_every_parcel_has_voxels_in_its_hemisphere_and_names_tell_that_it_is_invented(atlas: Atlas) -> None:
    voxels = np.bincount(atlas.parcels.ravel(), minlength=458)[1:]
    assert len(voxels) == 457
    assert voxels.min() >= 3
    x = np.indices(atlas.parcels.shape)[0] * atlas.affine[0, 0] + atlas.affine[0, 3]
    assert x[(atlas.parcels >= 1) & (atlas.parcels <= 200)].max() < 0
    assert x[(atlas.parcels >= 201) & (atlas.parcels <= 400)].min() > 0
    assert atlas.labels["name"].str.startswith("sim_").all()
    assert atlas.labels["name"].is_unique
    assert atlas.labels["index"].tolist() == list(range(1, 458))


def test_right_cortex_mirrors_left(atlas: Atlas) -> None:
    cortex = (atlas.parcels >= 1) & (atlas.parcels <= 400)
    assert np.array_equal(cortex, cortex[::-1])
    left = atlas.parcels[cortex & (np.arange(cortex.shape[0]) < cortex.shape[0] // 2)[:, None, None]]
    right = atlas.parcels[::-1][cortex & (np.arange(cortex.shape[0]) < cortex.shape[0] // 2)[:, None, None]]
    # one parcel of the left is one parcel of the right
    assert len(set(zip(left.tolist(), right.tolist(), strict=True))) == 200


def test_another_seed_gives_another_atlas(atlas: Atlas) -> None:
    assert not np.array_equal(build_atlas(1).parcels, atlas.parcels)


# --- dynamics -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traits(atlas: Atlas) -> dynamics.Traits:
    person = draw_participants(8, 0)[0]
    return dataclasses.replace(all_traits([person], atlas)[0], propagation=np.linspace(-2, 2, 9))


def test_series_have_the_covariance_that_is_written_down(traits: dynamics.Traits) -> None:
    series = dynamics.parcel_series(traits, 2.5, 8_000, np.random.default_rng(0))[::9]
    expected = dynamics.covariance(traits)[::9, ::9]
    assert np.abs(np.cov(series) - expected).max() < 0.1
    assert np.diag(expected).mean() == pytest.approx(1, abs=0.1)


def test_peak_frequencies_change_no_variance_and_no_covariance_between_networks(traits: dynamics.Traits) -> None:
    faster = dataclasses.replace(traits, peak=traits.peak * 1.3)
    before, after = dynamics.covariance(traits), dynamics.covariance(faster)
    same_network = traits.network[:, None] == traits.network
    assert np.abs(before - after)[~same_network].max() < 1e-12
    assert np.abs(np.diag(before - after)).max() < 1e-12


def test_peak_frequencies_change_no_covariance_within_a_network_without_delays(traits: dynamics.Traits) -> None:
    still = dataclasses.replace(traits, propagation=np.zeros(9))
    faster = dataclasses.replace(still, peak=traits.peak * 1.3)
    assert np.abs(dynamics.covariance(still) - dynamics.covariance(faster)).max() < 1e-12


@pytest.mark.parametrize("change", [0.84, 1.2])
def test_the_usual_filter_passes_slow_and_fast_networks_alike(change: float) -> None:
    frequency = np.linspace(0.001, 0.2, 2000)
    band = signal.butter(5, [0.01, 0.1], "bandpass", fs=1 / 2.5, output="sos")
    gain = np.abs(signal.sosfreqz(band, worN=frequency, fs=1 / 2.5)[1]) ** 4  # forwards and backwards
    passed = dynamics.network_spectra(dynamics.PEAKS * change, frequency) @ gain
    assert np.all(passed > 0.96)
    assert np.all(passed <= 1)


def test_direction_of_propagation_changes_no_covariance(traits: dynamics.Traits) -> None:
    reverse = dataclasses.replace(traits, propagation=-traits.propagation)
    assert np.abs(dynamics.covariance(traits) - dynamics.covariance(reverse)).max() < 1e-12


def test_peaks_and_delays_come_back_from_the_series(traits: dynamics.Traits) -> None:
    tr, n_frames = 2.0, 8_000
    series = dynamics.parcel_series(traits, tr, n_frames, np.random.default_rng(1))
    for number, name in enumerate(NETWORKS):
        members = traits.network == number
        front, back = members & (traits.position > 0.3), members & (traits.position < -0.3)
        frequency, spectrum = signal.csd(series[back].mean(0), series[front].mean(0), 1 / tr, nperseg=512)
        _, own = signal.welch(series[members].mean(0) - series[~members].mean(0), 1 / tr, nperseg=512)
        near = (frequency > 0.02) & (frequency < 0.06)
        assert frequency[near][np.argmax(own[near])] == pytest.approx(traits.peak[number], rel=0.35), name
        lag = -np.angle(spectrum[near]) / (2 * np.pi * frequency[near])
        true = traits.propagation[number] * (traits.position[front].mean() - traits.position[back].mean())
        weight = np.abs(spectrum[near])
        share_own = np.mean(traits.own[members] ** 2) / (np.mean(traits.own[members] ** 2) + 0.2)
        assert np.average(lag, weights=weight) == pytest.approx(true * share_own, abs=0.8), name
        assert np.sign(np.average(lag, weights=weight)) == np.sign(true) or abs(true) < 0.5, name


# --- what phenotypes move, and what they do not ---------------------------------------------------------------------


def found(features: np.ndarray, labels: np.ndarray) -> float:
    """Balanced accuracy of logistic regression, five-fold cross-validation."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return float(balanced_accuracy_score(labels, cross_val_predict(model, features, labels, cv=5)))


def test_phenotypes_are_read_from_the_true_dynamics(atlas: Atlas) -> None:
    people = draw_participants(120, 0)
    traits = all_traits(people, atlas)
    true = np.column_stack([np.log([t.peak for t in traits]), [t.propagation for t in traits]])
    for phenotype in ("diagnosis", "sex", "age"):
        codes = np.array([p.code(phenotype) for p in people])
        assert found(true, codes > 0) > 0.75, phenotype
    nulls = pd.DataFrame([p.null_phenotypes for p in people])
    accuracy = [found(true, nulls[f"null_{i:02d}"] == "high") for i in range(1, 6)]
    assert np.mean(accuracy) == pytest.approx(0.5, abs=0.05)


def test_variance_and_static_fc_differ_between_groups_no_more_than_by_chance(atlas: Atlas) -> None:
    people = draw_participants(96, 0)
    every = slice(None, None, 6)  # 77 of 457 parcels
    lengths, fc, variance = 150, [], []
    low, high = 0.01, 0.1
    band = signal.butter(5, [low, high], "bandpass", fs=1 / 2.5, output="sos")
    for person, traits in zip(people, all_traits(people, atlas), strict=True):
        random = np.random.default_rng([9, person.number])
        series = signal.sosfiltfilt(band, dynamics.parcel_series(traits, 2.5, lengths, random)[every])
        variance.append(np.log(series.var(axis=1)))
        fc.append(np.arctanh(np.corrcoef(series)[np.triu_indices(77, 1)]))
    random = np.random.default_rng(0)
    for name, values in (("variance", np.array(variance)), ("FC", np.array(fc))):
        for phenotype in ("diagnosis", "sex", "age"):
            group = np.array([p.code(phenotype) for p in people]) > 0

            def difference(group: np.ndarray, values: np.ndarray = values) -> float:
                return float(np.mean((values[group].mean(0) - values[~group].mean(0)) ** 2))

            null = [difference(random.permutation(group)) for _ in range(200)]
            p_value = (1 + sum(value >= difference(group) for value in null)) / 201
            assert p_value > 0.05, (name, phenotype, p_value)


def test_diagnosis_goes_with_motion_at_one_site_only() -> None:
    people = draw_participants(1200, 0)
    table = pd.DataFrame(
        {"site": p.site.name, "motion": p.motion, "patient": p.code("diagnosis") > 0, "man": p.code("sex") > 0}
        for p in people
    )
    for name, site in table.groupby("site"):
        auc = roc_auc_score(site["patient"], site["motion"])
        assert auc > 0.85 if name == "west" else abs(auc - 0.5) < 0.07, name
        assert roc_auc_score(site["man"], site["motion"]) == pytest.approx(0.5, abs=0.09)


def test_larger_cohort_keeps_sites_balanced_and_has_all_kinds_of_recordings() -> None:
    people = draw_participants(60, 1)
    shares = pd.Series([p.site.name for p in people]).value_counts(normalize=True)
    for site in SITES:
        assert shares[site.name] == pytest.approx(site.share, abs=0.03)
        classes = pd.Series([(p.diagnosis, p.sex) for p in people if p.site is site]).value_counts()
        assert classes.max() - classes.min() <= 1
    kinds = {(bool(s), bool(r), len(p.recordings)) for p in people for s, r in p.recordings}
    assert kinds == {(False, False, 1), (False, True, 2), (True, False, 1), (True, False, 2)}
    assert sum(p.heavy_motion is not None for p in people) == 1
    assert len({p.family for p in people}) == 54


# --- artefacts and confounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tr", [0.8, 2.5])
def test_motion_has_the_displacement_asked_for(tr: float) -> None:
    motion = artefacts.draw_motion(0.2, tr, 200, np.random.default_rng(0))
    step = np.diff(motion, axis=0)
    power_2012 = np.abs(step[:, :3]).sum(axis=1) + 50 * np.abs(step[:, 3:]).sum(axis=1)
    assert power_2012.mean() == pytest.approx(0.2)
    assert np.isnan(artefacts.framewise_displacement(motion)[0])
    np.testing.assert_allclose(artefacts.framewise_displacement(motion)[1:], power_2012)


def residual(values: np.ndarray, design: np.ndarray) -> np.ndarray:
    design = np.column_stack([np.ones(len(design)), design])
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


@pytest.mark.parametrize("place", [0, 1])
def test_artefacts_share_of_variance_falls_tenfold_when_the_confounds_are_regressed(atlas: Atlas, place: int) -> None:
    person = draw_participants(8, 0)[place]
    recording = simulate_recording(atlas, person, 0, seed=0)
    in_brain = recording.mask[atlas.brain]
    unsteady = int(np.count_nonzero(recording.artefacts.saturation))
    table, _ = confounds_table(
        recording.bold[:, in_brain], atlas.tissue[recording.mask], recording.artefacts.motion, person.site.tr, unsteady
    )
    design = table.filter(regex=r"^(trans|rot)_|^cosine|^[cw]_comp_cor_0[0-4]$").fillna(0).to_numpy()[unsteady:]
    parcel = atlas.parcels[atlas.brain][in_brain]
    artefact = parcel_means(recording.artefacts.signal()[:, in_brain], parcel)[unsteady:]
    mean = recording.bold[:, in_brain][unsteady:].mean(axis=0)
    total = parcel_means(recording.bold[:, in_brain] / mean, parcel)[unsteady:]
    share = np.median(artefact.var(axis=0) / total.var(axis=0))
    left = np.median(residual(artefact, design).var(axis=0) / residual(total, design).var(axis=0))
    assert share > 0.3
    assert 0.001 < left < share / 10


def parcel_means(values: np.ndarray, parcel: np.ndarray) -> np.ndarray:
    present = np.unique(parcel[parcel > 0])
    return np.stack([values[:, parcel == index].mean(axis=1) for index in present], axis=1)


def test_cosines_are_a_basis_of_what_is_slower_than_128_seconds() -> None:
    cosines = cosine_basis(180, 2.0)  # 360 s
    assert cosines.shape == (180, 4)
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(4), atol=1e-12)
    crossings = (np.diff(np.sign(cosines), axis=0) != 0).sum(axis=0)
    assert crossings.tolist() == [1, 2, 3, 4]


# --- the files ------------------------------------------------------------------------------------------------------


def derivatives(cohort: Path, suffix: str) -> list[Path]:
    return sorted((cohort / "derivatives" / "fmriprep").rglob(f"*{suffix}"))


def test_files_agree_with_each_other(cohort: Path) -> None:
    images = derivatives(cohort, "_desc-preproc_bold.nii.gz")
    people = draw_participants(N_PARTICIPANTS, 3)
    assert len(images) == sum(len(p.recordings) for p in people)
    atlas_image = nib.load(next((cohort / "atlas").glob("*.nii.gz")))
    for person in people:
        for index in range(len(person.recordings)):
            name, where = recording_name(person, index), functional_folder(person, index)
            stem = cohort / "derivatives" / "fmriprep" / where / f"{name}_space-MNI152NLin2009aSym_res-6mm"
            bold, mask = (nib.load(f"{stem}_desc-{kind}.nii.gz") for kind in ("preproc_bold", "brain_mask"))
            confounds = pd.read_csv(stem.parent / f"{name}_desc-confounds_timeseries.tsv", sep="\t")
            sidecar = json.loads(Path(f"{stem}_desc-preproc_bold.json").read_text())
            raw = json.loads((cohort / "bids" / where / f"{name}_bold.json").read_text())
            assert bold.get_data_dtype() == np.int16
            assert bold.shape == (*mask.shape, person.site.n_frames) == (*atlas_image.shape, len(confounds))
            assert np.array_equal(bold.affine, mask.affine)
            assert np.array_equal(bold.affine, atlas_image.affine)
            assert bold.header.get_zooms()[3] == pytest.approx(person.site.tr)
            assert sidecar["RepetitionTime"] == raw["RepetitionTime"] == person.site.tr
            assert (cohort / "bids" / where / f"{name}_bold.nii.gz").stat().st_size == 0


def test_confounds_describe_the_image_beside_them(cohort: Path) -> None:
    path = derivatives(cohort, "_desc-confounds_timeseries.tsv")[0]
    table = pd.read_csv(path, sep="\t")
    stem = path.name.split("_desc-")[0] + "_space-MNI152NLin2009aSym_res-6mm"
    bold = nib.load(path.parent / f"{stem}_desc-preproc_bold.nii.gz").get_fdata()
    mask = nib.load(path.parent / f"{stem}_desc-brain_mask.nii.gz").get_fdata() > 0
    np.testing.assert_allclose(table["global_signal"], bold[mask].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(table["trans_x_derivative1"][1:], np.diff(table["trans_x"]), atol=1e-8)
    assert np.isnan(table["framewise_displacement"][0])
    assert table["framewise_displacement"][1:].notna().all()
    unsteady = np.flatnonzero(table.filter(like="non_steady_state_outlier").sum(axis=1))
    start = table["global_signal"][:10] / table["global_signal"][5:25].median()
    assert unsteady.tolist() == np.flatnonzero(start > 1.012).tolist()


def test_nilearn_reads_the_confounds_as_those_of_fmriprep(cohort: Path) -> None:
    path = derivatives(cohort, "_desc-preproc_bold.nii.gz")[0]
    confounds, _ = load_confounds(
        str(path), strategy=("motion", "high_pass", "wm_csf", "compcor"), motion="full", compcor="anat_combined"
    )
    assert {"trans_x", "rot_z_power2", "cosine00", "csf", "a_comp_cor_05"} <= set(confounds.columns)
    assert not confounds.iloc[1:].isna().any().any()


def test_exactly_one_recording_moves_too_much(cohort: Path) -> None:
    paths = derivatives(cohort, "_desc-confounds_timeseries.tsv")
    mean_fd = pd.Series({p.name: pd.read_csv(p, sep="\t")["framewise_displacement"].mean() for p in paths})
    assert (mean_fd > 1).sum() == 1
    assert (mean_fd < 0.8).sum() == len(paths) - 1
    written = pd.read_csv(cohort / "planted" / "motion.tsv", sep="\t").set_index("recording_id")["mean_fd"]
    for name, value in mean_fd.items():
        assert written[str(name).split("_desc-")[0]] == pytest.approx(value)


def test_everything_says_that_it_is_simulated(cohort: Path) -> None:
    for folder in (cohort / "bids", cohort / "derivatives" / "fmriprep"):
        description = json.loads((folder / "dataset_description.json").read_text())
        assert "imulated" in description["Name"]
        assert description["GeneratedBy"][0]["Name"] == "semantoks.simulate"
    for path in derivatives(cohort, "_desc-preproc_bold.json"):
        assert "Simulated" in json.loads(path.read_text())["Description"]
    assert nib.load(derivatives(cohort, "bold.nii.gz")[0]).header["descrip"].item() == b"simulated"


def test_same_seed_same_bytes_whatever_the_number_of_workers(cohort: Path, tmp_path: Path) -> None:
    atlas = build_atlas(3)
    for person in draw_participants(N_PARTICIPANTS, 3)[1:2]:
        simulate._simulate_participant(tmp_path, atlas, 3, person)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 6 * len(person.recordings)
    for path in files:
        assert path.read_bytes() == (cohort / path.relative_to(tmp_path)).read_bytes(), path.name


@pytest.mark.parametrize(("count", "message"), [(3, "at least 8, found 3"), (8, "expected no cohort there")])
def test_wrong_requests_are_refused(cohort: Path, count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        simulate.simulate_cohort(cohort, count)


def test_effects_name_networks_that_exist() -> None:
    named = {name for effects in participants.PEAK_EFFECTS.values() for name in effects}
    assert named | set(participants.PROPAGATION_EFFECT) <= set(NETWORKS)
