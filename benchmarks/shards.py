"""A cohort of full width through qc, shards and one epoch of the tiny preset: speed of reading, and memory.

Writes time series of 457 ROIs × 180 frames in batches of 50, makes decisions and shards of them, reads the shards into
a tensor on one core, and pretrains one epoch with the frames mapped from a file. The memory of every stage must not
grow with the number of recordings, so everything is done twice: with a fifth of the recordings, and with all. Asked of
reading: 1 GB/s. Memory that a process touches for the first time may itself be slower than that, so the rate of merely
writing into fresh memory stands beside it. Run it on a quiet machine:

    OMP_NUM_THREADS=1 PYTHONPATH=workflow python benchmarks/shards.py
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import torch
from semantoks import pretrain, qc, shards
from semantoks.files import provenance, write_table
from semantoks.timeseries_table import SCHEMA
from semantoks.training.corpus import load_corpus
from semantoks.weights import PUBLISHED_RUNS

N_FRAMES, TR, BATCH = 180, 2.0, 50
NETWORKS = [str(network) for network, length in PUBLISHED_RUNS for _ in range(length)]
NAMES = [f"roi-{number}" for number in range(len(NETWORKS))]
QC = {"minimum_seconds": 80, "minimum_valid_rois": 0.8, "minimum_median_coverage": None, "maximum_mean_fd": 0.5}
QC |= {"minimum_minutes_kept": 1.0, "maximum_share_censored": 0.5, "maximum_gap": 20}


def batches(n_recordings: int) -> list[str]:
    """Names of the batches of a cohort."""
    return [f"part-{number + 1:04d}" for number in range(-(-n_recordings // BATCH))]


def write_timeseries(folder: Path, n_recordings: int) -> None:
    """Time-series files as the stage ``parcellate`` writes them: noise, one recording in 50 without some parcels."""
    for number, batch in enumerate(batches(n_recordings)):
        random = np.random.default_rng(number)
        rows = [recording(random, number * BATCH + one) for one in range(min(BATCH, n_recordings - number * BATCH))]
        metadata = provenance(
            "parcellate", {"band_pass": None}, roi_names=NAMES, atlas={"name": "own", "sha256": "none"}
        )
        write_table(folder / "timeseries" / f"{batch}.parquet", pa.Table.from_pylist(rows, schema=SCHEMA), metadata)
    table = pd.DataFrame({"index": range(1, len(NAMES) + 1), "name": NAMES, "network": NETWORKS})
    table.to_csv(folder / "networks.tsv", sep="\t", index=False)


def recording(random: np.random.Generator, number: int) -> dict[str, Any]:
    """One row of a time-series table."""
    bold = random.standard_normal((len(NAMES), N_FRAMES), dtype=np.float32)
    if number % BATCH == 0:
        bold[:20] = np.nan
    name = f"{number:06d}"
    row = {"cohort": "large", "participant_id": name, "session_id": None, "recording_id": f"sub-{name}_task-rest"}
    row |= {"task": "rest", "site": "A", "atlas": "own", "tr": TR, "n_frames": N_FRAMES}
    row |= {"kept": np.ones(N_FRAMES, bool), "mean_fd": 0.1, "minutes_kept": 6.0, "share_censored": 0.0}
    row |= {"longest_gap": 0.0, "coverage": np.ones(len(NAMES)), "tsnr": np.full(len(NAMES), 50.0)}
    return row | {"bold": bold.ravel(), "denoising": "none", "exclude_reason": None}


def run_qc(folder: Path, n_recordings: int) -> None:
    """The stage ``qc`` on every batch, one after another in this process."""
    for batch in batches(n_recordings):
        given = ["--timeseries", str(folder / "timeseries" / f"{batch}.parquet")]
        qc.main(["--settings", json.dumps(QC), *given, "--output", str(folder / "qc" / f"{batch}.parquet")])


def run_shards(folder: Path, n_recordings: int) -> None:
    """The stage ``shards`` on every batch, one after another in this process."""
    settings = json.dumps({"tr": TR, "row_group_size": 64, "band_pass": None})
    for batch in batches(n_recordings):
        given = [f"--{stage}" for stage in ("timeseries", "qc")]
        paths = [str(folder / stage / f"{batch}.parquet") for stage in ("timeseries", "qc")]
        pairs = [text for pair in zip(given, paths, strict=True) for text in pair]
        output = str(folder / "shards" / f"{batch}.parquet")
        shards.main(["--settings", settings, *pairs, "--networks", str(folder / "networks.tsv"), "--output", output])


def run_pretrain(folder: Path, n_recordings: int) -> None:
    """One epoch of the tiny preset, frames mapped from a file."""
    paths = [folder / "shards" / f"{batch}.parquet" for batch in batches(n_recordings)]
    settings = {"preset": "tiny", "optimiser": {"epochs": 1, "warmup_epochs": 0.1, "batch": 64}}
    resolved = pretrain.resolve_settings(settings | {"run": {"corpus": "disk", "device": "cpu", "threads": 1}})
    pretrain.pretrain(paths, resolved, 0, folder / "encoder")


def measured(function: Callable[[Path, int], None], folder: Path, n_recordings: int) -> tuple[float, float]:
    """Seconds, and the most memory of its own (GiB, mapped files not counted), of a process that does it."""
    process = multiprocessing.get_context("spawn").Process(target=quietly, args=(function, folder, n_recordings))
    start = time.perf_counter()
    process.start()
    with largest_memory(process.pid) as most:
        process.join()
    assert process.exitcode == 0, f"{function.__name__} ended with exit code {process.exitcode}"
    return time.perf_counter() - start, most[0]


def quietly(function: Callable[[Path, int], None], folder: Path, n_recordings: int) -> None:
    """Run it without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        function(folder, n_recordings)


