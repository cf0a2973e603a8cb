"""Which rows say that pretraining saw the tested participants, that it did not, or that nobody knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluation_cases import defaults, write_embeddings
from semantoks import tables
from semantoks.errors import UserError
from semantoks.scores import score_tables
from test_probe import Study, planted

PUBLISHED = Path(__file__).resolve().parents[1] / "resources" / "published.tsv"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    made = Study(tmp_path_factory.mktemp("overlap"), *planted(60))
    made.settings["probe"]["epochs"] = 1
    made.settings["probe"]["permutations"] = {"regression": 0, "classification": 0, "classification_up_to": None}
    return made


def imported(study: Study) -> list[str]:
    """Embeddings of weights that say nothing about their pretraining."""
    generator = np.random.default_rng(0)
    features = {name: generator.normal(size=(2, 3)) for name in study.table["participant_id"].str[4:]}
    return [str(write_embeddings(study.folder / "e.parquet", features, "imported_seed-0", seen=None))]


class TestUnknownPretraining:
    def test_imported_weights_are_neither_inductive_nor_transductive(self, study: Study, tmp_path: Path) -> None:
        rows = study.row("imported_seed-0", "--embeddings", *imported(study), output="imported.parquet")
        assert rows["transductive"].isna().all()
        study.row("majority", output="majority.parquet")
        fc = study.row("fc", "--shards", str(study.shards), output="fc.parquet")
        assert (fc["transductive"] == False).all()  # noqa: E712
        settings = defaults("tables") | {"draws": 50, "simulated": False, "published_tasks": {}}
        options = ["--settings", json.dumps(settings), "--published", str(PUBLISHED), "--output-folder", str(tmp_path)]
        names = ("majority", "fc", "imported")
        tables.main([*options, "--probes", *(str(study.folder / f"{name}.parquet") for name in names)])
        text = (tmp_path / "small.md").read_text()
        unknown = "imported-logistic, imported-published, imported-ridge"
        assert f"Unknown: whether the pretraining of {unknown} saw tested participants" in text
        assert "Inductive: no other row's pretraining saw a tested participant" in text
        assert "imported-logistic (pretraining unknown)" in text
        share = pd.read_csv(tmp_path / "small.tsv", sep="\t").set_index("row")["transductive"]
        assert share[share.index.str.startswith("imported")].isna().all()
        assert (share[~share.index.str.startswith("imported")] == 0).all()

    @pytest.mark.parametrize("said", [None, False, True])
    def test_of_own_features_only_the_user_knows(self, study: Study, tmp_path: Path, said: bool | None) -> None:
        path = tmp_path / "own.tsv"
        study.table[["participant_id"]].assign(x=np.arange(60.0)).to_csv(path, sep="\t", index=False)
        own = {"path": str(path), "id_column": "participant_id", "columns": None, "transductive": said}
        study.settings["features"] = {"other": own}
        found = study.row("other")["transductive"]
        assert found.isna().all() if said is None else (found == said).all()

    def test_they_cannot_take_turns(self, study: Study) -> None:
        generator = np.random.default_rng(1)
        features = {name: generator.normal(size=(1, 3)) for name in study.table["participant_id"].str[4:]}
        known = str(write_embeddings(study.folder / "k.parquet", features, "known_seed-0"))
        with pytest.raises(UserError, match="imported_seed-0 does not say whom it was pretrained on"):
            study.row("turns_seed-0", "--embeddings", *imported(study), known)

    def test_one_unknown_part_makes_the_share_unknown(self, study: Study) -> None:
        rows = pd.concat([study.row("majority"), study.row("fc", "--shards", str(study.shards))], ignore_index=True)
        rows["transductive"] = rows["transductive"].astype("boolean")
        rows.loc[rows["row"] == "fc-ridge", "transductive"] = [pd.NA, *[True] * ((rows["row"] == "fc-ridge").sum() - 1)]
        kinds = {"group": "classification", "score": "regression"}
        scores, _ = score_tables(rows, kinds, defaults("tables") | {"draws": 50})
        share = scores.groupby("row")["transductive"].min()
        assert share["fc-logistic"] == 0
        unknown = scores[(scores["row"] == "fc-ridge") & (scores["protocol"] == "leave-site-out")]
        assert unknown.loc[unknown["phenotype"] == "group", "transductive"].isna().all()
