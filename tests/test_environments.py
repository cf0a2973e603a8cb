"""Environments: every rule names one, its pins are those of the lock, and it suffices for what the rule runs."""

from __future__ import annotations

import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from semantoks.code_version import PACKAGE, _closure, _imported_names

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
