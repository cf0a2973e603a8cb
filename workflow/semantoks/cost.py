"""What a run cost, by stage and cohort, from the benchmark files of its jobs; and what more recordings would cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from semantoks.errors import UserError, run_command
from semantoks.files import replacing

FOLDERS = {
    "index": "index",
    "fmriprep": "fmriprep",
    "parcellate": "timeseries",
    "qc": "qc",
    "shards": "shards",
    "embed": "embeddings",
    "probe": "probes",
    "supervised": "supervised",
    "export": "export",
}
"""Where the outputs of a stage lie below a cohort's folder."""
AMOUNTS = ["core_hours", "gpu_hours", "disk_gb", "files"]
"""What is added up, and what a quota limits."""
COLUMNS = ["stage", "cohort", "jobs", "recordings", *AMOUNTS, "memory_gb"]
FIXED = {"atlas", "networks", "report"}
"""Stages whose cost does not follow the number of recordings."""


def measure(results: Path, settings: Mapping[str, Any]) -> pd.DataFrame:
    """The cost table of a results folder.

    Parameters
    ----------
    settings : ``recordings`` (number per cohort), ``pretrain_cohorts``, ``threads`` (cores of a stage's jobs, 1 where
        none are given), ``gpus`` (of a stage's jobs, 0 where none are given).

    Returns
    -------
    One row per stage and cohort; the cohort is empty for stages that belong to none. ``core_hours`` is elapsed time
    times the cores asked for, which is what clusters count; attempts that failed are not in it. ``memory_gb`` is the
    most that one job used.
    """
    recordings: Mapping[str, int] = settings["recordings"]
    jobs = pd.DataFrame([_job(path, results, recordings) for path in (results / "benchmarks").rglob("*.tsv")])
    if jobs.empty:
        raise UserError(f"{results / 'benchmarks'}: expected benchmark files of a run, found none; run the workflow")
    jobs["core_hours"] = jobs["hours"] * jobs["stage"].map(lambda stage: settings["threads"].get(stage, 1))
    jobs["gpu_hours"] = jobs["hours"] * jobs["stage"].map(lambda stage: settings["gpus"].get(stage, 0))
    groups = jobs.groupby(["stage", "cohort"])
    table = groups[["core_hours", "gpu_hours"]].sum().assign(jobs=groups.size(), memory_gb=groups["memory_gb"].max())
    table = table.reset_index()
    in_training = sum(recordings[cohort] for cohort in settings["pretrain_cohorts"])
    table["recordings"] = [
        recordings.get(str(row.cohort), in_training if row.stage == "pretrain" else 0) for row in table.itertuples()
    ]
    sizes = [_size(_outputs(results, str(row.stage), str(row.cohort))) for row in table.itertuples()]
    return table.assign(disk_gb=[size for size, _ in sizes], files=[count for _, count in sizes])[COLUMNS]


def _job(path: Path, results: Path, cohorts: Iterable[str]) -> dict[str, Any]:
    parts = path.relative_to(results / "benchmarks").with_suffix("").parts
    row = pd.read_csv(path, sep="\t", na_values=["-", "NA"]).iloc[-1]
    return {
        "stage": parts[0],
        "cohort": next((part for part in parts[1:] if part in cohorts), ""),
        "hours": float(row["s"]) / 3600,
        "memory_gb": float(row["max_rss"]) / 1024 if pd.notna(row["max_rss"]) else 0.0,
    }


def _outputs(results: Path, stage: str, cohort: str) -> list[Path]:
    if cohort and stage in FOLDERS:
        return [results / cohort / FOLDERS[stage]]
    if stage == "splits":
        return [results / cohort / "splits.parquet"]
    own = {"atlas": "atlas", "pretrain": "pretrain", "figures": "figures", "tables": "tables", "report": "report.html"}
    return [results / own[stage]] if stage in own and not (cohort and stage == "figures") else []


def _size(places: Iterable[Path]) -> tuple[float, int]:
    """Gigabytes and number of files in folders (or of files)."""
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()]
    return sum(path.stat().st_size for path in files) / 1e9, len(files)


def estimate(measured: pd.DataFrame, wanted: Mapping[str, int], in_training: int, encoders: int) -> pd.DataFrame:
    """What other numbers of recordings and encoders would cost, in proportion.

    Parameters
    ----------
    measured : cost table of a run.
    wanted : recordings per cohort.
    in_training : recordings of the cohorts that encoders are trained on.
    encoders : number of encoders.

    Returns
    -------
    One row per stage with the columns of ``AMOUNTS``, and ``memory_gb`` of a job, which is not scaled.
    """
    rows = []
    for stage, table in measured.groupby("stage", sort=False):
        sums = table[[*AMOUNTS, "jobs"]].sum()
        scale = 1.0
        if stage not in FIXED and table["recordings"].sum():
            now = in_training if stage == "pretrain" else sum(wanted.values())
            scale = now / table["recordings"].sum()
            if stage in ("pretrain", "embed"):
                scale *= encoders / (sums["jobs"] / len(table))
        rows.append({"stage": stage, **(sums[AMOUNTS] * scale), "memory_gb": table["memory_gb"].max()})
    return pd.DataFrame(rows)


def exceeded(estimated: pd.DataFrame, quota: Mapping[str, float | None]) -> list[str]:
    """A line for every quota that an estimate exceeds."""
    sums = estimated[AMOUNTS].sum()
    return [
        f"{name}: about {sums[name]:,.1f} expected, quota.{name} is {quota[name]:,}"
        for name in AMOUNTS
        if quota.get(name) is not None and sums[name] > float(quota[name] or 0)
    ]


def as_text(table: pd.DataFrame) -> str:
    """A table for the eye, with sums below the amounts."""
    sums = {"stage": "sum"} | {name: table[name].sum() for name in AMOUNTS}
    shown = pd.concat([table, pd.DataFrame([sums])], ignore_index=True)
    counts = {name: "{:,.0f}".format for name in ("jobs", "recordings", "files") if name in shown}
    return str(shown.to_string(index=False, na_rep="", float_format="{:,.3f}".format, formatters=_empty(counts)))


def _empty(formatters: Mapping[str, Any]) -> dict[str, Any]:
    """Formatters that leave missing values empty."""
    return {name: lambda value, show=show: "" if pd.isna(value) else show(value) for name, show in formatters.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.cost", description=__doc__)
    parser.add_argument("--settings", type=json.loads, required=True, help="JSON: see `measure`")
    parser.add_argument("--results", type=Path, required=True, help="folder of all outputs")
    parser.add_argument("--output", type=Path, required=True, help="table to write (TSV)")
    arguments = parser.parse_args(argv)
    table = measure(arguments.results, arguments.settings)
    with replacing(arguments.output) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g")
    print(as_text(table))


if __name__ == "__main__":
    run_command(main)
