"""Rows of the probe table on cohorts with known properties, and on the real ABIDE recordings."""

from __future__ import annotations

import json
import pkgutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from evaluation_cases import (
    cohort_settings,
    defaults,
    participants_table,
    write_embeddings,
    write_shards,
)
from nilearn.connectome import ConnectivityMeasure
from scipy.stats import pearsonr
from semantoks import probe, splits
from semantoks.baselines import tasks
from semantoks.baselines.connectivity import read_recordings
from semantoks.baselines.overlap import seen_by_content
from semantoks.errors import UserError
from semantoks.files import KEY, read_metadata, read_table
from semantoks.phenotypes import targets
from sklearn.covariance import EmpiricalCovariance
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

COLUMNS = [
    *KEY,
    *("row", "encoder", "pretrain_seed", "features", "phenotype", "protocol", "repetition", "fold", "split_checksum"),
    *("n_train", "site", "setting", "bin_edges", "y_true", "y_score", "transductive"),
]
"""The contract of docs/data-contracts.md."""


class Study:
    """A small cohort on disk: participants, shards, embeddings, splits; and its probe rows on demand."""

    def __init__(self, folder: Path, table: pd.DataFrame, bold: dict[str, np.ndarray], **changes: Any) -> None:
        self.folder, self.table = folder, table
        self.settings = cohort_settings(folder / "participants.tsv", table, **changes)
        self.shards = write_shards(folder / "part-0000.parquet", bold)
        self.splits = folder / "splits.parquet"
        splits.main(
            ["--settings", json.dumps(self.settings), "--shards", str(self.shards), "--output", str(self.splits)]
        )

    def row(self, name: str, *further: str, output: str = "row.parquet") -> pd.DataFrame:
        options = ["--settings", json.dumps(self.settings), "--row", name, "--splits", str(self.splits)]
        probe.main([*options, "--output", str(self.folder / output), *further])
        return read_table(self.folder / output)


