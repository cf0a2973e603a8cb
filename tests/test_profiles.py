"""The profiles: one file each, however it is spelt, and for Slurm a line for every rule that asks for a GPU."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from test_environments import rules

SLURM = REPOSITORY / "workflow/profiles/slurm/config.yaml"


@pytest.mark.parametrize("spelt", ["slurm", "profiles/slurm"])
def test_a_profile_is_one_file_however_it_is_spelt(spelt):
    """``--profile slurm`` and Snakemake's own search can not come to different values: links, not copies."""
    assert (REPOSITORY / spelt / "config.yaml").resolve() == SLURM


def with_lines_for_gpus() -> dict[str, Any]:
    """The profile's content with its commented ``set-resources`` uncommented."""
    text = SLURM.read_text()
    (commented,) = re.findall(r"^# set-resources:.*\n(?:#  .*\n)+", text, flags=re.MULTILINE)
    content: dict[str, Any] = yaml.safe_load(text.replace(commented, re.sub(r"^# ", "", commented, flags=re.MULTILINE)))
    return content


def test_the_commented_lines_for_gpus_name_every_rule_that_asks_for_one():
    asking = {rule for rule, text in rules().items() if re.search(r"^ +gpu=|training_resources\(", text, re.MULTILINE)}
    assert {"pretrain", "embed"} < asking
    assert with_lines_for_gpus()["set-resources"].keys() == asking


def test_account_and_partition_are_the_only_lines_that_a_user_must_edit():
    lines = [line for line in SLURM.read_text().splitlines() if "<<<" in line and not line.startswith("#")]
    assert [re.search(r"slurm_(\w+)=", line)[1] for line in lines] == ["account", "partition"]


def test_every_value_has_its_reason_beside_it():
    """A comment on its line or on the line above."""
    lines = SLURM.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if not line.startswith("#") and not line.endswith(":"):
            assert "#" in line or before.startswith("#"), line
