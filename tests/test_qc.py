"""Quality control: every threshold with its reason, imported series without motion, summary and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import nibabel
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import synthetic_images as synthetic
from scipy.ndimage import center_of_mass
from scipy.stats import pearsonr
from semantoks import qc, qc_accept, qc_figures, qc_near_identical
from semantoks.errors import UserError
from semantoks.files import KEY, read_json, read_table, read_text_table, write_json, write_table
from semantoks.qc_motion import MotionConnectivity, distances
from semantoks.qc_near_identical import fingerprint
from semantoks.timeseries_table import SCHEMA

NAMES = [f"ROI_{i}" for i in range(10)]
SETTINGS = {
    "maximum_mean_fd": 0.5,
    "minimum_seconds": 80,
    "minimum_minutes_kept": 1,
    "maximum_share_censored": 0.5,
    "maximum_gap": 20,
    "minimum_valid_rois": 0.8,
    "minimum_median_coverage": 0.7,
}


def record(number: int = 0, n_frames: int = 120, without_data: int = 0, **changes: Any) -> dict[str, Any]:
    """One row of a time-series table; the first ``without_data`` parcels are NaN."""
    random = np.random.default_rng(number)
    bold = random.normal(size=(len(NAMES), n_frames)).astype(np.float32)
    bold[:without_data] = np.nan
    row = {
        "cohort": "toy",
        "participant_id": f"{number // 2:02d}",
        "session_id": None,
        "recording_id": f"sub-{number:02d}",
        "task": "rest",
        "site": "AB"[number % 2],
        "atlas": "toy",
        "tr": 2.0,
        "n_frames": n_frames,
        "kept": np.ones(n_frames, dtype=bool),
        "mean_fd": 0.1,
        "minutes_kept": n_frames / 30,
        "share_censored": 0.0,
        "longest_gap": 0.0,
        "coverage": np.linspace(0.5, 1, len(NAMES)),
        "tsnr": np.linspace(40, 80, len(NAMES)),
        "bold": bold.ravel(),
        "denoising": "none",
        "exclude_reason": None,
    }
    return row | changes


UNUSABLE = dict.fromkeys(
    ["n_frames", "kept", "mean_fd", "minutes_kept", "share_censored", "longest_gap", "coverage", "tsnr", "bold"]
) | {"exclude_reason": "truncated image"}
IMPORTED = dict.fromkeys(["mean_fd", "coverage", "tsnr"])


def timeseries(path: Path, rows: list[dict[str, Any]]) -> Path:
    metadata = {"roi_names": NAMES, "template_mask": {"path": None, "note": "no network"}}
    write_table(path, pa.Table.from_pylist(rows, schema=SCHEMA), metadata)
    return path


def decide(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> pd.DataFrame:
    arguments = ["--settings", json.dumps(SETTINGS | changes)]
    arguments += ["--timeseries", str(timeseries(folder / "batch-0001.parquet", rows))]
    qc.main([*arguments, "--output", str(folder / "qc" / "batch-0001.parquet")])
    return read_table(folder / "qc" / "batch-0001.parquet")


@pytest.mark.parametrize(
    ("row", "step", "reason"),
    [
        (record(), None, None),
        (record(mean_fd=0.5, longest_gap=20.0, n_frames=40, without_data=2, share_censored=0.5), None, None),
        (record(**IMPORTED), None, None),
        (record(n_frames=39), "minimum_seconds", "78 s long, below 80 s"),
        (record(without_data=3), "minimum_valid_rois", "70% of ROIs with data, below 80%"),
        (
            record(coverage=np.full(len(NAMES), 0.65)),
            "minimum_median_coverage",
            "65% of the median parcel covered, below 70%",
        ),
        (record(mean_fd=0.62), "maximum_mean_fd", "mean framewise displacement 0.62 mm, above 0.5 mm"),
        (record(minutes_kept=0.9), "minimum_minutes_kept", "0.9 min kept, below 1 min"),
        (record(share_censored=0.55), "maximum_share_censored", "55% of volumes censored, above 50%"),
        (record(longest_gap=24.0), "maximum_gap", "gap of 24 s interpolated, above 20 s"),
        (
            record(n_frames=35, mean_fd=2.0),
            "minimum_seconds",
            "70 s long, below 80 s; mean framewise displacement 2.00 mm, above 0.5 mm",
        ),
        (record() | UNUSABLE, "unusable", "truncated image"),
    ],
)
def test_each_threshold_names_value_and_limit(
    tmp_path: Path, row: dict[str, Any], step: str | None, reason: str | None
) -> None:
    table = decide(tmp_path, [row])
    assert (table["exclude_step"][0] or None, table["exclude_reason"][0] or None) == (step, reason)


def test_a_threshold_of_null_is_not_looked_at(tmp_path: Path) -> None:
    assert decide(tmp_path, [record(mean_fd=3.0)], maximum_mean_fd=None)["exclude_reason"].isna().all()


@pytest.mark.parametrize(
    ("dropped", "share", "message"),
    [
        (1, 0.5, None),
        (2, 0.5, None),
        (3, 0.5, r"cohort toy: expected at most 50% .*found 3 of 4 \(maximum_mean_fd 3\), most often: mean framewise"),
        (4, 1.0, "found 4 of 4"),
        (4, 0.5, "maximum_excluded_share"),
    ],
)
def test_a_cohort_of_which_too_much_is_excluded_stops(
    tmp_path: Path, dropped: int, share: float, message: str | None
) -> None:
    decide(tmp_path, [record(number, mean_fd=0.9 if number < dropped else 0.1) for number in range(4)])
    accepted = tmp_path / "accepted.json"
    arguments = ["--maximum-excluded-share", str(share), "--output", str(accepted)]
    arguments += ["--decisions", str(tmp_path / "qc" / "batch-0001.parquet")]
    if message is None:
        qc_accept.main(arguments)
        assert read_json(accepted) == {"recordings": 4, "excluded": dropped}
    else:
        with pytest.raises(UserError, match=message):
            qc_accept.main(arguments)
        assert not accepted.exists()


def test_a_cohort_accepted_before_is_refused_under_a_smaller_share(tmp_path: Path) -> None:
    accepted = tmp_path / "accepted.json"
    qc_accept.check_accepted(accepted, 0)
    write_json(accepted, {"recordings": 4, "excluded": 2})
    qc_accept.check_accepted(accepted, 0.5)
    with pytest.raises(UserError, match=r"accepted.json: expected at most 49% .*found 2 of 4; .*delete this file"):
        qc_accept.check_accepted(accepted, 0.49)


def test_measures_of_the_decision_table(tmp_path: Path) -> None:
    table = decide(tmp_path, [record(0, without_data=1), record(1, **IMPORTED)])
    assert table["valid_rois"].tolist() == [0.9, 1.0]
    assert table["median_coverage"][0] == pytest.approx(0.75)
    assert table["median_tsnr"][0] == pytest.approx(60)
    assert table.loc[1, ["mean_fd", "median_coverage", "median_tsnr"]].isna().all()
    assert table["site"].tolist() == ["A", "B"]


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    folder = tmp_path / "atlas"
    folder.mkdir()
    networks = ["Vis", "Default", "Vis", "Cont", "Default", "Vis", "Cont", "Cont", "Default", "Vis"]
    table = pd.DataFrame({"index": range(1, 11), "name": NAMES, "network": networks, "share": 1.0})
    table.to_csv(folder / "networks.tsv", sep="\t", index=False)
    return folder


def summarise(folder: Path, atlas: Path, rows: list[dict[str, Any]]) -> Path:
    decide(folder, rows)
    arguments = ["--settings", json.dumps(SETTINGS | {"simulated": True}), "--atlas", str(atlas)]
    arguments += ["--summary", str(folder / "qc" / "batch-0001.parquet")]
    arguments += ["--timeseries", str(folder / "batch-0001.parquet")]
    qc.main([*arguments, "--output-folder", str(folder / "qc")])
    return folder / "qc"


ROWS = [record(i) for i in range(6)] + [record(6, mean_fd=0.9), record(7, without_data=5), record(8, mean_fd=0.7)]
ROWS += [record(9) | UNUSABLE]


def test_the_summary_counts_everyone(tmp_path: Path, atlas: Path) -> None:
    folder = summarise(tmp_path, atlas, ROWS)
    summary = read_json(folder / "summary.json")
    assert (summary["recordings"], summary["recordings_kept"]) == (10, 6)
    assert (summary["participants"], summary["participants_kept"]) == (5, 3)
    assert summary["dropped"] == {"unusable": 1, "minimum_valid_rois": 1, "maximum_mean_fd": 2}
    assert summary["sites"] == {"A": {"recordings": 5, "kept": 3}, "B": {"recordings": 5, "kept": 3}}
    assert summary["medians"]["mean_fd"] == pytest.approx(0.1)
    assert summary["simulated"] is True
    assert summary["mask_dice_note"] == "no network"
    exclusions = read_text_table(folder / "exclusions.tsv")
    assert len(exclusions) == 10, "kept recordings are listed too"
    assert exclusions["exclude_reason"].notna().sum() == 4
    assert exclusions.set_index("recording_id").loc["sub-09", "exclude_reason"] == "truncated image"


@pytest.mark.parametrize("kind", ["images", "imported", "nothing kept", "no site"])
def test_figures_are_drawn_whatever_is_known(tmp_path: Path, atlas: Path, kind: str) -> None:
    rows = {
        "images": ROWS,
        "imported": [row | IMPORTED for row in ROWS],
        "nothing kept": [row | {"n_frames": 10, "bold": row["bold"][:100]} for row in ROWS[:3]],
        "no site": [row | {"site": None} for row in ROWS],
    }[kind]
    folder = summarise(tmp_path, atlas, rows)
    for name in ("flow", "recordings", "parcels", "fc", "qcfc", "carpets"):
        image = matplotlib.image.imread(folder / f"{name}.png")
        assert image.shape[0] > 150
        assert image[..., :3].std() > 0.01, "not a blank page"


def test_figures_and_tables_are_the_same_bytes_again(tmp_path: Path, atlas: Path) -> None:
    folder = summarise(tmp_path, atlas, ROWS)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    summarise(tmp_path, atlas, ROWS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_time_series_of_another_atlas_are_an_error(tmp_path: Path, atlas: Path) -> None:
    table = read_text_table(atlas / "networks.tsv")
    table[::-1].to_csv(atlas / "networks.tsv", sep="\t", index=False)
    with pytest.raises(UserError, match="in the same order, found others"):
        summarise(tmp_path, atlas, ROWS)


def test_mean_fc_is_the_mean_of_fisher_z_over_recordings_with_data() -> None:
    rows = [record(0), record(1, without_data=2), record(2)]
    summary = qc.ParcelSummary(len(NAMES))
    for row in rows:
        summary.add(row, with_fc=True)
    bold = [np.asarray(row["bold"], dtype=np.float64).reshape(len(NAMES), -1) for row in rows]
    z = [np.arctanh(np.corrcoef(series)[0, 5]) for series in (bold[0], bold[2])]
    assert summary.fc()[0, 5] == pytest.approx(np.tanh(np.mean(z)))
    z = [np.arctanh(np.corrcoef(series)[4, 7]) for series in bold]
    assert summary.fc()[4, 7] == pytest.approx(np.tanh(np.mean(z)))
    assert np.isnan(np.diag(summary.fc())).all()
    assert summary.valid.tolist() == [2, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    np.testing.assert_allclose(summary.mean("coverage"), np.linspace(0.5, 1, 10))


# --- motion left in connectivity ------------------------------------------------------------------------------------


def test_qcfc_is_the_correlation_over_recordings_with_data() -> None:
    random = np.random.default_rng(5)
    motion, n_rois = random.uniform(0.05, 0.5, 25), 6
    z = random.normal(size=(25, n_rois, n_rois))
    z = z + z.transpose(0, 2, 1)
    z[:, 0, 1] = z[:, 1, 0] = 2 * motion + 0.01 * random.normal(size=25)
    sums = MotionConnectivity(n_rois)
    for number in range(25):
        rows = np.arange(n_rois) if number % 3 else np.array([0, 1, 2, 5])  # without data in ROI 3 and 4
        sums.add(z[number][np.ix_(rows, rows)], rows, motion[number])
    found = sums.correlations()
    assert found[0, 1] > 0.99
    assert found[2, 5] == pytest.approx(pearsonr(z[:, 2, 5], motion).statistic)
    with_data = np.arange(25) % 3 > 0
    assert found[3, 4] == pytest.approx(pearsonr(z[with_data, 3, 4], motion[with_data]).statistic)
    assert np.isnan(np.diag(found)).all()
    few = MotionConnectivity(n_rois)
    for number in range(9):
        few.add(z[number], np.arange(n_rois), motion[number])
    assert np.isnan(few.correlations()).all(), "nine recordings say nothing"


def test_sites_are_looked_at_apart_when_there_are_enough_recordings_of_several(tmp_path: Path) -> None:
    """At one of two sites motion drives the connectivity of two parcels."""
    random = np.random.default_rng(6)
    rows = []
    for number in range(40):
        motion = float(random.uniform(0.05, 0.45))
        bold = random.normal(size=(len(NAMES), 400)).astype(np.float32)
        if number % 2:
            bold[1] += 4 * motion * bold[0]
        site = "C" if number < 3 else "AB"[number % 2]
        rows.append(record(number, n_frames=400, mean_fd=motion, bold=bold.ravel(), site=site))
    decided = decide(tmp_path, rows)
    assert qc.sites_of(decided) == ["A", "B"], "three recordings of C are too few"
    assert qc.sites_of(decided[decided["site"] == "A"]) == [], "one site is the whole cohort"
    summary = qc.parcel_summary([tmp_path / "batch-0001.parquet"], decided, len(NAMES))
    of_site = summary.motion_of_site
    assert {site: one.recordings for site, one in of_site.items()} == {"A": 18, "B": 19}
    assert of_site["B"].correlations()[0, 1] > 0.9
    assert abs(of_site["A"].correlations()[0, 1]) < 0.6
    assert of_site["A"].correlations()[0, 1] < summary.motion.correlations()[0, 1] < of_site["B"].correlations()[0, 1]


@pytest.mark.parametrize("unknown", [None, float("nan")])
def test_unknown_motion_of_one_recording_leaves_the_others_alone(tmp_path: Path, unknown: float | None) -> None:
    rows = [record(number, mean_fd=unknown if number == 4 else 0.1 + 0.01 * number) for number in range(12)]
    decided = decide(tmp_path, rows)
    assert decided["exclude_reason"].isna().all()
    summary = qc.parcel_summary([tmp_path / "batch-0001.parquet"], decided, len(NAMES))
    assert summary.motion.recordings == 11
    pairs = ~np.eye(len(NAMES), dtype=bool)
    assert np.isfinite(summary.motion.correlations()[pairs]).all()


def test_distances_are_between_centres_of_gravity(tmp_path: Path) -> None:
    folder = synthetic.atlas_folder(tmp_path / "atlas")
    found = distances(folder, np.array(synthetic.INDEX))
    labels = nibabel.load(folder / "atlas.nii.gz")
    centres = {
        index: nibabel.affines.apply_affine(labels.affine, center_of_mass(np.asarray(labels.dataobj) == index))
        for index in synthetic.INDEX
    }
    expected = np.linalg.norm(centres[synthetic.INDEX[0]] - centres[synthetic.INDEX[3]])
    assert found is not None
    assert found[0, 3] == pytest.approx(expected)
    (folder / "atlas.nii.gz").unlink()
    assert distances(folder, np.array(synthetic.INDEX)) is None


def test_carpets_show_the_worst_and_some_at_random(tmp_path: Path) -> None:
    rows = [record(number, mean_fd=0.01 * number) for number in range(12)] + [record(12, mean_fd=0.9)]
    chosen = qc.carpet_recordings(decide(tmp_path, [*rows, record(13) | UNUSABLE]))
    worst, drawn = (chosen[chosen["why"] == why]["recording_id"].tolist() for why in ("most motion", "at random"))
    assert worst == ["sub-12", "sub-11", "sub-10"]
    assert len(drawn) == 3
    assert not set(drawn) & {*worst, "sub-13"}


# --- flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "flag"),
    [
        ({"mask_dice": 0.84}, "mask overlaps the template's by Dice 0.84, below 0.85"),
        ({"mask_dice": 0.85}, None),
        ({"mask_dice": None, "mask_computed": True}, "the brain mask was missing and computed"),
        ({}, None),
    ],
)
def test_flags_tell_what_to_look_at_and_exclude_nothing(told: dict[str, Any], flag: str | None) -> None:
    row = qc.decide(record() | told, len(NAMES), qc.QcSettings(**SETTINGS))
    assert (row["flags"], row["exclude_reason"]) == (flag, None)


# --- the same data under two names ----------------------------------------------------------------------------------


def connected(random: np.random.Generator, person: np.ndarray, n_rois: int = 60, n_frames: int = 150) -> np.ndarray:
    """A recording of a person, who is a mixing matrix."""
    return person @ random.normal(size=(person.shape[1], n_frames)) + 0.5 * random.normal(size=(n_rois, n_frames))


def test_the_agreement_of_fingerprints_estimates_the_correlation_of_connectivity() -> None:
    random = np.random.default_rng(2)
    common = random.normal(size=(60, 20))
    for share in (0.0, 0.5, 1.0):
        persons = [common + share * random.normal(size=common.shape) for _ in range(2)]
        series = [connected(random, person) for person in persons]
        pairs = np.triu_indices(60, 1)
        z = [np.arctanh(np.corrcoef(one)[pairs]) for one in series]
        agreement = float(fingerprint(series[0]) @ fingerprint(series[1]))
        assert agreement == pytest.approx(np.corrcoef(*z)[0, 1], abs=0.15)


def test_copies_are_found_within_and_across_cohorts_whatever_they_are_called(tmp_path: Path) -> None:
    """Planted: a copy with other scale and rounding, a copy without a parcel; people and sessions are not."""
    random = np.random.default_rng(3)
    rows = []
    for number in range(30):
        person = random.normal(size=(60, 20))
        for session in ("1", "2"):
            name = f"sub-{number:02d}_ses-{session}"
            rows.append(("one", name, connected(random, person)))
    copy = np.round(rows[8][2] * 40 + 1000).astype(np.float32)
    cut = rows[20][2].copy()
    cut[30] = np.nan
    rows += [("two", "sub-x", copy), ("one", "sub-y", cut)]
    paths = []
    for cohort in ("one", "two"):
        table = [
            dict.fromkeys(KEY) | {"cohort": name, "recording_id": recording, "fingerprint": fingerprint(bold)}
            for name, recording, bold in rows
            if name == cohort
        ]
        table.append(dict.fromkeys(KEY) | {"cohort": cohort, "recording_id": "unusable", "fingerprint": None})
        paths.append(tmp_path / f"{cohort}.parquet")
        write_table(paths[-1], pa.Table.from_pylist(table, schema=FINGERPRINTS), {})
    arguments = ["--similarity", "0.95", "--output", str(tmp_path / "pairs.tsv")]
    qc_near_identical.main([*arguments, "--decisions", *map(str, paths)])
    pairs = read_text_table(tmp_path / "pairs.tsv")
    found = {frozenset(pair) for pair in pairs[["recording_id_a", "recording_id_b"]].itertuples(index=False)}
    assert found == {frozenset((rows[8][1], "sub-x")), frozenset((rows[20][1], "sub-y"))}
    assert sorted(pairs["cohort_a"] + pairs["cohort_b"]) == ["oneone", "onetwo"]


FINGERPRINTS = pa.schema([(name, pa.string()) for name in KEY] + [("fingerprint", pa.list_(pa.float32()))])


def test_fingerprints_of_nothing_agree_with_nothing() -> None:
    nothing = np.full((5, 20), np.nan)
    assert not fingerprint(nothing).any()
    table = pd.DataFrame({**{name: ["a", "b"] for name in KEY}, "fingerprint": [fingerprint(nothing)] * 2})
    assert qc_near_identical.pairs_table(table, 0.98).empty


def test_rois_are_ordered_by_network_as_they_first_appear() -> None:
    networks = pd.DataFrame({"network": ["Vis", "Default", "Vis", "Cont", "Default"]})
    order, starts, names = qc_figures.by_network(networks)
    assert (order.tolist(), starts, names) == ([0, 2, 1, 4, 3], [0, 2, 4], ["Vis", "Default", "Cont"])