@contextlib.contextmanager
def largest_memory(pid: int | None) -> Iterator[list[float]]:
    """Look every 20 ms at the memory of a process that no file backs; the list holds the most seen, in GiB."""
    most, ended = [0.0], threading.Event()

    def look() -> None:
        process = psutil.Process(pid)
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            while not ended.wait(0.02):
                now = process.memory_info()
                most[0] = max(most[0], (now.rss - now.shared) / 2**30)

    thread = threading.Thread(target=look)
    thread.start()
    yield most
    ended.set()
    thread.join()


def read(folder: Path, n_recordings: int) -> None:
    """Print how fast shards become a tensor on one core, and what writing into fresh memory takes."""
    torch.set_num_threads(1)
    paths = [folder / "shards" / f"{batch}.parquet" for batch in batches(n_recordings)]
    n_bytes = n_recordings * len(NAMES) * N_FRAMES * 2
    for attempt in ("first time", "again", "again"):
        start = time.perf_counter()
        memory = np.zeros(n_bytes // 2, dtype=np.float16)
        memory[:] = 1
        fresh = time.perf_counter() - start
        del memory
        start = time.perf_counter()
        corpus = load_corpus(paths)
        seconds = time.perf_counter() - start
        assert len(corpus) == n_recordings
        print(
            f"  {attempt:12} shards to a tensor {n_bytes / seconds / 1e9:5.2f} GB/s, fresh memory "
            f"{n_bytes / fresh / 1e9:5.2f} GB/s"
        )
        del corpus


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=5000)
    parser.add_argument("--folder", type=Path, help="folder for the files (3 GB); default: a temporary one")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    sizes = (arguments.recordings // 5, arguments.recordings)
    try:
        write_timeseries(folder, arguments.recordings)
        for function in (run_qc, run_shards, run_pretrain):
            for size in sizes:
                seconds, memory = measured(function, folder, size)
                name = function.__name__.removeprefix("run_")
                print(f"{name:10} {size:6} recordings {seconds:7.1f} s {memory:6.2f} GiB at most", flush=True)
        read(folder, sizes[0])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
