"""Simulate a cohort: BIDS, fMRIPrep-style derivatives and an invented atlas, for the demonstration and for tests.

What is simulated, what is planted in it and what may be expected of it stands in docs/demo.md.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm import tqdm

from semantoks.errors import UserError, run_command
from semantoks.simulation import layout
from semantoks.simulation.atlas import Atlas, build_atlas
from semantoks.simulation.participants import Participant, draw_participants, draw_traits
from semantoks.simulation.recording import parcel_positions, simulate_recording

SMALLEST_COHORT = 8
"""With fewer participants a site or a class would be missing."""


def simulate_cohort(folder: Path, n_participants: int, seed: int = 0, workers: int = 1) -> None:
    """Write a simulated cohort below ``folder``; the same arguments give the same bytes, whatever ``workers`` is.

    Raises
    ------
    UserError
        When the folder holds something already, or the cohort is too small to have every site and class.
    """
    if n_participants < SMALLEST_COHORT:
        raise UserError(f"--participants: expected at least {SMALLEST_COHORT}, found {n_participants}")
    if (folder / "bids").exists():
        raise UserError(f"{folder}: expected no cohort there, found one; remove it or choose another --output")
    atlas = build_atlas(seed)
    participants = draw_participants(n_participants, seed)
    layout.write_atlas(folder, atlas)
    layout.write_raw_dataset(folder, participants)
    layout.write_derivatives_description(folder)

    work = functools.partial(_simulate_participant, folder, atlas, seed)
    motion: list[dict[str, str | float]] = []
    with multiprocessing.Pool(workers) as pool:
        progress = tqdm(pool.imap(work, participants), total=len(participants), unit="participant", disable=None)
        for rows in progress:
            motion += rows
    traits = [draw_traits(p, atlas.network_of_parcel, parcel_positions(atlas), seed) for p in participants]
    layout.write_planted(folder, participants, traits, pd.DataFrame(motion))


def _simulate_participant(
    folder: Path, atlas: Atlas, seed: int, participant: Participant
) -> list[dict[str, str | float]]:
    """Simulate and write all recordings of one participant; the true mean FD of each."""
    rows: list[dict[str, str | float]] = []
    with threadpool_limits(1):  # sums in one order, whatever the number of cores
        for index in range(len(participant.recordings)):
            recording = simulate_recording(atlas, participant, index, seed)
            mean_fd = layout.write_recording(folder, atlas, participant, index, recording)
            rows.append({"recording_id": layout.recording_name(participant, index), "mean_fd": mean_fd})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the simulation."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.simulate", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the cohort, e.g. data/demo")
    parser.add_argument("--participants", type=int, default=160, help="number of participants (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time (default %(default)s)")
    arguments = parser.parse_args(argv)
    simulate_cohort(arguments.output, arguments.participants, arguments.seed, arguments.workers)
    print(f"simulated cohort of {arguments.participants} participants: {arguments.output}")


if __name__ == "__main__":
    run_command(main)
