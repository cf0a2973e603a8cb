"""How rows of a table are compared: on whom each was fitted, over which repetitions, and where there is no test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evaluation_cases import defaults
from semantoks.metrics import pearson_r, site_mean
from semantoks.scores import score_tables
from semantoks.statistics import bootstrap_p, corrected_t, draws_for
from semantoks.summaries import HeldOutSites, RandomSplits
from semantoks.table_notes import footnotes
from semantoks.tables import add_published, detail_blocks, main_blocks
from semantoks.task_scores import collect
from sklearn.metrics import balanced_accuracy_score
from test_tables import KINDS, SETTINGS, of, predictions

PUBLISHED = pd.DataFrame({"task": [], "model": [], "metric": [], "study": [], "value": []})
GROUP = {"group": "classification"}
FEW = {"regression": 0, "classification": 0, "classification_up_to": None}


def notes_of(scores: pd.DataFrame, kinds: Mapping[str, str] = KINDS, **probe: Any) -> str:
    """The footnotes below a table of those scores."""
    about = {
        "settings": {"probe": defaults("probe") | probe},
        "fitted_on": "home",
        "unit": "participant",
        "confounds_left_out": [],
    }
    return "\n".join(footnotes("small", about, described(scores, kinds), SETTINGS, PUBLISHED))


def described(scores: pd.DataFrame, kinds: Mapping[str, str] = KINDS) -> pd.DataFrame:
    phenotypes = {name: {"type": kind} for name, kind in kinds.items()}
    return add_published(scores, phenotypes, {}, PUBLISHED, {})


def values(rows: pd.DataFrame) -> np.ndarray:
    """Balanced accuracy of group in each random split."""
    own = rows.query("protocol == 'random' and phenotype == 'group'").groupby("repetition")
    return np.array([balanced_accuracy_score(one["y_true"], np.stack(one["y_score"]).argmax(axis=1)) for _, one in own])


@pytest.fixture(scope="module")
def network() -> list[pd.DataFrame]:
    """Rows fitted on 60 participants, and a network that was trained on 45."""
    return [
        predictions("majority", 0),
        predictions("fc-logistic", 1.5, 1),
        predictions("fc-ridge", 1.2, 2),
        predictions("bnt", 0.7, 3).assign(n_train=45, head="bnt"),
    ]


class TestFittedOn:
    def test_every_row_says_on_how_many(self, network: list[pd.DataFrame]) -> None:
        scores, _ = score_tables(pd.concat(network), KINDS, SETTINGS)
        found = scores.groupby("row")["n_train"].unique().map(list).to_dict()
        assert found == {"majority": [60], "fc-logistic": [60], "fc-ridge": [60], "bnt": [45]}

    def test_two_rows_are_compared_with_the_smaller_number(self, network: list[pd.DataFrame]) -> None:
        scores, _ = score_tables(pd.concat(network), KINDS, SETTINGS)
        reference, ridge, bnt = (values(table) for table in network[1:])
        assert of(scores, "bnt", "balanced_accuracy")["p"] == pytest.approx(corrected_t(bnt - reference, 45, 20).p)
        assert of(scores, "fc-ridge", "balanced_accuracy")["p"] == pytest.approx(
            corrected_t(ridge - reference, 60, 20).p
        )

    def test_a_further_row_changes_no_other(self, network: list[pd.DataFrame]) -> None:
        with_it, _ = score_tables(pd.concat(network), KINDS, SETTINGS)
        without, _ = score_tables(pd.concat(network[:3]), KINDS, SETTINGS)
        columns = ["protocol", "phenotype", "metric", "row", "mean", "n_train", "p", "p_majority", "ci_low"]
        others = with_it.loc[with_it["row"] != "bnt", columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(others, without[columns])

    def test_the_table_shows_both_numbers_and_the_note_says_which_rows(self, network: list[pd.DataFrame]) -> None:
        scores, _ = score_tables(pd.concat(network), KINDS, SETTINGS)
        block = main_blocks(described(scores), PUBLISHED, SETTINGS)[0]
        sizes = {row[0]: row[1] for row in block.rows if row[0].startswith("n fitted")}
        assert sizes == {
            "n fitted + tested (tested at all): other rows": f"60 + 20 ({of(scores, 'bnt', 'auroc')['n']})",
            "n fitted + tested (tested at all): bnt": f"45 + 20 ({of(scores, 'bnt', 'auroc')['n']})",
        }
        assert "training and validation part after the choice, but for bnt: networks trained" in notes_of(scores)
        assert "training part only; so are bnt" in notes_of(scores, refit=False)
        without, _ = score_tables(pd.concat(network[:3]), KINDS, SETTINGS)
        assert "after the choice. Budget" in notes_of(without)

    def test_rows_tested_on_fewer_participants_say_so(self, network: list[pd.DataFrame]) -> None:
        few = network[3].query("protocol == 'random' and repetition < 3")
        scores, _ = score_tables(pd.concat([*network[:3], few]), KINDS, SETTINGS)
        block = main_blocks(described(scores), PUBLISHED, SETTINGS)[0]
        (own,) = (row[1] for row in block.rows if row[0].endswith(": bnt"))
        tested = few.loc[few["phenotype"] == "group", "participant_id"].nunique()
        assert own == f"45 + 20 ({tested})"
        detail = next(
            block for block in detail_blocks(described(scores), SETTINGS) if block.title == "random splits: group"
        )
        assert {row[0]: row[1:4] for row in detail.rows}["bnt"] == ["3", "45", "20"]
        assert "k = 3 (bnt)" in notes_of(scores)
        assert "k = 5 (majority, fc-logistic, fc-ridge)" in notes_of(scores)
        alone, _ = score_tables(pd.concat(network[:3]), KINDS, SETTINGS)
        assert "k = 5 (all rows)" in notes_of(alone)
        assert "Few" not in notes_of(alone.assign(repetitions=100))


def models_elsewhere(
    row: str, noise: list[float], seed: int, kind: str = "regression", n_sites: int = 6
) -> pd.DataFrame:
    """Predictions of models of random splits on 60 participants of a cohort for testing, one noise per repetition.

    Classes are bins whose edges differ between repetitions.
    """
    truth = np.random.default_rng(1).normal(size=60)
    generator = np.random.default_rng(seed)
    rows = []
    for repetition, spread in enumerate(noise):
        guess = np.zeros(60) if row == "majority" else truth + spread * generator.normal(size=60)
        if kind == "classification":
            y = np.digitize(truth, [-0.6 + 0.2 * repetition, 0.4 + 0.1 * repetition])
            scores = [list(-np.abs(value - np.array([-1.0, 0, 1]))) for value in guess]
        else:
            y, scores = truth, [[value] for value in guess]
        rows.append(
            pd.DataFrame(
                {
                    "participant_id": [f"{person:03d}" for person in range(60)],
                    "family": [f"{person}" for person in range(60)],
                    "site_group": [f"s{person % n_sites}" for person in range(60)],
                    "y_true": y.astype(float),
                    "y_score": scores,
                    "repetition": repetition,
                }
            )
        )
    named = {"cohort": "c", "row": row, "head": row.split("-")[-1], "phenotype": "x", "protocol": "transfer"}
    about = {"fold": "0", "split_checksum": "a", "n_train": 60, "pretrain_seed": pd.NA, "transductive": False}
    return pd.concat(rows, ignore_index=True).assign(**named, **about)


class TestCohortForTesting:
    def binned(self, n_sites: int) -> pd.DataFrame:
        rows = [("majority", 0), ("fc-logistic", 0.8), ("fc-ridge", 0.5)]
        return pd.concat(
            models_elsewhere(row, [noise] * 4, seed, "classification", n_sites)
            for seed, (row, noise) in enumerate(rows)
        )

    @pytest.mark.parametrize("n_sites", [1, 6])
    def test_bins_are_those_of_each_repetition(self, n_sites: int) -> None:
        rows = self.binned(n_sites)
        one = [part for _, part in rows[rows["row"] == "fc-ridge"].groupby("repetition")]
        assert (np.ptp([part["y_true"] for part in one], axis=0) > 0).any(), "whoever has another bin in another split"
        scores, sites = score_tables(rows, {"x": "classification"}, SETTINGS)
        made = of(scores, "fc-ridge", "balanced_accuracy", "transfer", "x")
        by_hand = [balanced_accuracy_score(p["y_true"], np.stack(p["y_score"]).argmax(axis=1)) for p in one]
        assert made["mean"] == pytest.approx(np.mean(by_hand))
        assert made["ci_low"] < made["mean"] < made["ci_high"]
        if n_sites == 1:
            return
        within = [site_mean("classification", *arrays(p), p["site_group"].to_numpy(str)) for p in one]
        assert of(scores, "fc-ridge", "site_auroc", "transfer", "x")["mean"] == pytest.approx(np.mean(within))
        at_s2 = [site_mean("classification", *arrays(p[p["site_group"] == "s2"]), np.zeros(10)) for p in one]
        found = sites.query("row == 'fc-ridge' and site_group == 's2'")["value"].to_list()
        assert found == [pytest.approx(np.mean(at_s2))]

    @pytest.mark.parametrize("n_sites", [1, 6])
    def test_difference_and_p_are_over_the_repetitions_that_both_have(self, n_sites: int) -> None:
        """The reference row is poor in the three repetitions that both have, and excellent in all others."""
        rows = [
            models_elsewhere("majority", [0] * 12, 0, n_sites=n_sites),
            models_elsewhere("fc-ridge", [3] * 3 + [0.1] * 9, 1, n_sites=n_sites),
            models_elsewhere("tiny-published", [3] * 3, 2, n_sites=n_sites),
        ]
        scores, _ = score_tables(pd.concat(rows), {"x": "regression"}, SETTINGS)
        shared = [rows[0].query("repetition < 3"), rows[1].query("repetition < 3"), rows[2]]
        alone, _ = score_tables(pd.concat(shared), {"x": "regression"}, SETTINGS)
        metric = "r" if n_sites == 1 else "site_r"
        made, expected = (of(table, "tiny-published", metric, "transfer", "x") for table in (scores, alone))
        for column in ("difference", "p", "p_majority"):
            assert made[column] == pytest.approx(expected[column]), column
        assert made["p"] > 0.05

    def test_p_is_that_of_the_draws_by_hand(self) -> None:
        rows = pd.concat(
            models_elsewhere(row, [noise] * 3, seed, n_sites=1)
            for seed, (row, noise) in enumerate([("majority", 0), ("fc-ridge", 1.0), ("tiny-ridge", 1.3)])
        )
        scores, _ = score_tables(rows, {"x": "regression"}, SETTINGS)
        (task,) = collect(rows, {"x": "regression"})
        weights = RandomSplits(task, SETTINGS["draws"], "r", draws_for(2, SETTINGS["alpha"], SETTINGS["draws"])).weights
        drawn = {
            row.name: np.mean(
                [pearson_r(r.y_true, s, weights) for r, s in zip(task.repetitions, row.scores[0], strict=True)], axis=0
            )
            for row in task.rows
        }
        made = of(scores, "tiny-ridge", "r", "transfer", "x")
        assert made["p"] == pytest.approx(bootstrap_p(drawn["tiny-ridge"] - drawn["fc-ridge"]))
        assert made["test"] == "bootstrap"


def arrays(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return rows["y_true"].to_numpy(), np.stack(rows["y_score"].to_list())


class TestUndefined:
    def test_always_right_is_not_tested_and_the_table_says_why(self) -> None:
        """Three repetitions all right: the differences to the majority row are the same, no variance, no p of 0."""
        tables = [
            predictions("majority", 0),
            predictions("fc-logistic", 1.5, 1),
            predictions("fc-ridge", 1.5, 2),
            predictions("tiny-logistic", 50, 3),
        ]
        rows = pd.concat(tables).query("protocol == 'random' and phenotype == 'group' and repetition < 3")
        scores, _ = score_tables(rows, {"group": "classification"}, SETTINGS)
        made = of(scores, "tiny-logistic", "balanced_accuracy")
        assert made["mean"] == 1
        assert made["difference_majority"] == 0.5
        assert np.isnan(made["p_majority"])
        assert np.isnan(made["p_majority_adjusted"])
        assert np.isfinite(made["p"]), "the reference row is not the same everywhere"
        cells = {row[0]: row[1] for row in main_blocks(described(scores, GROUP), PUBLISHED, SETTINGS)[0].rows}
        assert cells["tiny-logistic"].endswith("?")
        (detail,) = (block for block in detail_blocks(described(scores, GROUP), SETTINGS) if block.rows)
        line = dict(zip(detail.header, next(row for row in detail.rows if row[0] == "tiny-logistic"), strict=True))
        assert line["p majority (Holm)"] == "n/a"
        assert "? not tested (p is n/a): the same difference in every repetition" in notes_of(scores, GROUP)
        assert "tiny-logistic against the majority row (random, group)" in notes_of(scores, GROUP)

    def test_a_class_at_one_site_leaves_many_draws_undefined(self) -> None:
        tables = [predictions("majority", 0), predictions("fc-logistic", 1, 1), predictions("fc-ridge", 1, 2)]
        rows = pd.concat(tables).query("protocol == 'leave-site-out' and phenotype == 'group'").copy()
        rows["y_true"] = (rows["site_group"] == "site0").astype(float)
        settings = SETTINGS | {"primary": {**SETTINGS["primary"], "leave-site-out": {"classification": "auroc"}}}
        scores, _ = score_tables(rows, {"group": "classification"}, settings)
        made = of(scores, "fc-ridge", "auroc", "leave-site-out")
        # The only site with the class, or no other one, is drawn: (3/4)^4 + (1/4)^4.
        assert made["undefined_draws"] == pytest.approx(0.32, abs=0.08)
        assert np.isnan([made["ci_low"], made["ci_high"], made["p"], made["p_majority"]]).all()
        assert made["untested"].startswith("undefined in more than 10% of the bootstrap draws")
        assert "all numbers are the same, are left out (group: up to 3" in notes_of(scores, GROUP)

    def test_a_rare_class_gives_no_one_a_balanced_accuracy_above_chance(self) -> None:
        rows = predictions("majority", 0).query("phenotype == 'group' and protocol == 'leave-site-out'").copy()
        rows["y_true"] = (rows["participant_id"] < "004").astype(float)
        (task,) = collect(rows, GROUP)
        made = HeldOutSites(task, 500).summary("balanced_accuracy", task.rows[0])
        assert np.nanmax(made.own_draws) == 0.5


class TestReach:
    def test_perfect_rows_are_better_than_nothing_however_many_there_are(self) -> None:
        """54 rows × 2 tasks, every one perfect: 2,000 draws could not reach .05, so there are more."""
        tables = [predictions("majority", 0), predictions("fc-logistic", 3, 1), predictions("fc-ridge", 3, 2)]
        tables += [predictions(f"m{number}-ridge", 6, number + 3) for number in range(51)]
        rows = pd.concat(tables).query("protocol == 'leave-site-out'")
        scores, _ = score_tables(rows, KINDS, SETTINGS)
        primary = scores[scores["primary"] & (scores["row"] != "majority")]
        assert (primary["draws"] == draws_for(2 * 53, 0.05, SETTINGS["draws"])).all()
        perfect = primary[primary["row"].str.startswith("m")]
        assert (perfect["p_majority_adjusted"] < 0.05).all()
        assert "Out of reach" not in notes_of(scores)

    def test_what_permutations_cannot_reach_is_said(self, network: list[pd.DataFrame]) -> None:
        rows = pd.concat(network).query("protocol == 'random'")
        of_row = {"cohort": "small", "phenotype": "score", "protocol": "random", "row": "fc-ridge", "metric": "r"}
        said = "random, against the majority row by permutation: the smallest possible p, 0.01, times 6 tests is 0.06"
        for count, unchanged, there in ((99, 0, True), (4999, 0, False), (4999, 49, True)):
            null = pd.DataFrame({"permutation": range(count), "value": 0.0}).assign(**of_row)
            null["unchanged"] = null["permutation"] < unchanged
            scores, _ = score_tables(rows, KINDS, SETTINGS, null)
            smallest = scores["smallest_p_majority"].dropna()
            assert smallest.to_list() == [(1 + unchanged) / (1 + count)]
            assert (said in notes_of(scores, permutations=FEW | {"regression": count})) == there


class TestNotes:
    def test_only_the_protocols_of_the_table_are_described(self, network: list[pd.DataFrame]) -> None:
        rows = pd.concat(network)
        random, by_site = (rows[rows["protocol"] == name] for name in ("random", "leave-site-out"))
        text = notes_of(score_tables(random, KINDS, SETTINGS)[0], protocols=["random"])
        assert "Random splits: 100 repetitions" in text
        assert "eave-site-out" not in text.split("\n")[0]
        assert "Given" not in text
        text = notes_of(score_tables(by_site, KINDS, SETTINGS)[0], protocols=["leave-site-out"]).split("\n")[0]
        assert text == "Cohort small. Leave-site-out: one institution after the other is tested on."
        text = notes_of(score_tables(random, KINDS, SETTINGS)[0]).split("\n")[0]
        assert text.endswith("Leave-site-out: not here, fewer than two sites are known.")
        some = pd.concat([random, by_site.query("phenotype == 'group'")])
        text = notes_of(score_tables(some, KINDS, SETTINGS)[0]).split("\n")[0]
        assert text.endswith("is tested on (not for score: fewer than two sites are known).")
        own = random.query("repetition < 3 or phenotype == 'group'").assign(protocol="given")
        text = notes_of(score_tables(own, KINDS, SETTINGS)[0], protocols=[]).split("\n")[0]
        assert text == "Cohort small. Given: the user's own splits (group: 5, score: 3), each fold counted as one."

    def test_two_tests_of_given_splits_name_their_phenotypes(self, network: list[pd.DataFrame]) -> None:
        own = pd.concat(network).query("protocol == 'random' and (repetition == 0 or phenotype == 'group')")
        scores, _ = score_tables(own.assign(protocol="given"), KINDS, SETTINGS)
        text = notes_of(scores, protocols=[])
        assert "Given splits (group): corrected resampled t-test" in text
        assert "Given splits (score): bootstrap of the paired difference" in text

    def test_a_single_given_split_is_tested_by_bootstrap_and_the_note_says_so(
        self, network: list[pd.DataFrame]
    ) -> None:
        rows = pd.concat(network).query("protocol == 'random' and repetition == 0").assign(protocol="given")
        scores, _ = score_tables(rows, KINDS, SETTINGS)
        assert set(scores["test"].dropna()) == {"bootstrap"}
        text = notes_of(scores)
        assert "Given splits: bootstrap of the paired difference" in text
        assert "or there is one only, nothing says what models of other participants would have given" in text
        assert "t-test" not in text

    def test_r_is_tested_with_the_larger_correlation(self, network: list[pd.DataFrame]) -> None:
        scores, _ = score_tables(pd.concat(network), KINDS, SETTINGS)

        def correlations(rows: pd.DataFrame) -> np.ndarray:
            own = rows.query("protocol == 'random' and phenotype == 'score'").groupby("repetition")
            return np.array([np.corrcoef(p["y_true"], np.stack(p["y_score"])[:, 0])[0, 1] for _, p in own])

        by_hand = corrected_t(correlations(network[1]) - correlations(network[2]), 60, 20, pairs=True)
        assert of(scores, "fc-logistic", "r", phenotype="score")["p"] == pytest.approx(by_hand.p)
        assert "for r with the larger correlation" in notes_of(scores)
