"""Features and heads against independent implementations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_cases import write_embeddings, write_shards
from hypothesis import given
from hypothesis import strategies as st
from nilearn.connectome import ConnectivityMeasure
from semantoks.baselines.confounds import Confounds, make_confounds
from semantoks.baselines.connectivity import Connectivity, correlation, fisher_z, read_connectivity, read_recordings
from semantoks.baselines.features import mean_over_recordings, read_embeddings, standardise
from semantoks.baselines.linear import fit, loss, principal_scores, tune
from semantoks.baselines.published_head import (
    Problem,
    batches_of,
    crop_error,
    epoch_orders,
    initial_parameters,
    train,
)
from semantoks.errors import UserError
from semantoks.phenotypes import Cohort, Phenotype
from sklearn.covariance import EmpiricalCovariance
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.preprocessing import StandardScaler

AGE = Phenotype("age", "age", "regression")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products lose more by waiting for another thread than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TestStandardise:
    def test_equals_impute_and_scale_of_scikit_learn(self) -> None:
        generator = np.random.default_rng(0)
        values = generator.normal(5, 3, (40, 30)).astype(np.float32)
        values[generator.random(values.shape) < 0.1] = np.nan
        training = np.arange(0, 40, 2)
        imputer = SimpleImputer().fit(values[training])
        observed = np.nanstd(values[training].astype(np.float64), axis=0)
        expected = (imputer.transform(values) - imputer.statistics_) / observed
        np.testing.assert_allclose(standardise(values, training), expected, atol=2e-5)

    def test_nothing_outside_the_training_rows_matters(self) -> None:
        values = np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
        training = np.arange(10)
        changed = values.copy()
        changed[15] = 1e3
        np.testing.assert_array_equal(standardise(values, training)[:15], standardise(changed, training)[:15])

    def test_constant_and_missing_columns_are_zero(self) -> None:
        values = np.array([[0.1, np.nan, 1], [0.1, np.nan, 2], [0.1, np.nan, 3], [7, 5, 4]], dtype=np.float32)
        scaled = standardise(values, np.arange(3))
        assert (scaled[:, :2] == 0).all()
        assert np.isfinite(scaled).all()

    def test_a_large_offset_does_not_spoil_a_small_spread(self) -> None:
        values = (1000 + np.random.default_rng(2).normal(size=(50, 3)) * 0.5).astype(np.float32)
        expected = StandardScaler().fit_transform(values.astype(np.float64))
        np.testing.assert_allclose(standardise(values, np.arange(50)), expected, atol=2e-3)


def test_recordings_of_a_participant_are_averaged_over_what_is_known() -> None:
    values = np.array([[1, 2], [3, np.nan], [5, 6], [np.nan, np.nan]], dtype=np.float32)
    names, mean = mean_over_recordings(values, ["b", "b", "a", "c"])
    assert names == ["a", "b", "c"]
    np.testing.assert_array_equal(mean, [[5, 6], [2, 2], [np.nan, np.nan]])


class TestConnectivity:
    def test_equals_nilearn(self) -> None:
        generator = np.random.default_rng(0)
        bold = (
            generator.normal(size=(12, 4)) @ generator.normal(size=(4, 150)) + generator.normal(size=(12, 150))
        ).astype(np.float32)
        measure = ConnectivityMeasure(
            EmpiricalCovariance(store_precision=False),
            kind="correlation",
            vectorize=True,
            discard_diagonal=True,
            standardize="zscore_sample",
        )
        expected = np.arctanh(measure.fit_transform([bold.T.astype(np.float64)])[0])
        ours = correlation(bold, np.ones(12, bool))
        lower = ours[np.tril_indices(12, -1)]
        np.testing.assert_allclose(np.arctanh(lower), expected, atol=1e-5)
        np.testing.assert_allclose(np.sort(fisher_z(ours)), np.sort(expected), atol=1e-5)

    def test_invalid_and_constant_rois_are_missing(self) -> None:
        bold = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
        bold[2] = 0
        matrix = correlation(bold, np.array([True, False, True, True]))
        assert np.isnan(matrix[[1, 2]]).all()
        assert np.isfinite(matrix[np.ix_([0, 3], [0, 3])]).all()

    def test_identical_rois_stay_finite(self) -> None:
        bold = np.tile(np.random.default_rng(0).normal(size=50).astype(np.float32), (2, 1))
        assert np.isfinite(fisher_z(correlation(bold, np.ones(2, bool)))).all()

    def test_runs_are_averaged_and_float16_is_cast_before_any_sum(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        # Sums of squares of this amplitude overflow float16.
        runs = {"01_run-1": 100 * generator.normal(size=(3, 400)), "01_run-2": 100 * generator.normal(size=(3, 300))}
        features = read_connectivity([write_shards(tmp_path / "s.parquet", runs)], 0.95)
        expected = np.mean([np.arctanh(np.corrcoef(run)[np.triu_indices(3, 1)]) for run in runs.values()], axis=0)
        assert features.participants == ["01"]
        np.testing.assert_allclose(features.edges[0], expected, atol=1e-3)

    def test_rois_valid_in_too_few_training_participants_are_dropped_and_the_rest_imputed(self) -> None:
        generator = np.random.default_rng(0)
        valid = np.ones((40, 5), bool)
        valid[:3, 4] = False  # 37 of 40 = .925: dropped
        valid[0, 3] = False  # 39 of 40: kept, imputed
        edges = generator.normal(size=(40, 10)).astype(np.float32)
        first, second = np.triu_indices(5, 1)
        edges[~(valid[:, first] & valid[:, second])] = np.nan
        features = Connectivity("fc", [str(number) for number in range(40)], edges, valid, 0.95)
        design = features.design(AGE, np.arange(40))
        assert design.shape == (40, 6)
        assert (design[0, (first == 3)[:6] | (second[(first < 4) & (second < 4)] == 3)] == 0).all()
        # Counted in the training part alone: without the first three participants all ROIs stay.
        assert features.design(AGE, np.arange(3, 40)).shape == (40, 10)

    def test_too_few_rois_left(self) -> None:
        valid = np.zeros((10, 3), bool)
        features = Connectivity("fc", list("abcdefghij"), np.full((10, 3), np.nan, np.float32), valid, 0.95)
        with pytest.raises(UserError, match=r"probe\.roi_valid_share: only 0 ROIs"):
            features.design(AGE, np.arange(10))

    def test_shards_with_other_roi_names_are_refused(self, tmp_path: Path) -> None:
        bold = {"01": np.random.default_rng(0).normal(size=(3, 40))}
        one = write_shards(tmp_path / "one.parquet", bold)
        other = write_shards(tmp_path / "other.parquet", bold, roi_names=["x", "y", "z"])
        with pytest.raises(UserError, match=r"other\.parquet: its ROI names differ"):
            list(read_recordings([one, other]))


class TestConfounds:
    table = pd.DataFrame(
        {"site": ["a", "a", "b", "c"], "age": ["20", "40", None, "60"], "sex": ["F", "M", "F", "M"]},
        index=["1", "2", "3", "4"],
    )
    cohort = Cohort({"path": "t"}, {}, site_column="site", confounds=("age", "sex"))

    def make(self) -> Confounds:
        fd = pd.Series({"1": 0.1, "2": 0.3, "3": 0.2, "4": 0.2})
        return make_confounds(self.cohort, self.table, ["1", "2", "3", "4"], fd)

    def test_numbers_are_scaled_sites_are_indicators_unknown_sites_zero(self) -> None:
        design = self.make().design(Phenotype("dx", "dx", "classification"), np.array([0, 1, 2]))
        expected = np.array([[1, 0], [1, 0], [0, 1], [0, 0]])
        np.testing.assert_array_equal(design[:, :2], expected)
        assert design.shape == (4, 6)  # two sites, mean FD, age, two sexes
        assert design[2, 3] == 0  # unknown age: the training mean

    def test_the_target_is_left_out(self) -> None:
        design = self.make().design(AGE, np.array([0, 1, 2]))
        assert design.shape == (4, 5)
        design = self.make().design(Phenotype("site", "site", "classification"), np.array([0, 1, 2]))
        assert design.shape == (4, 4)

    def test_the_target_is_left_out_where_the_confound_has_another_name(self) -> None:
        """Framewise displacement that came from a column of the participants table is that column."""
        table = self.table.assign(func_mean_fd=["0.1", "0.3", "0.2", "0.2"])
        motion = Phenotype("motion", "func_mean_fd", "regression")
        fd = pd.Series({"1": 0.1, "2": 0.3, "3": 0.2, "4": 0.2})
        for column, width in (("func_mean_fd", 5), (None, 6)):
            cohort = replace(self.cohort, mean_fd_column=column)
            made = make_confounds(cohort, table, list("1234"), fd)
            assert made.design(motion, np.arange(3)).shape == (4, width)
            assert made.design(Phenotype("dx", "dx", "classification"), np.arange(3)).shape == (4, 6)

    def test_the_training_part_decides_what_is_a_number(self) -> None:
        """One tested participant with a word for an age changes nobody else's row."""
        ages = pd.Series([str(20 + number % 6) for number in range(20)], index=[str(n) for n in range(20)])
        odd = ages.copy()
        odd.iloc[19] = "unknown"
        training = np.arange(15)
        dx = Phenotype("dx", "dx", "classification")
        made, changed = (Confounds("c", list(ages.index), {"age": age}).design(dx, training) for age in (ages, odd))
        np.testing.assert_array_equal(changed[:19], made[:19])
        assert changed[19, 0] == 0  # the training mean

    @pytest.mark.parametrize("said", ["unknown", "90+", "inf"])
    def test_a_word_among_many_numbers_is_an_error(self, said: str) -> None:
        ages = [str(number) for number in range(20, 39)] + [said]
        table = pd.DataFrame({"age": ages}, index=[str(n) for n in range(20)])
        table.attrs["path"] = "people.tsv"
        cohort = Cohort({"path": "t"}, {}, confounds=("age",))
        with pytest.raises(UserError, match=rf"people.tsv: confounds: column 'age': .*found {re.escape(said)};"):
            make_confounds(cohort, table, list(table.index), None)

    def test_codes_of_missing_values_are_those_of_a_phenotype_on_the_same_column(self) -> None:
        table = pd.DataFrame({"age": ["20", "40", "-9999.0", "60"]}, index=list("1234"))
        cohort = Cohort({"path": "t"}, {"age": replace(AGE, missing=["-9999"])}, confounds=("age",))
        made = make_confounds(cohort, table, list("1234"), None)
        assert made.columns["age"].isna().tolist() == [False, False, True, False]

    def test_site_numbers_are_names(self) -> None:
        table = self.table.assign(site=["1", "1", "2", "3"])
        design = make_confounds(self.cohort, table, list(table.index), None).design(AGE, np.arange(3))
        assert set(np.unique(design[:, :2])) == {0, 1}


