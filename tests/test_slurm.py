"""The workflow on a real Slurm of three nodes, and through what happens to it there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from processes import processes
from slurm_cluster import NODES, SlurmCluster, install, reason_against
from small_study import (
    SECRET,
    command,
    copy_repository,
    copy_study,
    environment,
    finished_files,
    run,
    same_results,
    write_config,
    write_study,
)

pytestmark = pytest.mark.slow

PROFILE = ["--profile", "slurm", "--slurm-init-seconds-before-status-checks", "2"]
"""The literal words, and a plugin that asks after its jobs sooner than would be kind to a real cluster."""
LOCAL_RULES = {
    "all",
    "atlas",
    "networks",
    "index_of_cohort",
    "figures_of_encoder",
    "figures_of_probes",
    "report",
    "cost",
}
GPU_RULES = {"pretrain", "embed", "supervised"}
WEIGHTS = "results/pretrain/tiny_seed-0/weights.safetensors"


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    reason = reason_against()
    if reason:
        pytest.skip(reason)
    try:
        install()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"Slurm could not be installed: {error}")
    base = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = SlurmCluster(base)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(base)


def wait_for(what: str, happened: Callable[[], object], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def start(folder: Path, *arguments: str, repository: Path) -> subprocess.Popen:
    """Snakemake in the background, its output in ``snakemake.out`` of the study."""
    with open(folder / "snakemake.out", "wb") as log:
        words = command(folder, *PROFILE, *arguments)
        return subprocess.Popen(words, cwd=repository, env=environment(folder), stdout=log, stderr=log)


def said(folder: Path) -> str:
    return (folder / "snakemake.out").read_text()


def training_says(folder: Path) -> str:
    path = folder / "results/logs/pretrain/tiny_seed-0.log"
    return path.read_text() if path.is_file() else ""


def went_on(folder: Path) -> bool:
    return "going on from the checkpoint after step" in training_says(folder)


def forget_log(folder: Path) -> None:
    (folder / "results/logs/pretrain/tiny_seed-0.log").unlink()


def has_checkpoint(folder: Path) -> bool:
    return any((folder / "results/checkpoints").rglob("checkpoint-*.pt"))


def rule_of(job: dict[str, str]) -> str:
    """The rule in the comment that the plugin gives a job: ``rule_<rule>_wildcards_<values>``."""
    return re.sub(r"^rule_|_wildcards_.*$", "", job["Comment"])


def jobs_of(slurm: SlurmCluster, rule: str, *columns: str) -> list[dict[str, str]]:
    return [job for job in slurm.jobs("Comment", *columns) if rule_of(job) == rule]


def running_job(slurm: SlurmCluster, rule: str) -> str | None:
    """Id of the running job of a rule."""
    lines = slurm.query(["squeue", "-h", "-t", "R", "-o", "%i %k"])
    return next((line.split()[0] for line in lines if line.split()[1].startswith(f"rule_{rule}")), None)


def variables_of_training(job: str) -> dict[str, str]:
    """Environment of the training of a job; other tests may train on this machine, too."""
    for process, words in processes():
        if b"semantoks.pretrain" in words:
            lines = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
            variables = dict(line.split("=", 1) for line in lines if "=" in line)
            if variables.get("SLURM_JOB_ID") == job:
                return variables
    return {}


@dataclass
class Survived:
    """A run through a killed Snakemake and a requeued and a cancelled training, and what was seen on the way."""

    folder: Path
    variables: dict[str, str]
    refused: subprocess.CompletedProcess[str]
    finished_before: dict[Path, int]
    restarts: list[str]
    jobs: list[dict[str, str]]


@pytest.fixture(scope="module")
def survived(slurm, finished_study, tmp_path_factory) -> Survived:
    """The whole study: Snakemake killed in the training and started again, the training requeued, then cancelled."""
    folder = tmp_path_factory.mktemp("cluster") / "study"
    write_study(folder, (finished_study / "data/demo").resolve())
    write_config(folder, gpus=1)
    repository = with_gpu_partition(copy_repository(tmp_path_factory.mktemp("copy") / "repository"))
    first = start(folder, repository=repository)
    wait_for("the first checkpoint", lambda: has_checkpoint(folder) or first.poll() is not None)
    job = running_job(slurm, "pretrain")
    # or it may have finished before Snakemake is started again
    subprocess.run(["scontrol", "suspend", job], check=True)
    variables = variables_of_training(job)
    first.kill()
    assert first.wait() == -9, said(folder)
    refused = run(folder, *PROFILE, repository=repository)
    run_id = re.search(r"SLURM run ID: (\S+)", said(folder))[1]
    subprocess.run(["scancel", f"--name={run_id}"], check=True)
    wait_for("the jobs' end", lambda: not slurm.query(["squeue", "-h"]))
    assert run(folder, *PROFILE, "--unlock", repository=repository).returncode == 0
    finished_before = finished_files(folder)
    second = start(folder, repository=repository)
    restarts: list[str] = []
    for disturb in (["scontrol", "requeue"], ["scancel"]):  # what preemption does, and a person
        wait_for("the training", lambda: went_on(folder) or second.poll() is not None)
        forget_log(folder)
        job = running_job(slurm, "pretrain")
        restarts += slurm.query(["squeue", "-h", "-j", job, "-O", "RestartCnt"])
        subprocess.run([*disturb, job], check=True)
    assert second.wait(600) == 0, said(folder)
    columns = ("Comment", "State", "NodeList", "Account", "Partition", "ReqMem", "AllocTRES")
    return Survived(folder, variables, refused, finished_before, restarts, slurm.jobs(*columns))


def with_gpu_partition(repository: Path) -> Path:
    """The lines of the profile for GPUs, uncommented as a user would."""
    profile = repository / "workflow/profiles/slurm/config.yaml"
    text = profile.read_text()
    (commented,) = re.findall(r"^# set-resources:.*\n(?:#  .*\n)+", text, flags=re.M)
    profile.write_text(text.replace(commented, commented.replace("# ", "", 1).replace("\n# ", "\n")))
    assert set(yaml.safe_load(profile.read_text())["set-resources"]) == GPU_RULES
    return repository


def test_tables_and_weights_are_those_of_a_local_run(survived, finished_study):
    same_results(survived.folder, finished_study)


def test_heavy_rules_run_on_all_nodes_and_light_ones_where_snakemake_does(survived):
    done = [job for job in survived.jobs if job["State"] == "COMPLETED"]
    assert {job["NodeList"] for job in done} == set(NODES)
    assert {job["Account"] for job in done} == {"lab"}
    assert {rule_of(job) for job in done} >= {"index", "parcellate", "qc", "shards", "pretrain", "embed", "probe"}
    assert not {rule_of(job) for job in done} & LOCAL_RULES


def test_a_requested_gpu_reaches_the_jobs_that_compute_on_it_and_no_other(survived):
    asked = [job for job in survived.jobs if rule_of(job) in GPU_RULES]
    assert {rule_of(job) for job in asked} == {"pretrain", "embed"}  # this study has no networks trained on labels
    assert all("gres/gpu=1" in job["AllocTRES"] and job["Partition"] == "gpu" for job in asked), asked
    others = [job for job in survived.jobs if job not in asked]
    assert not any("gres" in job["AllocTRES"] or job["Partition"] != "main" for job in others), others
    assert survived.variables["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_requested_gpu_reaches_a_network_that_is_trained_on_labels(slurm, finished_study, tmp_path):
    study = copy_study(finished_study, tmp_path / "study")
    write_config(study, gpus=1)
    config = yaml.safe_load((study / "config.yaml").read_text())
    networks = {"models": ["bnt"], "protocols": ["random"], "epochs": 1}
    (study / "config.yaml").write_text(yaml.safe_dump(config | {"supervised": networks}))
    repository = with_gpu_partition(copy_repository(tmp_path / "repository"))
    result = run(study, *PROFILE, "--", "results/demo/supervised/bnt.parquet", repository=repository)
    assert result.returncode == 0, result.stdout + result.stderr
    (job,) = jobs_of(slurm, "supervised", "State", "Partition", "AllocTRES")
    assert (job["State"], job["Partition"]) == ("COMPLETED", "gpu")
    assert "gres/gpu=1" in job["AllocTRES"]


def test_a_folder_that_a_killed_run_left_locked_is_refused_with_what_to_do(survived):
    assert survived.refused.returncode != 0
    assert "Directory cannot be locked" in survived.refused.stderr
    assert "--unlock" in survived.refused.stderr


def test_nothing_that_was_finished_is_computed_twice(survived):
    """Neither what the killed run had made nor any job since."""
    assert survived.finished_before
    now = finished_files(survived.folder)
    assert {path: now[path] for path in survived.finished_before} == survived.finished_before
    completed = Counter(job["Comment"] for job in survived.jobs if job["State"] == "COMPLETED")
    assert set(completed.values()) == {1}, completed


def test_a_requeued_training_goes_on_as_the_same_job(survived):
    assert [int(count) for count in survived.restarts] == [0, 1]


def test_a_cancelled_training_is_submitted_anew_with_more_memory_and_goes_on_from_its_checkpoint(survived):
    trainings = [job for job in survived.jobs if rule_of(job) == "pretrain"]
    assert [job["State"].split()[0] for job in trainings] == ["CANCELLED", "CANCELLED", "COMPLETED"]
    assert [job["ReqMem"] for job in trainings] == ["16000M", "16000M", "32000M"]
    assert went_on(survived.folder)


def test_secrets_of_the_environment_are_in_no_file_of_the_run(survived):
    """Jobs inherit the environment; neither their logs nor Slurm's say it."""
    for path in survived.folder.rglob("*"):
        if path.is_file() and "data" not in path.relative_to(survived.folder).parts:
            assert SECRET.encode() not in path.read_bytes(), path


