"""References on functional connectivity, harmonisation and a user's own features, against their libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evaluation_cases import participants_table, write_shards
from neuroHarmonize import harmonizationApply, harmonizationLearn
from nilearn.connectome import ConnectivityMeasure
from semantoks.baselines.combat import HarmonisedConnectivity, harmonise
from semantoks.baselines.confounds import Confounds
from semantoks.baselines.connectivity import Connectivity, Recording, read_connectivity
from semantoks.baselines.connectivity_rows import KernelConnectivity, power_edges, read_tangent
from semantoks.baselines.feature_table import read_feature_table
from semantoks.baselines.features import standardise
from semantoks.baselines.linear import fit, principal_scores
from semantoks.errors import UserError
from semantoks.phenotypes import Phenotype
from sklearn.covariance import LedoitWolf
from sklearn.kernel_ridge import KernelRidge
from sklearn.preprocessing import KernelCenterer
from test_probe import Study, planted

AGE = Phenotype("age", "age", "regression")
TRAINING, TEST = np.arange(30), np.arange(30, 40)


def recordings(n: int = 40, n_rois: int = 6, n_frames: int = 90, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(n_rois, n_rois))
    return {f"{number:02d}": mixing @ generator.normal(size=(n_rois, n_frames)) for number in range(n)}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards") / "s.parquet", recordings())


class TestKernel:
    def test_ridge_on_it_is_kernel_ridge_of_scikit_learn(self, shard: Path) -> None:
        connectivity = read_connectivity([shard], 0.95)
        kernel = np.corrcoef(connectivity.edges.astype(np.float64))
        number = np.random.default_rng(1).normal(size=40)
        design = KernelConnectivity("fc-kernel", connectivity).design(AGE, TRAINING)
        scores = principal_scores(design, TRAINING)
        ours = fit("ridge", scores[TRAINING], number[TRAINING], 0, [0.1])[0].scores(scores[TEST])[:, 0]
        centerer = KernelCenterer().fit(kernel[:30, :30])
        centred = centerer.transform(kernel[:30, :30])
        scale = np.trace(centred) / 30
        model = KernelRidge(alpha=0.1 * 30 * scale, kernel="precomputed").fit(centred, number[:30] - number[:30].mean())
        expected = model.predict(centerer.transform(kernel[30:, :30])) + number[:30].mean()
        np.testing.assert_allclose(ours, expected, atol=1e-4)


class TestTangent:
    def test_equals_nilearn_on_the_time_series(self, shard: Path) -> None:
        made = read_tangent([shard], 0.95).design(AGE, TRAINING)
        series = [bold.astype("<f2").astype(np.float64).T for bold in recordings().values()]
        series = [(values - values.mean(0)) / values.std(0) for values in series]
        measure = ConnectivityMeasure(
            LedoitWolf(store_precision=False, assume_centered=True), kind="tangent", vectorize=True, standardize=False
        )
        measure.fit([series[row] for row in TRAINING])
        expected = standardise(measure.transform(series).astype(np.float32), TRAINING)
        np.testing.assert_allclose(made, expected, atol=2e-3)

    def test_the_mean_is_that_of_the_training_rows(self, shard: Path) -> None:
        features = read_tangent([shard], 0.95)
        changed = features.covariances.copy()
        changed[35] = np.eye(6) * 9
        other = type(features)(features.name, features.participants, changed, features.valid, 0.95)
        made, again = features.design(AGE, TRAINING), other.design(AGE, TRAINING)
        np.testing.assert_array_equal(np.delete(made, 35, 0), np.delete(again, 35, 0))
        with_test = features.design(AGE, np.arange(40))
        assert np.abs(with_test[:30] - made[:30]).max() > 1e-3, "a mean over all participants would be seen"

    def test_a_parcel_without_data_is_uncorrelated(self, tmp_path: Path) -> None:
        valid = {"00": np.array([True] * 5 + [False])}
        features = read_tangent([write_shards(tmp_path / "s.parquet", recordings(), valid)], 0.9)
        np.testing.assert_array_equal(features.covariances[0][5], [0, 0, 0, 0, 0, 1])
        assert np.isfinite(features.design(AGE, TRAINING)).all()


class TestPower:
    recording = Recording("small", "01", "sub-01", recordings(1)["00"].astype(np.float32), np.ones(6, bool))

    def test_power_one_is_the_correlation_and_a_half_its_root(self) -> None:
        full = np.corrcoef(self.recording.bold)
        upper = np.triu_indices(6, 1)
        np.testing.assert_allclose(power_edges(1)(self.recording), full[upper], atol=1e-5)
        root = np.zeros((6, 6))
        root[upper] = power_edges(0.5)(self.recording)
        variance, axes = np.linalg.eigh(full)
        expected = axes @ np.diag(variance**0.5) @ axes.T
        np.testing.assert_allclose(root[upper], expected[upper], atol=1e-5)

    def test_missing_and_identical_parcels(self) -> None:
        bold = self.recording.bold.copy()
        bold[1] = bold[0]
        bold[5] = 0
        edges = power_edges(0.35)(Recording("small", "01", "x", bold, np.ones(6, bool)))
        second = np.triu_indices(6, 1)[1]
        assert np.isnan(edges[second == 5]).all()
        assert np.isfinite(edges[second < 5]).all()
        assert np.abs(edges[second < 5]).max() < 2


class TestCombat:
    generator = np.random.default_rng(0)
    site = np.array(["a", "b", "c", "b"] * 15, dtype=object)
    values = generator.normal(size=(60, 40)).astype(np.float32) * np.where(site == "a", 2, 1)[:, None]
    values = (values + (site == "b")[:, None]).astype(np.float32)
    covariates = generator.normal(size=(60, 2)).astype(np.float32)
    training = np.arange(45)

    def test_equals_the_library(self) -> None:
        frame = pd.DataFrame(self.covariates.astype(float), columns=["x", "y"])
        frame.insert(0, "SITE", self.site.astype(str))
        model, fitted = harmonizationLearn(self.values[:45].astype(float), frame[:45])
        new = harmonizationApply(self.values[45:].astype(float), frame[45:].reset_index(drop=True), model)
        made = harmonise(self.values, self.site, self.covariates, self.training)
        np.testing.assert_allclose(made, np.concatenate([fitted, new]), atol=1e-4)

    def test_site_differences_are_gone(self) -> None:
        made = harmonise(self.values, self.site, self.covariates, self.training)
        means = [made[:45][self.site[:45] == name].mean() for name in "abc"]
        assert np.ptp(means) < 0.1
        assert np.ptp([self.values[self.site == name].mean() for name in "abc"]) > 0.8

    def test_nothing_outside_the_training_rows_matters(self) -> None:
        changed = self.values.copy()
        changed[50] = 99
        one, other = (harmonise(v, self.site, self.covariates, self.training) for v in (self.values, changed))
        np.testing.assert_array_equal(np.delete(one, 50, 0), np.delete(other, 50, 0))
        everything = harmonise(self.values, self.site, self.covariates, np.arange(60))
        assert np.abs(everything[:45] - one[:45]).max() > 1e-3, "estimates from all rows would be seen"

    def test_a_site_of_one_and_an_unknown_site_stay_as_they_are(self) -> None:
        site = self.site.copy()
        site[[3, 59]] = ["lonely", None]
        made = harmonise(self.values, site, self.covariates, self.training)
        np.testing.assert_array_equal(made[[3, 59]], self.values[[3, 59]])
        assert np.isfinite(made).all()

    def test_one_site_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"ComBat needs two sites.*probe\.rows"):
            harmonise(self.values, np.full(60, "a", dtype=object), self.covariates, self.training)

    def test_the_target_is_no_covariate(self) -> None:
        edges = self.generator.normal(size=(60, 10)).astype(np.float32)
        connectivity = Connectivity("fc", [str(n) for n in range(60)], edges, np.ones((60, 5), bool), 0.95)
        ages = pd.Series(np.arange(60).astype(str), index=connectivity.participants)
        covariates = Confounds("covariates", connectivity.participants, {"age": ages})
        made = HarmonisedConnectivity("fc-combat", connectivity, self.site, covariates)
        without = HarmonisedConnectivity("fc-combat", connectivity, self.site, Confounds("c", [""] * 60, {}))
        np.testing.assert_array_equal(made.design(AGE, self.training), without.design(AGE, self.training))
        other = Phenotype("sex", "sex", "classification")
        assert np.abs(made.design(other, self.training) - without.design(other, self.training)).max() > 1e-3


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"), *planted(60))


def own_splits(study: Study, folder: Path, protocols: list[str], tested: Any) -> Study:
    """The same cohort with a user's split."""
    part = np.where(tested, "test", np.where(np.arange(60) // 3 % 3 == 0, "validation", "train"))
    given = pd.DataFrame({"participant_id": study.table["participant_id"], "part": part})
    given.to_csv(folder / "own.tsv", sep="\t", index=False)
    none = {"regression": 0, "classification": 0, "classification_up_to": None}
    settings = study.settings["probe"] | {"protocols": protocols, "split_file": str(folder / "own.tsv")}
    settings |= {"solved_repetitions": 1, "repetitions": 1, "permutations": none}
    phenotypes = {"score": {"column": "score", "type": "regression"}}
    return Study(folder, *planted(60), phenotypes=phenotypes, probe=settings)


class TestRowsOfAStudy:
    def test_combat_has_random_splits_only_and_says_so(self, study: Study, capsys: Any) -> None:
        rows = study.row("fc-combat", "--shards", str(study.shards))
        assert set(rows["protocol"]) == {"random"}
        assert "random and given splits only, because ComBat has no estimate for a site" in capsys.readouterr().err

    @pytest.mark.parametrize("protocols", [["random"], ["leave-site-out"]])
    def test_combat_of_own_splits_that_hold_out_a_site(
        self, study: Study, tmp_path: Path, capsys: Any, protocols: list[str]
    ) -> None:
        """It would be scored unharmonised."""
        made = own_splits(study, tmp_path, protocols, study.table["site"] == "site2")
        if protocols == ["leave-site-out"]:
            with pytest.raises(UserError, match=r"fitted on \(given splits hold out site2\); add random"):
                made.row("fc-combat", "--shards", str(made.shards))
            return
        assert set(made.row("fc-combat", "--shards", str(made.shards))["protocol"]) == {"random"}
        assert "random splits only" in capsys.readouterr().err

    def test_combat_of_own_splits_that_know_all_sites(self, study: Study, tmp_path: Path) -> None:
        made = own_splits(study, tmp_path, ["random"], np.arange(60) % 4 == 0)
        assert set(made.row("fc-combat", "--shards", str(made.shards))["protocol"]) == {"random", "given"}

    def test_combat_does_not_predict_what_it_takes_out(self, study: Study, tmp_path: Path, capsys: Any) -> None:
        """The site as a target would be ComBat's batch: every test participant's features would hold the answer."""
        scanner = {"scanner": {"column": "site", "type": "classification"}}
        score = {"score": {"column": "score", "type": "regression"}}
        probe = study.settings["probe"] | {"protocols": ["random"], "solved_repetitions": 1, "repetitions": 1}
        made = Study(tmp_path, *planted(60), phenotypes=scanner | score, probe=probe)
        assert set(made.row("fc-combat", "--shards", str(made.shards))["phenotype"]) == {"score"}
        assert "fc-combat: scanner is left out, its column site names ComBat's batches" in capsys.readouterr().err
        folder = tmp_path / "alone"
        folder.mkdir()
        alone = Study(folder, *planted(60), phenotypes=scanner, probe=probe)
        with pytest.raises(UserError, match=r"fc-combat: expected a phenotype .* found scanner on site; take fc"):
            alone.row("fc-combat", "--shards", str(alone.shards))

    def test_kernel_is_ridge(self, study: Study) -> None:
        assert set(study.row("fc-kernel", "--shards", str(study.shards))["row"]) == {"fc-kernel-ridge"}

    @pytest.mark.parametrize("kind", ["tsv", "parquet"])
    def test_own_features_are_one_more_row(self, study: Study, tmp_path: Path, kind: str) -> None:
        table = study.table.assign(one=(study.table["group"] == "patient").astype(float), other=1.0)
        table = table[["participant_id", "one", "other"]]
        path = tmp_path / f"own.{kind}"
        if kind == "tsv":
            table.loc[0, "one"] = np.nan
            table.to_csv(path, sep="\t", index=False, na_rep="n/a")
        else:
            lists = table[["one", "other"]].to_numpy().tolist()
            pd.DataFrame({"participant_id": table["participant_id"], "features": lists}).to_parquet(path)
        own = {"path": str(path), "id_column": "participant_id", "columns": None, "transductive": True}
        study.settings["features"] = {"brain-jepa": own}
        rows = study.row("brain-jepa")
        assert set(rows["row"]) == {"brain-jepa-logistic", "brain-jepa-ridge"}
        assert rows["transductive"].all()
        right = np.stack(rows.query("phenotype == 'group' and head == 'logistic'")["y_score"]).argmax(1)
        truth = rows.query("phenotype == 'group' and head == 'logistic'")["y_true"]
        assert (right == truth).mean() > 0.95


class TestBadFeatureTables:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda table: table.drop(columns="participant_id"),
                r"features\.own names the columns \['participant_id'\]",
            ),
            (
                lambda table: pd.concat([table, table.head(1)]),
                r"one row per participant, found several for 1 .*\(000\)",
            ),
            (lambda table: table.assign(x="high"), r"column 'x': expected finite numbers, found high"),
            (lambda table: table.assign(x="inf"), r"column 'x': expected finite numbers, found inf"),
            (lambda table: table.assign(x="n/a"), r"expected numbers in the columns x, found none"),
            (
                lambda table: table[["participant_id"]],
                r"expected columns with numbers beside participant_id, found none",
            ),
            (
                lambda table: table.assign(participant_id=[*table["participant_id"][:3], None, " "]),
                r"2 rows have no participant_id; fill them in or delete the rows",
            ),
            *(
                (
                    lambda table, name=name: table.assign(**{name: range(5)}),
                    rf"expected one row per participant.*{name}",
                )
                for name in ("session_id", "session", "ses", "run", "recording_id", "task", "cohort")
            ),
        ],
    )
    def test_they_are_refused(self, tmp_path: Path, change: Any, message: str) -> None:
        table = participants_table(5)[["participant_id"]].assign(x="1.5")
        change(table).to_csv(tmp_path / "own.tsv", sep="\t", index=False)
        settings = {"path": str(tmp_path / "own.tsv"), "id_column": "participant_id", "columns": None}
        with pytest.raises(UserError, match=message):
            read_feature_table("own", settings | {"transductive": False})

    @pytest.mark.parametrize(
        ("cells", "message"),
        [
            ([[1.0, np.inf]] * 5, r"column 'x': expected finite numbers, found inf in the lists of 5 participants"),
            ([["u", "v"]] * 5, r"column 'x': expected lists of numbers, found 'u'"),
            ([[[1.0], [2.0]]] * 5, r"column 'x': expected lists of numbers, found lists of lists"),
            ([[1.0], [1.0, 2.0], [1.0], [1.0], [1.0]], r"column 'x': expected lists of one length, found \[1, 2\]"),
            ([[1.0, 2.0], None, *[[3.0, 4.0]] * 3], r"column 'x': expected a list in every row, found 1 empty cells"),
            (list(pd.date_range("2020-01-01", periods=5)), r"column 'x': expected numbers, found dates or times"),
            ([pd.Timedelta(n, "s") for n in range(5)], r"column 'x': expected numbers, found dates or times"),
        ],
    )
    def test_parquet_cells_are_refused(self, tmp_path: Path, cells: list[Any], message: str) -> None:
        table = participants_table(5)[["participant_id"]].assign(x=pd.Series(cells))
        table.to_parquet(tmp_path / "own.parquet")
        settings = {"path": str(tmp_path / "own.parquet"), "id_column": "participant_id", "columns": None}
        with pytest.raises(UserError, match=message):
            read_feature_table("own", settings | {"transductive": False})

    def test_a_missing_number_in_a_list_is_missing(self, tmp_path: Path) -> None:
        table = participants_table(5)[["participant_id"]].assign(x=[[1.0, np.nan]] * 4 + [[1.0, 2.0]])
        table.to_parquet(tmp_path / "own.parquet")
        settings = {"path": str(tmp_path / "own.parquet"), "id_column": "participant_id", "columns": None}
        values = read_feature_table("own", settings | {"transductive": False}).values
        np.testing.assert_array_equal(np.isnan(values[:, 1]), [True] * 4 + [False])

    def test_numbers_too_large_for_float32(self, tmp_path: Path) -> None:
        participants_table(3)[["participant_id"]].assign(x=1e300).to_parquet(tmp_path / "own.parquet")
        settings = {"path": str(tmp_path / "own.parquet"), "id_column": "participant_id", "columns": None}
        with pytest.raises(UserError, match="column 'x': expected finite numbers, found 1e\\+300"):
            read_feature_table("own", settings | {"transductive": False})

    def test_the_id_may_be_the_index_of_pandas(self, tmp_path: Path) -> None:
        table = participants_table(3)[["participant_id"]].assign(x=0.5).set_index("participant_id")
        table.to_parquet(tmp_path / "own.parquet")
        settings = {"path": str(tmp_path / "own.parquet"), "id_column": "participant_id", "columns": None}
        assert read_feature_table("own", settings | {"transductive": None}).participants == ["000", "001", "002"]

    def test_ids_that_are_whole_numbers_with_decimals(self, tmp_path: Path) -> None:
        pd.DataFrame({"participant_id": [50772.0, 50773.0], "x": [0.5, 0.7]}).to_parquet(tmp_path / "own.parquet")
        settings = {"path": str(tmp_path / "own.parquet"), "id_column": "participant_id", "columns": None}
        assert read_feature_table("own", settings | {"transductive": None}).participants == ["50772", "50773"]

    def test_a_column_named_like_a_key_may_be_asked_for(self, tmp_path: Path) -> None:
        participants_table(3)[["participant_id"]].assign(run=[1, 2, 3], x=0.5).to_parquet(tmp_path / "own.parquet")
        settings = {"path": str(tmp_path / "own.parquet"), "id_column": "participant_id", "columns": ["run"]}
        assert read_feature_table("own", settings | {"transductive": False}).values[:, 0].tolist() == [1, 2, 3]

    def test_absent(self, tmp_path: Path) -> None:
        settings = {"path": str(tmp_path / "x.parquet"), "id_column": "i", "columns": None, "transductive": False}
        with pytest.raises(UserError, match="found no file"):
            read_feature_table("own", settings)
