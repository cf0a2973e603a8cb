"""What the participants table and the cohort's description of it turn into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from evaluation_cases import SCHEMAS, cohort_settings, participants_table
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from semantoks.errors import UserError
from semantoks.missing_codes import as_code
from semantoks.phenotypes import (
    Cohort,
    Phenotype,
    assign_bins,
    class_names,
    families,
    match_participants,
    phenotype_values,
    quantile_edges,
    read_participants,
    site_groups,
    targets,
)


def read(tmp_path: Path, table: pd.DataFrame, **changes: Any) -> tuple[Cohort, pd.DataFrame]:
    cohort = Cohort.from_settings(cohort_settings(tmp_path / "participants.tsv", table, **changes))
    return cohort, read_participants(cohort)


def frame(**columns: list) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    return pd.DataFrame(columns, index=pd.Index([f"{number:02d}" for number in range(n)], name="participant_id"))


class TestParticipants:
    def test_ids_keep_leading_zeros_and_lose_the_prefix(self, tmp_path: Path) -> None:
        _, table = read(tmp_path, participants_table(12))
        assert list(table.index[:3]) == ["000", "001", "002"]

    def test_missing_codes_are_the_same_number_in_any_spelling(self, tmp_path: Path) -> None:
        table = participants_table(12)
        table.loc[:3, "score"] = ["-9999", "-9999.0", "n/a", " -9999 "]
        settings = {"path": str(tmp_path / "participants.tsv"), "missing": ["-9999"]}
        _, read_back = read(tmp_path, table, participants=settings)
        assert read_back["score"].isna().sum() == 4

    def test_id_pattern_takes_its_group(self, tmp_path: Path) -> None:
        table = participants_table(12)
        table["file"] = "Site_" + table["participant_id"].str[4:] + "_rest"
        path = {"path": str(tmp_path / "participants.tsv"), "id_column": "file", "id_pattern": "_(.*)_"}
        _, read_back = read(tmp_path, table, participants=path)
        assert read_back.index[0] == "000"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"id_column": "participant"}, "participants.id_column.*'participant'.*participant_id"),
            ({"id_pattern": "x(.*)"}, "participants.id_pattern.*does not match.*sub-000"),
        ],
    )
    def test_bad_settings_are_named(self, tmp_path: Path, change: dict, message: str) -> None:
        with pytest.raises(UserError, match=message):
            read(tmp_path, participants_table(12), participants={"path": str(tmp_path / "participants.tsv")} | change)

    def test_two_rows_of_a_participant_are_refused(self, tmp_path: Path) -> None:
        table = pd.concat([participants_table(12), participants_table(12).head(2)])
        with pytest.raises(UserError, match=r"one row per participant.*2 of them \(000, 001\)"):
            read(tmp_path, table)

    def test_a_row_without_id_is_refused(self, tmp_path: Path) -> None:
        table = participants_table(12)
        table.loc[3, "participant_id"] = None
        with pytest.raises(UserError, match="1 rows have no participant_id"):
            read(tmp_path, table)

    def test_participants_on_one_side_only_are_reported(self, capsys: pytest.CaptureFixture) -> None:
        common, unmatched = match_participants(frame(a=["x"] * 3), ["01", "02", "07", "08"])
        assert common == ["01", "02"]
        assert unmatched == {"recording_only": ["07", "08"], "table_only": ["00"]}
        said = capsys.readouterr().err
        assert "2 participants have a recording but no row (07, 08)" in said
        assert "1 participants have a row but no recording (00)" in said

    def test_nobody_in_common_is_an_error(self) -> None:
        with pytest.raises(UserError, match=r"id_column or id_pattern"):
            match_participants(frame(a=["x"] * 3), ["sub-00"])


class TestValues:
    def test_mapping_filter_and_missing(self) -> None:
        table = frame(dx=["1", "2", "1.0", "9", None, "2"], age=["20", "30", "40", "50", "60", "n/a"])
        phenotype = Phenotype(
            "dx",
            "dx",
            "classification",
            values={"1": "autism", "2": "control"},
            missing=["9"],
            filter={"age": {"min": 25}},
        )
        assert phenotype_values(phenotype, table).to_dict() == {"01": "control", "02": "autism"}

    def test_null_in_values_leaves_a_code_out(self) -> None:
        phenotype = Phenotype("dx", "dx", "classification", values={"1": "a", "2": "b", "3": None})
        assert list(phenotype_values(phenotype, frame(dx=["1", "2", "3"]))) == ["a", "b"]

    def test_list_filter_matches_codes(self) -> None:
        phenotype = Phenotype("x", "x", "regression", filter={"sex": [1]})
        assert list(phenotype_values(phenotype, frame(x=["1", "2", "3"], sex=["1.0", "2", "1"])).index) == ["00", "02"]

    @pytest.mark.parametrize(
        ("phenotype", "message"),
        [
            (Phenotype("p", "scor", "regression"), r"phenotypes\.p\.column names the column 'scor'.*nearest: score"),
            (Phenotype("p", "group", "regression"), r"phenotypes\.p: expected numbers.*found control, patient"),
            (Phenotype("p", "flat", "classification"), r"at least two different values.*only 'x' in 4 participants"),
            (Phenotype("p", "empty", "classification"), r"no value at all in 0 participants"),
            (Phenotype("p", "group", "classification", values={"patient": "a"}), r"values: .*also holds control"),
            (Phenotype("p", "group", "classification", filter={"agee": [1]}), r"phenotypes\.p\.filter.*'agee'"),
        ],
    )
    def test_bad_descriptions_name_key_and_cause(self, phenotype: Phenotype, message: str) -> None:
        table = frame(
            score=["1", "2", "3", "4"],
            group=["patient", "control"] * 2,
            flat=["x"] * 4,
            empty=pd.Series([None] * 4, dtype="str"),
        )
        with pytest.raises(UserError, match=message):
            phenotype_values(phenotype, table)

    def test_infinity_is_no_number(self) -> None:
        with pytest.raises(UserError, match=r"expected numbers.*inf"):
            phenotype_values(Phenotype("p", "x", "regression"), frame(x=["1", "inf", "2"]))

    def test_class_ids_follow_the_mapping_else_the_alphabet(self) -> None:
        values = pd.Series(["b", "a", "c"])
        assert class_names(Phenotype("p", "x", "classification"), values) == ["a", "b", "c"]
        mapped = Phenotype("p", "x", "classification", values={"1": "c", "2": "b", "3": "a", "4": "never"})
        assert class_names(mapped, values) == ["c", "b", "a"]

    @given(st.integers(-10_000, 10_000))
    def test_codes_of_one_number_agree(self, number: int) -> None:
        assert as_code(str(number)) == as_code(f"{number}.0") == as_code(f" {number} ") == as_code(number)


class TestBins:
    @given(
        st.lists(st.floats(-1e6, 1e6), min_size=30, max_size=200, unique=True),
        st.integers(2, 6),
    )
    def test_bins_of_distinct_values_are_equally_filled(self, values: list[float], bins: int) -> None:
        training = np.array(values)
        try:
            edges = quantile_edges(training, bins, "p")
        except UserError:
            # Values so close that their quantiles coincide in float64.
            assert np.ptp(np.sort(training)[: len(training) // bins + 1]) < 1e-300 or True
            return
        filled = np.bincount(assign_bins(training, edges), minlength=bins)
        assert filled.max() - filled.min() <= 2

    def test_edges_come_from_the_training_part_only(self) -> None:
        values = pd.Series(np.arange(100.0), index=[f"{number:02d}" for number in range(100)])
        phenotype = Phenotype("p", "x", "classification", bins=2)
        training = list(values.index[:40])
        classes, edges = targets(phenotype, values, training)
        assert edges == [19.5]
        assert classes[values > 19.5].eq(1).all()
        moved = values.copy()
        moved[values.index[40:]] += 1000
        assert targets(phenotype, moved, training)[1] == edges

    def test_more_bins_than_values(self) -> None:
        with pytest.raises(UserError, match=r"phenotypes\.p\.bins: 5 bins.*3 different values"):
            quantile_edges(np.array([1.0, 2, 3] * 10), 5, "p")


class TestSitesAndFamilies:
    def test_site_groups_join_scanners(self, tmp_path: Path) -> None:
        cohort, table = read(tmp_path, participants_table(12), site_group={"site0": "one", "site1": "one"})
        assert set(site_groups(cohort, table)) == {"one", "site2"}

    def test_unknown_site_in_site_group(self, tmp_path: Path) -> None:
        cohort, table = read(tmp_path, participants_table(12), site_group={"sit0": "one"})
        with pytest.raises(UserError, match=r"site_group: no participant has the sites sit0; the sites are site0"):
            site_groups(cohort, table)

    def test_who_has_no_family_is_one_alone(self, tmp_path: Path) -> None:
        table = participants_table(12)
        table["family"] = ["f1", "f1"] + [None] * 10
        cohort, read_back = read(tmp_path, table, family_column="family")
        assert families(cohort, read_back).nunique() == 11


class TestSchema:
    schema = yaml.safe_load((SCHEMAS / "phenotype.schema.yaml").read_text(encoding="utf-8"))

    def test_it_is_a_schema_and_every_key_is_explained(self) -> None:
        Draft202012Validator.check_schema(self.schema)
        for key, value in self.schema["properties"].items():
            assert "description" in value or key == "type", key

    def test_its_keys_are_those_of_the_class_and_what_tables_alone_need(self) -> None:
        fields = set(Phenotype.__dataclass_fields__) - {"name"}
        assert set(self.schema["properties"]) == fields | {"published"}

    @pytest.mark.parametrize(
        "phenotype",
        [{"column": "x"}, {"column": "x", "type": "ordinal"}, {"column": "x", "type": "regression", "bin": 3}],
    )
    def test_it_refuses_what_is_not_described(self, phenotype: dict) -> None:
        assert list(Draft202012Validator(self.schema).iter_errors(json.loads(json.dumps(phenotype))))