def test_a_job_that_exceeds_its_memory_succeeds_as_a_new_submission_with_more(slurm, finished_study, tmp_path):
    study = copy_study(finished_study, tmp_path / "study")
    lost = "results/demo/qc/part-0002.parquet"
    (study / lost).unlink()
    before = len(slurm.jobs("State"))
    result = run(study, *PROFILE, "--set-resources", "qc:mem_mb=100 * 8 ** (attempt - 1)", "--", lost)
    assert result.returncode == 0, result.stdout + result.stderr
    attempts = slurm.jobs("Comment", "State", "ReqMem", "ExitCode")[before:]
    assert [job["State"] for job in attempts] == ["FAILED", "COMPLETED"], attempts
    assert [job["ReqMem"] for job in attempts] == ["100M", "800M"]
    assert (study / lost).read_bytes() == (finished_study / lost).read_bytes()


def test_a_training_over_two_nodes_survives_the_loss_of_one(slurm, finished_study, tmp_path):
    """The work is done on the nodes that are left, from the checkpoint on."""
    study = copy_study(finished_study, tmp_path / "study")
    write_config(study, nodes=2)
    alone = read_metrics(study)
    process = start(study, "--forcerun", "pretrain", "--", WEIGHTS, repository=REPOSITORY)
    wait_for("a checkpoint", lambda: has_checkpoint(study) or process.poll() is not None)
    job = running_job(slurm, "pretrain")
    used = nodes_of(slurm, job)
    slurm.lose(used[0])
    try:
        assert process.wait(600) == 0, said(study)
    finally:
        slurm.recover(used[0])
    assert len(used) == 2
    (finished,) = [each for each in jobs_of(slurm, "pretrain", "State", "AllocNodes") if each["JobIDRaw"] == job]
    assert (finished["State"], finished["AllocNodes"]) == ("COMPLETED", "2")
    assert set(nodes_of(slurm, job)) == set(NODES) - {used[0]}
    assert went_on(study)
    assert json.loads((study / WEIGHTS).with_name("config.json").read_text())["resolved"]["processes"] == 2
    together = read_metrics(study)
    assert len(together) == len(alone)
    assert together[:5] == pytest.approx(alone[:5], rel=1e-3)


def nodes_of(slurm: SlurmCluster, job: str) -> list[str]:
    (nodes,) = slurm.query(["squeue", "-h", "-t", "all", "-j", job, "-o", "%N"])
    return slurm.query(["scontrol", "show", "hostnames", nodes])


def read_metrics(study: Path) -> list[float]:
    lines = (study / WEIGHTS).with_name("metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]
