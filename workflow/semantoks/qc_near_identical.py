"""Recordings that are near-identical by content, within and across cohorts: the same data under two names.

Ids differ between releases of one dataset, so a recording may come in twice, and sit in training and test at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semantoks.errors import run_command
from semantoks.files import KEY, read_tables, write_text

LENGTH = 256
"""Numbers of a fingerprint: correlations of two connectivity patterns come out of it within about 0.06."""
_COLUMNS = [*KEY, "fingerprint"]
_BLOCK = 2000


def fingerprint(bold: NDArray[np.floating]) -> NDArray[np.float32]:
    """A short description of a recording's functional connectivity, float32 [256], of length 1.

    The inner product of two fingerprints estimates the correlation of the two connectivity patterns (Fisher's z of all
    pairs of parcels): every pair is added, with a fixed random sign, to a fixed random number (a count sketch).

    Parameters
    ----------
    bold : float [ROI, time]; parcels with missing values are left out.

    References
    ----------
    Charikar, Chen and Farach-Colton (2004), Theoretical Computer Science 312:3-15.
    """
    valid = np.flatnonzero(np.isfinite(bold).all(axis=1) & (np.ptp(bold, axis=1) > 0))
    sketch: NDArray[np.floating] = np.zeros(LENGTH)
    if len(valid) > 2:
        rows, columns = np.triu_indices(len(valid), 1)
        z = np.arctanh(np.clip(np.corrcoef(bold[valid]), -0.999999, 0.999999))[rows, columns]
        # a number of the pair that depends on the two parcels only, so that a missing parcel moves no other pair
        pair = (valid[rows].astype(np.uint64) << np.uint64(32)) | valid[columns].astype(np.uint64)
        mixed = _mix(pair)
        sign = np.where(mixed >> np.uint64(63), 1.0, -1.0)
        place = (mixed % np.uint64(LENGTH)).astype(np.intp)
        sketch = np.asarray(np.bincount(place, sign * (z - z.mean()), minlength=LENGTH), dtype=np.float64)
    norm = float(np.linalg.norm(sketch))
    result: NDArray[np.float32] = (sketch / norm if norm > 0 else sketch).astype(np.float32)
    return result


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        scrambled: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return scrambled


def near_identical(fingerprints: NDArray[np.float32], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows whose fingerprints agree at least as much as ``threshold``: positions and agreement."""
    for first in range(0, len(fingerprints), _BLOCK):
        for second in range(first, len(fingerprints), _BLOCK):
            agreement = fingerprints[first : first + _BLOCK] @ fingerprints[second : second + _BLOCK].T
            for a, b in zip(*np.nonzero(agreement >= threshold), strict=True):
                if first + a < second + b:
                    yield int(first + a), int(second + b), float(agreement[a, b])


def pairs_table(recordings: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The pairs with the keys of both recordings, the most similar first.

    Parameters
    ----------
    recordings : key columns and ``fingerprint`` (null for recordings without data).
    threshold : smallest agreement, e.g. 0.98.
    """
    known = recordings[recordings["fingerprint"].notna()].sort_values(["cohort", "recording_id"], ignore_index=True)
    names = [f"{name}_{side}" for side in "ab" for name in KEY]
    rows = []
    if len(known):
        keys = known[KEY].to_numpy(dtype=object)
        fingerprints = np.stack(known["fingerprint"].to_list()).astype(np.float32)
        rows = [[*keys[a], *keys[b], agreement] for a, b, agreement in near_identical(fingerprints, threshold)]
    table = pd.DataFrame(rows, columns=[*names, "similarity"])
    return table.sort_values("similarity", ascending=False, kind="stable", ignore_index=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the step after the stage ``qc``."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.qc_near_identical", description=__doc__)
    parser.add_argument("--similarity", type=float, required=True, help="smallest agreement of two recordings")
    parser.add_argument("--decisions", type=Path, nargs="+", required=True, help="decision tables of all cohorts")
    parser.add_argument("--output", type=Path, required=True, help="table of pairs (TSV)")
    arguments = parser.parse_args(argv)
    recordings = read_tables(arguments.decisions, _COLUMNS)
    pairs = pairs_table(recordings, arguments.similarity)
    text = pairs.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.4f", lineterminator="\n")
    write_text(arguments.output, text)
    across = int((pairs["cohort_a"] != pairs["cohort_b"]).sum())
    print(f"{len(pairs)} near-identical pairs among {len(recordings)} recordings, {across} of them across cohorts")


if __name__ == "__main__":
    run_command(main)
