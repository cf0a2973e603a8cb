"""Containers of our own stages: binds, the command line of Apptainer (a stand-in), a real build with Podman."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from semantoks.container_binds import container_binds
from semantoks.settings import load_settings
from small_study import command, environment, run, write_study

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
def test_the_command_line_of_apptainer(study, tmp_path):
    """A stand-in for Apptainer notes how it is called, and runs the command without a container."""
    programs = tmp_path / "programs"
    programs.mkdir()
    stand_in = programs / "apptainer"
    stand_in.write_text(
        "#!/usr/bin/env bash\n"
        '[ "$1" = --version ] && { echo "apptainer version 1.3.4"; exit; }\n'
        f'printf "%s\\n" "BIND $APPTAINER_BIND" "$@" >> {shlex.quote(str(tmp_path / "calls"))}\n'
        'while [ "$1" != bash ]; do shift; done; exec "$@"\n'
    )
    stand_in.chmod(0o755)
    variables = environment(study)
    variables["PATH"] = f"{programs}:{variables['PATH']}"
    words = command(study, "--cores", "1", "--sdm", "apptainer", "results/demo/index/part-0001.parquet")
    done = subprocess.run(words, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "calls").read_text().splitlines()
    assert {"exec", str(tmp_path / "semantoks.sif")} <= set(lines)
    bound = set(lines[0].removeprefix("BIND ").split(","))
    assert {str(REPOSITORY), str(study), str((study / "data/demo").resolve() / "bids")} <= bound
    assert any("python -m semantoks.index" in line for line in lines)


@pytest.mark.slow
def test_without_an_image_apptainer_is_refused(study):
    path = study / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"container": None}))
    refused = run(study, "--cores", "1", "--sdm", "apptainer", "--dry-run")
    assert refused.returncode == 2
    assert "error: key 'container': expected an image" in refused.stderr


@pytest.fixture(scope="module")
def podman(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Variables with which Podman works inside containers and virtual machines, with a storage of its own."""
    missing = [name for name in ("podman", "debootstrap", "runc") if shutil.which(name) is None]
    if os.geteuid() != 0 or (missing and shutil.which("apt-get") is None):
        pytest.skip(f"building an image needs root, podman, debootstrap and runc; missing: {missing}")
    if missing:
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        installed = subprocess.run(
            install, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True
        )
        if installed.returncode:
            pytest.skip(f"{', '.join(missing)} cannot be installed: {installed.stderr.strip()[-300:]}")
    folder = tmp_path_factory.mktemp("podman")
    (folder / "containers.conf").write_text(
        '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nruntime = "runc"\n'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    variables = {"CONTAINERS_CONF": "containers.conf", "CONTAINERS_STORAGE_CONF": "storage.conf"}
    yield os.environ | {name: str(folder / value) for name, value in variables.items()}
    shutil.rmtree(folder, ignore_errors=True)


def do(*words: object, **options: object) -> str:
    """Run a command that must succeed; its output."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_image_builds_without_a_network_and_runs_a_stage(podman, finished_study, tmp_path):
    """A Debian made here is the base; the lock's wheels are fetched before; then nothing needs a network."""
    root = tmp_path / "debian"
    packages = "--include=python3,python3-venv"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", root], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no Debian mirror: {made.stdout.strip()[-300:]}")
    do("sh", "-c", f"tar -C {shlex.quote(str(root))} -c . | podman import - localhost/debian:base", env=podman)
    shutil.rmtree(root)
    wheels = tmp_path / "wheels"
    do(sys.executable, "-m", "pip", "download", "-q", "--dest", wheels, "-r", REPOSITORY / "requirements.lock")
    build = ["podman", "build", "--network=none", "--file", REPOSITORY / "containers/Dockerfile"]
    build += ["--volume", f"{wheels}:/wheels:ro", "--build-arg", "BASE=localhost/debian:base"]
    build += ["--build-arg", "PIP_OPTIONS=--no-index --find-links /wheels", "--tag", "semantoks:cpu", REPOSITORY]
    do(*build, env=podman)
    shutil.rmtree(wheels)
    study = tmp_path / "study"
    write_study(study, (finished_study / "data/demo").resolve())
    inside = ["podman", "run", "--rm", "--network=none", "--workdir", study]
    for folder in (tmp_path, REPOSITORY, (finished_study / "data/demo").resolve()):
        inside += ["--volume", f"{folder}:{folder}"]
    snakemake = ["snakemake", "--snakefile", REPOSITORY / "Snakefile", "--configfile", "config.yaml", "--cores", "2"]
    do(*inside, "semantoks:cpu", *snakemake, "results/demo/index.parquet", "results/atlas/networks.tsv", env=podman)
    assert (study / "results/demo/index.parquet").is_file()
    ours, theirs = (folder / "results/atlas/networks.tsv" for folder in (study, finished_study))
    assert ours.read_bytes() == theirs.read_bytes()
