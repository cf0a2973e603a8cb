"""Environments: every rule names one, its pins are those of the lock, and it suffices for what the rule runs."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from semantoks.code_version import PACKAGE, _closure, _imported_names
from small_study import command, environment, same_bytes, same_rows, write_config, write_study
from stand_in_conda import install_stand_in

RULES = sorted((REPOSITORY / "workflow/rules").glob("*.smk"))
STAGES = yaml.safe_load((REPOSITORY / "envs/stages.yaml").read_text())["stages"]


def pins(path: Path) -> set[str]:
    """Pins of an environment file or of a lock."""
    if path.suffix == ".lock":
        return {line for line in path.read_text().splitlines() if line and not line.startswith("#")}
    packages = yaml.safe_load(path.read_text())["dependencies"]
    return set(packages[-1]["pip"])


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def rules() -> dict[str, str]:
    """The text of every rule, by its name."""
    found = {}
    for path in RULES:
        _, *texts = re.split(r"^rule (\w+):", path.read_text(), flags=re.MULTILINE)
        found |= dict(zip(texts[::2], texts[1::2], strict=True))
    return found


def rules_environment(rule: str) -> str:
    named = re.search(r'conda:\s+"\.\./\.\./envs/(\w+)\.yaml"', rules()[rule])
    assert named, f"{rule} names no environment"
    return named[1]


def modules(stage: str) -> set[str]:
    """Modules that the rules of an environment run."""
    found = {"parcellate": {"parcellate", "import_timeseries"}, "pretrain": {"pretrain"}}.get(stage, set())
    own = [text for rule, text in rules().items() if rules_environment(rule) == stage]
    return found.union(*(re.findall(r"python -m semantoks\.(\w+)", text) for text in own))


@pytest.mark.parametrize("rule", rules())
def test_every_rule_names_its_environment(rule):
    assert (REPOSITORY / f"envs/{rules_environment(rule)}.yaml").is_file()
    assert rules_environment(rule) in STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_pins_agree_with_the_lock(stage):
    assert pins(REPOSITORY / f"envs/{stage}.yaml") <= pins(REPOSITORY / "requirements.lock")


def test_tests_add_to_the_lock_and_change_nothing():
    names = [{pin.split("==")[0] for pin in pins(REPOSITORY / f"requirements{kind}.lock")} for kind in ("", "-test")]
    assert not names[0] & names[1]


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_a_stage_imports_is_pinned_in_its_environment(stage):
    pinned = {normalised(pin.split("==")[0]) for pin in pins(REPOSITORY / f"envs/{stage}.yaml")}
    distributions = packages_distributions()
    assert modules(stage)
    files = {path for module in modules(stage) for path in _closure(PACKAGE / f"{module}.py")}
    for path in files:
        for name in {name.split(".")[0] for name in _imported_names(path)}:
            if name not in sys.stdlib_module_names and name != "semantoks":
                assert pinned & {normalised(given) for given in distributions[name]}, (path.name, name)


WEIGHTS = "pretrain/tiny_seed-0/weights.safetensors"
NOTES_STARTS = """\
import os, sys
if any(word.startswith("semantoks.") for word in sys.orig_argv):
    open({path!r}, "a").write(" ".join(sys.orig_argv) + "\\n")
"""
LEAST = {"models": ["bnt", "lora"], "encoders": ["tiny_seed-0"], "protocols": ["random"], "epochs": 1}


@pytest.fixture(scope="module")
def run_in_environments(finished_study, tmp_path_factory) -> Path:
    """The small study, with networks trained on labels and exports, each stage in an environment of its own.

    ``PYTHONPATH`` and the user's site packages hold a module that notes which stages can see it.
    """
    folder = tmp_path_factory.mktemp("environments")
    study = folder / "study"
    write_study(study, (finished_study / "data/demo").resolve())
    write_config(study)
    config = yaml.safe_load((study / "config.yaml").read_text())
    (study / "config.yaml").write_text(yaml.safe_dump(config | {"supervised": LEAST, "export": ["hdf5", "bids"]}))
    note = NOTES_STARTS.format(path=str(folder / "leaked"))
    user = folder / f"user/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    for path in (folder / "path/sitecustomize.py", user / "usercustomize.py"):
        path.parent.mkdir(parents=True)
        path.write_text(note)
    variables = environment(study)
    variables |= {"PATH": f"{install_stand_in(folder / 'conda')}:{variables['PATH']}"}
    variables |= {"PYTHONPATH": str(folder / "path"), "PYTHONUSERBASE": str(folder / "user")}
    variables.pop("PYTHONNOUSERSITE", None)
    words = [*command(study, "--cores", "2"), "--sdm", "conda", "--conda-prefix", str(folder / "installed")]
    result = subprocess.run(words, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return study


@pytest.mark.slow
def test_every_stage_runs_in_its_own_environment_and_comes_to_the_same(run_in_environments, finished_study):
    """What further rows appear in differs, and nothing before it."""
    results, reference = run_in_environments / "results", finished_study / "results"
    tables = [path.relative_to(reference) for path in (reference / "demo").rglob("*.parquet")]
    assert len(tables) > 15
    for path in tables:
        assert same_rows(results / path, reference / path), path
    assert same_bytes(results / WEIGHTS, reference / WEIGHTS)
    for name in ("supervised/bnt.parquet", "supervised/lora-tiny_seed-0.parquet", "export/timeseries.h5"):
        assert (results / "demo" / name).is_file()


@pytest.mark.slow
def test_environments_have_what_their_packages_require_and_equal_files_share_one(run_in_environments):
    installed = sorted((run_in_environments.parent / "installed").glob("*/bin/python"))
    assert len(installed) == len({(REPOSITORY / f"envs/{stage}.yaml").read_bytes() for stage in STAGES})
    for python in installed:
        words = [sys.executable, "-m", "pip", "--python", str(python), "check"]
        checked = subprocess.run(words, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_neither_pythonpath_nor_user_site_packages_reach_a_stage(run_in_environments):
    assert not (run_in_environments.parent / "leaked").exists()


@pytest.mark.slow
def test_an_environment_that_lacks_a_package_is_not_helped_out(run_in_environments):
    """The comparison above can fail: tables have no torch, and Snakemake is in none of them."""
    for python in (run_in_environments.parent / "installed").glob("*/bin/python"):
        alone = subprocess.run([python, "-c", "import snakemake"], capture_output=True, env={})
        assert alone.returncode != 0
