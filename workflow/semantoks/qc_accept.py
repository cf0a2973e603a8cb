"""Whether enough of a cohort is left after quality control to train and test on it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from semantoks.errors import UserError, run_command
from semantoks.files import read_json, read_tables, write_json


def check_share(decisions: pd.DataFrame, maximum_share: float) -> None:
    """Refuse a cohort of which nothing is left, or of which more than ``maximum_share`` was excluded.

    Parameters
    ----------
    decisions : columns cohort, exclude_step and exclude_reason, one row per recording.

    Raises
    ------
    UserError
        With the counts per step, and the most frequent reasons of recordings that were unusable from the start.
    """
    excluded = decisions[decisions["exclude_reason"].notna()]
    share = len(excluded) / len(decisions)
    if share <= maximum_share and len(excluded) < len(decisions):
        return
    steps = ", ".join(f"{step} {count}" for step, count in excluded["exclude_step"].value_counts().items())
    reasons = "; ".join(map(str, excluded["exclude_reason"].value_counts().index[:3]))
    raise UserError(
        f"cohort {decisions['cohort'].iloc[0]}: expected at most {maximum_share:.0%} of the recordings to be excluded "
        f"(key 'maximum_excluded_share'), found {len(excluded)} of {len(decisions)} ({steps}), most often: {reasons}. "
        "All reasons are in qc/exclusions.tsv; correct the data, the thresholds of section `qc`, or the key"
    )


def check_accepted(path: Path, maximum_share: float) -> None:
    """Refuse, before a workflow starts, a cohort that was accepted under a larger share than is allowed now.

    Parameters
    ----------
    path : what the rule ``qc_accept`` wrote; nothing is known of a cohort without it.

    Raises
    ------
    UserError
        With the counts of that time.
    """
    if not path.is_file():
        return
    counts = read_json(path)
    recordings, excluded = counts.get("recordings"), counts.get("excluded")
    if recordings and excluded / recordings > maximum_share:
        raise UserError(
            f"{path}: expected at most {maximum_share:.0%} of the recordings to be excluded (key "
            f"'maximum_excluded_share'), found {excluded} of {recordings}; raise the key, or, where data or thresholds "
            "have changed since, delete this file, so that they are counted again"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the step after the stage ``qc``."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.qc_accept", description=__doc__)
    parser.add_argument("--maximum-excluded-share", type=float, required=True)
    parser.add_argument("--decisions", type=Path, nargs="+", required=True, help="decision tables of all batches")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    decisions = read_tables(arguments.decisions, ["cohort", "exclude_step", "exclude_reason"])
    check_share(decisions, arguments.maximum_excluded_share)
    counts = {"recordings": len(decisions), "excluded": int(decisions["exclude_reason"].notna().sum())}
    write_json(arguments.output, counts)


if __name__ == "__main__":
    run_command(main)