class TestLinearHeads:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 300)).astype(np.float32)
    target = (features[:, 0] + generator.normal(size=60) > 0.5).astype(np.int64)
    training = np.arange(45)

    def scaled(self) -> np.ndarray:
        """The same features, all of them, in float64, by scikit-learn; mean squared norm 1 in training."""
        scaler = StandardScaler().fit(self.features[self.training].astype(np.float64))
        return scaler.transform(self.features) / np.sqrt(300)

    def scores(self) -> np.ndarray:
        return principal_scores(standardise(self.features, self.training), self.training)

    @pytest.mark.parametrize("penalty", [1, 0.01, 1e-4])
    def test_logistic_equals_scikit_learn_on_all_features(self, penalty: float) -> None:
        ours = fit("logistic", self.scores()[self.training], self.target[self.training], 2, [penalty])[0]
        full = LogisticRegression(C=1 / (penalty * 45), class_weight="balanced", tol=1e-8, max_iter=10_000)
        full.fit(self.scaled()[self.training], self.target[self.training])
        np.testing.assert_allclose(ours.scores(self.scores()), full.predict_proba(self.scaled()), atol=2e-3)

    @pytest.mark.parametrize("penalty", [1, 0.01, 1e-4])
    def test_ridge_equals_scikit_learn_on_all_features(self, penalty: float) -> None:
        number = self.generator.normal(size=60)
        ours = fit("ridge", self.scores()[self.training], number[self.training], 0, [penalty])[0]
        full = Ridge(alpha=penalty * 45).fit(self.scaled()[self.training], number[self.training])
        np.testing.assert_allclose(ours.scores(self.scores())[:, 0], full.predict(self.scaled()), atol=1e-4)
        classes = RidgeClassifier(alpha=penalty * 45, class_weight="balanced")
        classes.fit(self.scaled()[self.training], self.target[self.training])
        ours = fit("ridge", self.scores()[self.training], self.target[self.training], 2, [penalty])[0]
        np.testing.assert_allclose(
            ours.scores(self.scores())[:, 1], classes.decision_function(self.scaled()), atol=1e-4
        )

    @given(st.integers(1, 80))
    def test_principal_scores_keep_all_inner_products(self, n_features: int) -> None:
        design = standardise(self.features[:, :n_features], self.training)
        scores = principal_scores(design, self.training)
        kernel = design[self.training].astype(np.float64) @ design.T
        scale = np.trace(kernel[:, self.training]) / len(self.training)
        np.testing.assert_allclose(scores[self.training] @ scores.T, kernel / scale, atol=1e-4)
        assert (scores[self.training] ** 2).sum() / len(self.training) == pytest.approx(1, abs=1e-5)

    def test_features_without_variance_give_the_majority(self) -> None:
        scores = principal_scores(np.zeros((20, 5), np.float32), np.arange(15))
        target = np.array([0] * 8 + [1] * 7)
        made = fit("logistic", scores[:15], target, 2, [0.1])[0].scores(scores[15:])
        np.testing.assert_allclose(made, 0.5, atol=1e-6)

    def test_three_classes(self) -> None:
        target = np.digitize(self.features[:, 0], [-0.4, 0.4])
        for head in ("logistic", "ridge"):
            made = fit(head, self.scores()[self.training], target[self.training], 3, [0.01])[0]
            assert made.scores(self.scores()[45:]).shape == (15, 3)
            assert (made.scores(self.scores()[:45]).argmax(1) == target[:45]).mean() > 0.9

    def test_majority(self) -> None:
        made = fit("majority", np.zeros((4, 1)), np.array([1, 1, 2, 1]), 3, [0])[0]
        np.testing.assert_array_equal(made.scores(np.zeros((2, 1))), [[0, 0.75, 0.25]] * 2)
        np.testing.assert_array_equal(
            fit("majority", np.zeros((2, 1)), np.array([1.0, 4.0]), 0, [0])[0].scores(np.zeros((1, 1))), [[2.5]]
        )

    def test_loss_by_hand(self) -> None:
        scores = np.array([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]])
        expected = np.mean([np.mean([-np.log(0.8), -np.log(0.4)]), -np.log(0.5)])
        assert loss("logistic", scores, np.array([0, 0, 1]), 2) == pytest.approx(expected)
        assert loss("ridge", np.array([[-1.0, 1.0], [1.0, -1.0]]), np.array([1, 1]), 2) == pytest.approx(2.0)
        assert loss("ridge", np.array([[1.0], [3.0]]), np.array([1.0, 1.0]), 0) == pytest.approx(2.0)

    def test_the_penalty_is_chosen_on_the_validation_part_alone(self) -> None:
        penalties = [1, 0.1, 0.01, 0.001]
        parts = (np.arange(30), np.arange(30, 45))
        penalty, _ = tune("logistic", self.scores(), self.target, 2, parts, penalties)
        errors = {}
        for each in penalties:
            head = fit("logistic", self.scores()[:30], self.target[:30], 2, [each])[0]
            errors[each] = loss("logistic", head.scores(self.scores()[30:45]), self.target[30:45], 2)
        assert penalty == min(errors, key=errors.get)
        flipped = self.target.copy()
        flipped[45:] = 1 - flipped[45:]
        assert tune("logistic", self.scores(), flipped, 2, parts, penalties)[0] == penalty

    def test_ties_keep_the_stronger_penalty(self) -> None:
        nothing = np.zeros((10, 1))
        penalty, _ = tune("ridge", nothing, np.arange(10.0), 0, (np.arange(7), np.arange(7, 10)), [0.1, 1, 0.01])
        assert penalty == 1