def planted(n: int = 80, seed: int = 0) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Patients have ROIs 0 and 1 coupled, and the coupling of ROIs 2 and 3 follows the score."""
    table = participants_table(n)
    generator = np.random.default_rng(seed)
    bold = {}
    for _, person in table.iterrows():
        values = generator.normal(size=(6, 120))
        if person["group"] == "patient":
            values[0] += values[1]
        values[2] += (float(person["score"]) - 70) / 30 * values[3]
        bold[person["participant_id"][4:]] = values
    return table, bold


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    table, bold = planted()
    return Study(tmp_path_factory.mktemp("study"), table, bold)


def auc(rows: pd.DataFrame) -> float:
    scores = np.stack(rows["y_score"])
    return roc_auc_score(rows["y_true"], scores[:, 1] - scores[:, 0])


class TestRows:
    def test_fc_finds_what_was_planted_in_connectivity(self, study: Study) -> None:
        rows = study.row("fc", "--shards", str(study.shards))
        assert set(rows["row"]) == {"fc-logistic", "fc-ridge"}
        for (row, protocol), part in rows[rows["phenotype"] == "group"].groupby(["row", "protocol"]):
            assert auc(part) > 0.9, (row, protocol)
        score = rows[rows["phenotype"] == "score"]
        assert set(score["row"]) == {"fc-ridge"}
        assert pearsonr(score["y_true"], np.stack(score["y_score"])[:, 0])[0] > 0.6

    def test_what_is_not_in_the_confounds_is_not_found_in_them(self, study: Study) -> None:
        rows = study.row("confounds")
        assert 0.3 < auc(rows[(rows["phenotype"] == "group") & (rows["row"] == "confounds-logistic")]) < 0.7

    def test_the_target_in_another_unit_is_no_confound(self, tmp_path: Path, capsys: Any) -> None:
        table, bold = planted(40)
        years = table["score"].astype(float).round(1).astype(str)
        probe = defaults("probe") | {"repetitions": 1, "solved_repetitions": 1, "protocols": ["random"]}
        made = Study(tmp_path, table.assign(years=years), bold, confounds=["years", "sex"], probe=probe)
        rows = made.row("confounds")
        rows = rows[rows["phenotype"] == "score"]
        assert np.abs(np.stack(rows["y_score"])[:, 0] - rows["y_true"]).mean() > 5
        assert "confounds: years is left out for score, it is the same numbers" in capsys.readouterr().err

    def test_majority(self, study: Study) -> None:
        rows = study.row("majority")
        assert set(rows["row"]) == {"majority"}
        scores = np.stack(rows.loc[rows["phenotype"] == "group", "y_score"])
        np.testing.assert_allclose(scores.sum(axis=1), 1)
        for _, part in rows.groupby(["phenotype", "protocol", "repetition", "fold"]):
            assert len(np.unique(np.stack(part["y_score"]), axis=0)) == 1

    def test_columns_are_the_contract(self, study: Study) -> None:
        rows = study.row("majority")
        assert set(COLUMNS) <= set(rows.columns)
        about = read_metadata(study.folder / "row.parquet")
        assert about["phenotypes"]["group"]["classes"] == ["control", "patient"]
        assert about["stage"] == "probe"

    def test_every_row_is_tested_on_the_same_participants_and_targets(self, study: Study) -> None:
        key = ["phenotype", "protocol", "repetition", "fold", "participant_id"]
        columns = [*key, "y_true", "split_checksum", "n_train"]
        one = study.row("majority")[columns]
        other = study.row("fc", "--shards", str(study.shards))
        other = other.loc[other["head"] == "ridge", columns]
        pd.testing.assert_frame_equal(
            one.sort_values(key, ignore_index=True), other.sort_values(key, ignore_index=True), check_dtype=False
        )

    def test_same_inputs_give_same_bytes(self, study: Study) -> None:
        for name in ("one.parquet", "two.parquet"):
            study.row("fc", "--shards", str(study.shards), output=name)
        assert (study.folder / "one.parquet").read_bytes() == (study.folder / "two.parquet").read_bytes()


@pytest.fixture(scope="module")
def encoder_rows(study: Study) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    features = {}
    for _, person in study.table.iterrows():
        base = generator.normal(size=8)
        base[0] += 2.5 * (person["group"] == "patient")
        base[1] = (float(person["score"]) - 100) / 15
        features[person["participant_id"][4:]] = base + 0.3 * generator.normal(size=(4, 8))
    seen = tuple(sorted(features)[:40])
    study.settings["probe"]["epochs"] = 20
    path = write_embeddings(study.folder / "embeddings.parquet", features, "tiny_seed-3", seen)
    return study.row("tiny_seed-3", "--embeddings", str(path))


class TestEncoderRows:
    def test_all_heads_find_it(self, encoder_rows: pd.DataFrame) -> None:
        assert set(encoder_rows["row"]) == {"tiny-published", "tiny-logistic", "tiny-ridge"}
        for row, part in encoder_rows[encoder_rows["phenotype"] == "group"].groupby("row"):
            assert auc(part) > 0.85, row
        for row, part in encoder_rows[encoder_rows["phenotype"] == "score"].groupby("row"):
            assert pearsonr(part["y_true"], np.stack(part["y_score"])[:, 0])[0] > 0.85, row

    def test_numbers_come_back_in_their_own_unit(self, encoder_rows: pd.DataFrame) -> None:
        part = encoder_rows[(encoder_rows["phenotype"] == "score") & (encoder_rows["row"] == "tiny-published")]
        assert np.abs(np.stack(part["y_score"])[:, 0] - part["y_true"]).mean() < 8

    def test_seed_and_encoder_are_told_apart(self, encoder_rows: pd.DataFrame) -> None:
        assert set(encoder_rows["pretrain_seed"]) == {3}
        assert set(encoder_rows["encoder"]) == {"tiny_seed-3"}

    def test_transductive_is_who_was_seen_in_pretraining(self, encoder_rows: pd.DataFrame) -> None:
        assert (encoder_rows["transductive"] == (encoder_rows["participant_id"].astype(int) < 40)).all()

    def test_the_setting_says_what_was_chosen(self, encoder_rows: pd.DataFrame) -> None:
        assert encoder_rows.loc[encoder_rows["row"] == "tiny-published", "setting"].str.startswith("rate ").all()
        assert encoder_rows.loc[encoder_rows["row"] == "tiny-ridge", "setting"].str.startswith("penalty ").all()


def test_heads_trained_by_steps_have_fewer_repetitions(tmp_path: Path) -> None:
    table, bold = planted(40)
    study = Study(tmp_path, table, bold)
    study.settings["probe"] |= {"repetitions": 2, "epochs": 1}
    generator = np.random.default_rng(1)
    features = {name: generator.normal(size=(2, 3)) for name in bold}
    rows = study.row("tiny_seed-0", "--embeddings", str(write_embeddings(tmp_path / "e.parquet", features)))
    random = rows[rows["protocol"] == "random"].groupby("head")["repetition"].unique().map(sorted)
    assert random.to_dict() == {"logistic": [0, 1, 2], "published": [0, 1], "ridge": [0, 1, 2]}


class TestOverlap:
    """Recordings that pretraining saw under another name."""

    def test_the_same_content_is_found_and_marked(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        generator = np.random.default_rng(5)
        table = participants_table(60)
        own = {name: generator.normal(size=(20, 120)) for name in table["participant_id"].str[4:]}
        study = Study(tmp_path, table, own)
        foreign = {f"x{number}": generator.normal(size=(20, 120)) for number in range(4)}
        # Scaled, shifted and a little noisy, as another release or pipeline leaves it; parcels in another order.
        foreign["renamed"] = (3 * own["007"] + 1 + 0.02 * generator.normal(size=(20, 120)))[::-1]
        names = [f"roi-{number}" for number in range(20)][::-1]
        path = write_shards(tmp_path / "foreign.parquet", foreign, roi_names=names)
        assert set(seen_by_content([study.shards], [path])) == {"007"}
        assert seen_by_content([study.shards], []) == {}
        features = {name: generator.normal(size=(1, 3)) for name in own}
        embeddings = write_embeddings(tmp_path / "o.parquet", features, "tiny_seed-0", ("003", "renamed"))
        study.settings["probe"]["epochs"] = 2
        options = ["--shards", str(study.shards), "--pretrain-shards", str(path)]
        rows = study.row("tiny_seed-0", "--embeddings", str(embeddings), *options)
        assert set(rows.loc[rows["transductive"], "participant_id"]) == {"003", "007"}
        assert "007: pretraining of tiny_seed-0 saw the same content as sub-renamed (FC r " in capsys.readouterr().err


def before_and_after(folder: Path, row: str, refit: bool) -> tuple[pd.Series, pd.Series, str]:
    """Predictions of repetition 0 before and after one test participant's recording, age and site are changed."""
    table, bold = planted(60)
    names = table["participant_id"].str[4:].to_list()
    tested = train_test_split(names, test_size=0.2, random_state=0)[1][0]
    bold[tested][4] = 0  # its parcel 4 is imputed
    rows = []
    for name in ("before", "after"):
        if name == "after":
            bold[tested] = bold[tested][::-1] * np.linspace(1, 9, 120)
            table.loc[names.index(tested), ["age", "site"]] = ["500", "site9"]
        (folder / name).mkdir()
        phenotypes = {"score": {"column": "score", "type": "regression"}}
        study = Study(folder / name, table, bold, phenotypes=phenotypes)
        study.settings["probe"]["refit"] = refit
        made = study.row(row, "--shards", str(study.shards))
        rows.append(made[(made["protocol"] == "random") & (made["repetition"] == 0)].set_index("participant_id"))
    before, after = (part["y_score"].map(lambda scores: scores[0]) for part in rows)
    return before, after, tested


