"""The configuration: defaults filled in, mistakes named with the nearest valid key."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY
from semantoks.config_loading import load_settings
from semantoks.config_reference import PAGE, entries, page
from semantoks.config_schemas import cohort_schema, config_schema
from semantoks.errors import UserError


def write_cohort(folder: Path, name: str = "study", **keys) -> str:
    path = folder / f"{name}.yaml"
    content = {"source": {"type": "fmriprep", "path": str(folder)}, **keys}
    path.write_text(yaml.safe_dump(content))
    return str(path)


def config(folder: Path, **keys) -> dict:
    return {"cohorts": [write_cohort(folder)], "atlas": {"name": "own"}, **keys}


def test_defaults_are_filled_in(tmp_path):
    settings = load_settings(config(tmp_path))
    assert settings.section("shards") == {"tr": 2.0, "row_group_size": 64}
    assert settings.cohorts[0].name == "study"
    assert settings.cohorts[0].settings["space"] == "MNI152NLin6Asym"
    assert str(settings.results) == "results"


def test_a_cohort_has_its_own_shares_of_splits_and_one_for_testing_those_of_the_models(tmp_path):
    phenotypes = {"sex": {"column": "sex", "type": "classification"}}
    people = {"participants": {"path": "people.tsv"}, "phenotypes": phenotypes}
    home = write_cohort(tmp_path, "home", **people, splits={"test_share": 0.5})
    away = write_cohort(tmp_path, "away", **people, role="test", fitted_on="home")
    other = write_cohort(tmp_path, "other", **people, split_file="mine.tsv")
    settings = load_settings({"cohorts": [home, away, other], "atlas": {"name": "own"}})
    sections = {name: settings.probe_section(name) for name in ("home", "away", "other")}
    assert {name: one["test_share"] for name, one in sections.items()} == {"home": 0.5, "away": 0.5, "other": 0.2}
    assert {one["validation_share"] for one in sections.values()} == {0.25}
    assert [one["split_file"] for one in sections.values()] == [None, None, "mine.tsv"]
    assert not {"rows", "inductive"} & set(sections["home"])


def test_encoders_have_names_by_seed(tmp_path):
    encoders = {"small": {"preset": "small", "seeds": [0, 1], "random_seeds": [0]}}
    settings = load_settings(config(tmp_path, pretrain={"encoders": encoders}))
    assert list(settings.encoders) == ["small_seed-0", "small_seed-1", "small-random_seed-0"]
    encoder = settings.encoder("small-random_seed-0")
    assert (encoder.untrained, encoder.seed, encoder.cohorts) == (True, 0, ("study",))
    assert "seeds" not in encoder.json()


MISTAKES = {
    "misspelt section": ({"parcelate": {}}, r"unknown key 'parcelate'; did you mean 'parcellate'\?"),
    "misspelt key": ({"shards": {"t_r": 2.0}}, r"unknown key 'shards.t_r'; did you mean 'tr'\?"),
    "wrong type": ({"shards": {"tr": "two"}}, r"key 'shards.tr': 'two' is not of type 'number'"),
    "out of range": ({"shards": {"tr": 0}}, r"key 'shards.tr': 0 is less than or equal to the minimum of 0"),
    "misspelt encoder key": (
        {"pretrain": {"encoders": {"small": {"epoch": 3}}}},
        r"unknown key 'pretrain.encoders.small.epoch'; did you mean 'optimiser.epochs'\?",
    ),
    "encoder on an unknown cohort": (
        {"pretrain": {"encoders": {"small": {"cohorts": ["other"]}}}},
        r"expected some of \['study'\], found \['other'\]",
    ),
    "nothing but a learning curve": (
        {"probe": {"protocols": ["learning-curve"]}},
        r"key 'probe.protocols': expected random or leave-site-out, too, found learning-curve alone",
    ),
    "labels to drop of a known atlas": (
        {"atlas": {"name": "cc200", "drop_labels": [3]}},
        r"own.yaml: key 'atlas.drop_labels': expected none without 'image' or 'labels' .* found \[3\]; remove",
    ),
    "empty labels of a known atlas": (
        {"atlas": {"name": "cc200", "empty_labels": [3]}},
        r"key 'atlas.empty_labels': expected none without 'image' and 'labels' .* found \[3\]",
    ),
    "empty labels without a table": (
        {"atlas": {"name": "own", "image": "own.nii.gz", "empty_labels": [3]}},
        r"key 'atlas.empty_labels': expected none without 'image' and 'labels'",
    ),
    "no such cohort": ({"cohorts": ["abide1_cc20"]}, r"found none at .*abide1_cc20.yaml; did you mean 'abide1_cc200"),
    "variable not set": (
        {"atlas": {"name": "own", "image": "${SEMANTOKS_NO_SUCH}/a.nii.gz"}},
        r"key 'atlas.image': expected the environment variable SEMANTOKS_NO_SUCH .* `export SEMANTOKS_NO_SUCH=",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_configuration(tmp_path, mistake):
    keys, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message):
        load_settings(config(tmp_path) | keys, "own.yaml")


COHORT_MISTAKES = {
    "misspelt key": ({"taks": ["rest"]}, r"study.yaml: unknown key 'taks'; did you mean 'tasks'\?"),
    "unknown source": ({"source": {"type": "dicom", "path": "x"}}, r"key 'source.type': 'dicom' is not one of"),
    "key of another source": (
        {"source": {"type": "fmriprep", "path": "x", "derivatives": "y"}},
        r"unknown key 'source.derivatives'; known keys here: path, type",
    ),
    "missing key of a source": (
        {"source": {"type": "hdf5", "path": "x"}},
        r"key 'source': expected the key 'datasets'",
    ),
    "phenotype without column": (
        {"phenotypes": {"sex": {"type": "classification"}}},
        r"key 'phenotypes.sex': expected the key 'column'",
    ),
    "misspelt phenotype key": (
        {"phenotypes": {"sex": {"column": "SEX", "type": "classification", "stratified": []}}},
        r"unknown key 'phenotypes.sex.stratified'; did you mean 'stratify'\?",
    ),
    "numbers as labels": ({"entities": {"run": [1]}}, r"key 'entities.run.0': 1 is not of type 'string'"),
}


@pytest.mark.parametrize("mistake", COHORT_MISTAKES)
def test_mistakes_in_a_cohort_file(tmp_path, mistake):
    keys, message = COHORT_MISTAKES[mistake]
    path = write_cohort(tmp_path, **keys)
    with pytest.raises(UserError, match=message):
        load_settings({"cohorts": [path], "atlas": {"name": "own"}})


NLIN6, ADULT = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
SPACES = {
    "no space of the cohort": (
        [f"{ADULT}:res-2"],
        {},
        rf"'resolution': {NLIN6}\), found {ADULT}:res-2; add {NLIN6}, or",
    ),
    "no volumes at all": (["fsaverage"], {}, "found fsaverage; add"),
    "another resolution": (
        [f"{NLIN6}:res-1"],
        {"resolution": "2"},
        rf"'resolution': {NLIN6}:res-2\), found {NLIN6}:res-1; add {NLIN6}:res-2, or",
    ),
    "no resolution": ([NLIN6], {"resolution": "2"}, f"add {NLIN6}:res-2"),
    "two resolutions": ([f"{NLIN6}:res-1", f"{NLIN6}:res-2"], {}, "once, found 2 that fit .* name one resolution"),
    "two resolutions in one": ([f"{NLIN6}:res-1:res-2"], {}, "found 2 that fit"),
    "with and without resolution": ([NLIN6, f"{NLIN6}:res-2"], {}, "found 2 that fit"),
    "two cohorts of the template": (
        ["MNIPediatricAsym:cohort-3:cohort-4"],
        {"space": "MNIPediatricAsym"},
        "found 2 that fit",
    ),
    "a word that fMRIPrep refuses": ([NLIN6, "bold"], {}, "found bold; write func"),
}


def with_spaces(folder, spaces, **keys):
    """A configuration with these output spaces and a cohort of raw data."""
    values = config(folder, fmriprep={"output_spaces": spaces})
    write_cohort(folder, source={"type": "bids", "path": "raw", "derivatives": "out"}, **keys)
    return values


@pytest.mark.parametrize("mistake", SPACES)
def test_output_spaces_that_do_not_fit_a_cohort(tmp_path, mistake):
    spaces, keys, message = SPACES[mistake]
    with pytest.raises(UserError, match=rf"^own.yaml: key 'fmriprep.output_spaces': .*{message}"):
        load_settings(with_spaces(tmp_path, spaces, **keys), "own.yaml")
    write_cohort(tmp_path, **keys)  # of derivatives: nothing is preprocessed
    load_settings(
        {"cohorts": [str(tmp_path / "study.yaml")], "atlas": {"name": "own"}, "fmriprep": {"output_spaces": spaces}}
    )


@pytest.mark.parametrize(
    ("spaces", "keys"),
    [
        ([f"{NLIN6}:res-2", f"{ADULT}:res-1", "func", "fsaverage"], {}),
        ([f"{NLIN6}:res-1:res-2"], {"resolution": "2"}),
        (["anat"], {"space": "T1w"}),
        (["MNIPediatricAsym:cohort-3:res-2"], {"space": "MNIPediatricAsym", "resolution": "2"}),
    ],
)
def test_output_spaces_that_fit_a_cohort(tmp_path, spaces, keys):
    assert load_settings(with_spaces(tmp_path, spaces, **keys)).cohorts[0].source["type"] == "bids"


@pytest.fixture
def variables(monkeypatch):
    """Every variable that a shipped file names is set."""
    for path in (REPOSITORY / "config").glob("**/*.yaml"):
        for name in re.findall(r"\$\{(\w+)\}", path.read_text()):
            monkeypatch.setenv(name, "/data")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path, variables):
    settings = load_settings(yaml.safe_load(path.read_text()), path.name)
    tasks = set(pd.read_csv(REPOSITORY / "resources/published.tsv", sep="\t")["task"])
    named = {one["published"] for cohort in settings.cohorts for one in cohort.settings["phenotypes"].values()}
    assert named - {None} <= tasks


@pytest.mark.parametrize("path", sorted((REPOSITORY / "config/cohorts").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_cohorts_are_valid(path, variables):
    assert load_settings({"cohorts": [str(path)], "atlas": {"name": "own"}}).cohorts[0].name == path.stem


def test_every_key_is_described_and_the_page_lists_them():
    for schema in (config_schema(), cohort_schema()):
        for key, entry in entries(schema, ""):
            assert entry.get("description"), f"{key} has no description"
    assert PAGE.read_text() == page(), "run make docs"


def test_reconstructions_of_several_datasets_need_a_folder_each(tmp_path):
    """FreeSurfer's folders carry participants' names alone."""
    cohorts = []
    for name, dataset in (("rest", "raw"), ("movie", "raw"), ("other", "elsewhere")):
        source = {"type": "bids", "path": str(tmp_path / dataset), "derivatives": str(tmp_path / name)}
        cohorts.append(write_cohort(tmp_path, name, source=source))
    shared = {"fmriprep": {"freesurfer_folder": "/store/subjects"}}
    load_settings(config(tmp_path) | shared | {"cohorts": cohorts[:2]})  # one dataset, one set of reconstructions
    with pytest.raises(UserError, match=r"freesurfer_folder.*rest, movie, other.*e\.g\. /store/subjects/\{cohort\}"):
        load_settings(config(tmp_path) | shared | {"cohorts": cohorts})
    apart = {"fmriprep": {"freesurfer_folder": "/store/{cohort}"}}
    load_settings(config(tmp_path) | apart | {"cohorts": cohorts})