class OneHead(torch.nn.Module):
    """The published head as library modules."""

    def __init__(self, n_features: int, outputs: int, seed: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(n_features)
        self.linear = torch.nn.Linear(n_features, outputs)
        weight, bias = initial_parameters(n_features, outputs, seed)
        self.linear.weight.data.copy_(weight)
        self.linear.bias.data.copy_(bias)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(samples))


def train_alone(samples: torch.Tensor, problem: Problem, rate: float, epochs: int) -> OneHead:
    """One head at a time, by autograd and torch's SGD."""
    head = OneHead(samples.shape[1], problem.outputs, problem.seed)
    optimiser = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)
    target = torch.as_tensor(problem.target[problem.training])
    for order in epoch_orders(len(problem.training), epochs, problem.seed):
        for chosen in order.split(batches_of(len(problem.training))):
            output = head(samples[torch.from_numpy(problem.training)[chosen]])
            if problem.n_classes:
                error = torch.nn.functional.cross_entropy(output, target[chosen])
            else:
                error = torch.nn.functional.l1_loss(output[:, 0], target[chosen])
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
    return head.eval()


class TestPublishedHead:
    rates = (3e-2, 1e-3)

    @pytest.mark.parametrize("n_classes", [2, 4, 0])
    def test_batched_equals_one_at_a_time(self, n_classes: int) -> None:
        generator = np.random.default_rng(0)
        samples = torch.from_numpy(generator.normal(size=(50, 7)).astype(np.float32) * 3)
        problems = []
        for seed in range(2):
            training = np.sort(generator.permutation(50)[:33])
            target = generator.integers(0, n_classes, 50) if n_classes else generator.normal(size=50).astype(np.float32)
            problems.append(Problem(training, target, n_classes, seed))
        heads = train(samples, problems, [self.rates] * 2, 4)
        for number, problem in enumerate(problems):
            for column, rate in enumerate(self.rates):
                alone = train_alone(samples, problem, rate, 4)
                expected = alone(samples).detach()
                made = heads.logits(samples, number)[:, column]
                torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(heads.gamma[number, column], alone.norm.weight.data, atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(heads.beta[number, column], alone.norm.bias.data, atol=1e-5, rtol=1e-4)

    def test_running_statistics_are_those_of_the_library(self) -> None:
        samples = torch.from_numpy(np.random.default_rng(3).normal(size=(10, 4)).astype(np.float32))
        problem = Problem(np.arange(10), np.array([0, 1] * 5), 2, 5)
        heads = train(samples, [problem], [[0.1]], 1)
        alone = train_alone(samples, problem, 0.1, 1)
        torch.testing.assert_close(heads.weight[0, 0], alone.linear.weight.data, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(heads.variance[0], alone.norm.running_var, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(heads.mean[0], alone.norm.running_mean, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize(
        ("n_samples", "sizes"),
        [
            (3940, [256] * 15 + [100]),
            (64, [8] * 8),
            (65, [8] * 7 + [9]),  # a batch of one would break BatchNorm
            (66, [8] * 8 + [2]),
            (2049, [256] * 7 + [257]),
            (9, [2, 2, 2, 3]),
        ],
    )
    def test_batches(self, n_samples: int, sizes: list[int]) -> None:
        assert batches_of(n_samples) == sizes
        assert sum(sizes) == n_samples

    def test_choice_is_balanced_accuracy_per_crop_or_absolute_error(self) -> None:
        output = torch.tensor([[[2.0, 0], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [0, 1]], [[0, 1], [0, 1]]])
        error = crop_error(output, torch.tensor([0, 0, 0, 1]), 2)
        torch.testing.assert_close(error, torch.tensor([-1.0, -0.5], dtype=torch.float64))
        numbers = torch.tensor([[[1.0], [2.0]], [[3.0], [3.0]]])
        torch.testing.assert_close(crop_error(numbers, torch.tensor([1.0, 4.0]), 0), torch.tensor([0.5, 1.0]))

    def test_a_diverged_rate_is_never_chosen(self) -> None:
        output = torch.tensor([[[torch.nan, 0], [1, 0]], [[0, 1], [1, 0]]])
        assert crop_error(output, torch.tensor([0, 1]), 2).argmin() == 1


class TestEmbeddings:
    def test_crops_with_the_same_number_are_averaged_over_recordings(self, tmp_path: Path) -> None:
        path = write_embeddings(tmp_path / "e.parquet", {"01": np.arange(6.0).reshape(3, 2), "02": np.ones((1, 2))})
        features = read_embeddings([path])
        assert features.participants == ["01", "02"]
        assert features.present.tolist() == [[True, True, True], [True, False, False]]
        np.testing.assert_array_equal(features.mean, [[2, 3], [1, 1]])
        assert features.seed == 0

    def test_features_that_are_not_finite(self, tmp_path: Path) -> None:
        path = write_embeddings(tmp_path / "e.parquet", {"01": np.array([[1, np.nan]]), "02": np.ones((1, 2))})
        with pytest.raises(UserError, match=r"1 recordings are not finite \(sub-01\)"):
            read_embeddings([path])

    def test_features_of_several_lengths(self, tmp_path: Path) -> None:
        path = write_embeddings(tmp_path / "e.parquet", {"01": np.ones((1, 3)), "02": np.ones((1, 2))})
        with pytest.raises(UserError, match=r"one length, found \[2, 3\]"):
            read_embeddings([path])
