"""Confounds tables of fMRIPrep: reading them under one set of names, and what they say about motion.

Column names are those of fMRIPrep 1.2 to 25.x; the names of 1.0 and 1.1 are translated.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semantoks.errors import UserError
from semantoks.files import read_json, read_number_table

MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
HEAD_RADIUS = 50.0
"""Radius in mm that turns rotations into displacements (Power et al. 2012)."""

_OLD_NAMES = {
    "CSF": "csf",
    "WhiteMatter": "white_matter",
    "GlobalSignal": "global_signal",
    "stdDVARS": "std_dvars",
    "non-stdDVARS": "dvars",
    "FramewiseDisplacement": "framewise_displacement",
    "X": "trans_x",
    "Y": "trans_y",
    "Z": "trans_z",
    "RotX": "rot_x",
    "RotY": "rot_y",
    "RotZ": "rot_z",
}
_NUMBERED = [
    (re.compile(r"^aCompCor_?(\d+)$"), "a_comp_cor_{:02d}"),
    (re.compile(r"^[Cc]osine_?(\d+)$"), "cosine{:02d}"),
    (re.compile(r"^(?:NonSteadyStateOutlier|non_steady_state_outlier)_?(\d+)$"), "non_steady_state_outlier{:02d}"),
]
_MAY_START_EMPTY = re.compile(r".*_derivative1(_power2)?$|^framewise_displacement$|^(std_)?dvars$|^rmsd$")


def read_confounds(path: Path | str) -> pd.DataFrame:
    """Read a confounds TSV of fMRIPrep into float64 columns under the names of today's versions.

    Columns that are not numbers (old versions write some) are left out; ``n/a`` is NaN.

    Raises
    ------
    UserError
        When the file is missing or is no table.
    """
    return read_number_table(path).rename(columns=_today_name)


def read_confounds_sidecar(path: Path | str) -> dict[str, Any]:
    """The JSON sidecar of a confounds TSV (same name, BIDS common principles); empty when there is none.

    Raises
    ------
    UserError
        When it is no JSON object that describes each column by an object.
    """
    sidecar = Path(path).with_suffix(".json")
    if not sidecar.is_file():
        return {}
    content: Any = read_json(sidecar)
    if not isinstance(content, dict) or not all(isinstance(column, dict) for column in content.values()):
        raise UserError(f"{sidecar}: expected a JSON object that describes columns by objects, found something else")
    return content


def _today_name(column: str) -> str:
    for pattern, name in _NUMBERED:
        match = pattern.match(column)
        if match:
            return name.format(int(match[1]))
    return _OLD_NAMES.get(column, column)


def columns_like(confounds: pd.DataFrame, pattern: str) -> list[str]:
    """Columns whose whole name matches a regular expression that ends in a number, in the order of the numbers."""
    names = [name for name in map(str, confounds.columns) if re.fullmatch(pattern, name)]
    return sorted(names, key=lambda name: int(re.findall(r"\d+$", name)[0]))


def n_non_steady(confounds: pd.DataFrame) -> int:
    """Number of volumes at the start that fMRIPrep marked as not yet in steady state.

    Raises
    ------
    UserError
        When the marked volumes are not the first ones.
    """
    marks = confounds[columns_like(confounds, r"non_steady_state_outlier\d+")].to_numpy() > 0
    marked = np.flatnonzero(marks.any(axis=1))
    if marked.size and marked[-1] + 1 != marked.size:
        raise UserError(
            f"non_steady_state_outlier columns: expected the first volumes to be marked, found {marked.tolist()}"
        )
    return int(marked.size)


def without_gaps(columns: pd.DataFrame) -> pd.DataFrame:
    """Fill a legitimately empty first row from the second.

    Raises
    ------
    UserError
        When values are missing elsewhere, or are infinite.
    """
    values = columns.to_numpy(dtype=np.float64, copy=True)
    broken = ~np.isfinite(values)
    for number in np.flatnonzero(broken.any(axis=0)).tolist():
        name, bad = columns.columns[number], np.flatnonzero(broken[:, number])
        if bad[0] == 0 and len(columns) > 1 and _MAY_START_EMPTY.match(str(name)):
            values[0, number], bad = values[1, number], bad[1:]
        if bad.size:
            raise UserError(
                f"confounds column {name!r}: expected numbers (n/a only in the first row of derivatives and "
                f"displacements), found n/a or infinity in row {bad[0] + 1} ({bad.size} in all)"
            )
    return pd.DataFrame(values, index=columns.index, columns=columns.columns)


def tells_displacement(confounds: pd.DataFrame) -> bool:
    """Whether framewise displacement is in the table or can be computed from it."""
    return "framewise_displacement" in confounds or all(name in confounds for name in MOTION)


def framewise_displacement(confounds: pd.DataFrame) -> NDArray[np.float64]:
    """Framewise displacement in mm [time], NaN for the first volume; computed from the motion parameters if absent.

    Raises
    ------
    UserError
        When neither the column nor the six motion parameters are there.

    References
    ----------
    Power et al. (2012), NeuroImage 59:2142-2154: sum of absolute differences of translations (mm) and rotations
    (rad) on a sphere of 50 mm radius.
    """
    if "framewise_displacement" in confounds:
        without_gaps(confounds[["framewise_displacement"]])
        values: NDArray[np.float64] = confounds["framewise_displacement"].to_numpy(copy=True)
        values[0] = np.nan
        return values
    missing = [name for name in MOTION if name not in confounds]
    if missing:
        raise UserError(f"confounds: expected framewise_displacement or the motion parameters, found no {missing[0]!r}")
    parameters = without_gaps(confounds[list(MOTION)]).to_numpy()
    steps = np.abs(np.diff(parameters, axis=0, prepend=np.nan))
    displacement: NDArray[np.float64] = steps[:, :3].sum(axis=1) + HEAD_RADIUS * steps[:, 3:].sum(axis=1)
    return displacement


def stretches(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and end (exclusive) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def longest_gap(kept: NDArray[np.bool_], tr: float) -> float:
    """Duration in s of the longest run of censored volumes."""
    return max((end - start for start, end in stretches(~kept)), default=0) * tr
