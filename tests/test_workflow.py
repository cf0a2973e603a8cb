"""The job graph: dry runs over fake trees, with the jobs that each of them needs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from bids_trees import derivative, raw, write_image
from conftest import REPOSITORY
from semantoks.config_files import check_files
from semantoks.config_loading import load_settings
from semantoks.config_schemas import config_schema
from semantoks.errors import UserError
from semantoks.files import read_table


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run snakemake on the configuration in ``folder``, there."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "2"]
    command += ["--configfile", str(folder / "config.yaml"), "--directory", str(folder), *arguments]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def dry_run(folder: Path) -> dict[str, int]:
    """Number of jobs of each rule."""
    result = snakemake(folder, "--dry-run")
    assert result.returncode == 0, result.stdout + result.stderr
    counts = re.findall(r"^(\w+) +(\d+)$", result.stdout + result.stderr, flags=re.MULTILINE)
    assert counts, result.stdout
    return {rule: int(count) for rule, count in counts}


def write_config(folder: Path, sources: Mapping[str, Mapping], **keys) -> None:
    """A configuration of cohorts by name, each with the keys of its file."""
    (folder / "labels.tsv").write_text("index\tname\tnetwork\n1\ta\tVis\n2\tb\tDefault\n")
    for name, cohort in sources.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(dict(cohort)))
    config = {
        "cohorts": [str(folder / f"{name}.yaml") for name in sources],
        "atlas": {"name": "own", "labels": str(folder / "labels.tsv")},
        "pretrain": {"encoders": {"tiny": {"preset": "tiny", "random_seeds": [0]}}},
        "batch_size": 2,
        **keys,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def derivatives(path: Path, **keys) -> dict:
    return {"source": {"type": "fmriprep", "path": str(path)}, **keys}


PHENOTYPES = {"sex": {"column": "sex", "type": "classification"}}
TREES = {
    "no sessions": (["sub-01_task-rest", "sub-02_task-rest", "sub-03_task-rest"], {}, 2),
    "sessions, several runs": (
        ["sub-01_ses-1_task-rest_run-1", "sub-01_ses-1_task-rest_run-2", "sub-02_ses-1_task-rest_run-1"],
        {},
        2,
    ),
    "unequal sessions": (["sub-01_ses-1_task-rest", "sub-01_ses-2_task-rest", "sub-02_task-rest"], {}, 2),
    "one of two tasks": (["sub-01_task-rest", "sub-01_task-nback", "sub-02_task-rest"], {"tasks": ["rest"]}, 1),
    "one of two spaces": (["sub-01_task-rest", "sub-02_task-rest"], {"space": "MNI152NLin2009cAsym"}, 1),
}


@pytest.mark.parametrize("tree", TREES)
def test_dry_run_over_a_tree(tmp_path, tree):
    names, keys, batches = TREES[tree]
    for name in names:
        for space in ("MNI152NLin6Asym", "MNI152NLin2009cAsym") if "spaces" in tree else ("MNI152NLin6Asym",):
            derivative(tmp_path / "data", name, space=space)
    write_config(tmp_path, {"study": derivatives(tmp_path / "data", **keys)})
    jobs = dry_run(tmp_path)
    assert jobs["index_of_cohort"] == jobs["qc_summary"] == jobs["atlas"] == jobs["networks"] == 1
    assert jobs["index"] == jobs["parcellate"] == jobs["qc"] == jobs["shards"] == batches
    assert jobs["pretrain"] == 2
    assert "fmriprep" not in jobs
    assert "probe" not in jobs


@pytest.mark.parametrize(("mask", "jobs"), [({}, 1), ({"template_mask": None}, 0), ({"template_mask": "own.nii"}, 0)])
def test_the_template_of_images_is_looked_for_unless_told_otherwise(tmp_path, mask, jobs):
    derivative(tmp_path / "data", "sub-01_task-rest")
    if mask.get("template_mask"):
        mask = {"template_mask": str(tmp_path / "own.nii")}
        (tmp_path / "own.nii").touch()
    write_config(tmp_path, {"study": derivatives(tmp_path / "data")}, parcellate=mask)
    assert dry_run(tmp_path).get("template_mask", 0) == jobs


def test_dry_run_of_two_cohorts_of_which_one_has_phenotypes(tmp_path):
    for cohort, count in (("one", 3), ("two", 2)):
        for number in range(count):
            derivative(tmp_path / cohort, f"sub-{number:02d}_task-rest")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsex\n00\tF\n01\tM\n02\tF\n")
    probed = derivatives(tmp_path / "one", participants={"path": str(table)}, phenotypes=PHENOTYPES)
    write_config(tmp_path, {"one": probed, "two": derivatives(tmp_path / "two", role="pretrain")})
    jobs = dry_run(tmp_path)
    assert jobs["index_of_cohort"] == 2
    assert jobs["index"] == jobs["parcellate"] == 3
    assert jobs["pretrain"] == jobs["embed"] == 2
    references = config_schema()["properties"]["probe"]["properties"]["rows"]["default"]
    assert jobs["probe"] == len(references) + 2
    assert jobs["splits"] == 1


def test_dry_run_of_the_published_study(tmp_path, monkeypatch):
    """config/paper.yaml as it is shipped, on trees of the form that its cohort files describe."""
    tables = {
        "UKB": "participant_id\tsite\tsex\tage\n00\tx\tF\t50\n01\tx\tM\t60\n",
        "ABIDE": "participant_id\tSITE_ID\tDX_GROUP\tAGE_AT_SCAN\tSEX\n00\tNYU\t1\t20\t1\n01\tNYU\t2\t21\t1\n",
        "HBN": "participant_id\tsite\tsex\tage\twisc\tcelf\n00\tx\tF\t9\t99\t100\n01\tx\tM\t8\t90\t101\n",
        "SRPBS": "participant_id\tsite\tsex\tage\tdiagnosis\n00\tx\tF\t29\tcontrol\n01\tx\tM\t28\tdepression\n",
    }
    for name, table in tables.items():
        monkeypatch.setenv(name, str(tmp_path / name))
        for number in range(3):
            if name == "ABIDE":
                raw(tmp_path / name, f"sub-{number:02d}_task-rest")
            else:
                derivative(tmp_path / name / "derivatives/fmriprep", f"sub-{number:02d}_task-rest")
        (tmp_path / name / "participants.tsv").write_text(table)
    (tmp_path / "UKB/pretraining.txt").write_text("sub-02\n")
    (tmp_path / "UKB/probes.txt").write_text("sub-00\nsub-01\n")
    shutil.copy(REPOSITORY / "config/paper.yaml", tmp_path / "config.yaml")
    jobs = dry_run(tmp_path)
    assert jobs["fmriprep"] == 3
    assert jobs["parcellate"] == jobs["index_of_cohort"] == 5
    assert jobs["pretrain"] == 6
    # six encoders for each of the four cohorts that are probed
    assert jobs["embed"] == 4 * 6
    assert jobs["splits"] == jobs["tables"] == 4


def test_dry_run_of_a_cohort_without_derivatives_runs_fmriprep_once_per_participant(tmp_path):
    for name in ("sub-01_ses-1_task-rest", "sub-01_ses-2_task-rest", "sub-02_ses-1_task-rest"):
        raw(tmp_path / "raw", name)
    source = {"type": "bids", "path": str(tmp_path / "raw"), "derivatives": str(tmp_path / "out")}
    write_config(tmp_path, {"study": {"source": source}})
    jobs = dry_run(tmp_path)
    assert jobs["fmriprep"] == 2
    assert jobs["parcellate"] == 2


def finished_participant(folder: Path, name: str) -> None:
    """Raw run and complete derivatives of one participant."""
    write_image(raw(folder / "raw", name))
    derivative(folder / "out", name, res="2")


FMRIPREP = """#!{python}
import os, signal, sys
if sys.argv[1:] == ["--version"]: print("25.2.3"); sys.exit()
open("{folder}/asked", "a").write(sys.argv[sys.argv.index("--participant-label") + 1] + "\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_killed_participant_fails_on_the_last_attempt_and_finished_ones_are_left_alone(tmp_path, monkeypatch):
    finished_participant(tmp_path, "sub-01_task-rest")
    write_image(raw(tmp_path / "raw", "sub-02_task-rest"))
    write_image(raw(tmp_path / "raw", "sub-01_task-nback"))  # not used by the cohort, so not waited for
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "fmriprep").write_text(FMRIPREP.format(python=sys.executable, folder=tmp_path))
    (tmp_path / "bin" / "fmriprep").chmod(0o755)
    (tmp_path / "license.txt").write_text("x")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    source = {"type": "bids", "path": str(tmp_path / "raw"), "derivatives": str(tmp_path / "out")}
    options = {"engine": "native", "freesurfer": False, "licence": str(tmp_path / "license.txt")}
    write_config(tmp_path, {"study": {"source": source, "tasks": ["rest"]}}, fmriprep=options, batch_size=10)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    result = snakemake(tmp_path, "results/study/index.parquet", "--retries", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "asked").read_text() == "02\n02\n", "the second attempt is the last"
    assert json.loads((tmp_path / "results/study/fmriprep/sub-02.json").read_text())["status"] == "failed"
    index = read_table(tmp_path / "results/study/index.parquet").set_index("participant_id")["exclude_reason"]
    assert index["01"] is None
    assert index["02"].startswith("fMRIPrep failed: killed (memory or time limit?) | no sub-02_task-rest_space")
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what fMRIPrep made is never touched"


