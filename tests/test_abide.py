"""The real cohort from its cohort file alone: three sites of ABIDE, from extracted time series to the table.

Two further sites are a cohort for testing only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY
from semantoks.files import read_metadata, read_table
from test_workflow import snakemake

pytestmark = pytest.mark.slow

SITES = ("CALTECH", "NYU", "SDSU")
NEW_SITES = ("KKI", "PITT")
PER_SITE = 30


@pytest.fixture(scope="module")
def participants(shared: Path) -> pd.DataFrame:
    path = shared / "data/abide1_cc200/participants.tsv"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    table = pd.read_csv(path, sep="\t")
    # those with most parcels outside the field of view first
    order = table.sort_values("n_zero_rois", ascending=False, kind="stable")
    return order[order["site"].isin([*SITES, *NEW_SITES])].groupby("site").head(PER_SITE)


def of_sites(participants: pd.DataFrame, names: tuple[str, ...]) -> list[str]:
    return participants.loc[participants["site"].isin(names), "file_id"].tolist()


@pytest.fixture(scope="module")
def results(shared: Path, participants: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped configuration with fewer participants, a tiny encoder and fewer probes."""
    folder = tmp_path_factory.mktemp("abide")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABIDE1_CC200", str(shared / "data/abide1_cc200"))
        patch.setenv("SEMANTOKS_ATLASES", str(shared / "data/atlases"))
        cohort = yaml.safe_load((REPOSITORY / "config/cohorts/abide1_cc200.yaml").read_text())
        cohort["site_group"] = {}
        cohort["include"] = of_sites(participants, SITES)
        # Further sites need a cohort file and nothing else.
        further = cohort | {"role": "test", "fitted_on": "abide1_cc200", "include": of_sites(participants, NEW_SITES)}
        config = yaml.safe_load((REPOSITORY / "config/abide.yaml").read_text())
        config["networks"]["names"] = str(REPOSITORY / config["networks"]["names"])
        tiny = {"preset": "tiny", "optimiser": {"epochs": 2}, "seeds": [0], "random_seeds": []}
        config |= {"pretrain": {"threads": 1, "encoders": {"tiny": tiny}}, "batch_size": 50}
        config["probe"] = {"repetitions": 3, "solved_repetitions": 3, "heads": ["logistic", "ridge"]}
        config["probe"]["permutations"] = {"classification": 199}
        (folder / "config/cohorts").mkdir(parents=True)
        (folder / "config/cohorts/abide1_cc200.yaml").write_text(yaml.safe_dump(cohort))
        (folder / "config/cohorts/new_sites.yaml").write_text(yaml.safe_dump(further))
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"cohorts": ["abide1_cc200", "new_sites"]}))
        result = snakemake(folder)
        assert result.returncode == 0, result.stdout + result.stderr
        second = snakemake(folder)
    assert "Nothing to be done" in second.stdout + second.stderr
    return folder / "results-abide"


def test_all_recordings_become_scans(results: Path, participants: pd.DataFrame) -> None:
    shards = pd.concat(map(read_table, sorted((results / "abide1_cc200/shards").glob("*.parquet"))))
    participants = participants[participants["site"].isin(SITES)]
    assert set(shards["participant_id"]) == set(participants["file_id"])
    absent = shards.set_index("participant_id")["valid"].map(lambda valid: int((~np.asarray(valid)).sum()))
    known = participants.set_index("file_id")["n_zero_rois"]
    assert (absent == known.loc[absent.index]).all()
    # 2.0 s for all, whatever the site's TR
    assert (shards["tr"] == 2.0).all()


def test_networks_come_from_overlap_with_their_share(results: Path) -> None:
    networks = pd.read_csv(results / "atlas/networks.tsv", sep="\t")
    assert len(networks) == 200
    assert networks["share"].between(0, 1).all()
    # known of this atlas: ten parcels lie outside the seven networks
    assert (networks["share"] < 0.1).sum() == 10
    assert networks.loc[networks["share"] < 0.1, "network"].nunique() == 1


def test_the_table_has_every_row_and_phenotype_of_both_protocols(results: Path) -> None:
    table = pd.read_csv(results / "tables/abide1_cc200.tsv", sep="\t")
    assert set(table["protocol"]) == {"random", "leave-site-out"}
    assert {"diagnosis", "sex", "age", "fiq", "age_bins"} <= set(table["phenotype"])
    assert {"majority", "fc-ridge", "fc-logistic", "confounds-ridge", "tiny-ridge"} <= set(table["row"])
    assert (table.loc[table["row"].str.startswith("tiny"), "transductive"] == 1).all()


def test_age_is_found_from_connectivity_within_these_sites(results: Path) -> None:
    """r is .69 to .75 on all 821 participants; 90 of three sites still show it."""
    table = pd.read_csv(results / "tables/abide1_cc200.tsv", sep="\t").set_index(
        ["protocol", "phenotype", "metric", "row"]
    )
    assert table.loc[("random", "age", "r", "fc-ridge"), "mean"] > 0.4


def test_models_of_these_sites_are_scored_on_new_ones(results: Path, participants: pd.DataFrame) -> None:
    table = pd.read_csv(results / "tables/new_sites.tsv", sep="\t")
    assert set(table["protocol"]) == {"transfer"}
    assert {"majority", "fc-ridge", "fc-kernel-ridge", "confounds-ridge", "tiny-ridge"} <= set(table["row"])
    assert (table.loc[table["phenotype"] == "sex", "n"] == len(of_sites(participants, NEW_SITES))).all()
    # the encoder was pretrained on the other sites only
    assert (table["transductive"] == 0).all()
    sites = pd.read_csv(results / "tables/new_sites_sites.tsv", sep="\t")
    assert set(sites["site_group"]) == set(NEW_SITES)
    age = table.set_index(["phenotype", "metric", "row"]).loc[("age", "site_r", "fc-ridge")]
    assert age["mean"] > 0.2
    assert (
        "Models fitted on the training parts of the random splits of abide1_cc200"
        in (results / "tables/new_sites.md").read_text()
    )
    trained = read_metadata(results / "new_sites/embeddings/tiny_seed-0.parquet")["pretrain_recordings"]
    assert {cohort for cohort, _ in trained} == {"abide1_cc200"}


def test_every_output_says_what_was_done_before(results: Path) -> None:
    metadata = read_metadata(next((results / "abide1_cc200/timeseries").glob("*.parquet")))
    done = metadata["settings"]["cohort"]["already_done"]
    assert done["band_pass"] == [0.01, 0.1]
    assert done["global_signal_regression"]
