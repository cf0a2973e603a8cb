"""Containers of our own stages: what is bound, what the recipes install, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from semantoks.config_loading import load_settings
from semantoks.container_binds import container_binds
from small_study import run, write_study

RECIPES = [REPOSITORY / "containers" / name for name in ("Dockerfile", "semantoks.def")]


def write_cohort(folder: Path, data: Path) -> dict:
    folder.mkdir()
    (folder / "study.yaml").write_text(
        yaml.safe_dump(
            {
                "source": {"type": "fmriprep", "path": str(data / "derivatives")},
                "participants": {"path": str(data / "participants.tsv")},
            }
        )
    )
    return {"cohorts": [str(folder / "study.yaml")], "atlas": {"name": "own", "labels": "labels.tsv"}}


def test_folders_of_the_data_are_bound_and_the_places_that_links_lead_to(tmp_path):
    """One entry per folder; nothing that lies inside another one; nothing that does not exist."""
    for name in ("real/derivatives", "work", "repository"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "real/participants.tsv").write_text("participant_id\n")
    (tmp_path / "data").symlink_to(tmp_path / "real")
    settings = load_settings(write_cohort(tmp_path / "configuration", tmp_path / "data"))
    binds = container_binds(settings, tmp_path / "repository", tmp_path / "work")
    assert binds == [tmp_path / "data", tmp_path / "real", tmp_path / "repository", tmp_path / "work"]


def test_the_annex_of_a_dataset_is_bound_with_a_folder_inside_it(tmp_path):
    """Files of ``derivatives`` are links to ``../.git/annex/…``, whichever way leads to them."""
    for name in ("real/derivatives", "real/.git/annex/objects", "work", "repository"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "study").symlink_to(tmp_path / "real")
    config = write_cohort(tmp_path / "configuration", tmp_path / "study")
    source = {"type": "fmriprep", "path": str(tmp_path / "study/derivatives")}
    (tmp_path / "configuration/study.yaml").write_text(yaml.safe_dump({"source": source}))
    binds = container_binds(load_settings(config), tmp_path / "repository", tmp_path / "work")
    names = [f"{study}/{name}" for study in ("real", "study") for name in (".git/annex", "derivatives")]
    assert binds == [tmp_path / name for name in sorted([*names, "repository", "work"])]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes_install_the_lock_and_nothing_else(recipe):
    text = recipe.read_text()
    assert "requirements.lock" in text
    installed = re.findall(r"pip install (.*)", text)
    assert len(installed) == 1
    assert installed[0].split()[-2:] == ["--requirement", "/opt/semantoks/requirements.lock"]


@pytest.fixture
def study(finished_study, tmp_path) -> Path:
    """A study without results, whose configuration names an image."""
    write_study(tmp_path / "study", (finished_study / "data/demo").resolve())
    image = tmp_path / "semantoks.sif"
    image.write_text("an image")
    path = tmp_path / "study/config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"container": str(image)}))
    return tmp_path / "study"


@pytest.mark.slow
def test_without_an_image_apptainer_is_refused(study):
    path = study / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"container": None}))
    refused = run(study, "--cores", "1", "--sdm", "apptainer", "--dry-run")
    assert refused.returncode == 2
    assert "error: key 'container': expected an image" in refused.stderr
