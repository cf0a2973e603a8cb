"""Labels permuted through the whole chain: what moves, what comes out, and how often nothing is called something."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluation_cases import defaults
from hypothesis import given
from hypothesis import strategies as st
from semantoks.baselines.features import standardise
from semantoks.baselines.linear import fit, principal_scores, tune
from semantoks.baselines.permutation import null_values, permute, permuted_orders
from semantoks.baselines.tasks import Permuted, Task
from semantoks.files import read_table
from semantoks.metrics import METRICS, site_mean
from semantoks.phenotypes import Phenotype
from semantoks.scores import Null, score_tables
from semantoks.splits import make_units, random_parts, site_parts
from semantoks.statistics import corrected_t, permutation_p
from semantoks.tables import marks, p_value
from test_probe import Study, planted

PENALTIES = [1.0, 0.1, 0.01, 0.001]
SETTINGS = {"refit": True, "penalties": PENALTIES}


def task(parts: dict[str, str], target: np.ndarray, n_classes: int = 0, protocol: str = "random") -> Task:
    index = {
        part: np.array([row for row, name in enumerate(sorted(parts)) if parts[name] == part], dtype=np.intp)
        for part in ("train", "validation", "test")
    }
    phenotype = Phenotype("x", "x", "classification" if n_classes else "regression")
    return Task(phenotype, protocol, 0, "0", "", *index.values(), target, n_classes, None)


def people(n: int, n_sites: int = 4, siblings: int = 0) -> pd.DataFrame:
    """Sites in turn; the first ``2 * siblings`` participants are pairs of siblings of one site."""
    number = np.arange(n)
    family = np.where(number < 2 * siblings, number // 2, number + n)
    site = np.where(number < 2 * siblings, number // 2, number) % n_sites
    who = pd.DataFrame({"cohort": "x", "site": site.astype(str), "site_group": site.astype(str)})
    return who.assign(participant_id=number.astype(str), family=family.astype(str))


def sessions_of(who: pd.DataFrame, counts: np.ndarray | int) -> pd.DataFrame:
    """Each participant as often as there are sessions."""
    return who.loc[np.repeat(who.index, counts)].reset_index(drop=True)


class TestOrders:
    def test_labels_stay_in_their_site_and_families_stay_together(self) -> None:
        who = people(60, siblings=10)
        orders = permuted_orders(np.arange(60), who, 200, "x")
        site, family = who["site"].to_numpy(), who["family"].to_numpy()
        assert (site[orders] == site).all()
        assert (np.sort(orders, axis=1) == np.arange(60)).all()
        first, second = orders[:, 0:20:2], orders[:, 1:20:2]
        assert (family[first] == family[second]).all(), "siblings get the labels of siblings"
        assert len(np.unique(orders, axis=0)) == 200

    def test_who_is_in_no_split_keeps_the_own_label(self) -> None:
        orders = permuted_orders(np.arange(10, 30), people(40), 20, "x")
        assert (orders[:, :10] == np.arange(10)).all()
        assert (orders[:, 30:] == np.arange(30, 40)).all()

    def test_every_row_of_a_table_has_the_same(self) -> None:
        one, two, other = (permuted_orders(np.arange(40), people(40), 5, name) for name in "xxy")
        assert (one == two).all()
        assert (one != other).any()

    def test_one_participant_per_site_cannot_move(self) -> None:
        assert (permuted_orders(np.arange(4), people(4), 3, "x") == np.arange(4)).all()

    def test_sessions_change_places_within_a_participant_and_participants_as_a_whole(self) -> None:
        who = sessions_of(people(40), 2)
        orders = permuted_orders(np.arange(80), who, 200, "x")
        person = who["participant_id"].to_numpy()
        assert (np.sort(orders, axis=1) == np.arange(80)).all()
        first, second = orders[:, ::2], orders[:, 1::2]
        assert (person[first] == person[second]).all(), "both sessions get the labels of one participant"
        assert 0.4 < (first < second).mean() < 0.6, "in either order"
        assert (who["site"].to_numpy()[orders] == who["site"].to_numpy()).all()
        # What every participant has before and after moves, with as many of either as there were.
        before = np.arange(80) % 2
        drawn = before[orders]
        assert (drawn[:, ::2] + drawn[:, 1::2] == 1).all()
        assert len(np.unique(drawn, axis=0)) == 200
        # What no session changes stays the same in both.
        constant = (np.arange(80) // 2)[orders]
        assert (constant[:, ::2] == constant[:, 1::2]).all()

    def test_sessions_at_two_sites_keep_them(self) -> None:
        who = sessions_of(people(12, n_sites=1), 2).assign(site=["a", "b"] * 12)
        orders = permuted_orders(np.arange(24), who, 50, "x")
        assert (orders % 2 == np.arange(24) % 2).all()
        assert (orders != np.arange(24)).any()

    def test_two_sessions_of_one_are_not_those_of_two_siblings(self) -> None:
        """Else one participant would get two labels of something that no session changes."""
        who = pd.DataFrame({"cohort": "x", "site": "a", "participant_id": list("112345"), "family": list("112244")})
        who["family"] = ["f", "f", "g", "g", "h", "h"]
        orders = permuted_orders(np.arange(6), who, 50, "x")
        assert (np.sort(orders[:, :2], axis=1) == [0, 1]).all()
        assert (orders[:, 2:] >= 2).all()
        assert (orders[:, 2] > 3).any()

    def test_a_family_is_matched_by_its_make_up_whatever_its_order(self) -> None:
        who = pd.DataFrame({"cohort": "x", "site": "a", "participant_id": list("112344"), "family": list("ffffgg")})
        who["family"] = ["f", "f", "f", "g", "g", "g"]
        orders = permuted_orders(np.arange(6), who, 50, "x")
        swapped = orders[orders[:, 0] > 2]
        assert len(swapped)
        assert set(map(tuple, np.sort(swapped[:, :2], axis=1))) == {(4, 5)}
        assert (swapped[:, 2] == 3).all()


class TestChain:
    generator = np.random.default_rng(0)
    parts = random_parts(
        make_units([f"{n:02d}" for n in range(60)], pd.Series({f"{n:02d}": str(n) for n in range(60)}), None),
        *(0, 0.2, 0.25, ""),
    )
    features = generator.normal(size=(60, 90)).astype(np.float32)

    def scores(self, one: Task) -> tuple[np.ndarray, np.ndarray]:
        both = np.sort(np.concatenate([one.training, one.validation]))
        return tuple(principal_scores(standardise(self.features, part), part) for part in (one.training, both))

    @pytest.mark.parametrize("refit", [True, False])
    @pytest.mark.parametrize(
        ("head", "n_classes"), [("ridge", 0), ("ridge", 2), ("logistic", 2), ("ridge", 3), ("logistic", 3)]
    )
    def test_equals_one_permutation_at_a_time(self, head: str, n_classes: int, refit: bool) -> None:
        target = self.generator.integers(0, n_classes, 60) if n_classes else self.generator.normal(size=60)
        one = task(self.parts, target, n_classes)
        both = np.sort(np.concatenate([one.training, one.validation])) if refit else one.training
        first, second = self.scores(one) if refit else (self.scores(one)[0],) * 2
        orders = permuted_orders(np.arange(60), people(60), 5, "x")
        made = permute(head, one, (first, second), orders, SETTINGS | {"refit": refit})
        for number, order in enumerate(orders):
            permuted = target[order]
            penalty, _ = tune(head, first, permuted, n_classes, (one.training, one.validation), PENALTIES)
            (alone,) = fit(head, second[both], permuted[both], n_classes, [penalty])
            np.testing.assert_allclose(made.scores[number], alone.scores(second[one.test]), atol=1e-3)
            np.testing.assert_array_equal(made.targets[number], permuted[one.test])
        assert not made.unchanged.any()
        assert permute(head, one, (first, second), np.arange(60)[None], SETTINGS | {"refit": refit}).unchanged.all()

    @pytest.mark.parametrize("head", ["ridge", "logistic"])
    def test_indicators_of_sites_as_features(self, head: str) -> None:
        """They are not centred as they come; uncentred, the steps for all permutations at once ran off to infinity."""
        one = task(self.parts, self.generator.integers(0, 2, 60), 2)
        both = np.sort(np.concatenate([one.training, one.validation]))
        indicators = (np.arange(60)[:, None] % 2 == np.arange(2)).astype(np.float32)
        scores = [principal_scores(indicators, part) for part in (one.training, both)]
        for values, part in zip(scores, (one.training, both), strict=True):
            np.testing.assert_allclose(values[part].mean(axis=0), 0, atol=1e-6)
        orders = permuted_orders(np.arange(60), people(60), 5, "x")
        made = permute(head, one, (scores[0], scores[1]), orders, SETTINGS)
        for number, order in enumerate(orders):
            permuted = one.target[order]
            penalty, _ = tune(head, scores[0], permuted, 2, (one.training, one.validation), PENALTIES)
            (alone,) = fit(head, scores[1][both], permuted[both], 2, [penalty])
            np.testing.assert_allclose(made.scores[number], alone.scores(scores[1][one.test]), atol=1e-3)

    @pytest.mark.parametrize("n_classes", [0, 2, 3])
    def test_metrics_are_those_of_the_tables(self, n_classes: int) -> None:
        kind = "classification" if n_classes else "regression"
        draw = self.generator.integers(0, n_classes, (7, 24)) if n_classes else self.generator.normal(size=(7, 24))
        scores = self.generator.normal(size=(7, 24, max(n_classes, 1)))
        scores[3] = 1  # constant
        halves = []
        for rows in (np.arange(12), np.arange(12, 24)):
            one = task(dict.fromkeys([f"{n:02d}" for n in rows], "test"), np.zeros(24), n_classes)
            halves.append(
                (Task(**{**vars(one), "test": rows}), Permuted(draw[:, rows], scores[:, rows], np.zeros(7, bool)))
            )
        site = np.repeat(list("abcd"), [12, 6, 4, 2])
        repeated = [(replace(one, repetition=number), made) for number, (one, made) in enumerate(halves)]
        random = null_values(repeated, site)
        own = [(replace(one, protocol="given", fold=str(fold)), made) for fold, (one, made) in enumerate(halves)]
        for name, values in null_values(own, site).items():
            np.testing.assert_array_equal(values, random[name], err_msg="each fold of the user's own splits is one")
        held_out = null_values([(replace(one, protocol="leave-site-out"), made) for one, made in halves], site)
        for number in range(7):
            y = draw[number].astype(float)
            for name, metric in METRICS[kind].items():
                each = [
                    metric(y[rows], scores[number, rows], np.ones((1, 12)))[0] for rows in (slice(12), slice(12, 24))
                ]
                np.testing.assert_allclose(random[name][number], np.mean(each), atol=1e-9, err_msg=name)
                pooled = metric(y, scores[number], np.ones((1, 24)))[0]
                np.testing.assert_allclose(held_out[name][number], pooled, atol=1e-9, err_msg=name)
            name = {"regression": "site_r", "classification": "site_auroc"}[kind]
            np.testing.assert_allclose(held_out[name][number], site_mean(kind, y, scores[number], site), atol=1e-9)

    @given(st.integers(0, 10**6), st.sampled_from([0, 2, 3]), st.lists(st.integers(1, 6), min_size=1, max_size=6))
    def test_whatever_a_site_holds_the_statistic_is_that_of_the_table(
        self, seed: int, n_classes: int, sizes: list[int]
    ) -> None:
        """Sites of one participant, of one class, with one number or one prediction for everybody; ties."""
        generator = np.random.default_rng(seed)
        kind, n = "classification" if n_classes else "regression", sum(sizes)
        site = np.repeat([f"s{number}" for number in range(len(sizes))], sizes)
        target = generator.integers(0, n_classes, n) if n_classes else generator.integers(0, 4, n) * 0.1 + 3
        scores = generator.integers(0, 4, (n, max(n_classes, 1))) * 0.1
        for number in range(len(sizes)):
            for values in (target, scores):
                if generator.random() < 0.3:
                    values[site == f"s{number}"] = values[0]
        rows = np.arange(n)
        one = replace(task({"0": "train"}, target, n_classes, "leave-site-out"), test=rows[: n // 2], training=rows[:0])
        other = replace(one, test=rows[n // 2 :])
        made = [
            (half, Permuted(target[None, half.test], scores[None, half.test], np.ones(1, bool)))
            for half in (one, other)
        ]
        found = null_values(made, site)
        for name, metric in METRICS[kind].items():
            expected = metric(target.astype(float), scores, np.ones((1, n)))
            np.testing.assert_allclose(found[name], expected, atol=1e-9, err_msg=name)
        name = {"regression": "site_r", "classification": "site_auroc"}[kind]
        np.testing.assert_allclose(found[name], [site_mean(kind, target.astype(float), scores, site)], atol=1e-9)

    def test_a_site_where_everybody_has_one_number_takes_no_part_in_the_null(self) -> None:
        """With weight in the null alone, that site drew it towards 0: a fifth of true nulls was rejected at .05."""
        generator = np.random.default_rng(0)
        site, rows = np.repeat(["a", "b"], 20), np.arange(40)
        one = replace(task({"0": "train"}, np.zeros(40), 0, "leave-site-out"), test=rows)
        p = []
        for _ in range(400):
            y, scores = np.r_[generator.normal(size=20), np.full(20, 3.0)], generator.normal(size=(40, 1))
            drawn = np.stack([np.r_[generator.permutation(y[:20]), y[20:]] for _ in range(99)])
            null = null_values([(one, Permuted(drawn, np.tile(scores, (99, 1, 1)), np.zeros(99, bool)))], site)[
                "site_r"
            ]
            p.append(permutation_p(site_mean("regression", y, scores, site), null))
        assert (np.array(p) < 0.05).mean() <= 0.06

    def test_p_by_hand(self) -> None:
        assert permutation_p(0.5, np.array([0.1, 0.6, 0.5, 0.2])) == 3 / 5
        assert permutation_p(0.7, np.linspace(0, 0.6, 199)) == 1 / 200
        assert np.isnan(permutation_p(0.7, np.full(5, np.nan)))


def test_a_row_of_the_table_brings_its_metrics_under_permuted_labels(tmp_path: Path) -> None:
    table, bold = planted(80)
    study = Study(tmp_path, table, bold)
    path = tmp_path / "permutations.parquet"
    study.row("fc", "--shards", str(study.shards), "--permutations", str(path))
    permuted = read_table(path)
    assert set(permuted["phenotype"]) == {"score"}, "classes are not permuted unless asked for"
    assert set(permuted["metric"]) == {"r", "r2", "mae", "site_r"}
    assert permuted.groupby(["row", "protocol", "metric"]).size().eq(99).all()
    r = permuted.query("metric == 'r' and protocol == 'random'")["value"]
    assert abs(r.mean()) < 0.1
    assert r.std() > 0.05
    study.settings["probe"]["permutations"] = {"regression": 0, "classification": 3, "classification_up_to": None}
    study.row("fc", "--shards", str(study.shards), "--permutations", str(path))
    assert set(read_table(path)["metric"]) == {"balanced_accuracy", "auroc", "macro_f1", "site_auroc"}


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("site", [f"s{number}" for number in range(36)]),
        ("family", [f"f{size}" for size in range(1, 9) for _ in range(size)]),
    ],
)
def test_labels_that_cannot_move_are_no_test(tmp_path: Path, column: str, cells: list[str]) -> None:
    """Sites of one participant, or families of eight different sizes: not p = 1, but none."""
    table, bold = planted(36)
    table[column] = cells
    alone = {"protocols": ["random"], "solved_repetitions": 2, "repetitions": 2}
    permutations = {"regression": 99, "classification": 99, "classification_up_to": None}
    settings = {"site_column": "site" if column == "site" else None, "family_column": None}
    settings |= {"family_column": "family"} if column == "family" else {}
    study = Study(tmp_path, table, bold, probe=defaults("probe") | alone | {"permutations": permutations}, **settings)
    path = tmp_path / "permutations.parquet"
    rows = [study.row("majority"), study.row("fc", "--shards", str(study.shards), "--permutations", str(path))]
    null = read_table(path)
    assert null["unchanged"].all()
    kinds = {"group": "classification", "score": "regression"}
    scores, _ = score_tables(pd.concat(rows), kinds, defaults("tables"), null)
    scores = scores[scores["primary"] & (scores["row"] != "majority")]
    assert scores["p_majority"].isna().all()
    assert scores["p_majority_adjusted"].isna().all()
    assert scores["untested_majority"].str.startswith("too few different permutations for 0.05").all()
    assert all(marks(record, 0.05).endswith("?") for _, record in scores.iterrows())
    assert p_value(scores.iloc[0], "p_majority", "untested_majority") == "n/a"


class TestTooFewPermutations:
    values = np.linspace(0, 0.5, 199)

    @pytest.mark.parametrize(("unchanged", "tested"), [(0, True), (8, True), (9, False), (199, False)])
    def test_the_smallest_possible_p_decides(self, unchanged: int, tested: bool) -> None:
        """The metric of labels that did not change is as good as itself: p is (1 + those) / 200 at the least."""
        null = Null(self.values, np.arange(199) < unchanged)
        assert (null.untested(0.05) is None) == tested

    def test_few_permutations_alone_are_said_elsewhere(self) -> None:
        assert Null(self.values[:9], np.zeros(9, bool)).untested(0.05) is None

    def test_undefined_metrics(self) -> None:
        values = np.where(np.arange(199) < 20, np.nan, self.values)
        found = Null(values, np.zeros(199, bool)).untested(0.05)
        assert found == "undefined in more than 10% of the permutations (a part without a class)"
        values[0] = 0
        assert Null(values, np.zeros(199, bool)).untested(0.05) is None


@pytest.mark.slow
class TestTypeOneError:
    """Numbers that nothing predicts, of siblings who resemble each other, at sites that differ in everything."""

    n, cohorts, numbers, repetitions, permutations = 120, 10, 40, 10, 99

    def draw(
        self, effect: float, site_effect: float, seed: int, sessions: int = 1
    ) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
        """Features [n, 300] of low rank, and numbers [numbers, n] that one factor and the site drive.

        Siblings share half of the variance of both, and so do the sessions of a participant.
        """
        generator = np.random.default_rng(seed)
        persons = self.n // sessions
        who = sessions_of(people(persons, siblings=20 // sessions), sessions)
        site = who["site"].astype(int).to_numpy()
        factors, numbers = generator.normal(size=(persons, 12)), generator.normal(size=(persons, self.numbers))
        for values in (factors, numbers):
            values[1 : 40 // sessions : 2] = 0.7 * values[0 : 40 // sessions : 2] + 0.7 * values[1 : 40 // sessions : 2]
        if sessions > 1:
            factors, numbers = (
                0.7 * np.repeat(values, sessions, axis=0) + 0.7 * generator.normal(size=(self.n, values.shape[1]))
                for values in (factors, numbers)
            )
        loadings = generator.normal(size=(12, 300)) / np.arange(1, 13)[:, None]
        features = factors @ loadings + 0.5 * site[:, None] * generator.normal(size=300)
        features += generator.normal(size=features.shape)
        numbers += site_effect * site[:, None] + effect * factors[:, 1:2]
        return features.astype(np.float32), numbers.T, who

    def splits(self, who: pd.DataFrame, protocol: str) -> list[dict[str, str]]:
        names = [f"{number:03d}" for number in range(self.n)]
        units = make_units(names, pd.Series(who["family"].to_numpy(), index=names), None)
        if protocol == "random":
            return [random_parts(units, repetition, 0.2, 0.25, "") for repetition in range(self.repetitions)]
        group = pd.Series(who["site"].to_numpy(), index=names)
        return [site_parts(units, group, site, 0.25, "") for site in sorted(set(group))]

    def values(
        self,
        protocol: str,
        drawn: tuple[np.ndarray, np.ndarray, pd.DataFrame],
        permutations: int,
        classes: bool = False,
    ) -> Iterator[tuple[np.ndarray, list[float]]]:
        """The metric of each number under its true and under permuted labels, and (random splits) of each repetition.

        Numbers are predicted, or whether they are large: of several sessions, in which one of the two.
        """
        features, numbers, who = drawn
        if classes:
            mean = numbers.reshape(len(numbers), -1, 2).mean(axis=2).repeat(2, axis=1)
            numbers = (numbers > (mean if who["participant_id"].duplicated().any() else 0.75)).astype(np.int64)
        metric = (
            ("balanced_accuracy" if classes else "r") if protocol == "random" else "site_auroc" if classes else "site_r"
        )
        site = who["site"].to_numpy()
        splits = self.splits(who, protocol)[: 4 if classes else None]
        scores = []
        for parts in splits:
            one = task(parts, numbers[0])
            both = np.sort(np.concatenate([one.training, one.validation]))
            scores.append([principal_scores(standardise(features, part), part) for part in (one.training, both)])
        # The first order is the identity: observed and permuted values come out of the same code.
        orders = permuted_orders(np.arange(self.n), who, permutations, "x")
        orders = np.concatenate([np.arange(self.n)[None], orders])
        for number in numbers:
            tasks = [task(parts, number, 2 * classes, protocol) for parts in splits]
            if protocol == "random":
                tasks = [replace(one, repetition=repetition) for repetition, one in enumerate(tasks)]
            made = [
                (one, permute("ridge", one, pair, orders, SETTINGS)) for one, pair in zip(tasks, scores, strict=True)
            ]
            if protocol == "random":
                each = [null_values([one], site)[metric][0] for one in made]
                yield null_values(made, site)[metric], each
            else:
                yield null_values(made, site)[metric], []

    @pytest.mark.parametrize("classes", [False, True])
    @pytest.mark.parametrize(("protocol", "sessions"), [("random", 1), ("random", 2), ("leave-site-out", 1)])
    def test_a_twentieth_of_true_nulls_is_rejected_and_what_is_there_is_found(
        self, protocol: str, sessions: int, classes: bool
    ) -> None:
        """Sites differ in what is predicted, and features know the site: that alone is no evidence."""
        p = {}
        # A class says less about the factor than the number does.
        strong = 1.6 if classes else 0.8
        # Labels of classes take longer.
        for effect, cohorts in ((0, self.cohorts // (1 + classes)), (strong, 2 - classes)):
            drawn = (self.draw(effect, 0.5, seed, sessions) for seed in range(cohorts))
            found = [value for one in drawn for value, _ in self.values(protocol, one, self.permutations, classes)]
            p[effect] = np.array([permutation_p(value[0], value[1:]) for value in found])
        assert (p[0] < 0.05).mean() <= 0.06
        assert (p[strong] < 0.05).mean() > 0.8

    def test_the_corrected_t_test_of_r_needs_the_larger_correlation(self) -> None:
        """Without differences between sites: r of two repetitions agrees more than Nadeau and Bengio suppose (.2)."""
        each = [r for seed in range(self.cohorts) for _, r in self.values("random", self.draw(0, 0, seed), 1)]
        p = {pairs: np.array([corrected_t(values, 0.8, 0.2, pairs).p for values in each]) for pairs in (False, True)}
        assert (p[False] < 0.05).mean() > 0.06
        assert (p[True] < 0.05).mean() <= 0.06
        assert np.corrcoef(np.array(each).T)[np.triu_indices(self.repetitions, 1)].mean() > 0.22
