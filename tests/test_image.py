"""Our image, built by Podman from a local base, and ``--sdm apptainer`` through a stand-in that runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from small_study import command, copy_study, environment, same_rows

pytestmark = pytest.mark.slow

IMAGE = "localhost/semantoks:cpu"
# What Snakemake calls: apptainer exec --home FOLDER … IMAGE sh -c COMMAND, with folders to bind in APPTAINER_BIND.
STAND_IN = """\
#!{python}
import os, sys
words = sys.argv[1:]
if words == ["--version"]:
    print("apptainer version 1.3.4")
    sys.exit()
open({noted!r}, "a").write(" ".join(words[:3]) + "\\n")
shell = words.index("-c") - 1
binds = [word for folder in os.environ["APPTAINER_BIND"].split(",") for word in ("--volume", folder + ":" + folder)]
inside = [*binds, "--workdir", words[words.index("--home") + 1]]
os.execvp("podman", ["podman", *{options!r}, *inside, {root!r}, *words[shell:]])
"""


@dataclass(frozen=True)
class Image:
    """An image as Apptainer has it: its files, used as they are, and its environment variables."""

    root: str
    variables: list[str]

    @property
    def options(self) -> list[str]:
        """Of Podman, which would otherwise copy the files for each container."""
        named = [word for variable in self.variables for word in ("--env", variable)]
        return ["run", "--rm", "--network=none", *named, "--rootfs"]


@pytest.fixture(scope="module")
def base(engine, tmp_path_factory) -> str:
    """A Debian with Python, as the image that ours is built on."""
    if shutil.which("debootstrap") is None:
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "debootstrap"]
        if subprocess.run(install, capture_output=True).returncode:
            pytest.skip("debootstrap is absent and could not be installed: no base image")
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    root = tmp_path_factory.mktemp("base") / "root"
    options = ["--variant=minbase", "--include=python3,python3-venv"]
    made = subprocess.run(["debootstrap", *options, release["VERSION_CODENAME"], root], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no base image: debootstrap failed: {made.stdout[-300:]}")
    name = "localhost/debian-with-python:1"
    engine.image_of(root, name)
    shutil.rmtree(root)
    version = engine.run("run", "--rm", name, "python3", "--version").stdout.split()[-1]
    if version.split(".")[:2] != [str(part) for part in sys.version_info[:2]]:
        pytest.skip(f"the base image has Python {version}, wheels of these tests are for {sys.version.split()[0]}")
    return name


@pytest.fixture(scope="module")
def image(engine, base, tmp_path_factory) -> Iterator[Image]:
    """The Dockerfile's image, built without a network from wheels, as docs/containers.md says."""
    wheels = tmp_path_factory.mktemp("wheels")
    lock = REPOSITORY / "requirements.lock"
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--wheel-dir", wheels, "-r", lock], check=True)
    arguments = ["--build-arg", f"BASE={base}", "--build-arg", "PIP_OPTIONS=--no-index --find-links /wheels"]
    arguments += ["--network=none", "--volume", f"{wheels}:/wheels:ro", "--file", "containers/Dockerfile"]
    built = engine.run("build", *arguments, "--tag", IMAGE, ".", cwd=REPOSITORY, timeout=900)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    variables = engine.run("image", "inspect", "--format", '{{join .Config.Env "\\n"}}', IMAGE).stdout.splitlines()
    yield Image(engine.run("image", "mount", IMAGE).stdout.strip(), variables)
    engine.run("image", "unmount", IMAGE)


def test_the_image_holds_the_lock_and_no_code_of_the_workflow(engine, image):
    listed = engine.run(*image.options, image.root, "python", "-m", "pip", "list", "--format=freeze").stdout.split()
    found = {line.split("==")[0].lower().replace("_", "-"): line.split("==")[1].split("+")[0] for line in listed}
    for line in (REPOSITORY / "requirements.lock").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert found[name.lower().replace("_", "-")] == version
    assert engine.run(*image.options, image.root, "python", "-c", "import semantoks").returncode == 1


def test_stages_run_in_the_image_and_come_to_the_same(engine, image, finished_study, tmp_path):
    """A batch, from its recordings to its shard."""
    study = copy_study(finished_study, tmp_path / "study")
    lost = [f"results/demo/{stage}/part-0002.parquet" for stage in ("timeseries", "qc", "shards")]
    for path in lost:
        (study / path).unlink()
    (tmp_path / "semantoks.sif").write_text("stands for the image")
    config = yaml.safe_load((study / "config.yaml").read_text())
    (study / "config.yaml").write_text(yaml.safe_dump(config | {"container": str(tmp_path / "semantoks.sif")}))
    programs = tmp_path / "programs"
    programs.mkdir()
    values = {"python": sys.executable, "noted": str(tmp_path / "noted"), "options": image.options}
    values["root"] = image.root
    (programs / "apptainer").write_text(STAND_IN.format(**values))
    (programs / "apptainer").chmod(0o755)
    variables = environment(study) | engine.variables
    variables["PATH"] = f"{programs}:{Path(sys.executable).parent}:{engine.variables['PATH']}"
    words = command(study, "--cores", "2", "--sdm", "apptainer", "--rerun-triggers", "mtime", "--", *lost)
    result = subprocess.run(words, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len((tmp_path / "noted").read_text().splitlines()) >= len(lost)
    for path in lost:
        assert same_rows(study / path, finished_study / path), path