def _is_rows(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.intp and value.ndim == 1


class TestNothingLeaks:
    """What is changed in one test participant changes nobody else's prediction in that split."""

    @pytest.mark.parametrize(
        ("row", "refit"),
        [
            *(("fc", refit) for refit in (True, False)),
            *(("confounds", refit) for refit in (True, False)),
            *((row, True) for row in ("fc-kernel", "fc-tangent", "fc-power", "fc-combat")),
        ],
    )
    def test_through_a_test_participant(self, tmp_path: Path, row: str, refit: bool) -> None:
        before, after, tested = before_and_after(tmp_path, row, refit)
        assert before[tested] != after[tested]
        # A kernel is decomposed for all participants at once: what is left is rounding.
        exact = {"rtol": 1e-4} if row == "fc-kernel" else {"check_exact": True}
        pd.testing.assert_series_equal(before.drop(tested), after.drop(tested), **exact)

    @pytest.mark.parametrize(
        ("row", "place"),
        [
            ("fc", "semantoks.baselines.connectivity.standardise"),
            ("confounds", "semantoks.baselines.confounds.standardise"),
            ("fc-tangent", "semantoks.baselines.connectivity_rows.TangentConnectivity.design"),
            ("fc-combat", "semantoks.baselines.combat.harmonise"),
        ],
    )
    def test_a_leak_is_seen(self, tmp_path: Path, row: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The test above sees a scaler, a tangent mean and ComBat that are fitted on all rows."""
        module, _, name = place.rpartition(".")
        owner = pkgutil.resolve_name(module)
        fitted_right = getattr(owner, name)

        def on_all_rows(*values: Any) -> Any:
            given = list(values)
            training = next(place for place, value in enumerate(given) if _is_rows(value))
            given[training] = np.arange(60)
            return fitted_right(*given)

        monkeypatch.setattr(owner, name, on_all_rows)
        before, after, tested = before_and_after(tmp_path, row, refit=True)
        assert (before.drop(tested) != after.drop(tested)).any()

    def test_bins_of_everybody_are_seen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            tasks, "targets", lambda phenotype, values, training: targets(phenotype, values, list(values.index))
        )
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            self.test_bins_are_those_of_the_training_part(tmp_path)

    def test_bins_are_those_of_the_training_part(self, tmp_path: Path) -> None:
        table, bold = planted(60)
        phenotypes = {"score": {"column": "score", "type": "classification", "bins": 3}}
        study = Study(tmp_path, table, bold, phenotypes=phenotypes)
        rows = study.row("majority")
        parts = read_table(study.splits)
        numbers = table.set_index(table["participant_id"].str[4:])["score"].astype(float)
        for key, part in rows.groupby(["protocol", "repetition", "fold"]):
            same = (parts[["protocol", "repetition", "fold"]] == list(key)).all(axis=1)
            training = numbers[parts.loc[same & (parts["part"] == "train"), "participant_id"]]
            edges = np.quantile(training, [1 / 3, 2 / 3])
            np.testing.assert_allclose(part["bin_edges"].iloc[0], edges)
            expected = np.searchsorted(edges, numbers[part["participant_id"]], side="right")
            np.testing.assert_array_equal(part["y_true"], expected)

    def test_fitted_on_is_said(self, tmp_path: Path) -> None:
        table, bold = planted(60)
        study = Study(tmp_path, table, bold)
        random = [study.row("majority")]
        study.settings["probe"]["refit"] = False
        random.append(study.row("majority"))
        sizes = [set(rows.loc[rows["protocol"] == "random", "n_train"]) for rows in random]
        assert sizes == [{48}, {36}]


class TestParticipantsWithoutRecording:
    """What the table says of them counts for nothing: neither their mistakes nor their classes."""

    def with_further(self, folder: Path, **cells: str) -> Study:
        table, bold = planted(40)
        further = table.iloc[:2].assign(participant_id=["sub-900", "sub-901"], **cells)
        return Study(folder, pd.concat([table, further]), bold)

    def test_a_number_that_is_none(self, tmp_path: Path) -> None:
        assert len(self.with_further(tmp_path, score="refused").row("majority")) > 0

    def test_a_class_of_their_own(self, tmp_path: Path) -> None:
        rows = self.with_further(tmp_path, group="other").row("majority")
        assert set(rows.loc[rows["phenotype"] == "group", "y_score"].map(len)) == {2}
        assert read_metadata(tmp_path / "row.parquet")["phenotypes"]["group"]["classes"] == ["control", "patient"]

    def test_abroad(self, tmp_path: Path) -> None:
        """A model of another cohort is not stopped by a class of people who are not tested."""
        from test_transfer import TwoCohorts

        two = TwoCohorts(tmp_path)
        for name in ("home", "abroad"):
            path = tmp_path / f"{name}.tsv"
            table = pd.read_csv(path, sep="\t", dtype=str)
            further = table.iloc[:1].assign(participant_id="sub-900", group="9")
            pd.concat([table, further]).to_csv(path, sep="\t", index=False)
        two.settings["phenotypes"]["group"]["values"] |= {"9": "other"}
        two.split()
        rows = two.row("majority")
        assert set(rows.loc[rows["phenotype"] == "group", "y_score"].map(len)) == {2}


class TestBadInput:
    def test_an_unknown_row(self, study: Study) -> None:
        with pytest.raises(UserError, match=r"--row fcc: expected majority, confounds, fc, .* or an encoder's name"):
            study.row("fcc")

    def test_fc_without_shards(self, study: Study) -> None:
        with pytest.raises(UserError, match="--row fc needs --shards"):
            study.row("fc")

    def test_participants_without_features(self, study: Study) -> None:
        path = write_embeddings(study.folder / "few.parquet", {f"{n:03d}": np.ones((1, 2)) for n in range(70)})
        with pytest.raises(UserError, match=r"10 participants of the splits have no features.*\(070, "):
            study.row("tiny_seed-0", "--embeddings", str(path))

    def test_splits_of_another_configuration(self, study: Study) -> None:
        settings = study.settings | {"phenotypes": {"score": {"column": "score", "type": "regression"}}}
        options = ["--settings", json.dumps(settings), "--row", "majority", "--splits", str(study.splits)]
        with pytest.raises(UserError, match="has the phenotypes group, which the cohort does not describe"):
            probe.main([*options, "--output", str(study.folder / "x.parquet")])

    def test_constant_features_predict_the_training_mean(self, study: Study) -> None:
        names = study.table["participant_id"].str[4:]
        path = write_embeddings(study.folder / "flat.parquet", {name: np.ones((2, 3)) for name in names})
        study.settings["probe"]["epochs"] = 2
        rows = study.row("tiny_seed-0", "--embeddings", str(path))
        ridge = rows[(rows["row"] == "tiny-ridge") & (rows["phenotype"] == "score")]
        for _, part in ridge.groupby(["protocol", "repetition", "fold"]):
            np.testing.assert_allclose(np.stack(part["y_score"]), part["y_score"].iloc[0][0])


@pytest.fixture(scope="module")
def abide(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """ABIDE I, 821 participants, 200 ROIs: the recordings z-scored at their native TR."""
    folder = shared / "data" / "abide1_cc200"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    table = pd.read_csv(folder / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    name_of = dict(zip(table["file_id"], table["participant_id"].str[4:], strict=True))
    bold = {}
    with h5py.File(folder / "abide1_cc200.h5") as file:
        for row, file_id in enumerate(file["long_subject_id"].asstr()):
            values = file["timeseries/cc200"][row][:, : file["ts_len"][row]].astype(np.float32)
            values -= values.mean(axis=1, keepdims=True)
            bold[name_of[file_id]] = values / (values.std(axis=1, keepdims=True) + 1e-8)
    code = {"type": "classification", "missing": ["-9999"]}
    return Study(
        tmp_path_factory.mktemp("abide"),
        table,
        bold,
        phenotypes={
            "diagnosis": code | {"column": "DX_GROUP", "stratify": ["DX_GROUP"]},
            "sex": code | {"column": "SEX", "stratify": ["SEX"]},
            "age": {"column": "AGE_AT_SCAN", "type": "regression"},
        },
        site_group={"UM_1": "UM", "UM_2": "UM"},
        probe=defaults("probe") | {"solved_repetitions": 10},
    )


@pytest.fixture(scope="module")
def abide_rows(abide: Study) -> pd.DataFrame:
    return abide.row("fc", "--shards", str(abide.shards), output="fc.parquet")


@pytest.mark.slow
class TestAbide:
    @pytest.mark.parametrize("row", ["fc-logistic", "fc-ridge"])
    @pytest.mark.parametrize(("phenotype", "low", "high"), [("diagnosis", 0.71, 0.76), ("sex", 0.71, 0.78)])
    def test_fc_lands_where_it_is_known_to_land(
        self, abide_rows: pd.DataFrame, row: str, phenotype: str, low: float, high: float
    ) -> None:
        chosen = abide_rows[(abide_rows["row"] == row) & (abide_rows["phenotype"] == phenotype)]
        random = [auc(part) for _, part in chosen[chosen["protocol"] == "random"].groupby("repetition")]
        assert len(random) == 10
        assert low <= np.mean(random) <= high
        assert auc(chosen[chosen["protocol"] == "leave-site-out"]) == pytest.approx(0.74, abs=0.04)

    def test_age(self, abide_rows: pd.DataFrame) -> None:
        random = abide_rows[(abide_rows["phenotype"] == "age") & (abide_rows["protocol"] == "random")]
        values = [
            pearsonr(part["y_true"], np.stack(part["y_score"])[:, 0])[0] for _, part in random.groupby("repetition")
        ]
        assert 0.69 <= np.mean(values) <= 0.75

    def test_one_split_by_nilearn_and_scikit_learn(self, abide: Study, abide_rows: pd.DataFrame) -> None:
        """The logistic row of one split written out with library estimators, in float64."""
        recordings = sorted(read_recordings([abide.shards]), key=lambda recording: recording.participant_id)
        names = [recording.participant_id for recording in recordings]
        splits_of = read_table(abide.splits).query(
            "phenotype == 'diagnosis' and protocol == 'random' and repetition == 0"
        )
        part = splits_of.set_index("participant_id")["part"][names].to_numpy()
        training, both = part == "train", part != "test"
        label = abide.table.set_index(abide.table["participant_id"].str[4:])["DX_GROUP"][names].eq("2").to_numpy(int)

        measure = ConnectivityMeasure(
            EmpiricalCovariance(store_precision=False), kind="correlation", standardize="zscore_sample"
        )
        noise = np.random.default_rng(0)
        series = [recording.bold.T.astype(np.float64) for recording in recordings]
        # Parcels without data get noise, so that nilearn can correlate them, and are masked afterwards.
        series = [np.where(values.std(axis=0) > 0, values, noise.normal(size=values.shape)) for values in series]
        first, second = np.tril_indices(200, -1)
        valid = np.array([recording.bold.std(axis=1) > 0 for recording in recordings])
        z = np.arctanh(measure.fit_transform(series)[:, first, second])
        z[~(valid[:, first] & valid[:, second])] = np.nan

        def fit(penalty: float, rows: np.ndarray) -> Any:
            kept = valid[rows].mean(axis=0) >= 0.95
            chosen = z[:, kept[first] & kept[second]]
            model = make_pipeline(StandardScaler(), SimpleImputer(strategy="constant", fill_value=0))
            scaled = model.fit(chosen[rows]).transform(chosen)
            scaled /= np.sqrt((scaled[rows] ** 2).sum(axis=1).mean())
            head = LogisticRegression(C=1 / (penalty * rows.sum()), class_weight="balanced", max_iter=5000, tol=1e-6)
            return head.fit(scaled[rows], label[rows]).predict_proba(scaled)

        validation = part == "validation"
        weight = np.where(label == 1, 1 / label[validation].mean(), 1 / (1 - label[validation].mean()))[validation]
        penalties = abide.settings["probe"]["penalties"]
        losses = [log_loss(label[validation], fit(p, training)[validation], sample_weight=weight) for p in penalties]
        best = penalties[int(np.argmin(losses))]
        by_hand = fit(best, both)[part == "test"]

        ours = abide_rows.query("row == 'fc-logistic' and phenotype == 'diagnosis' and protocol == 'random'")
        ours = (
            ours[ours["repetition"] == 0]
            .set_index("participant_id")
            .loc[[n for n, p in zip(names, part, strict=True) if p == "test"]]
        )
        assert set(ours["setting"]) == {f"penalty {best:g}"}
        np.testing.assert_allclose(np.stack(ours["y_score"]), by_hand, atol=5e-3)
