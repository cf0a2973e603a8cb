"""A simulated cohort of about a minute: 12 participants in two batches, one tiny encoder, two phenotypes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from conftest import REPOSITORY
from semantoks.simulate import main as simulate

TRAINING = {"preset": "tiny", "optimiser": {"epochs": 120}, "seeds": [0], "random_seeds": []}
TRAINING["run"] = {"checkpoint_minutes": 0.02}
SECRET = "a-token-that-nobody-may-see"


def simulate_cohort(folder: Path) -> None:
    """The participants, in ``folder``."""
    simulate(["--output", str(folder), "--participants", "12", "--workers", "2"])


def write_study(folder: Path, cohort: Path) -> None:
    """Configuration and cohort file in ``folder``, and a link to the simulated data."""
    (folder / "data").mkdir(parents=True)
    (folder / "data/demo").symlink_to(cohort)
    shutil.copytree(REPOSITORY / "config", folder / "config")
    path = folder / "config/cohorts/demo.yaml"
    described = yaml.safe_load(path.read_text())
    described["phenotypes"] = {name: described["phenotypes"][name] for name in ("sex", "age")}
    path.write_text(yaml.safe_dump(described | {"confounds": ["age"]}))
    write_config(folder)


def write_config(folder: Path, **pretrain: Any) -> None:
    """The demo's configuration, made small; keys of ``pretrain`` replace those of the study."""
    config = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    config["pretrain"] = {"threads": 1, "encoders": {"tiny": TRAINING}} | pretrain
    heads = ["published", "logistic", "ridge"]
    config["probe"] |= {"repetitions": 2, "solved_repetitions": 2, "epochs": 2, "heads": heads}
    config["batch_size"] = 8
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def copy_repository(folder: Path) -> Path:
    """What a user works in, where tests may change it: the Snakefile and everything that it reads."""
    folder.mkdir()
    for name in ("config", "containers", "envs", "resources", "workflow"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", folder)
    for name in ("profiles", "slurm"):
        (folder / name).symlink_to((REPOSITORY / name).readlink())
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    """Snakemake on the study in ``folder``, to be started in the repository's root."""
    words = [sys.executable, "-m", "snakemake", "--directory", str(folder), "--configfile", str(folder / "config.yaml")]
    return [*words, *arguments]


def environment(folder: Path) -> dict[str, str]:
    """Variables of a run: the interpreter of the tests, and a cache of its own."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return (
        os.environ
        | {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        | {"SERVICE_TOKEN": SECRET}
    )


def run(folder: Path, *arguments: str, repository: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run snakemake to its end, on two cores unless the arguments say otherwise."""
    words = command(folder, *(arguments or ("--cores", "2")))
    return subprocess.run(words, cwd=repository, env=environment(folder), capture_output=True, text=True)


def planned(folder: Path, repository: Path = REPOSITORY) -> dict[str, int]:
    """Number of jobs of each rule that would run now."""
    result = run(folder, "--cores", "2", "--dry-run", repository=repository)
    assert result.returncode == 0, result.stdout + result.stderr
    counts = re.findall(r"^(\w+) +(\d+)$", result.stdout + result.stderr, flags=re.MULTILINE)
    return {rule: int(count) for rule, count in counts if rule not in ("total", "all")}


def copy_study(study: Path, folder: Path) -> Path:
    """A study with its results and Snakemake's records, as they are, elsewhere."""
    return Path(shutil.copytree(study, folder, symlinks=True))


def finished_files(study: Path) -> dict[Path, int]:
    """What the stages have made so far, with times of change in nanoseconds; no logs, benchmarks or checkpoints."""
    results = study / "results"
    aside = ("logs", "benchmarks", "checkpoints")
    files = [path.relative_to(results) for path in results.rglob("*") if path.is_file()]
    return {path: (results / path).stat().st_mtime_ns for path in files if path.parts[0] not in aside}


def same_results(study: Path, reference: Path) -> None:
    """Assert that a study came to what another came to: every file, byte for byte, and nothing beside them."""
    assert finished_files(study).keys() == finished_files(reference).keys()
    assert different_files(study, reference) == []


def different_files(study: Path, reference: Path) -> list[Path]:
    """Files that both have and that differ, but for those that must: times of jobs, and where the code lay."""
    both = finished_files(study).keys() & finished_files(reference).keys()
    both -= {Path("cost.tsv"), Path("report.html"), Path("tables/demo.json")}
    return [path for path in sorted(both) if not same_bytes(study / "results" / path, reference / "results" / path)]


def same_bytes(path: Path, other: Path) -> bool:
    return path.read_bytes() == other.read_bytes()


def same_rows(path: Path, other: Path) -> bool:
    """Whether two Parquet files differ in nothing but metadata, which names versions; NaN equals NaN."""
    contents = []
    for each in (path, other):
        written = pa.BufferOutputStream()
        pq.write_table(pq.read_table(each).replace_schema_metadata(), written)
        contents.append(written.getvalue())
    return contents[0].equals(contents[1])
