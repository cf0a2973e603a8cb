"""FreeSurfer's licence and tokens of the environment are in nothing that a run with fMRIPrep writes or says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic_images as synthetic
import yaml
from bids_trees import raw, write_image
from conftest import REPOSITORY
from container_engine import Engine
from fmriprep_cases import Runner, schema_defaults
from semantoks import fmriprep_prepare
from semantoks.container_images import Image
from semantoks.errors import UserError
from semantoks.label_images import write_label_image
from small_study import SECRET, copy_repository

LICENCE = "somebody@somewhere.example\n54321\n *CbTeSt1234567\n FSaBcDeFgHiJk\n"
PARTICIPANTS = {"01": "success", "02": "error", "03": "success", "04": "success"}


def make_study(folder: Path, **fmriprep: Any) -> None:
    """Raw data of participants, what the stand-in writes of them, a licence, an atlas and a configuration."""
    random = np.random.default_rng(1)
    for participant in PARTICIPANTS:
        write_image(raw(folder / "raw", f"sub-{participant}_task-rest"), n_frames=4)
    code = folder / "raw/code"
    code.mkdir()
    for participant, behaviour in PARTICIPANTS.items():
        (code / f"behaviour-{participant}").write_text(behaviour)
    image = synthetic.bold_image(synthetic.planted_series(random), random, noise=5)
    made = synthetic.write_recording(folder, "made", image, synthetic.confounds_table(random))
    for key, name in (("bold", "preproc_bold.nii.gz"), ("mask", "brain_mask.nii.gz"), ("confounds", "confounds.tsv")):
        Path(made[f"{key}_path"]).rename(code / name)
    (code / "preproc_bold.json").write_text(f'{{"RepetitionTime": {synthetic.TR}}}')
    write_label_image(folder / "boxes.nii.gz", synthetic.atlas_labels(), synthetic.affine())
    table = pd.DataFrame({"index": synthetic.INDEX, "name": synthetic.NAMES})
    table.to_csv(folder / "boxes.tsv", sep="\t", index=False)
    (folder / "license.txt").write_text(LICENCE)
    source = {"type": "bids", "path": str(folder / "raw"), "derivatives": str(folder / "derivatives")}
    (folder / "study.yaml").write_text(yaml.safe_dump({"source": source, "tasks": ["rest"]}))
    config = {
        "cohorts": [str(folder / "study.yaml")],
        "atlas": {"name": "boxes", "image": str(folder / "boxes.nii.gz"), "labels": str(folder / "boxes.tsv")},
        "fmriprep": {"licence": str(folder / "license.txt"), **fmriprep},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def run_workflow(folder: Path, variables: dict[str, str]) -> str:
    """The whole workflow; everything that Snakemake says, with every command."""
    words = [sys.executable, "-m", "snakemake", "--directory", str(folder), "--configfile", str(folder / "config.yaml")]
    words += ["--cores", "2", "--printshellcmds", "--verbose"]
    path = f"{Path(sys.executable).parent}:{variables.get('PATH', os.environ['PATH'])}"
    own = {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache"), "SERVICE_TOKEN": SECRET}
    environment = os.environ | variables | own
    ended = subprocess.run(words, cwd=folder / "repository", env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def assert_no_secrets(folder: Path, said: str) -> None:
    """Neither said nor in any file but the licence itself."""
    secrets = [SECRET, *(word for word in LICENCE.split() if not word.isdecimal())]
    contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert contents.pop(folder / "license.txt") == LICENCE.encode()
    places = {str(path.relative_to(folder)) for path in contents}
    assert {
        "results/report.html",
        "results/study/fmriprep/sub-02.json",
        "results/logs/fmriprep/study/sub-01.log",
    } <= places
    assert b"PATH=" in contents[folder / "derivatives/sourcedata/freesurfer/sub-01/scripts/recon-all.env"]
    assert any(place.startswith(".snakemake/log/") for place in places)
    assert "python -m semantoks.fmriprep" in said
    contents[Path("what Snakemake said")] = said.encode()
    for path, content in contents.items():
        assert not [secret for secret in secrets if secret.encode() in content], path


@pytest.mark.slow
def test_native_fmriprep_does_not_see_them(tmp_path: Path) -> None:
    """Where nothing but the stage stands between the environment and what FreeSurfer writes of it."""
    make_study(tmp_path, engine="native", freesurfer=True)
    copy_repository(tmp_path / "repository")
    (tmp_path / "programs").mkdir()
    shutil.copy(REPOSITORY / "tests/fmriprep_stand_in.sh", tmp_path / "programs/fmriprep")
    (tmp_path / "programs/fmriprep").chmod(0o755)
    (tmp_path / "freesurfer/subjects/fsaverage").mkdir(parents=True)
    variables = {"PATH": f"{tmp_path / 'programs'}:{os.environ['PATH']}"}
    variables["FREESURFER_HOME"] = str(tmp_path / "freesurfer")
    said = run_workflow(tmp_path, variables | {"FAKE_VERSION": schema_defaults("fmriprep")["version"]})
    assert_no_secrets(tmp_path, said)


@pytest.mark.slow
def test_a_container_has_none_of_them(tmp_path: Path, fmriprep_image: Image, engine: Engine) -> None:
    make_study(tmp_path, engine="podman", engine_arguments=["--network=none"])
    lock = copy_repository(tmp_path / "repository") / "containers/images.lock"
    lock.write_text(lock.read_text().replace("unresolved\n", f"{fmriprep_image.digest}\n"))
    assert_no_secrets(tmp_path, run_workflow(tmp_path, engine.variables))


def test_own_commands_see_tokens_and_fmriprep_does_not(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetching data may need them."""
    for name in ("GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "service_password", "XNAT_PASS", "MYSQL_PWD"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("FS_HOME", "not hidden")
    seen = tmp_path / "seen"
    commands = tmp_path / "commands"
    (commands / "fmriprep").rename(commands / "stand-in")
    (commands / "fmriprep").write_text(f'#!/bin/sh\nprintenv > {seen}\nexec {commands}/stand-in "$@"\n')
    (commands / "fmriprep").chmod(0o755)
    status = run("success", before_command=f'echo "$GITHUB_TOKEN" > {tmp_path}/fetched')
    assert status is not None
    assert status["status"] == "done"
    assert (tmp_path / "fetched").read_text() == SECRET + "\n"
    assert "FS_HOME=not hidden" in seen.read_text()
    assert SECRET not in seen.read_text()


@pytest.mark.parametrize("where", ["key", "variable"])
def test_a_licence_given_in_the_place_of_its_path_is_not_repeated(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What some do with secrets of a continuous integration."""
    settings = schema_defaults("fmriprep") | {"licence": LICENCE if where == "key" else None}
    monkeypatch.setenv("FS_LICENSE", LICENCE)
    named = "key 'fmriprep.licence'" if where == "key" else "environment variable FS_LICENSE"
    with pytest.raises(UserError) as refused:
        fmriprep_prepare.licence_file(fmriprep_prepare.FmriprepSettings(**settings))
    assert str(refused.value).startswith(f"{named}: expected the path of FreeSurfer's licence file")
    assert not [word for word in LICENCE.split() if word in str(refused.value)]
