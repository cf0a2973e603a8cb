"""Denoising strategies and confounds: real tables of fMRIPrep 1.0 to 21, nilearn's choice, planted gaps."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic_images as synthetic
from nilearn.interfaces.fmriprep import load_confounds
from semantoks import confounds as conf
from semantoks import denoise
from semantoks.errors import UserError

MOTION_24 = [f"{name}{suffix}" for name in conf.MOTION for suffix in ("", *(f"_{e}" for e in denoise.EXPANSIONS))]


@pytest.fixture
def table() -> pd.DataFrame:
    return synthetic.confounds_table(np.random.default_rng(5), n_non_steady=2)


@pytest.fixture(scope="module")
def pieces(shared: Path) -> Path:
    return shared / "data" / "fmriprep_pieces"


def designed(path: Path, strategy: str) -> pd.DataFrame:
    table = conf.read_confounds(path)
    return denoise.design(table, denoise.load_strategy(strategy), conf.read_confounds_sidecar(path))


# --- strategies ----------------------------------------------------------------------------------------------------


def test_every_shipped_strategy_reads_and_is_documented() -> None:
    docs = (Path(__file__).resolve().parents[1] / "docs" / "denoising.md").read_text(encoding="utf-8")
    for name in denoise.available_strategies():
        strategy = denoise.load_strategy(name)
        assert strategy.name == name
        assert len(strategy.description) > 40
        assert strategy.citations or name == "none"
        assert f"`{name}`" in docs


@pytest.mark.parametrize(
    ("name", "count"),
    [("none", 0), ("24P", 24), ("24P+acompcor", 40), ("24P+acompcor+gsr", 41), ("36P", 36), ("36P+scrubbing", 36)],
)
def test_strategies_have_the_regressors_of_their_names(table: pd.DataFrame, name: str, count: int) -> None:
    # 400 s give six cosines (one per 64 s)
    regressors = denoise.design(table, denoise.load_strategy(name), {})
    assert regressors.shape == (len(table), count)
    assert np.isfinite(regressors.to_numpy()).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n", "expected the key 'description' with a text, found None"),
        ("name: 5\ndescription: y\n", "expected the key 'name' with a text, found 5"),
        ("name: x\ndescription: ''\n", "expected the key 'description' with a text, found ''"),
        ("name: x\ndescription: y\ncosines: 1\n", "cosines: expected true or false, found 1"),
        (
            "name: x\ndescription: y\nacompcor: {csf: five}\ncosines: true\n",
            "acompcor.csf: expected a whole number above 0, found 'five'",
        ),
        (
            "name: x\ndescription: y\nacompcor: {csf: -1}\ncosines: true\n",
            "acompcor.csf: expected a whole number above 0, found -1",
        ),
        (
            "name: x\ndescription: y\ncensoring: {framewise_displacement: half}\n",
            "censoring.framewise_displacement: expected a number above 0, found 'half'",
        ),
        (
            "name: x\ndescription: y\ncensoring: {minimum_segment: 2.5}\n",
            "censoring.minimum_segment: expected a whole number above 0, found 2.5",
        ),
        ("name: \xe4\n", "expected YAML, found .*can't decode"),
        ("name: x\ndescription: y\nregressors: z\n", "found regressors"),
        ("name: x\ndescription: y\nconfounds: {csf: [cubed]}\n", r"confounds.csf: expected only derivative1.*cubed"),
        (
            "name: x\ndescription: y\nacompcor: {wm: 5}\ncosines: true\n",
            "acompcor: expected only white.*found wm",
        ),
        ("name: x\ndescription: y\nacompcor: {csf: 5}\n", "expected 'cosines: true' beside 'acompcor'"),
        (
            "name: x\ndescription: y\ncensoring: {fd: 0.5}\n",
            "censoring: expected only framewise.*found fd",
        ),
        ("- a list\n", "expected keys and values"),
        ("name: [x\n", "expected YAML"),
    ],
)
def test_broken_strategy_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        denoise.load_strategy(str(path))


def test_an_unknown_strategy_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=re.escape("expected one of 24P, 24P+acompcor,")):
        denoise.load_strategy("25P")


# --- columns -------------------------------------------------------------------------------------------------------


def test_expansions_are_computed_where_the_table_lacks_them(table: pd.DataFrame) -> None:
    strategy = denoise.load_strategy("24P")
    computed = denoise.design(table, strategy, {})
    step = table["rot_z"].diff()
    np.testing.assert_allclose(computed["rot_z_derivative1"][1:], step[1:])
    np.testing.assert_allclose(computed["rot_z_power2"], table["rot_z"] ** 2)
    np.testing.assert_allclose(computed["rot_z_derivative1_power2"][1:], step[1:] ** 2)
    assert computed["rot_z_derivative1"][0] == computed["rot_z_derivative1"][1], "an empty first row takes the second"
    given = denoise.design(table.assign(rot_z_derivative1=7.0), strategy, {})
    assert (given["rot_z_derivative1"] == 7).all(), "a column of the table goes before one computed"


def test_acompcor_components_are_chosen_by_tissue_name_or_by_sidecar(table: pd.DataFrame) -> None:
    strategy = denoise.load_strategy("24P+acompcor")
    new = [name for name in denoise.design(table, strategy, {}) if "comp_cor" in name]
    assert new == [f"{tissue}_comp_cor_{n:02d}" for tissue in "wc" for n in range(5)]
    old_names = {f"{p}_comp_cor_{n:02d}": f"a_comp_cor_{n + 6 * (p == 'w'):02d}" for p in "cw" for n in range(6)}
    sidecar = {f"a_comp_cor_{n:02d}": {"Mask": "CSF" if n < 6 else "WM", "Retained": True} for n in range(12)}
    old = [name for name in denoise.design(table.rename(columns=old_names), strategy, sidecar) if "comp_cor" in name]
    assert old == [f"a_comp_cor_{n:02d}" for n in (6, 7, 8, 9, 10, 0, 1, 2, 3, 4)]
    with pytest.raises(UserError, match="found 12 a_comp_cor columns, their tissue is not stated"):
        denoise.design(table.rename(columns=old_names), strategy, {})


def test_gaps_are_legitimate_in_the_first_row_of_derivatives_only(table: pd.DataFrame) -> None:
    strategy = denoise.load_strategy("24P")
    with_gap = table.assign(trans_x_derivative1=table["trans_x"].diff())
    assert np.isfinite(denoise.design(with_gap, strategy, {})).all(axis=None)
    for column, row in [("trans_x", 0), ("trans_x_derivative1", 7), ("rot_y", 199)]:
        broken = with_gap.copy()
        broken.loc[row, column] = np.nan
        with pytest.raises(UserError, match=rf"'{column}.*row {row + 1}"):
            denoise.design(broken, strategy, {})


def test_names_of_fmriprep_1_0_are_translated(tmp_path: Path, table: pd.DataFrame) -> None:
    new_to_old = {new: old for old, new in conf._OLD_NAMES.items()}
    new_to_old |= {f"cosine{n:02d}": f"Cosine{n:02d}" for n in range(10)}
    new_to_old |= {f"non_steady_state_outlier{n:02d}": f"NonSteadyStateOutlier{n:02d}" for n in range(3)}
    kept = table.filter(regex="^(?!._comp_cor)")
    path = synthetic.write_confounds(tmp_path / "old.tsv", kept.rename(columns=new_to_old).assign(**{"vx-wise": "n/a"}))
    read = conf.read_confounds(path)
    assert set(kept) <= set(read)
    assert "RotX" not in read
    assert conf.n_non_steady(read) == 2
    strategy = denoise.load_strategy("36P")
    pd.testing.assert_frame_equal(denoise.design(read, strategy, {}), denoise.design(table, strategy, {}))


def names_of(version: str) -> tuple[dict[str, str], dict[str, dict], list[str]]:
    """Old name by name of today, the sidecar, and columns that a version writes beside those that are used."""
    old = {f"{p}_comp_cor_{n:02d}": f"a_comp_cor_{n + 6 * (p == 'w'):02d}" for p in "cw" for n in range(6)}
    if version == "1.0 and 1.1":
        translated = {new: name for name, new in conf._OLD_NAMES.items()}
        translated |= {f"cosine{n:02d}": f"Cosine{n:02d}" for n in range(10)}
        translated |= {f"non_steady_state_outlier{n:02d}": f"NonSteadyStateOutlier{n:02d}" for n in range(3)}
        components = {new: name.replace("a_comp_cor_", "aCompCor") for new, name in old.items()}
        return translated | components, {}, ["vx-wisestdDVARS", "tCompCor00", "AROMAAggrComp01"]
    if version == "1.2 and 1.3":
        return old, {}, ["t_comp_cor_00", "aroma_motion_01"]
    if version == "1.4 to 20.2":
        masks = {name: {"Mask": "CSF" if new[0] == "c" else "WM", "Retained": True} for new, name in old.items()}
        combined = {f"a_comp_cor_{n}": {"Mask": "combined"} for n in (12, 13)}
        return old, masks | combined, ["motion_outlier00", "csf_wm", "a_comp_cor_12", "a_comp_cor_13"]
    return {}, {}, ["motion_outlier00", "csf_wm", "a_comp_cor_00", "edge_comp_00", "rmsd", "csf_derivative1_power2"]


VERSIONS = ["1.0 and 1.1", "1.2 and 1.3", "1.4 to 20.2", "21.0 to 25.x"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_gives_the_same_regressors(tmp_path: Path, table: pd.DataFrame, version: str) -> None:
    """Tables with the columns of each version of fMRIPrep; before 1.4 the tissue of aCompCor is not stated."""
    renamed, sidecar, further = names_of(version)
    written = table.rename(columns=renamed).assign(**dict.fromkeys(set(further) - set(table), 0.5))
    path = synthetic.write_confounds(tmp_path / "sub-01_desc-confounds_timeseries.tsv", written)
    if sidecar:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    read = conf.read_confounds(path)
    assert conf.n_non_steady(read) == 2
    for name in ("24P", "36P"):
        expected = denoise.design(table, denoise.load_strategy(name), {})
        if "csf_derivative1_power2" in further and name == "36P":
            expected["csf_derivative1_power2"] = 0.5  # what the table has goes before what is computed
        pd.testing.assert_frame_equal(designed(path, name), expected)
    if version in VERSIONS[2:]:
        expected = denoise.design(table, denoise.load_strategy("24P+acompcor"), {})
        np.testing.assert_allclose(designed(path, "24P+acompcor"), expected, rtol=1e-6)
        return
    with pytest.raises(UserError, match="found 12 a_comp_cor columns, their tissue is not stated"):
        designed(path, "24P+acompcor")
    own = tmp_path / "own.yaml"
    own.write_text("name: own\ndescription: combined\nacompcor: {combined: 10}\ncosines: true\n")
    assert [name for name in designed(path, str(own)) if "comp_cor" in name] == [
        f"a_comp_cor_{n:02d}" for n in range(10)
    ]


@pytest.mark.parametrize(
    ("file", "volumes", "non_steady", "regressors"),
    [
        ("junifer/sub-0001_task-anticipation_acq-seq_desc-confounds_regressors.tsv", 200, 0, {"24P": 24, "36P": 36}),
        ("nilearn/test-v21_desc-confounds_timeseries.tsv", 30, 3, {"24P": 24, "24P+acompcor": 24 + 4 + 3 + 1}),
        ("nilearn/test_desc-confounds_regressors.tsv", 30, 1, {"24P": 24, "24P+acompcor": 24 + 10 + 4}),
        ("nilearn/no_nonsteady_desc-confounds_regressors.tsv", 30, 0, {"24P": 24, "36P": 36}),
        (
            "ds000031/dset/derivatives/fmriprep_1.0.0/fmriprep/sub-01/ses-002/func/"
            "sub-01_ses-002_task-rest_run-001_desc-confounds_timeseries.tsv",
            40,
            0,
            {"24P": 24},
        ),
    ],
)
def test_real_tables_of_several_versions(
    pieces: Path, file: str, volumes: int, non_steady: int, regressors: dict[str, int]
) -> None:
    table = conf.read_confounds(pieces / file)
    assert len(table) == volumes
    assert conf.n_non_steady(table) == non_steady
    for strategy, count in regressors.items():
        assert designed(pieces / file, strategy).shape == (volumes, count)
    displacement = conf.framewise_displacement(table)
    computed = conf.framewise_displacement(table.drop(columns="framewise_displacement"))
    assert np.isnan(displacement[0])
    if "nilearn" not in file:  # nilearn's test tables hold random numbers
        np.testing.assert_allclose(computed[1:], displacement[1:], atol=1e-4)


def test_the_oldest_real_table_lacks_what_acompcor_needs(pieces: Path) -> None:
    file = next((pieces / "ds000031").rglob("*confounds_timeseries.tsv"))
    with pytest.raises(UserError, match="found 6 a_comp_cor columns, their tissue is not stated"):
        designed(file, "24P+acompcor")
    with pytest.raises(UserError, match="'csf', found none"):
        designed(file, "36P")


@pytest.mark.parametrize("version", ["test-v21_desc-confounds_timeseries", "test_desc-confounds_regressors"])
@pytest.mark.parametrize(
    ("strategy", "nilearn"),
    [
        ("24P", {"strategy": ("motion",), "motion": "full"}),
        (
            "36P",
            {
                "strategy": ("motion", "wm_csf", "global_signal"),
                "motion": "full",
                "wm_csf": "full",
                "global_signal": "full",
            },
        ),
        (
            "24P+acompcor",
            {
                "strategy": ("motion", "compcor", "high_pass"),
                "motion": "full",
                "compcor": "anat_separated",
                "n_compcor": 5,
            },
        ),
    ],
)
def test_columns_and_values_are_those_nilearn_loads(
    pieces: Path, tmp_path: Path, version: str, strategy: str, nilearn: dict
) -> None:
    suffix = version.split("_desc-")[1]
    stem = tmp_path / "sub-01_task-rest"
    for extension in (".tsv", ".json"):
        shutil.copy(pieces / "nilearn" / f"{version}{extension}", f"{stem}_desc-{suffix}{extension}")
    image = Path(f"{stem}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz")
    image.touch()
    theirs, _ = load_confounds(str(image), demean=False, **nilearn)
    ours = designed(Path(f"{stem}_desc-{suffix}.tsv"), strategy)
    assert sorted(ours) == sorted(theirs)
    np.testing.assert_allclose(ours[theirs.columns], theirs, rtol=1e-6)


# --- motion --------------------------------------------------------------------------------------------------------


def test_displacement_by_hand() -> None:
    table = pd.DataFrame(0.0, index=range(3), columns=list(conf.MOTION))
    table.loc[1, "trans_y"] = -0.3
    table.loc[2, ["trans_y", "rot_x"]] = [-0.3, 0.002]
    np.testing.assert_allclose(conf.framewise_displacement(table), [np.nan, 0.3, 0.1])
    with pytest.raises(UserError, match="found no 'rot_z'"):
        conf.framewise_displacement(table.drop(columns="rot_z"))


def test_censoring_by_displacement_and_dvars_and_short_segments() -> None:
    table = pd.DataFrame({"framewise_displacement": np.full(20, 0.1), "std_dvars": 1.0})
    table.loc[0, :] = np.nan
    table.loc[[5, 9], "framewise_displacement"] = 0.6
    table.loc[15, "std_dvars"] = 2.0
    censored = {
        denoise.Censoring(0.5): [5, 9],
        denoise.Censoring(0.5, 1.5): [5, 9, 15],
        denoise.Censoring(0.5, 1.5, 4): [5, 6, 7, 8, 9, 15],
        denoise.Censoring(0.5, 1.5, 5): [5, 6, 7, 8, 9, 15, 16, 17, 18, 19],
        denoise.Censoring(): [],
    }
    for censoring, expected in censored.items():
        assert np.flatnonzero(~denoise.kept_volumes(table, censoring)).tolist() == expected
    assert np.flatnonzero(~denoise.kept_volumes(table, denoise.Censoring(0.5), first=4)).tolist() == [1, 5]
    table.loc[12, "std_dvars"] = np.nan
    with pytest.raises(UserError, match=r"'std_dvars': expected numbers .*found n/a or infinity in row 13"):
        denoise.kept_volumes(table, denoise.Censoring(std_dvars=1.5))
    with pytest.raises(UserError, match="'std_dvars' for censoring"):
        denoise.kept_volumes(table[["framewise_displacement"]], denoise.Censoring(std_dvars=1.5))


def test_longest_gap_and_stretches() -> None:
    kept = np.array([False, True, True, False, False, False, True, False])
    assert conf.stretches(kept) == [(1, 3), (6, 7)]
    assert conf.longest_gap(kept, 0.8) == pytest.approx(2.4)
    assert conf.longest_gap(np.ones(4, dtype=bool), 2.0) == 0


def test_degrees_of_freedom_by_hand() -> None:
    # 490 volumes of 0.735 s hold 360 s: 0.09 Hz of them are 64.8 independent values
    assert denoise.degrees_of_freedom(490, 0.735, (0.01, 0.1), 40) == pytest.approx(2 * 0.09 * 490 * 0.735 - 40)
    assert denoise.degrees_of_freedom(100, 2.0, (None, None), 24) == 76
    assert denoise.degrees_of_freedom(100, 2.0, (None, 0.125), 0) == 50


def test_the_sidecar_is_found_beside_the_table(tmp_path: Path) -> None:
    path = tmp_path / "sub-01_desc-confounds_timeseries.tsv"
    assert conf.read_confounds_sidecar(path) == {}
    path.with_suffix(".json").write_text(json.dumps({"a_comp_cor_00": {"Mask": "WM"}}))
    assert conf.read_confounds_sidecar(path)["a_comp_cor_00"]["Mask"] == "WM"
