"""Metrics, tests and intervals against scikit-learn, hand computation and planted truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from semantoks.errors import UserError
from semantoks.metrics import METRICS, auroc, balanced_accuracy, pearson_r, within_site
from semantoks.splits import make_units, random_parts
from semantoks.statistics import (
    MOST_DRAWS,
    bootstrap_p,
    corrected_t,
    draws_for,
    holm,
    interval,
    resample_sites,
    resample_units,
)
from sklearn import metrics as reference
from sklearn.model_selection import KFold


def example(kind: str, n: int = 70, n_classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    weights = np.concatenate([np.ones((1, n)), generator.multinomial(n, np.full(n, 1 / n), size=3)])
    if kind == "regression":
        y = generator.normal(size=n) * 15 + 100
        return y, (y + generator.normal(size=n) * 10)[:, None], weights
    y = generator.integers(0, n_classes, n)
    # Rounded, so that there are ties.
    scores = np.round(generator.random((n, n_classes)) + 0.5 * np.eye(n_classes)[y], 1)
    return y.astype(float), scores, weights


class TestMetrics:
    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_classification_equals_scikit_learn_with_weights(self, n_classes: int) -> None:
        y, scores, weights = example("classification", n_classes=n_classes)
        guess = scores.argmax(1)
        for draw, w in enumerate(weights):
            value = {name: metric(y, scores, weights)[draw] for name, metric in METRICS["classification"].items()}
            assert value["balanced_accuracy"] == pytest.approx(
                reference.balanced_accuracy_score(y, guess, sample_weight=w)
            )
            assert value["macro_f1"] == pytest.approx(reference.f1_score(y, guess, average="macro", sample_weight=w))
            ones = [
                reference.roc_auc_score(y == k, scores[:, k] - (scores[:, 0] if n_classes == 2 else 0), sample_weight=w)
                for k in ([1] if n_classes == 2 else range(n_classes))
            ]
            assert value["auroc"] == pytest.approx(np.mean(ones))

    def test_regression_equals_scikit_learn_and_scipy_with_weights(self) -> None:
        y, scores, weights = example("regression")
        made = {name: metric(y, scores, weights) for name, metric in METRICS["regression"].items()}
        for draw, w in enumerate(weights):
            repeated = np.repeat(np.arange(len(y)), w.astype(int))
            assert made["r"][draw] == pytest.approx(stats.pearsonr(y[repeated], scores[repeated, 0])[0])
            assert made["r2"][draw] == pytest.approx(reference.r2_score(y[repeated], scores[repeated, 0]))
            assert made["mae"][draw] == pytest.approx(reference.mean_absolute_error(y[repeated], scores[repeated, 0]))

    @given(st.integers(0, 1000), st.integers(2, 4))
    def test_a_weight_is_a_repetition(self, seed: int, n_classes: int) -> None:
        for kind in METRICS:
            y, scores, weights = example(kind, n=25, n_classes=n_classes, seed=seed)
            repeated = np.repeat(np.arange(25), weights[1].astype(int))
            whole = kind == "regression" or set(y[repeated]) == set(y)
            for name, metric in METRICS[kind].items():
                once = metric(y[repeated], scores[repeated], np.ones((1, len(repeated))))[0] if whole else np.nan
                np.testing.assert_allclose(metric(y, scores, weights)[1], once, atol=1e-9, err_msg=name)

    def test_constant_scores(self) -> None:
        y = np.array([0.0, 1, 1, 0])
        assert auroc(y, np.full((4, 2), 0.5), np.ones((1, 4)))[0] == 0.5
        assert pearson_r(y, np.full((4, 1), 2.0), np.ones((1, 4)))[0] == 0.0

    def test_a_draw_without_a_class_is_undefined(self) -> None:
        """Whoever calls everybody the first class would have a balanced accuracy of 1 in a draw of the first class."""
        y, always = np.array([0.0, 0, 0, 1]), np.tile([0.9, 0.1], (4, 1))
        weights = np.array([[1.0, 1, 1, 1], [2, 1, 1, 0], [0, 0, 0, 4]])
        expected = {"balanced_accuracy": 0.5, "auroc": 0.5, "macro_f1": 3 / 7}
        for name, metric in METRICS["classification"].items():
            np.testing.assert_allclose(metric(y, always, weights), [expected[name], np.nan, np.nan], err_msg=name)

    def test_one_class_has_no_auroc(self) -> None:
        assert np.isnan(auroc(np.ones(5), np.random.default_rng(0).random((5, 2)), np.ones((1, 5)))[0])
        value, weight = within_site("classification", np.ones(5), np.zeros((5, 2)), np.ones((1, 5)))
        assert np.isnan(value[0])
        assert weight[0] == 0

    def test_site_values_are_weighted_by_pairs_and_by_participants(self) -> None:
        y, scores, _ = example("classification")
        value, weight = within_site("classification", y, scores, np.ones((1, 70)))
        assert value[0] == pytest.approx(auroc(y, scores, np.ones((1, 70)))[0])
        assert weight[0] == (y == 1).sum() * (y == 0).sum()
        y, scores, _ = example("regression")
        assert within_site("regression", y, scores, np.ones((1, 70)))[1][0] == 69
        assert np.isnan(within_site("regression", y[:2], scores[:2], np.ones((1, 2)))[0][0])


class TestCorrectedT:
    def test_by_hand(self) -> None:
        """d = .1 .2 .3 .2: mean .2, s² = .02/3; t = .2/√((1/4 + 20/80)·.02/3) = 3.4641, df 3, p = .04052."""
        made = corrected_t([0.1, 0.2, 0.3, 0.2], n_train=80, n_test=20)
        assert made.difference == pytest.approx(0.2)
        assert made.standard_error == pytest.approx(np.sqrt(0.5 * 0.02 / 3))
        assert made.t == pytest.approx(3.4641016)
        assert made.degrees_of_freedom == 3
        assert made.p == pytest.approx(0.0405198, abs=1e-6)
        assert made.p_greater == pytest.approx(made.p / 2)
        assert corrected_t([-0.1, -0.2, -0.3, -0.2], 80, 20).p_greater == pytest.approx(1 - made.p / 2)

    def test_without_overlap_it_is_the_paired_t_test(self) -> None:
        d = np.random.default_rng(0).normal(0.1, 1, 12)
        assert corrected_t(d, n_train=1e12, n_test=1).p == pytest.approx(stats.ttest_1samp(d, 0).pvalue)

    def test_by_hand_for_sums_over_pairs(self) -> None:
        """A fifth tested: ρ = 2·.2·.8 = .32, so t = .2/√((1/4 + .32/.68)·.02/3) = 2.8856, df 3, p = .0632."""
        made = corrected_t([0.1, 0.2, 0.3, 0.2], n_train=80, n_test=20, pairs=True)
        assert made.standard_error == pytest.approx(np.sqrt((0.25 + 8 / 17) * 0.02 / 3))
        assert made.t == pytest.approx(2.88557, abs=1e-4)
        assert made.p == pytest.approx(0.06324, abs=1e-4)

    def test_no_difference_and_the_same_difference_everywhere(self) -> None:
        """Nothing differs: p is 1. Everything differs alike: the variance is unknown, and three of a kind no proof."""
        assert corrected_t([0, 0, 0], 80, 20).p == 1
        alike = corrected_t([0.1, 0.1, 0.1], 80, 20)
        assert alike.difference == pytest.approx(0.1)
        assert np.isnan([alike.t, alike.p, alike.p_greater]).all()

    @pytest.mark.parametrize("d", [[0.1], [0.1, np.nan]])
    def test_it_is_refused_where_it_is_undefined(self, d: list[float]) -> None:
        with pytest.raises(UserError, match=r"at least two repetitions.*probe\.repetitions"):
            corrected_t(d, 80, 20)


class TestHolm:
    def test_by_hand(self) -> None:
        np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])

    def test_untested_rows_do_not_count(self) -> None:
        np.testing.assert_allclose(holm([np.nan, 0.02, 0.03]), [np.nan, 0.04, 0.04])
        assert np.isnan(holm([np.nan])).all()

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
    def test_between_the_raw_p_and_bonferroni_in_the_same_order(self, p: list[float]) -> None:
        adjusted, raw = holm(p), np.array(p)
        assert (adjusted >= raw - 1e-12).all()
        assert (adjusted <= np.minimum(raw * len(p), 1) + 1e-12).all() or len(p) > 1
        assert (np.diff(adjusted[np.argsort(raw)]) >= 0).all()


class TestBootstrap:
    def test_families_are_drawn_whole_and_classes_keep_their_size(self) -> None:
        unit = np.array(["a", "a", "b", "c", "d", "d", "e", "f"])
        stratum = np.array([0, 0, 0, 0, 1, 1, 1, 1])
        counts = resample_units(unit, stratum, 200, np.random.default_rng(0))
        assert (counts[:, 0] == counts[:, 1]).all()
        assert (counts[:, 4] == counts[:, 5]).all()
        assert (counts[:, [0, 2, 3]].sum(axis=1) == 3).all()
        assert (counts[:, [4, 6, 7]].sum(axis=1) == 3).all()
        np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.2)

    def test_the_interval_of_a_mean_is_that_of_the_normal_distribution(self) -> None:
        values = np.random.default_rng(0).normal(size=400)
        counts = resample_units(np.arange(400), np.zeros(400), 4000, np.random.default_rng(1))
        low, high = interval(counts @ values / 400, 0.95)
        half = 1.96 * values.std() / 20
        assert low == pytest.approx(values.mean() - half, abs=0.01)
        assert high == pytest.approx(values.mean() + half, abs=0.01)

    def test_p_of_a_difference(self) -> None:
        """Two-sided: twice the one-sided p of the smaller side."""
        assert bootstrap_p(np.ones(999)) == pytest.approx(2 / 1000)
        assert bootstrap_p(np.ones(999), greater=True) == pytest.approx(1 / 1000)
        assert bootstrap_p(np.zeros(99)) == 1
        assert bootstrap_p(np.array([-1.0] * 10 + [1.0] * 89)) == pytest.approx(22 / 100)
        assert bootstrap_p(np.array([-1.0] * 10 + [1.0] * 89), greater=True) == pytest.approx(11 / 100)
        assert np.isnan(bootstrap_p(np.full(5, np.nan)))
        assert np.isnan(interval(np.full(5, np.nan), 0.95)).all()

    def test_a_few_undefined_draws_are_left_out_and_with_many_there_is_nothing(self) -> None:
        draws = np.concatenate([np.full(10, np.nan), np.linspace(-1, 2, 90)])
        assert bootstrap_p(draws) == pytest.approx(2 * (1 + 30) / 91)
        assert interval(draws, 0.5) == pytest.approx(tuple(np.quantile(draws[10:], [0.25, 0.75])))
        draws[10] = np.nan
        assert np.isnan([bootstrap_p(draws), bootstrap_p(draws, greater=True), *interval(draws, 0.5)]).all()

    @given(st.integers(1, 500), st.sampled_from([0.05, 0.01]))
    def test_draws_are_enough_for_the_tests(self, tests: int, alpha: float) -> None:
        draws = draws_for(tests, alpha, 2000)
        assert 2000 <= draws <= MOST_DRAWS
        assert draws == MOST_DRAWS or holm([bootstrap_p(np.ones(draws))] + [0.99] * (tests - 1))[0] <= alpha / 2

    def test_sites_then_participants(self) -> None:
        """The variance of a mean over sites is that between sites plus that within, over the number of sites."""
        generator = np.random.default_rng(0)
        site = np.repeat(np.arange(20), 30)
        values = generator.normal(size=20)[site] + generator.normal(size=600)
        made = resample_sites(site, np.arange(600), 3000, generator)
        per_site = [pool @ values[rows] / 30 for rows, pool in zip(made.rows, made.pool, strict=True)]
        draws = made.mean(per_site, [np.ones(3000)] * 20)
        means = np.array([values[site == number].mean() for number in range(20)])
        within = np.mean([values[site == number].var() / 30 for number in range(20)])
        assert draws.mean() == pytest.approx(means.mean(), abs=0.02)
        assert draws.std() == pytest.approx(np.sqrt((means.var() + within) / 20), rel=0.05)
        weights = made.weights()
        np.testing.assert_allclose((weights @ values) / 600, draws, atol=1e-9)

    def test_one_site_is_refused(self) -> None:
        with pytest.raises(UserError, match="at least two sites"):
            resample_sites(np.zeros(5), np.arange(5), 10, np.random.default_rng(0))


@pytest.mark.slow
class TestTypeOneError:
    """Overlapping random splits by family, sites that shift features and class shares, ridge heads on 60 features."""

    n_participants, n_features, repetitions, cohorts = 120, 60, 10, 1500

    def labels(self, confounded: bool, generator: np.random.Generator) -> np.ndarray:
        """Classes [cohorts, participants]; their share differs between sites when ``confounded``."""
        share = 0.35 + 0.1 * (np.arange(self.n_participants) % 4) if confounded else 0.5
        return (generator.random((self.cohorts, self.n_participants)) < share).astype(float)

    def values(self, y: np.ndarray, effect: float, generator: np.random.Generator, numbers: bool = False) -> np.ndarray:
        """Balanced accuracy of one row (r of ``numbers``): [repetitions, cohorts].

        Its features know the sites and, by ``effect``, what is predicted.
        """
        n = self.n_participants
        names = [f"{number:03d}" for number in range(n)]
        family = pd.Series([f"family {number // 2 if number < 40 else number}" for number in range(n)], index=names)
        features = generator.normal(size=(self.cohorts, n, self.n_features)) + 0.5 * (np.arange(n) % 4)[:, None]
        features[:, :40:2] = 0.7 * features[:, 1:40:2] + 0.7 * features[:, :40:2]
        features[:, :, 0] += effect * y
        values = []
        for repetition in range(self.repetitions):
            parts = random_parts(make_units(names, family, None), repetition, 0.2, 0.25, "")
            test = np.array([parts[name] == "test" for name in names])
            predicted = self.ridge(features, y, test)
            values.append(self.correlation(predicted, y[:, test]) if numbers else self.recall(predicted, y[:, test]))
        return np.array(values)

    @staticmethod
    def ridge(features: np.ndarray, y: np.ndarray, test: np.ndarray, train: np.ndarray | None = None) -> np.ndarray:
        train = ~test if train is None else train
        centred = features - features[:, train].mean(axis=1, keepdims=True)
        fitted, target = centred[:, train], y[:, train] - y[:, train].mean(axis=1, keepdims=True)
        gram = fitted.transpose(0, 2, 1) @ fitted + 30 * np.eye(features.shape[2])
        weight = np.linalg.solve(gram, fitted.transpose(0, 2, 1) @ target[:, :, None])
        return (centred[:, test] @ weight)[:, :, 0]

    @staticmethod
    def correlation(predicted: np.ndarray, y: np.ndarray) -> np.ndarray:
        both = (each - each.mean(axis=1, keepdims=True) for each in (predicted, y))
        guess, true = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in both)
        return (guess * true).sum(axis=1)

    @staticmethod
    def recall(predicted: np.ndarray, y: np.ndarray) -> np.ndarray:
        positive, truth = predicted > 0, y == 1
        recall = (positive & truth).sum(1) / truth.sum(1), (~positive & ~truth).sum(1) / (~truth).sum(1)
        return (recall[0] + recall[1]) / 2

    def rejected(self, differences: np.ndarray, pairs: bool = False, sizes: tuple[int, int] = (96, 24)) -> float:
        tests = [corrected_t(each, *sizes, pairs) for each in differences.T]
        return float(np.mean([test.p < 0.05 for test in tests]))

    def test_random_splits(self) -> None:
        generator = np.random.default_rng(0)
        y = self.labels(True, generator)
        one, other, strong = (self.values(y, effect, generator) for effect in (0, 0, 3))
        assert self.rejected(one - other) <= 0.06
        assert self.rejected(self.values(self.labels(False, generator), 0, generator) - 0.5) <= 0.06
        assert self.rejected(strong - one) > 0.8
        naive = [stats.ttest_1samp(each, 0).pvalue < 0.05 for each in (one - other).T]
        assert np.mean(naive) > 0.15, "without the correction overlapping splits look like evidence"

    @pytest.mark.parametrize("effect", [0, 0.3])
    def test_correlations_of_two_rows_that_know_as_much(self, effect: float) -> None:
        """Nadeau and Bengio's correction is too small for r, whether the rows know nothing or something."""
        generator = np.random.default_rng(1)
        y = generator.normal(size=(self.cohorts, self.n_participants))
        one, other = (self.values(y, effect, generator, numbers=True) for _ in range(2))
        assert self.rejected(one - other, pairs=True) <= 0.06
        assert self.rejected(one - other) > 0.07
        assert self.rejected(self.values(y, 1.5, generator, numbers=True) - one, pairs=True) > 0.8

    def own_splits(self, splits: list[tuple[np.ndarray, np.ndarray]], effect: float, cohorts: int) -> list[np.ndarray]:
        """Truth [cohorts, participants], and of two rows that know as much what each split's model predicts."""
        generator, n = np.random.default_rng(2), len(splits[0][0])
        y = (np.arange(n) % 2 * np.ones((cohorts, 1))).astype(float)
        made = [y]
        for _ in range(2):
            features = generator.normal(size=(cohorts, n, 20))
            features[:, :, :5] += effect * y[:, :, None]
            made.append(np.stack([self.ridge(features, y, test, train) for train, test in splits]))
        return made

    @pytest.mark.parametrize("effect", [0, 0.4])
    def test_cross_validation_of_the_users_own(self, effect: float) -> None:
        """Every participant is tested in each of three repetitions: each fold counts as a split."""
        participants = np.arange(self.n_participants)
        drawn = [KFold(5, shuffle=True, random_state=number).split(participants) for number in range(3)]
        splits = [(np.isin(participants, train), np.isin(participants, test)) for each in drawn for train, test in each]
        y, *predicted = self.own_splits(splits, effect, 800)
        one, other = (
            np.array([self.recall(p, y[:, test]) for p, (_, test) in zip(row, splits, strict=True)])
            for row in predicted
        )
        assert self.rejected(one - other) <= 0.06
        # Values of whole repetitions differ by who is trained on only.
        whole = (one - other).reshape(3, 5, -1).mean(axis=1)
        assert self.rejected(whole) > 0.15

    def test_one_test_part_and_several_training_parts_of_the_users_own(self) -> None:
        """Spread between models says nothing about the 80 tested; the bootstrap over them is a little liberal."""
        generator, test = np.random.default_rng(3), np.arange(240) < 80
        splits = [(np.isin(np.arange(240), 80 + generator.permutation(160)[:120]), test) for _ in range(10)]
        y, *predicted = self.own_splits(splits, 0.4, 400)
        truth = y[0, test]
        weights = np.concatenate([np.ones((1, 80)), resample_units(np.arange(80), truth, 400, generator)])
        values, draws = [], []
        for row in predicted:
            made = [
                [balanced_accuracy(truth, np.stack([-p, p], 1), weights) for p in models]
                for models in row.swapaxes(0, 1)
            ]
            values.append(np.array(made)[:, :, 0].T)
            draws.append(np.array(made)[:, :, 1:].mean(axis=1))
        assert np.mean([bootstrap_p(each) < 0.05 for each in draws[0] - draws[1]]) <= 0.07
        assert self.rejected(values[0] - values[1], sizes=(120, 80)) > 0.15

    def test_held_out_sites(self) -> None:
        n_sites, n, cohorts = 8, 160, 150
        site, y = np.repeat(np.arange(n_sites), n // n_sites), (np.arange(n) % 2).astype(float)
        generator = np.random.default_rng(0)
        rejected = {"null": 0, "real": 0}
        for number in range(cohorts):
            made = resample_sites(site, np.arange(n), 400, np.random.default_rng(number))
            draws = []
            for gain in (0, 0, 1.5):
                # Both rows find something, more at some sites than at others.
                score = generator.normal(size=n) + (0.7 + gain + 0.5 * generator.normal(size=n_sites)[site]) * y
                pairs = [
                    within_site("classification", y[rows], np.stack([-score, score], 1)[rows], pool)
                    for rows, pool in zip(made.rows, made.pool, strict=True)
                ]
                draws.append(made.mean([value for value, _ in pairs], [weight for _, weight in pairs]))
            rejected["null"] += bootstrap_p(draws[0] - draws[1]) < 0.05
            rejected["real"] += bootstrap_p(draws[2] - draws[0]) < 0.05
        assert rejected["null"] / cohorts <= 0.06
        assert rejected["real"] / cohorts > 0.8
