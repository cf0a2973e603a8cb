"""Who is trained on, chosen on and tested on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evaluation_cases import cohort_settings, noise_shards, participants_table
from hypothesis import given, settings
from hypothesis import strategies as st
from semantoks.errors import UserError
from semantoks.files import read_metadata, read_table
from semantoks.phenotypes import Cohort
from semantoks.split_units import make_units
from semantoks.splits import checksum, main, random_parts, site_parts, split_cohort
from sklearn.model_selection import train_test_split

PARTS = ("train", "validation", "test")


def split(tmp_path: Path, table: pd.DataFrame, **changes: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    settings = cohort_settings(tmp_path / "participants.tsv", table, **changes)
    recordings = pd.DataFrame({"cohort": "small", "participant_id": table["participant_id"].str[4:]})
    return split_cohort(Cohort.from_settings(settings), settings["probe"], recordings)


def alone(names: list[str]) -> pd.Series:
    return pd.Series(names, index=names)


class TestRandom:
    def test_it_is_the_published_protocol(self) -> None:
        """Test .2, validation .25 of the rest, seed r for both, unstratified (EVALUATION §1)."""
        names = [f"{number:03d}" for number in range(101)]
        for repetition in range(10):
            parts = random_parts(make_units(names, alone(names), None), repetition, 0.2, 0.25, "")
            rest, test = train_test_split(names, test_size=0.2, random_state=repetition)
            train, validation = train_test_split(rest, test_size=0.25, random_state=repetition)
            expected = dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation")
            assert parts == expected | dict.fromkeys(test, "test")

    def test_named_columns_keep_their_shares(self, tmp_path: Path) -> None:
        table = participants_table(100)
        table["group"] = np.where(np.arange(100) < 20, "patient", "control")
        rows, _ = split(tmp_path, table)
        rows = rows[(rows["phenotype"] == "group") & (rows["protocol"] == "random")]
        patient = rows["participant_id"].astype(int) < 20
        shares = patient.groupby([rows["repetition"], rows["part"]]).mean()
        assert shares.between(0.19, 0.21).all()

    def test_a_number_is_stratified_by_its_quarters(self, tmp_path: Path) -> None:
        table = participants_table(200)
        phenotypes = {"score": {"column": "score", "type": "classification", "bins": 4, "stratify": ["score"]}}
        rows, _ = split(tmp_path, table, phenotypes=phenotypes)
        tested = rows[(rows["part"] == "test") & (rows["protocol"] == "random")]
        quarter = pd.qcut(table.set_index(table["participant_id"].str[4:])["score"].astype(float), 4, labels=False)
        counts = tested.groupby("repetition")["participant_id"].apply(lambda names: quarter[names].value_counts())
        assert counts.between(9, 11).all()

    def test_repetitions_differ(self, tmp_path: Path) -> None:
        rows, _ = split(tmp_path, participants_table())
        tests = rows[(rows["part"] == "test") & (rows["protocol"] == "random") & (rows["phenotype"] == "score")]
        assert len({tuple(part) for _, part in tests.groupby("repetition")["participant_id"]}) == 3

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 15), min_size=30, max_size=80), st.integers(0, 5))
    def test_families_are_never_divided(self, family: list[int], seed: int) -> None:
        names = [f"{number:02d}" for number in range(len(family))]
        if len(set(family)) < 5:
            return
        of = pd.Series([f"family {number}" for number in family], index=names)
        parts = pd.Series(random_parts(make_units(names, of, None), seed, 0.2, 0.25, ""))
        assert set(parts.index) == set(names)
        assert parts.groupby(of).nunique().eq(1).all()


class TestLeaveSiteOut:
    def test_each_group_is_tested_once_and_trained_on_by_nobody_in_its_fold(self, tmp_path: Path) -> None:
        table = participants_table(60, n_sites=4)
        rows, _ = split(tmp_path, table, site_group={"site0": "one", "site1": "one"})
        rows = rows[(rows["protocol"] == "leave-site-out") & (rows["phenotype"] == "group")]
        group = table.set_index(table["participant_id"].str[4:])["site"].replace({"site0": "one", "site1": "one"})
        assert set(rows["fold"]) == {"one", "site2", "site3"}
        at_held_out = rows["participant_id"].map(group) == rows["fold"]
        assert (at_held_out == (rows["part"] == "test")).all()
        assert sorted(rows.loc[rows["part"] == "test", "participant_id"]) == sorted(group.index)

    def test_relatives_elsewhere_and_unknown_sites_are_in_no_part(self) -> None:
        names = [f"{number:02d}" for number in range(20)]
        family = alone(names)
        family["00"] = family["19"]
        group = pd.Series(["a"] * 10 + ["b"] * 10, index=names)
        group["05"] = None
        parts = site_parts(make_units(names, family, None), group, "b", 0.25, "")
        assert "00" not in parts
        assert "05" not in parts
        assert parts["19"] == "test"

    def test_a_site_with_one_participant_and_one_class_is_tested(self, tmp_path: Path) -> None:
        table = participants_table(61)
        table.loc[60, "site"] = "lonely"
        rows, _ = split(tmp_path, table)
        lonely = rows[(rows["fold"] == "lonely") & (rows["part"] == "test") & (rows["phenotype"] == "group")]
        assert list(lonely["participant_id"]) == ["060"]

    def test_one_site_has_no_such_splits_and_the_log_says_so(self, tmp_path: Path, capsys: Any) -> None:
        rows, _ = split(tmp_path, participants_table(n_sites=1))
        assert set(rows["protocol"]) == {"random"}
        assert "at least two sites, found ['site0']; it has no such splits" in capsys.readouterr().err
        rows, _ = split(tmp_path, participants_table(), site_column=None)
        assert set(rows["protocol"]) == {"random"}

    def test_asked_for_alone_it_is_refused(self, tmp_path: Path) -> None:
        probe = {**cohort_settings(tmp_path / "x.tsv", participants_table())["probe"], "protocols": ["leave-site-out"]}
        with pytest.raises(UserError, match=r"at least two sites, found \['site0'\].*set site_column"):
            split(tmp_path, participants_table(n_sites=1), probe=probe)


def emptied(parts: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """Two cells of a column are empty."""
    given = parts.get(column, pd.Series(value, index=parts.index))
    return parts.assign(**{column: given.mask(parts.index % 30 == 3)})


class TestGiven:
    """Splits of the user's own."""

    def given(self, tmp_path: Path, change: Any = None, **changes: Any) -> pd.DataFrame:
        table = participants_table()
        parts = table[["participant_id"]].assign(part=(["train"] * 3 + ["validation", "test"]) * 12)
        if change is not None:
            parts = change(parts)
        parts.to_csv(tmp_path / "given.tsv", sep="\t", index=False)
        probe = cohort_settings(tmp_path / "x.tsv", table)["probe"] | {"split_file": str(tmp_path / "given.tsv")}
        rows, _ = split(tmp_path, table, probe=probe, **changes)
        return rows[rows["protocol"] == "given"]

    def test_they_are_a_protocol_of_their_own(self, tmp_path: Path) -> None:
        rows = self.given(tmp_path)
        assert set(rows["phenotype"]) == {"group", "score"}
        tested = rows.loc[(rows["part"] == "test") & (rows["phenotype"] == "score"), "participant_id"]
        assert sorted(tested) == [f"{number:03d}" for number in range(4, 60, 5)]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda p: pd.concat([p, p.head(1).assign(part="test")]), r"fold 0: 000 more than once"),
            (lambda p: p.assign(part=p["part"].replace("test", "train")), r"expected train, validation and test"),
            (lambda p: p.assign(part=p["part"].replace("test", "tset")), r"as part, found \['tset'\]"),
            (lambda p: p.assign(participant_id="sub-x" + p["participant_id"]), r"60 of its participants have no rec"),
            (lambda p: p.drop(columns="part"), r"expected the columns participant_id and part"),
            (lambda p: p.assign(repetition="first"), r"whole numbers as repetition"),
            (lambda p: p.assign(phenotype="score"), r"phenotype group: expected splits of its participants"),
            (
                lambda p: p.assign(participant_id=p["participant_id"].mask(p.index == 3)),
                r"participant_id is empty in line 5; fill",
            ),
            (lambda p: emptied(p, "fold", "1"), r"given.tsv: fold is empty in lines 5, 35; fill"),
            (lambda p: emptied(p, "repetition", "1"), r"given.tsv: repetition is empty in lines 5, 35; fill"),
            (lambda p: emptied(p, "phenotype", "group"), r"given.tsv: phenotype is empty in lines 5, 35; fill"),
            (
                lambda p: p.assign(fold=None),
                r"fold is empty in lines 2, 3, 4, 5, 6, …; fill the cells or drop the column",
            ),
            (lambda p: emptied(p, "part", "train"), r"given.tsv: part is empty in lines 5, 35; fill"),
        ],
    )
    def test_mistakes_are_refused(self, tmp_path: Path, change: Any, message: str) -> None:
        with pytest.raises(UserError, match=message):
            self.given(tmp_path, change)

    def test_a_family_in_two_parts_is_refused(self, tmp_path: Path) -> None:
        table = participants_table().assign(family=[str(number // 2) for number in range(60)])
        parts = table[["participant_id"]].assign(part=(["train"] * 3 + ["validation", "test"]) * 12)
        parts.to_csv(tmp_path / "given.tsv", sep="\t", index=False)
        probe = cohort_settings(tmp_path / "x.tsv", table)["probe"] | {"split_file": str(tmp_path / "given.tsv")}
        with pytest.raises(UserError, match=r"members of family 1, .* are in different parts"):
            split(tmp_path, table, probe=probe, family_column="family")


class TestEverySplit:
    def test_parts_are_disjoint_and_only_who_has_a_value_is_in_one(self, tmp_path: Path) -> None:
        table = participants_table()
        table.loc[:4, "score"] = None
        rows, about = split(tmp_path, table)
        for _, part in rows.groupby(["phenotype", "protocol", "repetition", "fold"]):
            assert part["participant_id"].is_unique
            assert set(part["part"]) == set(PARTS)
        assert not rows.loc[rows["phenotype"] == "score", "participant_id"].isin(["000", "004"]).any()
        assert rows.loc[rows["phenotype"] == "group", "participant_id"].isin(["000"]).any()
        assert about["unmatched"] == {"recording_only": [], "table_only": []}

    def test_row_order_and_column_order_of_the_table_do_not_matter(self, tmp_path: Path) -> None:
        table = participants_table()
        _, about = split(tmp_path, table)
        _, again = split(tmp_path, table.sample(frac=1, random_state=3)[table.columns[::-1]])
        assert about["checksums"] == again["checksums"]

    def test_the_checksum_sees_one_participant_in_another_part(self, tmp_path: Path) -> None:
        rows, _ = split(tmp_path, participants_table())
        assert checksum(rows) == checksum(rows.sample(frac=1, random_state=0))
        moved = rows.copy()
        moved.loc[0, "part"] = "test" if rows.loc[0, "part"] != "test" else "train"
        assert checksum(rows) != checksum(moved)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (["0"] * 57 + ["1", "2", "3"], r"phenotypes\.score: random, .*the \w+ part holds only the number 0"),
            (["1"] + ["0"] * 59, r"phenotypes\.score: random, .*the \w+ part holds only the number 0"),
        ],
    )
    def test_a_number_that_hardly_varies(self, tmp_path: Path, values: list[str], message: str) -> None:
        table = participants_table().assign(score=values)
        with pytest.raises(UserError, match=message):
            split(tmp_path, table)

    def test_one_held_out_site_may_be_constant(self, tmp_path: Path) -> None:
        table = participants_table()
        table.loc[table["site"] == "site1", "score"] = "100"
        rows, _ = split(tmp_path, table)
        assert "site1" in set(rows.loc[rows["phenotype"] == "score", "fold"])

    @pytest.mark.parametrize(
        ("rare", "stratify", "message"),
        [
            (1, ["group"], "cannot be split"),
            (2, [], r"the \w+ part has 1 of 2 classes.*phenotypes\.group\.stratify"),
        ],
    )
    def test_a_class_that_is_too_rare(self, tmp_path: Path, rare: int, stratify: list, message: str) -> None:
        table = participants_table()
        table["group"] = np.where(np.arange(60) < rare, "patient", "control")
        phenotypes = {"group": {"column": "group", "type": "classification", "stratify": stratify}}
        with pytest.raises(UserError, match=message):
            split(tmp_path, table, phenotypes=phenotypes)

    def test_three_participants_are_too_few(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"at least 10 participants.*found 3"):
            split(tmp_path, participants_table(3))

    def test_more_bins_than_values(self, tmp_path: Path) -> None:
        table = participants_table()
        table["score"] = np.where(np.arange(60) % 3 == 0, "1", "2")
        phenotypes = {"score": {"column": "score", "type": "classification", "bins": 4}}
        with pytest.raises(UserError, match=r"phenotypes\.score\.bins: 4 bins"):
            split(tmp_path, table, phenotypes=phenotypes)

    def test_no_phenotype(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="at least one phenotype"):
            split(tmp_path, participants_table(), phenotypes={})


def test_command_line_writes_checksums_and_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = participants_table()
    settings = cohort_settings(tmp_path / "participants.tsv", table)
    shard = noise_shards(tmp_path / "shard.parquet", table.head(55))
    for name in ("one", "two"):
        main(["--settings", json.dumps(settings), "--shards", str(shard), "--output", str(tmp_path / name)])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    about = read_metadata(tmp_path / "one")
    rows = read_table(tmp_path / "one")
    chosen = rows[(rows["phenotype"] == "group") & (rows["protocol"] == "random")]
    assert about["checksums"]["group"]["random"] == checksum(chosen)
    assert len(about["unmatched"]["table_only"]) == 5
    assert "5 participants have a row but no recording" in capsys.readouterr().err
