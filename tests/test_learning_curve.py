"""Learning curves: growing parts of one training part, always the same test part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluation_cases import defaults
from semantoks.errors import UserError
from semantoks.learning_curve import CURVE_COLUMNS, learning_curves
from semantoks.nested_parts import nested_parts
from semantoks.phenotypes import Phenotype
from semantoks.scores import score_tables
from semantoks.splits import check_classes
from sklearn.metrics import balanced_accuracy_score
from test_probe import Study, planted

SIZES, DRAWS = [20, 30, 48, 500], 20
SETTINGS = {"sizes": SIZES, "draws": DRAWS}


def units(n: int = 80, siblings: int = 0) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Units of one participant, the first ``siblings`` of two; a quarter is in stratum b."""
    members = {f"u{number:02d}": [f"p{number:02d}"] for number in range(n)}
    for number in range(siblings):
        members[f"u{number:02d}"].append(f"q{number:02d}")
    return members, {name: "b" if number % 4 == 0 else "a" for number, name in enumerate(members)}


class TestParts:
    members, stratum = units()
    test = tuple(sorted(members)[:16])
    points = tuple(nested_parts(members, stratum, test, SETTINGS, 0.25))

    def test_every_draw_has_every_size_and_what_is_too_large_is_all(self) -> None:
        assert [(draw, size) for draw, size, _ in self.points] == [
            (draw, str(size)) for draw in range(DRAWS) for size in (20, 30, 48, 64)
        ]

    def test_the_test_part_is_always_the_same(self) -> None:
        for _, _, parts in self.points:
            assert {who for who, part in parts.items() if part == "test"} == {f"p{name[1:]}" for name in self.test}

    def test_larger_points_hold_smaller_ones_part_by_part(self) -> None:
        for (draw, _, smaller), (same, _, larger) in zip(self.points, self.points[1:], strict=False):
            if draw == same:
                assert smaller.items() <= larger.items()

    def test_sizes_and_strata(self) -> None:
        unit_of = {members[0]: name for name, members in self.members.items()}
        for _, size, parts in self.points:
            fitted = pd.Series({who: part for who, part in parts.items() if part != "test"})
            assert len(fitted) == int(size)
            rare = sum(self.stratum[unit_of[who]] == "b" for who in fitted.index)
            assert abs(rare - len(fitted) / 4) <= 1
            assert abs((fitted == "validation").sum() - len(fitted) / 4) <= 2

    def test_many_small_strata_have_the_share_together(self) -> None:
        members, _ = units(300)
        stratum = {name: f"site{number % 14}" for number, name in enumerate(members)}
        shares: dict[str, list[float]] = {}
        for _, size, parts in nested_parts(members, stratum, [], {"sizes": [10, 25, 50, 300], "draws": 60}, 0.25):
            shares.setdefault(size, []).append(np.mean([part == "validation" for part in parts.values()]))
        for size, found in shares.items():
            assert min(found) > 0, size
            assert np.mean(found) == pytest.approx(0.25, abs=0.03), size
            assert np.ptp(found) < 4 / np.sqrt(int(size)) / 2, size

    def test_draws_differ(self) -> None:
        smallest = [frozenset(parts.items()) for _, size, parts in self.points if size == "20"]
        assert len(set(smallest)) == DRAWS

    def test_families_stay_together(self) -> None:
        members, stratum = units(40, siblings=20)
        for _, size, parts in nested_parts(members, stratum, ["u00"], {"sizes": [15, 30], "draws": 20}, 0.25):
            for family in members.values():
                assert len({parts.get(who) for who in family}) == 1
            assert 0 <= sum(part != "test" for part in parts.values()) - int(size) <= 1


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    table, bold = planted()
    settings = defaults("probe") | {
        "protocols": ["random", "learning-curve"],
        "repetitions": 2,
        "solved_repetitions": 2,
        "epochs": 2,
    }
    settings |= {
        "learning_curve": SETTINGS | {"sizes": [16, 32, 64]},
        "permutations": {"regression": 49, "classification": 0, "classification_up_to": None},
    }
    return Study(tmp_path_factory.mktemp("curve"), table, bold, probe=settings)