def expect_error(folder: Path, *words: str) -> None:
    """One message, no traceback, exit code 2."""
    result = snakemake(folder, "--dry-run")
    assert result.returncode == 2, result.stdout + result.stderr
    message = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(message) == 1, result.stderr
    for word in words:
        assert word in message[0]
    assert "Traceback" not in result.stdout + result.stderr


def test_an_empty_cohort(tmp_path):
    (tmp_path / "data").mkdir()
    write_config(tmp_path, {"study": derivatives(tmp_path / "data")})
    expect_error(tmp_path, "cohort study", "found none that fit", "'tasks'")


def test_a_missing_folder(tmp_path):
    write_config(tmp_path, {"study": derivatives(tmp_path / "absent")})
    expect_error(tmp_path, "key 'source.path'", "found nothing at", "absent")


def test_a_misspelt_key(tmp_path):
    derivative(tmp_path / "data", "sub-01_task-rest")
    write_config(tmp_path, {"study": derivatives(tmp_path / "data")}, parcelate={})
    expect_error(tmp_path, "config.yaml: unknown key 'parcelate'", "did you mean 'parcellate'?")


def named(folder: Path, key: str, path: str) -> dict:
    """Keys of the configuration in which one file is named; those of the cohort are put into its file."""
    section, _, name = key.partition(".")
    if section in ("atlas", "networks", "parcellate"):
        return {section: {"name": "own", name: path} if section == "atlas" else {name: path}}
    own = {"participants": {"path": path}, "split_file": path, "features": {"mine": {"path": path}}}
    write_config(folder, {"study": derivatives(folder / "data", **{section: own[section]})})
    return {}


