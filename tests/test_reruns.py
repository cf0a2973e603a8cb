"""Reruns are honest: what a change makes stale is computed again, and nothing else. Dry runs over a finished study."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from small_study import command, copy_repository, copy_study, environment, planned, run

pytestmark = pytest.mark.slow

BATCHES, ROWS = 2, 5
PAGE = {"cost": 1, "report": 1}
TABLE = {"tables": 1, "figures_of_probes": 1, **PAGE}
ROW = {"probe": 1, **TABLE}
ROWS_ONLY = {"probe": ROWS, **TABLE}
PROBES = {"splits": 1, **ROWS_ONLY}
EMBEDDINGS = {"embed": 1, **ROW}
ENCODER = {"pretrain": 1, "figures_of_encoder": 1, **EMBEDDINGS}
SHARDS = {"shards": BATCHES, **ENCODER, **PROBES}
QUALITY = {"qc_accept": 1, "qc_near_identical": 1, "qc_summary": 1}
SERIES = {"parcellate": BATCHES, "qc": BATCHES, **QUALITY, **SHARDS}
INDEX = {"index": BATCHES, "index_of_cohort": 1, **SERIES}
ATLAS = {"atlas": 1, "networks": 1, **SERIES}
EVERYTHING = {**ATLAS, **INDEX}
ONE_BATCH = INDEX | {"index": 1, "parcellate": 1, "qc": 1, "shards": 1}
"""Jobs of each rule, from the last stages up to the first."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A copy of the repository whose code may be changed."""
    return copy_repository(tmp_path_factory.mktemp("copy") / "repository")


@pytest.fixture(scope="module")
def study(finished_study, repository, tmp_path_factory) -> Path:
    """A finished study of that copy, with data of its own."""
    folder = copy_study(finished_study, tmp_path_factory.mktemp("reruns") / "study")
    (folder / "data/demo").unlink()
    shutil.copytree((finished_study / "data/demo").resolve(), folder / "data/demo")
    result = run(folder, repository=repository)  # what depends on where the repository lies
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@contextmanager
def changed(path: Path, change: Callable[[str], str]) -> Iterator[None]:
    """A text file with other content, and as it was again."""
    original, times = path.read_text(), path.stat()
    path.write_text(change(original))
    assert path.read_text() != original
    try:
        yield
    finally:
        path.write_text(original)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def with_values(*keys: str, **values) -> Callable[[str], str]:
    """A change of YAML: other values in the mapping below ``keys``."""

    def change(text: str) -> str:
        content = section = yaml.safe_load(text)
        for key in keys:
            section = section.setdefault(key, {})
        section.update(values)
        return yaml.safe_dump(content)

    return change


CONFIG = {
    "which quota there is": (with_values("quota", core_hours=5), {}),
    "the batch size": (with_values(batch_size=5), {}),
    "the largest share excluded": (with_values(maximum_excluded_share=0.6), {}),
    "near-identical recordings": (with_values(near_identical_similarity=0.97), {"qc_near_identical": 1, **PAGE}),
    "denoising": (with_values("parcellate", denoising="24P"), SERIES),
    "a threshold of quality": (with_values("qc", maximum_gap=29), {"qc": BATCHES, **QUALITY, **SHARDS}),
    "the sampling interval": (with_values("shards", tr=2.5), SHARDS),
    "the training": (with_values("pretrain", "encoders", "tiny", "optimiser", epochs=5), ENCODER),
    "one more seed": (with_values("pretrain", "encoders", "tiny", seeds=[0, 1]), ENCODER),
    "cores of a training": (with_values("pretrain", threads=2), PAGE),
    "crops of an encoder": (with_values("embed", batch=32), EMBEDDINGS),
    "penalties": (with_values("probe", penalties=[0.1, 0.01]), PROBES),
    "repetitions": (with_values("probe", solved_repetitions=3), PROBES),
    "one row more": (with_values("probe", rows=["majority", "confounds", "fc", "fc-kernel", "fc-tangent"]), ROW),
    "intervals of a table": (with_values("tables", confidence=0.9), TABLE),
}
COHORT = {
    "a description": (with_values(description="other words {with braces}"), {"report": 1}),
    "a phenotype": (with_values("phenotypes", "age", missing=["999"]), PROBES),
    "the column of sites": (with_values(site_column="sex"), INDEX),
}


@pytest.mark.parametrize("change", CONFIG)
def test_a_changed_value_of_the_configuration(study, repository, change):
    how, expected = CONFIG[change]
    with changed(study / "config.yaml", how):
        assert planned(study, repository) == expected


def test_two_values_changed_at_once_are_both_seen(study, repository):
    """What quality control accepts comes before the probes, and hides no change of them."""
    with (
        changed(study / "config.yaml", with_values(maximum_excluded_share=0.6)),
        changed(study / "config.yaml", with_values("probe", penalties=[0.1, 0.01])),
    ):
        assert planned(study, repository) == PROBES


def test_a_cohort_of_which_too_much_was_excluded_stops_at_the_start(study, repository):
    with changed(study / "config.yaml", with_values(maximum_excluded_share=0.01)):
        result = run(study, "--dry-run", repository=repository)
    assert result.returncode == 2
    assert re.search(
        r"error: .*accepted.json: expected at most 1% of the recordings to be excluded .*found 1 of 16", result.stderr
    )