def test_more_participants_find_more(study: Study) -> None:
    rows = pd.concat([study.row("majority"), study.row("fc", "--shards", str(study.shards))])
    settings = defaults("tables") | {"draws": 200}
    kinds = {"group": "classification", "score": "regression"}
    table = learning_curves(rows, kinds, settings)
    assert list(table.columns) == CURVE_COLUMNS
    means = table[table["row"] == "fc-ridge"].pivot(index="phenotype", columns="size", values="mean")
    assert (means[16] + 0.1 < means[64]).all()
    assert set(table["draws"]) == {DRAWS}
    # refit: fitted on all of a point, training and validation part
    assert (table["n_train"] == table["size"]).all()
    one = rows[(rows["row"] == "fc-ridge") & (rows["phenotype"] == "group") & (rows["fold"] == "16")]
    one = one[one["protocol"] == "learning-curve"]
    by_hand = [
        balanced_accuracy_score(part["y_true"], np.stack(part["y_score"]).argmax(axis=1))
        for _, part in one.groupby("repetition")
    ]
    point = table[(table["row"] == "fc-ridge") & (table["phenotype"] == "group") & (table["size"] == 16)].iloc[0]
    np.testing.assert_allclose([point["mean"], point["sd"]], [np.mean(by_hand), np.std(by_hand, ddof=1)])
    assert point["ci_low"] < point["mean"] < point["ci_high"]
    # it stands in no other table, and nothing about it is tested
    scores, _ = score_tables(rows, kinds, settings)
    assert set(scores["protocol"]) == {"random"}


def test_the_test_part_is_that_of_the_first_random_split(study: Study) -> None:
    splits = pd.read_parquet(study.splits).query("part == 'test'")
    for _, own in splits.groupby("phenotype"):
        first = own.query("protocol == 'random' and repetition == 0")["participant_id"]
        assert set(own.query("protocol == 'learning-curve'")["participant_id"]) == set(first)


def test_a_number_with_few_values_one_of_them_rare(tmp_path: Path) -> None:
    table, bold = planted(60)
    table["score"] = np.where(np.arange(60) == 0, 7, np.arange(60) % 4)
    settings = defaults("probe") | {"protocols": ["learning-curve"]}
    settings |= {"learning_curve": {"sizes": [10, 40], "draws": 20}}
    study = Study(tmp_path, table, bold, probe=settings)
    assert set(study.row("majority")["phenotype"]) == {"group", "score"}


def test_somebody_has_to_be_chosen_on() -> None:
    phenotype = Phenotype("score", "score", "regression")
    values = pd.Series([1.0, 2.0, 3.0, 4.0], index=list("abcd"))
    parts = {"a": "train", "b": "train", "c": "test", "d": "test"}
    with pytest.raises(UserError, match="here: nobody is in the validation part"):
        check_classes(phenotype, values, parts, "here", whole=True)


def test_a_point_without_a_class_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table, bold = planted(60)
    table["group"] = np.where(np.arange(60) % 20 == 0, "rare", np.where(np.arange(60) % 2, "a", "b"))
    settings = defaults("probe") | {"protocols": ["learning-curve"], "test_share": 0.34}
    settings |= {"learning_curve": {"sizes": [10, 38], "draws": 20}}
    study = Study(tmp_path, table, bold, probe=settings)
    splits = pd.read_parquet(study.splits)
    assert "the train part has 2 of 3 classes" in capsys.readouterr().err
    assert len(splits[(splits["phenotype"] == "group") & (splits["fold"] == "10")]) < len(
        splits[(splits["phenotype"] == "score") & (splits["fold"] == "10")]
    )
