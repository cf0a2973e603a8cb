"""What of a cohort for testing cannot be scored: phenotypes without all their classes, participants without a site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from semantoks.errors import UserError
from semantoks.files import read_metadata, read_table
from test_transfer import NEW_SITES, TwoCohorts, table_of


def changed(two: TwoCohorts, **columns: Any) -> None:
    """Change columns of the participants table of abroad."""
    path = two.folder / "abroad.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str)
    table.assign(**columns).to_csv(path, sep="\t", index=False, na_rep="n/a")


class TestClassesThatNobodyHas:
    """A cohort of another age or severity: what models tell apart is not all there to be told apart."""

    @pytest.mark.parametrize(
        ("columns", "phenotype", "reason"),
        [
            ({"total": "300"}, "score", "everybody here has the number 300"),
            ({"total": "n/a"}, "score", "nobody here has a value"),
            ({"group": "1"}, "group", "of 2 classes of home nobody here has control"),
        ],
    )
    def test_the_phenotype_is_left_out_and_the_others_are_scored(
        self, tmp_path: Path, capsys: Any, columns: dict[str, str], phenotype: str, reason: str
    ) -> None:
        two = TwoCohorts(tmp_path)
        changed(two, **columns)
        made = read_table(two.split())
        assert set(made["phenotype"]) == {"group", "score"} - {phenotype}
        assert read_metadata(tmp_path / "abroad_splits.parquet")["not_scored"]["phenotypes"] == {phenotype: reason}
        assert f"abroad: phenotypes.{phenotype} is left out: {reason}" in capsys.readouterr().err
        assert f"Not scored: {phenotype} ({reason})." in table_of(two, tmp_path / "tables")

    def test_bins_that_nobody_is_in(self, tmp_path: Path) -> None:
        two = TwoCohorts(tmp_path)
        two.home_settings["phenotypes"]["third"] = {"column": "score", "type": "classification", "bins": 3}
        two.settings["phenotypes"]["third"] = {"column": "total", "type": "classification", "bins": 3}
        two.split()
        assert read_metadata(tmp_path / "abroad_splits.parquet")["not_scored"]["phenotypes"] == {}
        changed(two, total=[str(200 + number) for number in range(40)])
        made = read_table(two.split())
        assert set(made["phenotype"]) == {"group", "score"}
        assert read_metadata(tmp_path / "abroad_splits.parquet")["not_scored"]["phenotypes"] == {
            "third": "of 3 classes of home nobody here has bin 1 (in 3 of 3 splits), bin 2 (in 3 of 3 splits)"
        }

    def test_with_nothing_left_it_says_why(self, tmp_path: Path) -> None:
        two = TwoCohorts(tmp_path)
        changed(two, total="300", group="2")
        expected = "abroad: expected a phenotype that can be scored here, found none: phenotypes.group: .*has patient; "
        with pytest.raises(UserError, match=f"{expected}phenotypes.score: everybody here has the number 300"):
            two.split()


class TestUnknownSites:
    def test_who_has_no_site_is_left_out_as_under_leave_site_out(self, tmp_path: Path, capsys: Any) -> None:
        two = TwoCohorts(tmp_path)
        changed(two, centre=["n/a", *two.abroad_table["site"][1:]])
        made = read_table(two.split())
        assert "000" not in set(made.loc[made["part"] == "test", "participant_id"])
        assert "abroad: 1 of 40 have no centre (000) and are left out" in capsys.readouterr().err
        text = table_of(two, tmp_path / "tables")
        assert "Left out: 1 participant of unknown site, since results are within sites." in text
        scores = pd.read_csv(tmp_path / "tables/abroad.tsv", sep="\t")
        assert set(scores.loc[scores["primary"], "metric"]) == {"site_auroc", "site_r"}
        assert set(scores["n"]) == {39}
        assert set(pd.read_csv(tmp_path / "tables/abroad_sites.tsv", sep="\t")["site_group"]) == set(NEW_SITES.values())

    def test_with_one_known_site_everybody_is_tested_regardless_of_sites(self, tmp_path: Path) -> None:
        two = TwoCohorts(tmp_path)
        changed(two, centre=["n/a"] * 30 + ["north"] * 10)
        two.split()
        assert "of unknown site" not in table_of(two, tmp_path / "tables")
        scores = pd.read_csv(tmp_path / "tables/abroad.tsv", sep="\t")
        assert set(scores.loc[scores["primary"], "metric"]) == {"balanced_accuracy", "r"}
        assert set(scores["n"]) == {40}