@pytest.mark.parametrize("change", COHORT)
def test_a_changed_value_of_a_cohort(study, repository, change):
    how, expected = COHORT[change]
    with changed(study / "config/cohorts/demo.yaml", how):
        assert planned(study, repository) == expected


CODE = {
    "atlas.py": ATLAS,
    "networks.py": {"networks": 1, "qc_summary": 1, **SHARDS},
    "index.py": INDEX,
    "parcellate.py": SERIES,
    "import_timeseries.py": {},
    "qc_figures.py": {"qc": BATCHES, **QUALITY, **SHARDS},
    "qc_accept.py": {},
    "shards.py": SHARDS,
    "pretrain.py": ENCODER,
    "embed.py": EMBEDDINGS,
    "splits.py": PROBES,
    "baselines/linear.py": ROWS_ONLY,
    "tables.py": TABLE,
    "figures.py": {"figures_of_probes": 1, **PAGE},
    "report.py": {"report": 1},
    "cost.py": PAGE,
    "plan.py": {},
    "files.py": EVERYTHING,
}


@pytest.mark.parametrize("module", CODE)
def test_changed_code_of_a_stage(study, repository, module):
    with changed(repository / "workflow/semantoks" / module, lambda text: text + "\n# changed\n"):
        assert planned(study, repository) == CODE[module]


def test_changed_code_of_a_rule(study, repository):
    with changed(repository / "workflow/rules/tables.smk", lambda text: text.replace("--settings", " --settings")):
        assert planned(study, repository) == TABLE


def test_a_changed_label(study, repository):
    with changed(study / "data/demo/bids/participants.tsv", lambda text: text.replace("\tF\t", "\tM\t", 1)):
        assert planned(study, repository) == PROBES


def test_a_changed_recording(study, repository):
    """Its batch, and what aggregates."""
    confounds = sorted((study / "data/demo/derivatives/fmriprep").rglob("*desc-confounds_timeseries.tsv"))
    with changed(confounds[0], lambda text: text + "\n"):
        assert planned(study, repository) == ONE_BATCH


def test_a_changed_atlas(study, repository):
    table = study / "data/demo/atlas/atlas-simulated457_dseg.tsv"
    with changed(table, lambda text: text + "\n"):
        assert planned(study, repository) == ATLAS


def test_a_changed_published_number(study, repository):
    with changed(repository / "resources/published.tsv", lambda text: text + "# another remark\n"):
        assert planned(study, repository) == TABLE


def test_a_new_participant_is_processed_and_the_others_are_not(study, repository):
    """The new batch, and what aggregates."""
    derivatives = study / "data/demo/derivatives/fmriprep"
    old = sorted(path.name for path in derivatives.glob("sub-*") if path.is_dir())[0]
    new = Path(shutil.copytree(derivatives / old, derivatives / "sub-new01"))
    try:
        for path in sorted(new.rglob(f"{old}*"), reverse=True):
            path.rename(path.with_name(path.name.replace(old, "sub-new01")))
        table = study / "data/demo/bids/participants.tsv"
        row = next(line for line in table.read_text().splitlines() if line.startswith(old))
        with changed(table, lambda text: text + row.replace(old, "sub-new01") + "\n"):
            assert planned(study, repository) == ONE_BATCH
    finally:
        shutil.rmtree(new)


FAILS_TO_PARCELLATE = """\
#!/bin/sh
case "$*" in *semantoks.parcellate*) echo "killed"; exit 137 ;; esac
exec {python} "$@"
"""


def test_what_failed_after_its_input_was_made_anew_is_still_due(study, repository, tmp_path):
    """Snakemake has deleted the outputs of the failed job, and nothing misses them but what follows."""
    copy = copy_study(study, tmp_path / "study")
    confounds = sorted((copy / "data/demo/derivatives/fmriprep").rglob("*desc-confounds_timeseries.tsv"))[0]
    confounds.write_text(confounds.read_text() + "\n")
    (tmp_path / "python").write_text(FAILS_TO_PARCELLATE.format(python=sys.executable))
    (tmp_path / "python").chmod(0o755)
    variables = environment(copy)
    variables["PATH"] = f"{tmp_path}:{variables['PATH']}"
    failed = subprocess.run(
        command(copy, "--cores", "2"), cwd=repository, env=variables, capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert "Error in rule parcellate" in failed.stdout + failed.stderr
    assert not (copy / "results/demo/timeseries/part-0001.parquet").exists()
    done = ("index", "index_of_cohort")
    assert planned(copy, repository) == {rule: jobs for rule, jobs in ONE_BATCH.items() if rule not in done}


def test_a_touched_recording_is_a_changed_one(study, repository):
    """Its files are told apart by size and time: nobody reads terabytes to find out that nothing has changed."""
    image = sorted((study / "data/demo/derivatives/fmriprep").rglob("*desc-preproc_bold.nii.gz"))[0]
    times = image.stat()
    image.touch()
    try:
        assert planned(study, repository) == ONE_BATCH
    finally:
        os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert planned(study, repository) == {}


def test_any_other_touched_file_reruns_nothing(study, repository):
    """Tables, atlas, configuration, results and code: content counts. Run last, because it changes them all."""
    recordings = study / "data/demo/derivatives"
    for folder in (study, repository):
        for path in folder.rglob("*"):
            if path.is_file() and ".snakemake" not in path.parts and not path.is_relative_to(recordings):
                path.touch()
    assert planned(study, repository) == {}