NAMED = ["atlas.labels", "atlas.image", "atlas.transform", "networks.image", "networks.names", "networks.file"]
NAMED += ["parcellate.template_mask", "participants.path", "split_file", "features.mine.path"]


@pytest.mark.parametrize("key", NAMED)
def test_a_file_that_is_named_and_not_there(tmp_path, key):
    write_config(tmp_path, {"study": derivatives(tmp_path / "data")})
    keys = named(tmp_path, key, "gone/file.tsv")
    if keys:
        write_config(tmp_path, {"study": derivatives(tmp_path / "data")}, **keys)
    with pytest.raises(UserError, match=f"key '{key}': expected a file, found nothing at gone/file.tsv; correct the"):
        check_files(load_settings(yaml.safe_load((tmp_path / "config.yaml").read_text())))


def test_a_missing_label_table_stops_before_the_job_graph(tmp_path):
    derivative(tmp_path / "data", "sub-01_task-rest")
    write_config(tmp_path, {"study": derivatives(tmp_path / "data")})
    (tmp_path / "labels.tsv").unlink()
    expect_error(tmp_path, f"key 'atlas.labels': expected a file, found nothing at {tmp_path}/labels.tsv; correct")


def test_every_missing_file_is_named_at_once(tmp_path, monkeypatch):
    (tmp_path / "gone").symlink_to("nowhere")
    atlas = {"name": "own", "image": "gone", "labels": ".", "folder": "config.yaml"}
    settings = {"atlas": atlas, "networks": {"names": "absent"}}
    write_config(tmp_path, {"study": derivatives(tmp_path / "data")}, **settings)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as told:
        check_files(load_settings(yaml.safe_load((tmp_path / "config.yaml").read_text())))
    lines = str(told.value).replace("error: ", "").splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "key 'atlas.folder': expected a folder with the atlas's sources, found a file at config.yaml",
        "key 'atlas.image': expected a file, found a link to nothing (annexed data not fetched?) at gone",
        "key 'atlas.labels': expected a file, found a folder at .",
        "key 'networks.names': expected a file, found nothing at absent",
    ]


@pytest.mark.parametrize("name", ["25P", "gone.yaml"])
def test_a_denoising_strategy_that_is_none(tmp_path, name):
    write_config(tmp_path, {"study": derivatives(tmp_path / "data")}, parcellate={"denoising": name})
    with pytest.raises(UserError, match=rf"key 'parcellate.denoising': .*'{name}': expected one of 24P, 24P\+aco"):
        check_files(load_settings(yaml.safe_load((tmp_path / "config.yaml").read_text())))


