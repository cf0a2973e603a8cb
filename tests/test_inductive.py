"""Encoders that take turns: every held-out site is predicted by one whose pretraining saw nobody of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluation_cases import write_embeddings, write_shards
from semantoks.errors import UserError
from test_probe import Study, planted


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    table, _ = planted(60)
    generator = np.random.default_rng(2)
    bold = {name: generator.normal(size=(20, 60)) for name in table["participant_id"].str[4:]}
    study = Study(tmp_path_factory.mktemp("turns"), table, bold)
    study.bold = bold
    study.settings["probe"]["epochs"] = 2
    return study


def pretraining(study: Study, without: str) -> Path:
    """Shards, under names of another release, of everybody except those of a site."""
    kept = study.table.loc[study.table["site"] != without, "participant_id"].str[4:]
    path = study.folder / f"without-{without}.parquet"
    return write_shards(path, {f"x{name}": study.bold[name] for name in kept}, cohort=f"without-{without}")


def embeddings(study: Study, without: str, value: float) -> str:
    """Constant features, so that predictions show which encoder made them."""
    kept = study.table.loc[study.table["site"] != without, "participant_id"].str[4:]
    generator = np.random.default_rng(int(value))
    features = {name: generator.normal(value, 1, size=(2, 3)) for name in study.table["participant_id"].str[4:]}
    seen = tuple((f"without-{without}", f"x{name}") for name in kept)
    path = study.folder / f"no-{without}_seed-0.parquet"
    return str(write_embeddings(path, features, f"no-{without}_seed-0", (), "small", seen))


def predict(study: Study, sites: list[str]) -> pd.DataFrame:
    paths = [embeddings(study, site, number + 1) for number, site in enumerate(sites)]
    shards = [str(pretraining(study, site)) for site in sites]
    options = ["--shards", str(study.shards), "--pretrain-shards", *shards]
    return study.row("turns_seed-0", "--embeddings", *paths, *options)


def test_each_site_is_predicted_by_the_encoder_without_it(study: Study, capsys: pytest.CaptureFixture) -> None:
    rows = predict(study, ["site0", "site1", "site2"])
    assert set(rows["protocol"]) == {"leave-site-out"}
    assert not rows["transductive"].any()
    assert set(rows["row"]) == {"turns-published", "turns-logistic", "turns-ridge"}
    assert (rows["encoder"] == "no-" + rows["site_group"] + "_seed-0").all()
    assert set(rows["pretrain_seed"]) == {0}
    assert (
        "6 splits (random) left out: every encoder saw the participants tested in 6 of them" in capsys.readouterr().err
    )


def test_a_site_that_all_have_seen_is_an_error(study: Study) -> None:
    """The table could not compare a row without that site with the others."""
    with pytest.raises(UserError, match=r"nobody of it, found none for site2; name an encoder .* probe\.inductive"):
        predict(study, ["site0", "site1"])


def test_encoders_that_have_seen_everybody_are_refused(study: Study) -> None:
    with pytest.raises(UserError, match="each saw somebody in every one"):
        predict(study, ["nowhere", "elsewhere"])
