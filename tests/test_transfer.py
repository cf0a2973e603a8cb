"""A cohort for testing only: the models of another cohort's random splits are scored on it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evaluation_cases import cohort_settings, defaults, participants_table, task, write_embeddings, write_shards
from semantoks import probe, splits, supervised, tables
from semantoks.baselines.confounds import make_confounds
from semantoks.baselines.joined_confounds import joined
from semantoks.baselines.study import Study as BothCohorts
from semantoks.errors import UserError
from semantoks.files import provenance, read_metadata, read_table, write_table
from semantoks.phenotypes import Cohort, Phenotype
from semantoks.scores import score_tables
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from test_probe import auc

NEW_SITES = {"site0": "north", "site1": "south", "site2": "west"}


def recordings(table: pd.DataFrame, seed: int) -> dict[str, np.ndarray]:
    """Patients have ROIs 0 and 1 coupled; the coupling of ROIs 2 and 3 follows the score."""
    generator = np.random.default_rng(seed)
    bold = {}
    for _, person in table.iterrows():
        values = generator.normal(size=(20, 120))
        values[0] += values[1] * (person["group"] in ("patient", "1"))
        values[2] += (float(person["score"]) - 70) / 30 * values[3]
        bold[person["participant_id"][4:]] = values
    return bold


class TwoCohorts:
    """``home``, on which models are fitted, and ``abroad``: the same ids, other sites, other columns and codes."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.home_table, self.abroad_table = participants_table(80), participants_table(40, seed=5)
        self.abroad_table["site"] = self.abroad_table["site"].map(NEW_SITES)
        self.home_bold, self.abroad_bold = recordings(self.home_table, 0), recordings(self.abroad_table, 1)
        home = cohort_settings(folder / "home.tsv", self.home_table, name="home")
        coded = self.abroad_table.assign(group=self.abroad_table["group"].map({"patient": "1", "control": "2"}))
        coded = coded.rename(columns={"site": "centre", "score": "total"})
        self.settings = cohort_settings(folder / "abroad.tsv", coded, name="abroad", site_column="centre")
        self.settings["phenotypes"] = {
            "group": {"column": "group", "type": "classification", "values": {"1": "patient", "2": "control"}},
            "score": {"column": "total", "type": "regression"},
        }
        self.settings["fitted_on"] = home
        self.settings |= changes
        self.home_settings = home
        self.write()

    def write(self) -> None:
        self.shards = write_shards(self.folder / "abroad.parquet", self.abroad_bold, cohort="abroad")
        self.home_shards = write_shards(self.folder / "home.parquet", self.home_bold, cohort="home")

    def split(self) -> Path:
        home, abroad = self.folder / "home_splits.parquet", self.folder / "abroad_splits.parquet"
        options = ["--settings", json.dumps(self.home_settings), "--shards", str(self.home_shards)]
        splits.main([*options, "--output", str(home)])
        options = ["--settings", json.dumps(self.settings), "--shards", str(self.shards)]
        options += ["--fitted-splits", str(home), "--fitted-shards", str(self.home_shards)]
        splits.main([*options, "--output", str(abroad)])
        return abroad

    def row(self, name: str, *further: str) -> pd.DataFrame:
        output = self.folder / f"{name}.parquet"
        options = ["--settings", json.dumps(self.settings), "--row", name]
        options += ["--splits", str(self.folder / "abroad_splits.parquet"), "--output", str(output)]
        probe.main([*options, "--permutations", str(self.folder / f"{name}_null.parquet"), *further])
        return read_table(output)

    @property
    def time_series(self) -> list[str]:
        return ["--shards", str(self.shards), "--fitted-shards", str(self.home_shards)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> TwoCohorts:
    made = TwoCohorts(tmp_path_factory.mktemp("two"))
    made.split()
    return made


class TestSplits:
    def test_parts_are_those_of_the_home_cohort_and_everybody_abroad_is_tested(self, study: TwoCohorts) -> None:
        home = read_table(study.folder / "home_splits.parquet")
        abroad = read_table(study.folder / "abroad_splits.parquet")
        assert set(abroad["protocol"]) == {"transfer"}
        key = ["phenotype", "repetition", "participant_id", "part"]
        fitted = abroad.loc[abroad["part"] != "test"]
        assert set(fitted["cohort"]) == {"home"}
        random = home[(home["protocol"] == "random") & (home["part"] != "test")]
        assert set(map(tuple, fitted[key].to_numpy())) == set(map(tuple, random[key].to_numpy()))
        test = abroad[abroad["part"] == "test"]
        assert set(test["cohort"]) == {"abroad"}
        for _, part in test.groupby(["phenotype", "repetition"]):
            assert sorted(part["participant_id"]) == sorted(study.abroad_bold)

    def test_what_is_random_in_a_model_is_as_in_the_home_cohort(self) -> None:
        at_home = task()
        assert replace(at_home, protocol="transfer").seed == at_home.seed
        assert replace(at_home, protocol="given").seed != at_home.seed

    def test_who_is_in_both_cohorts_by_content_is_left_out(self, tmp_path: Path, capsys: Any) -> None:
        two = TwoCohorts(tmp_path)
        two.abroad_bold["003"] = 2 * two.home_bold["017"] + 1
        two.write()
        made = read_table(two.split())
        assert "003" not in set(made.loc[made["part"] == "test", "participant_id"])
        assert read_metadata(tmp_path / "abroad_splits.parquet")["left_out_as_fitted_on"] == [
            ["003", "home", "sub-017"]
        ]
        assert "abroad: 003 is left out, its recording is that of sub-017 of home" in capsys.readouterr().err

    def test_without_random_splits_there_are_no_models(self, tmp_path: Path) -> None:
        two = TwoCohorts(tmp_path)
        two.home_settings["probe"]["protocols"] = ["leave-site-out"]
        with pytest.raises(UserError, match="abroad: fitted_on: home has no random splits of the phenotype group"):
            two.split()

    def test_a_class_that_nobody_is_fitted_on(self, tmp_path: Path) -> None:
        two = TwoCohorts(tmp_path)
        two.settings["phenotypes"]["group"]["values"] = {"1": "sick", "2": "control"}
        with pytest.raises(UserError, match=r"abroad: phenotypes.group: expected the classes control, patient of home"):
            two.split()


def table_of(two: TwoCohorts, folder: Path) -> str:
    """The table of abroad as Markdown, made of two rows; all its files are in ``folder``."""
    for row in ("majority", "fc"):
        two.row(row, *(two.time_series if row == "fc" else []))
    published = Path(__file__).parents[1] / "resources/published.tsv"
    settings = defaults("tables") | {"draws": 200, "simulated": False, "published_tasks": {}}
    options = ["--settings", json.dumps(settings), "--published", str(published), "--output-folder", str(folder)]
    tables.main([*options, "--probes", *(str(two.folder / f"{row}.parquet") for row in ("majority", "fc"))])
    return (folder / "abroad.md").read_text()


class TestRows:
    def test_models_of_home_find_it_abroad(self, study: TwoCohorts) -> None:
        rows = study.row("fc", *study.time_series)
        assert set(rows["cohort"]) == {"abroad"}
        for row, part in rows[rows["phenotype"] == "group"].groupby("row"):
            assert auc(part) > 0.8, row
        truth = study.abroad_table.set_index(study.abroad_table["participant_id"].str[4:])["group"]
        group = rows[rows["phenotype"] == "group"]
        # class 0 is control at home; codes abroad are mapped to it
        assert (group["y_true"] == (truth.loc[group["participant_id"]] == "patient").to_numpy()).all()

    def test_scores_are_those_of_a_model_fitted_by_hand_on_home(self, study: TwoCohorts) -> None:
        rows = study.row("fc", *study.time_series)
        made = read_table(study.folder / "abroad_splits.parquet")
        one = made[(made["phenotype"] == "group") & (made["repetition"] == 1)]
        both = sorted(one.loc[one["part"] != "test", "participant_id"])

        def edges(bold: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
            upper = np.triu_indices(20, 1)
            return np.stack([np.arctanh(np.corrcoef(bold[name].astype("<f2").astype(float))[upper]) for name in names])

        tested = sorted(study.abroad_bold)
        scaler = StandardScaler().fit(edges(study.home_bold, both))
        fitted, test = (
            scaler.transform(edges(study.home_bold, both)),
            scaler.transform(edges(study.abroad_bold, tested)),
        )
        part = rows[(rows["row"] == "fc-logistic") & (rows["phenotype"] == "group") & (rows["repetition"] == 1)]
        penalty = float(part["setting"].iloc[0].removeprefix("penalty "))
        size = np.sqrt((fitted**2).sum(axis=1).mean())
        labels = study.home_table.set_index(study.home_table["participant_id"].str[4:])["group"].loc[both] == "patient"
        # a penalty of ours is relative to the mean loss, of classes that weigh the same
        hand = LogisticRegression(C=1 / (len(both) * penalty), class_weight="balanced", tol=1e-8, max_iter=5000)
        expected = hand.fit(fitted / size, labels).predict_proba(test / size)
        found = np.stack(part.set_index("participant_id").loc[tested, "y_score"])
        np.testing.assert_allclose(found, expected, atol=2e-3)

    @pytest.mark.parametrize("row", ["majority", "confounds", "fc-kernel", "fc-tangent", "fc-power"])
    def test_every_reference_is_tested_abroad(self, study: TwoCohorts, row: str) -> None:
        rows = study.row(row, *(study.time_series if row.startswith("fc") else []))
        assert len(rows[(rows["phenotype"] == "score") & (rows["head"] != "logistic")]) == 3 * 40
        assert np.isfinite(np.stack(rows.loc[rows["phenotype"] == "score", "y_score"])).all()

    def test_combat_is_refused(self, study: TwoCohorts) -> None:
        with pytest.raises(UserError, match="ComBat has no estimate for a site it was not fitted on"):
            study.row("fc-combat", *study.time_series)

    def test_other_parcels_are_refused(self, study: TwoCohorts, tmp_path: Path) -> None:
        names = [f"other-{number}" for number in range(20)]
        path = write_shards(tmp_path / "other.parquet", study.abroad_bold, cohort="abroad", roi_names=names)
        with pytest.raises(UserError, match="ROI names differ"):
            study.row("fc", "--shards", str(path), "--fitted-shards", str(study.home_shards))

    def test_own_features_of_both_cohorts(self, study: TwoCohorts, tmp_path: Path) -> None:
        described = []
        for table, bold in ((study.abroad_table, study.abroad_bold), (study.home_table, study.home_bold)):
            path = tmp_path / f"{len(bold)}.tsv"
            values = {"participant_id": sorted(bold), "x": [np.corrcoef(bold[name])[0, 1] for name in sorted(bold)]}
            pd.DataFrame(values).to_csv(path, sep="\t", index=False)
            assert len(table) == len(bold)
            own = {"path": str(path), "id_column": "participant_id", "columns": None, "transductive": False}
            described.append({"features": {"other": own}})
        settings = study.settings
        study.settings = settings | described[0] | {"fitted_on": settings["fitted_on"] | described[1]}
        rows = study.row("other")
        study.settings = settings | described[0]
        with pytest.raises(UserError, match=r"features\.other: expected it in home as well, found it in abroad only"):
            study.row("other")
        study.settings = settings
        assert auc(rows[(rows["phenotype"] == "group") & (rows["row"] == "other-ridge")]) > 0.85

    def test_who_was_seen_in_pretraining_by_id_or_by_content_is_marked(self, study: TwoCohorts) -> None:
        generator = np.random.default_rng(3)
        pretrained = (("abroad", "002"), ("elsewhere", "x"))
        paths = []
        for cohort, bold in (("abroad", study.abroad_bold), ("home", study.home_bold)):
            features = {name: generator.normal(size=(2, 3)) for name in bold}
            path = study.folder / f"{cohort}_embeddings.parquet"
            paths.append(str(write_embeddings(path, features, "tiny_seed-0", (), cohort, pretrained)))
        elsewhere = {
            "x": study.abroad_bold["007"] * 3,
            "y": study.abroad_bold["008"],
            "z": generator.normal(size=(20, 120)),
        }
        foreign = write_shards(study.folder / "elsewhere.parquet", elsewhere, cohort="elsewhere")
        options = ["--shards", str(study.shards), "--pretrain-shards", str(foreign)]
        rows = study.row("tiny_seed-0", "--embeddings", *paths, *options)
        # y is in that cohort, but this encoder was not trained on it
        assert set(rows.loc[rows["transductive"], "participant_id"]) == {"002", "007"}


def motion(folder: Path, cohort: str, names: Iterable[str], mean_fd: float) -> str:
    """A table of the stage qc in which every recording moved as much."""
    table = pd.DataFrame({"cohort": cohort, "participant_id": list(names), "mean_fd": mean_fd, "exclude_reason": None})
    table["session_id"] = pd.Series(None, index=table.index, dtype="string")
    path = folder / f"{cohort}_qc.parquet"
    write_table(path, table.astype({"exclude_reason": "string"}), provenance("qc", {}, ()))
    return str(path)


class TestConfounds:
    """The row that is there by default: of two cohorts it takes what both know."""

    @pytest.mark.parametrize("without", ["abroad", "home", "both"])
    def test_a_cohort_without_sites(self, tmp_path: Path, capsys: Any, without: str) -> None:
        two = TwoCohorts(tmp_path)
        if without != "home":
            two.settings["site_column"] = None
        if without != "abroad":
            two.home_settings["site_column"] = None
        two.split()
        assert len(two.row("confounds")) > 0
        said = "confounds: site is left out" in capsys.readouterr().err
        assert said == (without != "both")
        about = read_metadata(tmp_path / "confounds.parquet")["confounds"]
        assert about == {"used": ["age", "sex"], "left_out": [] if without == "both" else ["site"]}

    @pytest.mark.parametrize("known", ["abroad", "home"])
    def test_motion_known_in_one_cohort(self, tmp_path: Path, capsys: Any, known: str) -> None:
        two = TwoCohorts(tmp_path)
        two.split()
        qc = [
            motion(tmp_path, cohort, bold, 0.1 if cohort == known else np.nan)
            for cohort, bold in (("home", two.home_bold), ("abroad", two.abroad_bold))
        ]
        assert len(two.row("confounds", "--qc", *qc)) > 0
        other = {"abroad": "home", "home": "abroad"}[known]
        assert f"confounds: mean_fd is left out, {other} does not know it" in capsys.readouterr().err

    def test_a_column_that_one_cohort_does_not_name(self, tmp_path: Path, capsys: Any) -> None:
        two = TwoCohorts(tmp_path, confounds=["age"])
        two.split()
        two.row("confounds")
        assert "confounds: sex is left out, abroad does not know it" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("phenotype", "abroad", "left"),
        [
            ({"column": "group", "type": "classification"}, "group", ["age", "mean_fd", "site", "total"]),
            ({"column": "site", "type": "classification"}, "centre", ["age", "mean_fd", "total"]),
            ({"column": "fd", "type": "regression"}, "motion", ["age", "site", "total"]),
            ({"column": "fd", "type": "regression"}, "total", ["age", "site"]),
            ({"column": "years", "type": "regression"}, "age", ["mean_fd", "site", "total"]),
            ({"column": "age", "type": "regression"}, "years", ["mean_fd", "site", "total"]),
        ],
    )
    def test_the_target_is_no_confound_whatever_either_cohort_calls_it(
        self, phenotype: dict[str, str], abroad: str, left: list[str]
    ) -> None:
        numbers = np.random.default_rng(0).normal(40, 10, (5, 20)).astype(str)
        table = pd.DataFrame(dict(zip(["age", "years", "fd", "motion", "total"], numbers, strict=True)))
        table = table.assign(group=["a", "b"] * 10, site=["x", "y"] * 10, centre=["x", "y"] * 10)
        home, other = (
            Cohort({}, {"target": Phenotype("target", **described)}, name, site_column=site, mean_fd_column=fd,
                   confounds=["age", "total"])
            for name, described, site, fd in (
                ("home", phenotype, "site", "fd"), ("abroad", phenotype | {"column": abroad}, "centre", "motion")
            )
        )  # fmt: skip
        tables = [table.set_axis([f"{number:02d}" for number in range(20)]) for _ in range(2)]
        for one in tables:
            one.attrs["path"] = "table"
        study = BothCohorts((other, home), tuple(tables))
        fd = pd.Series(np.arange(20.0), tables[0].index)
        made = [
            replace(one, participants=study.keys(cohort, one.participants))
            for cohort in study.cohorts
            for one in [make_confounds(cohort, tables[0], list(tables[0].index), fd)]
        ]
        confounds = joined(made, study)
        assert confounds.used(study.phenotypes["target"]) == left

    def coded(self, folder: Path, home: dict[str, str], abroad: dict[str, str]) -> TwoCohorts:
        """Sex is the diagnosis, under other codes in each cohort: patients are F, controls M."""
        two = TwoCohorts(folder, confounds=["sex"])
        two.home_settings["confounds"] = ["sex"]
        sex = {"patient": "F", "control": "M", "1": "F", "2": "M"}
        for name, codes in (("home", home), ("abroad", abroad)):
            path = folder / f"{name}.tsv"
            table = pd.read_csv(path, sep="\t", dtype=str)
            table.assign(sex=table["group"].map(sex).map(codes)).to_csv(path, sep="\t", index=False)
        return two

    def test_other_codes_are_refused(self, tmp_path: Path) -> None:
        two = self.coded(tmp_path, {"F": "0", "M": "1"}, {"F": "1", "M": "2"})
        two.split()
        with pytest.raises(
            UserError, match=r"abroad: confounds: column sex: .* the codes 0, 1 of home, found 2; .*values"
        ):
            two.row("confounds")

    @pytest.mark.parametrize(
        ("home", "abroad"),
        [
            ({"F": "0", "M": "1"}, {"F": "1", "M": "2"}),
            ({"F": "0", "M": "1"}, {"F": "F", "M": "M"}),
            ({"F": "F", "M": "M"}, {"F": "2", "M": "1"}),
            ({"F": "1", "M": "0"}, {"F": "0", "M": "1"}),
        ],
    )
    def test_codes_are_translated_by_a_phenotype_on_the_same_column(
        self, tmp_path: Path, home: dict[str, str], abroad: dict[str, str]
    ) -> None:
        two = self.coded(tmp_path, home, abroad)
        for settings, codes in ((two.home_settings, home), (two.settings, abroad)):
            values = {} if codes["F"] == "F" else {code: name for name, code in codes.items()}
            settings["phenotypes"] |= {"sex": {"column": "sex", "type": "classification", "values": values}}
        two.split()
        rows = two.row("confounds")
        rows = rows[(rows["phenotype"] == "group") & (rows["head"] == "logistic")]
        assert (np.stack(rows["y_score"]).argmax(axis=1) == rows["y_true"]).all()

    def test_words_abroad_for_numbers_at_home(self, tmp_path: Path) -> None:
        two = TwoCohorts(tmp_path)
        path = tmp_path / "abroad.tsv"
        table = pd.read_csv(path, sep="\t", dtype=str)
        table.assign(age=["old", "young"] * 20).to_csv(path, sep="\t", index=False)
        two.split()
        with pytest.raises(UserError, match=r"abroad: confounds: column age: expected numbers as in home, found old"):
            two.row("confounds")


class TestNetworks:
    """Networks trained on the labels of home."""

    def test_they_are_tested_abroad(self, tmp_path: Path) -> None:
        two = TwoCohorts(tmp_path)
        for settings in (two.settings, two.home_settings):
            settings["phenotypes"].pop("group")
        two.home_settings["probe"]["repetitions"] = 1
        splits_file = two.split()
        settings = two.settings | {"supervised": defaults("supervised") | {"epochs": 1}}
        options = ["--settings", json.dumps(settings), "--model", "bnt", "--splits", str(splits_file)]
        supervised.main([*options, *two.time_series, "--output", str(tmp_path / "bnt.parquet")])
        rows = read_table(tmp_path / "bnt.parquet")
        assert sorted(set(rows["participant_id"])) == sorted(two.abroad_bold)
        assert set(rows["cohort"]) == {"abroad"}
        assert set(rows["n_train"]) == {48}
        assert (rows["transductive"] == False).all()  # noqa: E712


class TestTable:
    def test_sites_abroad_are_resampled_and_reported(self, study: TwoCohorts) -> None:
        rows = pd.concat([study.row("majority"), study.row("fc", *study.time_series)])
        null = read_table(study.folder / "fc_null.parquet")
        settings = defaults("tables") | {"draws": 200}
        scores, sites = score_tables(rows, {"group": "classification", "score": "regression"}, settings, null)
        assert set(scores.loc[scores["primary"], "metric"]) == {"site_auroc", "site_r"}
        assert set(sites["site_group"]) == set(NEW_SITES.values())
        primary = scores[scores["primary"]].set_index(["phenotype", "row"])
        assert primary.loc[("group", "fc-logistic"), "mean"] > 0.85
        assert primary.loc[("group", "fc-ridge"), "test_majority"] == "bootstrap"
        assert primary.loc[("score", "fc-ridge"), "test_majority"] == "permutation"
        assert primary.loc[("score", "fc-ridge"), "p_majority"] <= 0.05
        assert (primary["n_test"] == 40).all()

    def test_one_site_abroad_is_summarised_by_participants(self, study: TwoCohorts) -> None:
        rows = pd.concat([study.row("majority"), study.row("fc", *study.time_series)]).assign(site_group="north")
        settings = defaults("tables") | {"draws": 200}
        scores, sites = score_tables(rows, {"group": "classification", "score": "regression"}, settings)
        assert set(scores.loc[scores["primary"], "metric"]) == {"balanced_accuracy", "r"}
        assert sites.empty
        tested = scores[(scores["row"] == "fc-ridge") & (scores["metric"] == "balanced_accuracy")].iloc[0]
        assert tested["test_majority"] == "bootstrap"
        assert tested["p_majority"] < 0.05

    def test_the_table_says_whose_models_were_tested(self, study: TwoCohorts, tmp_path: Path) -> None:
        text = table_of(study, tmp_path)
        assert "Models fitted on the training parts of the random splits of home" in text
