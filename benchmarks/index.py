"""How long a large cohort takes from its folder to the index and to the job graph, and in how much memory.

Makes a tree of fMRIPrep derivatives with five files per recording (image, its sidecar, mask, confounds, figure), lists
it in batches (what every start of snakemake does), indexes all batches in one process, plans the workflow (a dry run,
which lists once more), and indexes once more as the workflow does it, in jobs. Asked of 40,000 recordings: listed and
indexed in two minutes, planned in one minute and 1 GB. Run it on a quiet machine:

    PYTHONPATH=workflow python benchmarks/index.py
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import yaml
from semantoks import index
from semantoks.batches import current_batches, update_batches
from semantoks.config_loading import load_settings
from semantoks.settings import RECORDING_KEYS

REPOSITORY = Path(__file__).resolve().parents[1]

SPACE = "MNI152NLin6Asym_res-2"


def make_tree(folder: Path, n_recordings: int) -> None:
    """Derivatives of ``n_recordings`` participants; images are links to one small file."""
    root = folder / "data"
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "large", "BIDSVersion": "1.8.0", "DatasetType": "derivative"})
    )
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4, 60), np.int16), np.eye(4))
    image.header.set_zooms((1, 1, 1, 2.0))
    nibabel.save(image, folder / "image.nii.gz")
    sidecar = json.dumps({"RepetitionTime": 2.0, "TaskName": "rest"})
    for number in range(n_recordings):
        name = f"sub-{number:05d}_task-rest"
        func = root / f"sub-{number:05d}" / "func"
        func.mkdir(parents=True)
        (root / f"sub-{number:05d}" / "figures").mkdir()
        os.link(folder / "image.nii.gz", func / f"{name}_space-{SPACE}_desc-preproc_bold.nii.gz")
        (func / f"{name}_space-{SPACE}_desc-preproc_bold.json").write_text(sidecar)
        (func / f"{name}_space-{SPACE}_desc-brain_mask.nii.gz").touch()
        (func / f"{name}_desc-confounds_timeseries.tsv").touch()
        (root / f"sub-{number:05d}" / "figures" / f"{name}_desc-carpetplot_bold.svg").touch()


def write_config(folder: Path) -> None:
    """A configuration of this one cohort without encoders."""
    (folder / "labels.tsv").write_text("index\tname\tnetwork\n1\ta\tVis\n2\tb\tDefault\n")
    source = {"type": "fmriprep", "path": str(folder / "data")}
    (folder / "large.yaml").write_text(yaml.safe_dump({"source": source}))
    config = {"cohorts": [str(folder / "large.yaml")], "results_dir": str(folder / "results")}
    config["batch_size"] = 200  # as in config/paper.yaml
    config["atlas"] = {"name": "own", "labels": str(folder / "labels.tsv")}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def timed(what: str, started: float, started_cpu: float) -> None:
    """Print wall and CPU time since ``started``, and the peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    print(f"{what:28} {wall:8.1f} s wall {cpu:8.1f} s CPU {peak:8.0f} MB at most")


def quietly(arguments: list[str]) -> None:
    """Run the stage without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        index.main(arguments)


def measure(folder: Path) -> None:
    """List, index and plan."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    settings = load_settings(config, "config.yaml")
    cohort = settings.cohorts[0]
    batches = settings.results / cohort.name / "batches"
    start = time.perf_counter(), time.process_time()
    update_batches({"name": cohort.name, **cohort.settings}, batches, settings.values["batch_size"])
    timed("listing in batches", *start)
    start = time.perf_counter(), time.process_time()
    outputs = []
    for batch in current_batches(batches):
        outputs.append(str(folder / "index" / f"{batch}.parquet"))
        given = ["--batch", str(batches / f"{batch}.tsv"), "--output", outputs[-1]]
        quietly(["--settings", cohort.json(RECORDING_KEYS), *given])
    timed(f"index of {len(outputs)} batches", *start)
    start = time.perf_counter(), time.process_time()
    output = str(folder / "index.parquet")
    quietly(["--settings", cohort.json(RECORDING_KEYS), "--join", *outputs, "--output", output])
    timed("joined", *start)
    snakemake(folder, "job graph (dry run)", "--dry-run", "--cores", "1")
    cores = str(os.cpu_count())
    snakemake(folder, f"index in jobs, {cores} cores", "--until", "index_of_cohort", "--cores", cores)


def snakemake(folder: Path, what: str, *arguments: str) -> None:
    """Run the workflow and print how long it took."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--quiet", *arguments]
    command += ["--directory", str(folder), "--configfile", str(folder / "config.yaml")]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert ended.returncode == 0, ended.stderr[-2000:]
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what:28} {wall:8.1f} s wall {cpu:8.1f} s CPU {after.ru_maxrss / 1024:8.0f} MB at most")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=40_000)
    parser.add_argument("--folder", type=Path, help="folder for the tree; default: a temporary one")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    try:
        make_tree(folder, arguments.recordings)
        write_config(folder)
        print(f"{arguments.recordings} recordings of five files each")
        measure(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
