"""config/paper.yaml is the published protocol, and published numbers stand beside the rows that they are of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from evaluation_cases import defaults
from semantoks.config_loading import load_settings
from semantoks.files import read_text_table
from semantoks.settings import Settings
from semantoks.split_units import make_units
from semantoks.splits import random_parts
from semantoks.tables import add_published

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = read_text_table(REPOSITORY / "resources" / "published.tsv")


def shipped(name: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A shipped configuration, its folders being anywhere."""
    for variable in ("UKB", "ABIDE", "HBN", "SRPBS", "ABIDE1_CC200", "SEMANTOKS_ATLASES"):
        monkeypatch.setenv(variable, "/data")
    return load_settings(yaml.safe_load((REPOSITORY / f"config/{name}.yaml").read_text(encoding="utf-8")), name)


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Settings:
    return shipped("paper", monkeypatch)


def test_the_published_head_is_trained_and_chosen_as_published(paper: Settings) -> None:
    probe = paper.section("probe")
    assert probe["rates"] == [3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4]
    assert (probe["epochs"], probe["repetitions"], probe["protocols"]) == (50, 10, ["random"])
    assert not probe["refit"]
    assert "published" in probe["heads"]
    assert probe["solved_repetitions"] >= 100, "heads that are solved have at least a hundred splits"
    assert paper.section("tables")["primary"]["random"]["classification"] == "balanced_accuracy"


@pytest.mark.parametrize(
    ("cohort", "n", "sizes"),
    [
        ("paper_ukb", 1625, (500, 125, 1000)),
        ("paper_abide", 974, (584, 195, 195)),
        ("paper_hbn", 1870, (1122, 374, 374)),
    ],
)
def test_parts_have_the_published_sizes(paper: Settings, cohort: str, n: int, sizes: tuple[int, ...]) -> None:
    names = [f"{number:04d}" for number in range(n)]
    section = paper.probe_section(cohort)
    for stratum in (None, pd.DataFrame({"sex": np.arange(n) % 2}, index=names)):
        units = make_units(names, pd.Series(names, index=names), stratum)
        parts = pd.Series(random_parts(units, 3, section["test_share"], section["validation_share"], ""))
        assert tuple(parts.value_counts()[["train", "validation", "test"]]) == sizes


def test_a_cohort_has_the_shares_of_the_section_unless_it_says_otherwise(paper: Settings) -> None:
    section, own = paper.probe_section("paper_abide"), paper.probe_section("paper_ukb")
    assert (section["test_share"], section["validation_share"]) == (0.2, 0.25)
    assert {key for key in section if section[key] != own[key]} == {"test_share", "validation_share"}


def scored(settings: Settings, cohort: str, rows: list[str]) -> pd.Series:
    """The published value by phenotype and row of the table."""
    described = settings.cohort(cohort).settings["phenotypes"]
    records = [
        {"phenotype": name, "row": row, "metric": "balanced_accuracy", "protocol": "random"}
        for name in described
        for row in rows
    ]
    models = settings.section("tables")["published"]
    tasks = settings.cohort(cohort).published_tasks
    made = add_published(pd.DataFrame(records), described, tasks, PUBLISHED, models)
    return made.set_index(["phenotype", "row"])["published"]


def test_what_is_published_decides_about_no_prediction(paper: Settings) -> None:
    """A published task that is named later must not redo the probes."""
    assert "published" in paper.cohort("paper_abide").settings["phenotypes"]["diagnosis"]
    assert "published" not in json.loads(paper.cohort("paper_abide").probe_json())["phenotypes"]["diagnosis"]
    assert "mean_fd_column" in json.loads(paper.cohort("paper_abide").probe_json()), "it may be a target"
    assert paper.cohort("paper_abide").published_tasks == {"diagnosis": "ABIDE autism"}


def test_every_phenotype_with_a_published_number_shows_it_beside_the_encoder(paper: Settings) -> None:
    (encoder,) = paper.section("pretrain")["encoders"]
    for cohort in paper.probe_cohorts:
        found = scored(paper, cohort, [f"{encoder}-published"])
        phenotypes = paper.cohort(cohort).settings["phenotypes"]
        named = {name for name, one in phenotypes.items() if one["published"]}
        assert named
        assert {name for (name, _), value in found.items() if not np.isnan(value)} == named
    assert scored(paper, "paper_abide", [f"{encoder}-published"]).to_list() == [0.6513]


def test_abide_shows_what_was_published_of_its_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    abide = shipped("abide", monkeypatch)
    found = scored(abide, "abide1_cc200", ["fc-logistic", "small-published"])
    assert found["diagnosis", "fc-logistic"] == 0.598
    assert np.isnan(found["diagnosis", "small-published"]), "another encoder than the published one"
    assert np.isnan(found["sex", "fc-logistic"])


def test_published_models_are_those_of_the_table() -> None:
    assert set(defaults("tables")["published"].values()) <= set(PUBLISHED["model"])
