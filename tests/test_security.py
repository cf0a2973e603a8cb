"""Nothing from outside reaches a shell unquoted or is unpickled; secrets and people stay out of sight."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest
from bids_trees import derivative
from conftest import REPOSITORY
from small_study import SECRET
from test_workflow import snakemake, write_config

RULES = sorted((REPOSITORY / "workflow/rules").glob("*.smk"))
HARMLESS = {
    *("threads", "resources.mem_mb", "resources.nodes", "resources.processes"),  # numbers
    *("resources.attempt", "resources.attempts", "params.seed", "params.share", "params.similarity"),
    *("wildcards.row", "wildcards.batch", "wildcards.protocol"),  # constrained to letters, digits, - and _
    *("params.module", "params.untrained"),  # words of the rules
    *("params.embeddings", "params.shards", "params.pretrain_shards", "params.qc", "params.weights"),  # by as_arguments
    *("params.fitted_splits", "params.fitted_shards"),  # the same
}


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_whatever_a_rule_puts_into_a_shell_is_quoted_or_cannot_be_harmful(path):
    shells = re.findall(r"shell:\n((?: +\".*\"\n?)+)", path.read_text())
    for shell in shells:
        placeholders = re.findall(r"\{([^{}]+)\}", shell)
        assert {name for name in placeholders if not name.endswith(":q")} <= HARMLESS


EVIL = 'it\'s $(touch pwned) `touch pwned` ; touch pwned & "touch" pwned | touch pwned'
PROGRAM = '#!/bin/sh\nprintf "%s\\n" "$@" >> "$ARGUMENTS"\n'


def test_evil_names_reach_the_stages_as_they_are_and_the_shell_never(tmp_path):
    """Every command of the workflow, with a stand-in for Python that notes its arguments."""
    data = tmp_path / EVIL
    for number in range(3):
        derivative(data, f"sub-{number:02d}_task-rest")
    table = data / "participants; touch pwned.tsv"
    table.write_text("participant_id\tsex; touch pwned\n00\t$(touch pwned)\n01\t`touch pwned`\n02\t$(touch pwned)\n")
    cohort = {
        "source": {"type": "fmriprep", "path": str(data)},
        "description": EVIL + " {x}",
        "participants": {"path": str(table)},
        "phenotypes": {"sex": {"column": "sex; touch pwned", "type": "classification"}},
    }
    write_config(tmp_path, {"study": cohort})
    result = snakemake(tmp_path, "--dry-run", "--printshellcmds")
    assert result.returncode == 0, result.stdout + result.stderr
    commands = re.findall(
        r"^ *(?:Shell command: )?(set -euo .*|.*python -m semantoks\..*)$", result.stdout, re.MULTILINE
    )
    assert len(commands) >= 10, result.stdout
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python").write_text(PROGRAM)
    (programs / "python").chmod(0o755)
    noted = tmp_path / "arguments"
    variables = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "ARGUMENTS": str(noted)}
    for command in commands:
        for log in re.findall(r"> (\S+) 2>&1", command):
            (tmp_path / log).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["bash", "-c", command], cwd=tmp_path, env=variables, check=True)
    assert list(tmp_path.rglob("pwned")) == []
    assert "$(touch pwned)" in noted.read_text()


FORBIDDEN = {"pickle.load", "pickle.loads", "joblib.load", "yaml.load", "yaml.unsafe_load", "os.system", "eval", "exec"}


def calls(path: Path) -> list[tuple[str, dict[str, ast.expr]]]:
    """Names of called functions, with their keyword arguments."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), {key.arg: key.value for key in node.keywords if key.arg}) for node in nodes]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "workflow/semantoks").rglob("*.py")), ids=lambda path: path.stem)
def test_no_file_from_outside_can_run_code(path):
    for name, keywords in calls(path):
        assert name not in FORBIDDEN, name
        if name == "torch.load":
            assert ast.unparse(keywords["weights_only"]) == "True"
        for key, allowed in {"allow_pickle": "False", "shell": "False"}.items():
            assert key not in keywords or ast.unparse(keywords[key]) == allowed, name


SINGLE = {"recordings.png", "carpets.png"}


@pytest.mark.parametrize("asked", [False, True])
def test_figures_of_single_recordings_are_in_reports_only_when_asked(tmp_path, asked):
    """In our page, and in Snakemake's own report."""
    for number in range(3):
        derivative(tmp_path / "data", f"sub-{number:02d}_task-rest")
    source = {"source": {"type": "fmriprep", "path": str(tmp_path / "data")}}
    write_config(tmp_path, {"study": source}, individuals_in_report=asked)
    result = snakemake(tmp_path, "--dry-run", "--printshellcmds", "results/report.html")
    assert result.returncode == 0, result.stdout + result.stderr
    (command,) = re.findall(r"python -m semantoks\.report .*", result.stdout)
    shown = {Path(word).name for word in command.split() if word.endswith(".png")}
    assert "flow.png" in shown
    assert shown & SINGLE == (SINGLE if asked else set())
    assert f'"individuals": {str(asked).lower()}' in command


@pytest.mark.slow
def test_secrets_of_the_environment_are_in_no_file_of_a_run(finished_study):
    """The run had a token in its environment."""
    for path in finished_study.rglob("*"):
        if path.is_file() and "data" not in path.relative_to(finished_study).parts:
            assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_report_and_tables_name_no_participant(finished_study):
    participants = [path.name for path in (finished_study / "data/demo/bids").glob("sub-*")]
    assert len(participants) == 12
    shown = [finished_study / "results/report.html", *(finished_study / "results/tables").iterdir()]
    for path in shown:
        text = path.read_text()
        assert not [label for label in participants if label in text], path
