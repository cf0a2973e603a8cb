"""Sessions as the unit: several rows per participant, which no split divides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evaluation_cases import cohort_settings, defaults, participants_table, write_embeddings, write_shards
from semantoks import probe, splits, supervised
from semantoks.baselines.study import Study as BothCohorts
from semantoks.batches import with_participants
from semantoks.errors import UserError
from semantoks.files import provenance, read_metadata, read_table, write_table
from semantoks.scores import score_tables
from semantoks.units import participant_and_session, unit_names

N = 40
NO_PERMUTATIONS = {"regression": 9, "classification": 0, "classification_up_to": None}


def sessions_table() -> pd.DataFrame:
    """Two sessions of each of 40 participants: the state changes between them, the score follows the session."""
    table = participants_table(N)
    parts = []
    for number, session in enumerate(("ses-pre", "ses-post")):
        state = np.where((np.arange(N) + number) % 2 == 0, "patient", "control")
        score = np.round(np.random.default_rng(number).normal(100, 15, N), 2).astype(str)
        parts.append(table.assign(session=session, group=state, score=score))
    return pd.concat(parts, ignore_index=True)


def bold_of(table: pd.DataFrame) -> dict[tuple[str, str], np.ndarray]:
    generator = np.random.default_rng(0)
    made = {}
    for _, row in table.iterrows():
        values = generator.normal(size=(6, 120))
        values[0] += values[1] * (row["group"] == "patient")
        values[2] += (float(row["score"]) - 70) / 30 * values[3]
        made[row["participant_id"][4:], row["session"][4:]] = values
    return made


class Study:
    """A cohort whose participants table has a row per session."""

    def __init__(self, folder: Path, table: pd.DataFrame | None = None, **changes: Any) -> None:
        self.folder, self.table = folder, sessions_table() if table is None else table
        self.settings = cohort_settings(folder / "participants.tsv", self.table, **changes)
        self.settings["participants"] |= {"session_column": "session"}
        self.settings["probe"]["permutations"] = NO_PERMUTATIONS
        self.bold = bold_of(self.table)
        self.shards = write_shards(folder / "shards.parquet", {f"{p}_{s}": one for (p, s), one in self.bold.items()})
        self.name_sessions(self.shards)
        self.splits = folder / "splits.parquet"

    def name_sessions(self, path: Path) -> None:
        """Recordings are named ``sub-<participant>_<session>``; features by participant have the same key."""
        rows, about = read_table(path), read_metadata(path)
        names = rows["recording_id"].str.removeprefix("sub-").str.split("_")
        rows["participant_id"], rows["session_id"] = names.str[0], names.str[1]
        write_table(path, rows, about)

    def split(self) -> pd.DataFrame:
        options = ["--settings", json.dumps(self.settings), "--shards", str(self.shards)]
        splits.main([*options, "--output", str(self.splits)])
        return read_table(self.splits)

    def row(self, name: str, *further: str) -> pd.DataFrame:
        output = self.folder / f"{name}.parquet"
        options = ["--settings", json.dumps(self.settings), "--row", name, "--splits", str(self.splits)]
        probe.main([*options, "--output", str(output), *further])
        return read_table(output)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    made = Study(tmp_path_factory.mktemp("sessions"))
    made.split()
    return made


def test_names_come_apart_again() -> None:
    assert unit_names(["01", "01", "2"], ["pre", None, "post"]) == ["01_ses-pre", "01", "2_ses-post"]
    assert unit_names(["01", "02"]) == ["01", "02"]
    assert participant_and_session("a_b_ses-x", True) == ("a_b", "x")
    assert participant_and_session("01", True) == ("01", None)
    assert participant_and_session("a_ses-x", False) == ("a_ses-x", None)


class TestSplits:
    def test_units_are_sessions_and_no_participant_is_divided(self, study: Study) -> None:
        rows = read_table(study.splits)
        for _, part in rows.groupby(["phenotype", "protocol", "repetition", "fold"]):
            assert not part.duplicated(["participant_id", "session_id"]).any()
            assert set(part["session_id"]) == {"pre", "post"}
            assert part.groupby("participant_id")["part"].nunique().eq(1).all()
        tested = rows[(rows["protocol"] == "random") & (rows["phenotype"] == "score") & (rows["part"] == "test")]
        assert tested.groupby("repetition").size().eq(16).all(), "a fifth of 40 participants, with both sessions"

    def test_families_hold_the_sessions_of_their_members(self, tmp_path: Path) -> None:
        table = sessions_table()
        table["family"] = (table["participant_id"].str[4:].astype(int) // 2).astype(str)
        table.loc[table["session"] == "ses-post", "family"] = "n/a"
        made = Study(tmp_path, table, family_column="family")
        rows = made.split()
        for _, part in rows.groupby(["phenotype", "protocol", "repetition", "fold"]):
            family = part["participant_id"].astype(int) // 2
            assert part.groupby(family)["part"].nunique().eq(1).all()

    def test_two_families_of_one_participant(self, tmp_path: Path) -> None:
        table = sessions_table().assign(family=lambda table: table["session"])
        with pytest.raises(UserError, match=r"000, .* have different families in different sessions"):
            Study(tmp_path, table, family_column="family").split()

    def test_a_session_without_recording_counts_for_nothing(self, tmp_path: Path) -> None:
        made = Study(tmp_path)
        rows = read_table(made.shards)
        kept = rows[~((rows["participant_id"] == "003") & (rows["session_id"] == "pre"))]
        write_table(made.shards, kept, provenance("shards", {}, (), roi_names=[f"roi-{n}" for n in range(6)]))
        found = made.split()
        assert set(found.loc[found["participant_id"] == "003", "session_id"]) == {"post"}

    @pytest.mark.parametrize("named", [True, False])
    def test_own_splits_by_session_or_by_participant(self, tmp_path: Path, named: bool) -> None:
        table = sessions_table()
        number = table["participant_id"].str[4:].astype(int)
        given = table[["participant_id"]].assign(part=np.array(["train"] * 3 + ["validation", "test"])[number % 5])
        given = given.assign(session_id=table["session"]) if named else given.drop_duplicates()
        given.to_csv(tmp_path / "own.tsv", sep="\t", index=False)
        made = Study(tmp_path)
        made.settings["probe"] |= {"split_file": str(tmp_path / "own.tsv")}
        rows = made.split()
        rows = rows[(rows["protocol"] == "given") & (rows["part"] == "test") & (rows["phenotype"] == "score")]
        assert len(rows) == 16
        assert set(rows["session_id"]) == {"pre", "post"}

    def test_own_splits_that_divide_a_participant(self, tmp_path: Path) -> None:
        given = sessions_table()[["participant_id"]].assign(part=["train"] * 40 + ["validation", "test"] * 20)
        given.assign(session_id=sessions_table()["session"]).to_csv(tmp_path / "own.tsv", sep="\t", index=False)
        made = Study(tmp_path)
        made.settings["probe"] |= {"split_file": str(tmp_path / "own.tsv")}
        with pytest.raises(UserError, match=r"members of participant 000, .* are in different parts"):
            made.split()

    def test_two_rows_of_one_session(self, tmp_path: Path) -> None:
        table = sessions_table()
        with pytest.raises(UserError, match=r"one row per participant and session, found several for 1 .*000_ses-pre"):
            Study(tmp_path, pd.concat([table, table.head(1)])).split()


class TestRows:
    def test_each_session_has_its_own_features_and_target(self, study: Study) -> None:
        rows = study.row("fc", "--shards", str(study.shards))
        for (row, phenotype), part in rows[rows["protocol"] == "random"].groupby(["row", "phenotype"]):
            assert not part.duplicated(["participant_id", "session_id", "repetition"]).any(), (row, phenotype)
        state = rows[(rows["phenotype"] == "group") & (rows["row"] == "fc-logistic")]
        truth = study.table.assign(session=study.table["session"].str[4:], name=study.table["participant_id"].str[4:])
        truth = truth.set_index(["name", "session"])["group"].eq("patient")
        keys = list(zip(state["participant_id"], state["session_id"], strict=True))
        assert (truth[keys].to_numpy() == state["y_true"]).all()
        assert (np.stack(state["y_score"]).argmax(axis=1) == state["y_true"]).mean() > 0.85
        assert (state["family"] == "participant " + state["participant_id"]).all()

    @pytest.mark.parametrize("row", ["majority", "confounds", "fc-kernel", "fc-tangent", "fc-power", "fc-combat"])
    def test_every_reference(self, study: Study, row: str) -> None:
        options = ["--shards", str(study.shards)] if row.startswith("fc") else []
        if row == "confounds":
            qc = pd.DataFrame([{"participant_id": p, "session_id": s} for p, s in study.bold])
            qc = qc.assign(cohort="small", mean_fd=np.linspace(0.1, 0.4, len(qc)), exclude_reason=None)
            write_table(study.folder / "qc.parquet", qc.astype({"exclude_reason": "string"}), provenance("qc", {}, ()))
            options = ["--qc", str(study.folder / "qc.parquet")]
        rows = study.row(row, *options)
        one = rows[(rows["phenotype"] == "score") & (rows["protocol"] == "random") & (rows["repetition"] == 0)]
        assert len(one) == 16

    def test_an_encoder(self, study: Study) -> None:
        generator = np.random.default_rng(0)
        score = study.table.set_index([study.table["participant_id"].str[4:], study.table["session"].str[4:]])["score"]
        features = {
            f"{p}_{s}": np.array([[float(score[p, s]), 0]]) + 0.1 * generator.normal(size=(2, 2)) for p, s in study.bold
        }
        path = write_embeddings(study.folder / "e.parquet", features, seen=("003",))
        study.name_sessions(path)
        study.settings["probe"]["epochs"] = 1
        rows = study.row("tiny_seed-0", "--embeddings", str(path))
        ridge = rows[(rows["row"] == "tiny-ridge") & (rows["phenotype"] == "score")]
        assert np.corrcoef(ridge["y_true"], np.stack(ridge["y_score"])[:, 0])[0, 1] > 0.9
        assert (rows["transductive"] == (rows["participant_id"] == "003")).all(), "both sessions"

    def test_own_features(self, study: Study, tmp_path: Path) -> None:
        path = tmp_path / "own.tsv"
        study.table[["participant_id", "session"]].assign(x=study.table["score"]).to_csv(path, sep="\t", index=False)
        own = {"path": str(path), "id_column": "participant_id", "columns": None, "transductive": False}
        study.settings["features"] = {"other": own}
        with pytest.raises(UserError, match=r"features.other.session_column: expected the column that names the"):
            study.row("other")
        study.settings["features"] = {"other": own | {"session_column": "session"}}
        rows = study.row("other")
        ridge = rows[rows["phenotype"] == "score"]
        assert np.corrcoef(ridge["y_true"], np.stack(ridge["y_score"])[:, 0])[0, 1] > 0.99

    def test_what_every_participant_has_before_and_after_is_tested(self, tmp_path: Path) -> None:
        """Such labels are the same in all participants: only within them is there something to permute."""
        table = sessions_table()
        made = Study(tmp_path, table.assign(group=np.where(table["session"] == "ses-pre", "patient", "control")))
        permutations = {"regression": 0, "classification": 199, "classification_up_to": None}
        made.settings["probe"] |= {"protocols": ["random"], "permutations": permutations}
        made.settings["phenotypes"] = {"group": {"column": "group", "type": "classification"}}
        made.split()
        null = tmp_path / "null.parquet"
        rows = pd.concat(
            [made.row("majority"), made.row("fc", "--shards", str(made.shards), "--permutations", str(null))]
        )
        scores, _ = score_tables(rows, {"group": "classification"}, defaults("tables"), read_table(null))
        one = scores[scores["primary"] & (scores["row"] == "fc-logistic")].iloc[0]
        assert one["mean"] > 0.85
        assert one["test_majority"] == "permutation"
        assert one["p_majority"] == 1 / 200

    def test_the_table_resamples_participants(self, study: Study) -> None:
        rows = pd.concat([study.row("majority"), study.row("fc", "--shards", str(study.shards))])
        kinds = {"group": "classification", "score": "regression"}
        settings = defaults("tables") | {"draws": 200}
        scores, _ = score_tables(rows, kinds, settings)
        one = scores[(scores["protocol"] == "random") & (scores["row"] == "fc-ridge") & scores["primary"]]
        assert (one["n_test"] == 16).all()
        # Sessions that would count as people of their own give other intervals.
        alone, _ = score_tables(rows.assign(family=rows["participant_id"] + rows["session_id"]), kinds, settings)
        assert (alone["ci_low"] - scores["ci_low"]).abs().max() > 1e-3


def test_the_listing_takes_site_and_displacement_of_the_session(tmp_path: Path) -> None:
    table = tmp_path / "p.tsv"
    table.write_text("id\tses\tcentre\tfd\nx_01_y\tses-a\tnorth\t0.1\nx_01_y\tses-b\tsouth\t0.2\n")
    described = {"path": str(table), "id_column": "id", "id_pattern": "_(.*)_", "session_column": "ses", "missing": []}
    cohort = {"name": "c", "participants": described, "site_column": "centre", "mean_fd_column": "fd"}
    listing = pd.DataFrame({"participant_id": ["01", "01", "02"], "session_id": ["b", "a", "a"]})
    made = with_participants(listing, cohort)
    assert made["site"].tolist()[:2] == ["south", "north"]
    assert made["mean_fd"].tolist()[:2] == [0.2, 0.1]
    assert made["site"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize("model", ["bnt", "windows"])
def test_networks_trained_on_the_labels(tmp_path: Path, model: str) -> None:
    made = Study(tmp_path, phenotypes={"score": {"column": "score", "type": "regression"}})
    made.settings["supervised"] = defaults("supervised") | {"epochs": 1, "batch": 16}
    made.settings["probe"] |= {"repetitions": 1}
    made.split()
    options = ["--settings", json.dumps(made.settings), "--model", model, "--splits", str(made.splits)]
    supervised.main([*options, "--shards", str(made.shards), "--output", str(tmp_path / "rows.parquet")])
    rows = read_table(tmp_path / "rows.parquet")
    key = ["repetition", "participant_id", "session_id", "y_true"]
    majority = made.row("majority")
    majority = majority[(majority["protocol"] == "random") & (majority["repetition"] == 0)].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows[key], majority[key], check_dtype=False)


class TestTestingCohort:
    """Sessions of a cohort for testing only."""

    def abroad(self, home: Study, folder: Path) -> Study:
        made = Study(folder, name="abroad")
        made.settings["fitted_on"] = home.settings | {"name": "small"}
        rows, about = read_table(made.shards).assign(cohort="abroad"), read_metadata(made.shards)
        noise = np.random.default_rng(9)
        rows["bold"] = [noise.normal(size=720).astype("<f2").tobytes() for _ in range(len(rows))]
        write_table(made.shards, rows, about)
        return made

    def test_all_sessions_are_tested(self, study: Study, tmp_path: Path) -> None:
        made = self.abroad(study, tmp_path)
        options = ["--settings", json.dumps(made.settings), "--shards", str(made.shards)]
        fitted = ["--fitted-splits", str(study.splits), "--fitted-shards", str(study.shards)]
        splits.main([*options, *fitted, "--output", str(made.splits)])
        rows = made.row("fc", "--shards", str(made.shards), "--fitted-shards", str(study.shards))
        one = rows[(rows["phenotype"] == "group") & (rows["repetition"] == 0) & (rows["head"] == "ridge")]
        assert len(one) == 80
        assert one.groupby("participant_id")["session_id"].nunique().eq(2).all()

    def test_both_cohorts_have_one_unit(self, study: Study, tmp_path: Path) -> None:
        made = self.abroad(study, tmp_path)
        made.settings["participants"] |= {"session_column": None}
        with pytest.raises(UserError, match="expected it in both or in none of abroad and small"):
            BothCohorts.read(made.settings)