def test_dry_run_of_a_cohort_for_testing_only(tmp_path):
    """Nothing is trained or fitted on it; its splits and rows need the other cohort's."""
    for cohort, count in (("one", 3), ("two", 2)):
        for number in range(count):
            derivative(tmp_path / cohort, f"sub-{number:02d}_task-rest")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsex\n00\tF\n01\tM\n02\tF\n")
    keys = {"participants": {"path": str(table)}, "phenotypes": PHENOTYPES}
    fitted = derivatives(tmp_path / "one", **keys)
    tested = derivatives(tmp_path / "two", **keys, role="test", fitted_on="one")
    # a name that ends like a table of another cohort
    write_config(tmp_path, {"one": fitted, "two_sites": tested})
    jobs = dry_run(tmp_path)
    assert jobs["splits"] == jobs["tables"] == 2
    assert jobs["pretrain"] == 2
    assert jobs["embed"] == 4
    assert jobs["figures_of_probes"] == 2 + 1, "random, leave-site-out of one; transfer of two"
    reasons = snakemake(tmp_path, "--dry-run", "--printshellcmds").stdout
    training = next(line for line in reasons.splitlines() if "semantoks.launch" in line)
    assert "results/one/shards" in training
    assert "results/two_sites/shards" not in training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "test"}, "two: key 'fitted_on': expected one of the cohorts that are probed"),
        ({"role": "test", "fitted_on": "three"}, "found three; name the one whose models are tested on this cohort"),
        ({"fitted_on": "one"}, "two: key 'fitted_on': expected with role test only, found role both"),
        (
            {"role": "test", "fitted_on": "one", "phenotypes": {}},
            "two: key 'phenotypes': expected some of those of one",
        ),
        (
            {"role": "test", "fitted_on": "one", "phenotypes": {"sex": {"column": "sex", "type": "regression"}}},
            "two: key 'phenotypes.sex': expected a phenotype of one with its type and bins, found regression",
        ),
    ],
)
def test_a_cohort_for_testing_that_is_not_described(tmp_path, changes, message):
    for cohort in ("one", "two"):
        derivative(tmp_path / cohort, "sub-00_task-rest")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsex\n00\tF\n01\tM\n")
    keys = {"participants": {"path": str(table)}, "phenotypes": PHENOTYPES}
    write_config(
        tmp_path, {"one": derivatives(tmp_path / "one", **keys), "two": derivatives(tmp_path / "two", **keys | changes)}
    )
    result = snakemake(tmp_path, "--dry-run")
    assert result.returncode == 2
    assert message in result.stderr


def test_dry_run_of_encoders_that_take_turns(tmp_path):
    for cohort in ("all", "east", "west"):
        derivative(tmp_path / cohort, "sub-00_task-rest")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsex\n00\tF\n01\tM\n")
    keys = {"participants": {"path": str(table)}, "phenotypes": PHENOTYPES, "role": "probe"}
    sources = {"all": derivatives(tmp_path / "all", **keys)}
    sources |= {name: derivatives(tmp_path / name, role="pretrain") for name in ("east", "west")}
    one = {"preset": "tiny", "seeds": [0, 1], "random_seeds": []}
    encoders = {"no-east": {**one, "cohorts": ["west"]}, "no-west": {**one, "cohorts": ["east"]}}
    further = {"pretrain": {"encoders": encoders}, "probe": {"inductive": {"turns": ["no-east", "no-west"]}}}
    write_config(tmp_path, sources, **further)
    jobs = dry_run(tmp_path)
    references = config_schema()["properties"]["probe"]["properties"]["rows"]["default"]
    assert jobs["probe"] == len(references) + 2, "one row per seed; the encoders have none of their own"
    wrong = {"probe": {"inductive": {"turns": ["no-east", "no-north"]}}}
    write_config(tmp_path, sources, **further | wrong)
    assert (
        "expected some of the encoders ['no-east', 'no-west'], found ['no-north']" in snakemake(tmp_path, "-n").stderr
    )


def test_fine_tuned_rows_are_compared_with_pretraining_elsewhere(tmp_path):
    """By content, like the rows of the probe: ids say nothing across cohorts."""
    for cohort in ("own", "elsewhere"):
        derivative(tmp_path / cohort, "sub-00_task-rest")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsex\n00\tF\n01\tM\n")
    keys = {"participants": {"path": str(table)}, "phenotypes": PHENOTYPES, "role": "probe"}
    sources = {"own": derivatives(tmp_path / "own", **keys)}
    sources |= {"elsewhere": derivatives(tmp_path / "elsewhere", role="pretrain")}
    encoders = {"tiny": {"preset": "tiny", "seeds": [0], "random_seeds": [], "cohorts": ["elsewhere"]}}
    supervised = {"models": ["finetuned", "bnt"], "encoders": ["tiny_seed-0"]}
    write_config(tmp_path, sources, pretrain={"encoders": encoders}, supervised=supervised)
    lines = snakemake(tmp_path, "--dry-run", "--printshellcmds").stdout.splitlines()
    tuned, from_nothing = (
        next(line for line in lines if "semantoks.supervised" in line and f"--model {model}" in line)
        for model in ("finetuned", "bnt")
    )
    assert "--pretrain-shards results/elsewhere/shards/" in tuned
    assert "--pretrain-shards" not in from_nothing
