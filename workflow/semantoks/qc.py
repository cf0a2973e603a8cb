"""Stage ``qc``: which recordings are included, why the others are not, and what a person can look at.

Two steps: one decision table per batch (``--timeseries FILE --output FILE``), and the summary of a cohort
(``--summary FILE… --timeseries FILE… --atlas FOLDER --output-folder FOLDER``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from semantoks.errors import UserError, run_command
from semantoks.files import (
    KEY,
    provenance,
    read_metadata,
    read_tables,
    read_text_table,
    write_json,
    write_table,
    write_text,
)
from semantoks.qc_motion import FEWEST, MotionConnectivity, distances
from semantoks.qc_near_identical import fingerprint

MEASURES = ["mean_fd", "minutes_kept", "share_censored", "longest_gap", "n_frames", "tr"]
SCHEMA = pa.schema(
    [(name, pa.string()) for name in [*KEY, "site"]]
    + [(name, pa.int64() if name == "n_frames" else pa.float64()) for name in MEASURES]
    + [(name, pa.float64()) for name in ["valid_rois", "median_coverage", "median_tsnr", "mask_dice"]]
    + [("fingerprint", pa.list_(pa.float32())), ("flags", pa.string())]
    + [("exclude_step", pa.string()), ("exclude_reason", pa.string())]
)
EARLIER = "unusable"
"""``exclude_step`` of recordings that came with a reason from an earlier stage."""
MOST_FOR_FC = 1000
"""Recordings averaged for the figure of functional connectivity: enough to be stable, and bounded in time."""
MOST_SITES = 20
"""Sites of which motion and connectivity are looked at apart: so many fit into a figure and into memory."""
CARPETS = 3
"""Recordings shown as carpets: so many of the worst, and so many drawn at random."""


@dataclass(frozen=True)
class QcSettings:
    """Section ``qc`` of the configuration (see ``workflow/schemas/qc.schema.yaml``), in the order of checking."""

    minimum_seconds: float
    minimum_valid_rois: float
    minimum_median_coverage: float | None
    maximum_mean_fd: float | None
    minimum_minutes_kept: float
    maximum_share_censored: float
    maximum_gap: float
    minimum_mask_dice: float = 0.85


def broken_thresholds(measures: Mapping[str, Any], settings: QcSettings) -> dict[str, str]:
    """What a recording falls short of: name of the threshold → text with value and threshold.

    Parameters
    ----------
    measures : the columns of the decision table; None for what is unknown, which breaks nothing.
    settings : the thresholds.
    """
    seconds = measures["n_frames"] * measures["tr"]
    fd, minutes, share = measures["mean_fd"], measures["minutes_kept"], measures["share_censored"]
    gap, valid, coverage = measures["longest_gap"], measures["valid_rois"], measures["median_coverage"]
    reasons = {}
    if seconds < settings.minimum_seconds - 1e-6:
        reasons["minimum_seconds"] = f"{seconds:.0f} s long, below {settings.minimum_seconds:g} s"
    if valid < settings.minimum_valid_rois:
        reasons["minimum_valid_rois"] = f"{valid:.0%} of ROIs with data, below {settings.minimum_valid_rois:.0%}"
    if None not in (coverage, settings.minimum_median_coverage) and coverage < settings.minimum_median_coverage:
        reasons["minimum_median_coverage"] = (
            f"{coverage:.0%} of the median parcel covered, below {settings.minimum_median_coverage:.0%}"
        )
    if fd is not None and settings.maximum_mean_fd is not None and fd > settings.maximum_mean_fd:
        reasons["maximum_mean_fd"] = f"mean framewise displacement {fd:.2f} mm, above {settings.maximum_mean_fd:g} mm"
    if minutes is not None and minutes < settings.minimum_minutes_kept:
        reasons["minimum_minutes_kept"] = f"{minutes:.1f} min kept, below {settings.minimum_minutes_kept:g} min"
    if share is not None and share > settings.maximum_share_censored:
        reasons["maximum_share_censored"] = (
            f"{share:.0%} of volumes censored, above {settings.maximum_share_censored:.0%}"
        )
    if gap is not None and gap > settings.maximum_gap + 1e-6:
        reasons["maximum_gap"] = f"gap of {gap:.0f} s interpolated, above {settings.maximum_gap:g} s"
    return reasons


def decide(record: Mapping[str, Any], n_rois: int, settings: QcSettings) -> dict[str, Any]:
    """The row of the decision table for one row of the time-series table."""
    row = {name: record[name] for name in [*KEY, "site", *MEASURES]}
    row |= {"fingerprint": None, "flags": None, "mask_dice": record.get("mask_dice")}
    row |= {"exclude_step": None, "exclude_reason": record["exclude_reason"]}
    if row["exclude_reason"] is not None:
        return row | {"exclude_step": EARLIER}
    bold = np.asarray(record["bold"], dtype=np.float32).reshape(n_rois, -1)
    row["valid_rois"] = float(np.isfinite(bold).all(axis=1).mean())
    row["median_coverage"] = _median(record["coverage"])
    row["median_tsnr"] = _median(record["tsnr"])
    row["fingerprint"] = fingerprint(bold)
    row["flags"] = "; ".join(flags(record, settings)) or None
    reasons = broken_thresholds(row, settings)
    if reasons:
        row |= {"exclude_step": next(iter(reasons)), "exclude_reason": "; ".join(reasons.values())}
    return row


def flags(record: Mapping[str, Any], settings: QcSettings) -> list[str]:
    """What a person should look at, but excludes nothing."""
    found = []
    dice = record.get("mask_dice")
    if dice is not None and dice < settings.minimum_mask_dice:
        found.append(f"mask overlaps the template's by Dice {dice:.2f}, below {settings.minimum_mask_dice:g}")
    if record.get("mask_computed"):
        found.append("the brain mask was missing and computed")
    return found


def _median(values: Sequence[float] | None) -> float | None:
    finite = [] if values is None else [value for value in values if value is not None and np.isfinite(value)]
    return float(np.median(finite)) if finite else None


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a time-series file, few at a time, lists as arrays."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=8):
        columns = {
            name: [None if not item.is_valid else _value(item) for item in batch.column(name)]
            for name in batch.schema.names
        }
        for position in range(batch.num_rows):
            yield {name: values[position] for name, values in columns.items()}


def _value(item: Any) -> Any:
    if isinstance(item, pa.ListScalar):
        return item.values.to_numpy(zero_copy_only=False)
    value = item.as_py()
    return None if value != value else value  # NaN is unknown, too


def summarise(decisions: pd.DataFrame) -> dict[str, Any]:
    """Counts of a cohort: recordings and participants that entered and were kept, per step, reason and site."""
    kept = decisions["exclude_reason"].isna()
    steps = [EARLIER, *(field.name for field in fields(QcSettings))]
    dropped = decisions["exclude_step"].value_counts()
    site = decisions["site"].fillna("unknown")
    return {
        "recordings": len(decisions),
        "recordings_kept": int(kept.sum()),
        "participants": int(decisions["participant_id"].nunique()),
        "participants_kept": int(decisions.loc[kept, "participant_id"].nunique()),
        "flagged": int(decisions["flags"].notna().sum()),
        "dropped": {step: int(dropped[step]) for step in steps if step in dropped},
        "sites": {
            name: {"recordings": int((site == name).sum()), "kept": int((kept & (site == name)).sum())}
            for name in sorted(site.unique())
        },
        "medians": {
            name: _median(decisions.loc[kept, name].to_list())
            for name in ["mean_fd", "minutes_kept", "valid_rois", "median_coverage", "median_tsnr"]
        },
    }


@dataclass
class ParcelSummary:
    """Sums over the kept recordings of a cohort; sizes depend on the number of ROIs and of sites only."""

    n_rois: int
    sites: Sequence[str] = ()
    """Those of which motion and connectivity are looked at apart."""

    def __post_init__(self) -> None:
        self.recordings = self.recordings_in_fc = 0
        self.valid = np.zeros(self.n_rois)
        self.sums = {"coverage": np.zeros(self.n_rois), "tsnr": np.zeros(self.n_rois)}
        self.counts = {"coverage": np.zeros(self.n_rois), "tsnr": np.zeros(self.n_rois)}
        self.fisher = np.zeros((self.n_rois, self.n_rois))
        self.pairs = np.zeros((self.n_rois, self.n_rois))
        self.motion = MotionConnectivity(self.n_rois)
        self.motion_of_site = {site: MotionConnectivity(self.n_rois) for site in self.sites}
        self.carpets: dict[str, NDArray[np.float64]] = {}
        self.kept_volumes: dict[str, NDArray[np.bool_]] = {}

    def add(self, record: Mapping[str, Any], with_fc: bool) -> None:
        """Take in one recording of the time-series table."""
        bold = np.asarray(record["bold"], dtype=np.float64).reshape(self.n_rois, -1)
        valid = np.isfinite(bold).all(axis=1)
        self.recordings += 1
        self.valid += valid
        for name in ("coverage", "tsnr"):
            if record[name] is not None:
                values = np.asarray(record[name], dtype=np.float64)
                finite = np.isfinite(values)
                self.sums[name][finite] += values[finite]
                self.counts[name] += finite
        if with_fc:
            self.recordings_in_fc += 1
            rows = np.flatnonzero(valid)
            z = np.arctanh(np.clip(np.corrcoef(bold[rows]), -0.999999, 0.999999))
            self.fisher[np.ix_(rows, rows)] += z
            self.pairs[np.ix_(rows, rows)] += 1
            if record["mean_fd"] is not None:
                self.motion.add(z, rows, record["mean_fd"])
                if record["site"] in self.motion_of_site:
                    self.motion_of_site[record["site"]].add(z, rows, record["mean_fd"])

    def add_carpet(self, record: Mapping[str, Any]) -> None:
        """Keep one recording's time series, z-scored, for the figure of carpets."""
        bold = np.asarray(record["bold"], dtype=np.float64).reshape(self.n_rois, -1)
        with np.errstate(invalid="ignore", divide="ignore"):
            z = (bold - bold.mean(axis=1, keepdims=True)) / bold.std(axis=1, keepdims=True)
        self.carpets[record["recording_id"]] = z
        self.kept_volumes[record["recording_id"]] = np.asarray(record["kept"], dtype=bool)

    def mean(self, name: str) -> NDArray[np.float64]:
        """Mean of ``coverage`` or ``tsnr`` per ROI, NaN where no recording tells it."""
        return _ratio(self.sums[name], self.counts[name])

    def fc(self) -> NDArray[np.float64]:
        """Mean correlation (through Fisher's z) [ROI, ROI], NaN for pairs without data."""
        fc: NDArray[np.float64] = np.tanh(_ratio(self.fisher, self.pairs))
        np.fill_diagonal(fc, np.nan)
        return fc


def _ratio(total: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return result


def parcel_summary(paths: Sequence[Path], decisions: pd.DataFrame, n_rois: int) -> ParcelSummary:
    """Coverage, tSNR, validity and mean FC over the kept recordings of a cohort, streamed."""
    kept = decisions[decisions["exclude_reason"].isna()].sort_values("recording_id")
    drawn = kept.sample(min(len(kept), MOST_FOR_FC), random_state=0)
    for_fc, included = set(drawn["recording_id"]), set(kept["recording_id"])
    carpets = set(carpet_recordings(decisions)["recording_id"])
    summary = ParcelSummary(n_rois, sites_of(drawn))
    for path in paths:
        for record in records(path):
            if record["recording_id"] in included:
                summary.add(record, record["recording_id"] in for_fc)
            if record["recording_id"] in carpets:
                summary.add_carpet(record)
    return summary


def sites_of(recordings: pd.DataFrame) -> list[str]:
    """Sites with enough recordings of known motion for a correlation of their own, the largest if there are many."""
    sizes = recordings.loc[recordings["mean_fd"].notna(), "site"].value_counts()
    sizes = sizes[sizes >= FEWEST].sort_index().sort_values(ascending=False, kind="stable")
    return sorted(sizes.index[:MOST_SITES]) if len(sizes) > 1 else []


def carpet_recordings(decisions: pd.DataFrame) -> pd.DataFrame:
    """Recordings to show as carpets: those with most motion, kept or not, and some of the kept at random (seed 0)."""
    known = decisions[decisions["fingerprint"].notna()].sort_values("recording_id")
    worst = known[known["mean_fd"].notna()].nlargest(CARPETS, "mean_fd").assign(why="most motion")
    others = known[known["exclude_reason"].isna() & ~known["recording_id"].isin(worst["recording_id"])]
    drawn = others.sample(min(CARPETS, len(others)), random_state=0).assign(why="at random")
    return pd.concat([worst, drawn], ignore_index=True)


def decide_batch(settings: QcSettings, timeseries: Path, output: Path) -> None:
    """Write the decision table of one batch."""
    n_rois = len(read_metadata(timeseries)["roi_names"])
    rows = [decide(record, n_rois, settings) for record in records(timeseries)]
    metadata = provenance("qc", settings.__dict__, [timeseries])
    write_table(output, pa.Table.from_pylist(rows, schema=SCHEMA), metadata)
    kept = sum(row["exclude_reason"] is None for row in rows)
    print(f"{kept} of {len(rows)} recordings kept")


def mask_dice_note(timeseries: Sequence[Path]) -> str | None:
    """Why brain masks were not compared with the template's; None where they were, or nobody asked for it."""
    notes = [(read_metadata(path).get("template_mask") or {}).get("note") for path in timeseries]
    return next(filter(None, notes), None)


def summarise_cohort(
    settings: QcSettings,
    decided: Sequence[Path],
    timeseries: Sequence[Path],
    atlas: Path,
    folder: Path,
    simulated: bool,
) -> None:
    """Write ``exclusions.tsv``, ``summary.json`` and the figures of one cohort.

    Raises
    ------
    UserError
        When the parcels of the time series are not those of the network table.
    """
    from semantoks import qc_figures, qc_motion_figures

    decisions = read_tables(decided).sort_values("recording_id", ignore_index=True)
    networks = read_text_table(atlas / "networks.tsv")
    for path in timeseries:
        if read_metadata(path)["roi_names"] != networks["name"].tolist():
            raise UserError(
                f"{path}: expected the ROIs of {atlas / 'networks.tsv'} in the same order, found others; rerun the "
                "stages atlas, networks and parcellate with one atlas"
            )
    exclusions = decisions[[*KEY, "site", "exclude_reason"]]
    write_text(folder / "exclusions.tsv", exclusions.to_csv(sep="\t", index=False, lineterminator="\n"))
    summary = summarise(decisions) | {"mask_dice_note": mask_dice_note(timeseries), "simulated": simulated}
    write_json(folder / "summary.json", summary)
    parcels = parcel_summary(timeseries, decisions, len(networks))
    index = networks["index"].astype(int).to_numpy()
    limits = {"mean_fd": settings.maximum_mean_fd, "minutes_kept": settings.minimum_minutes_kept}
    limits |= {"mask_dice": settings.minimum_mask_dice}
    qc_figures.draw_all(decisions, summary, parcels, networks, limits, folder, simulated)
    of_site = {site: (one.recordings, one.correlations()) for site, one in parcels.motion_of_site.items()}
    further = {
        "qcfc": qc_motion_figures.motion_and_connectivity(
            parcels.motion.correlations(), distances(atlas, index), of_site
        ),
        "carpets": qc_motion_figures.carpets(carpet_recordings(decisions), parcels, networks),
    }
    qc_figures.save_all(further, folder, simulated)
    print(f"{summary['recordings_kept']} of {summary['recordings']} recordings kept; figures in {folder}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.qc", description=__doc__)
    parser.add_argument("--settings", type=json.loads, required=True, help="section `qc` of the config, as JSON")
    parser.add_argument("--timeseries", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, help="decision table of one batch")
    parser.add_argument("--summary", type=Path, nargs="+", help="decision tables of all batches of a cohort")
    parser.add_argument("--atlas", type=Path, help="folder of the stages atlas and networks, for the summary")
    parser.add_argument("--output-folder", type=Path, help="folder of the summary")
    arguments = parser.parse_args(argv)
    if arguments.summary and not (arguments.atlas and arguments.output_folder):
        parser.error("--summary needs --atlas and --output-folder")
    if not arguments.summary and not (arguments.output and len(arguments.timeseries) == 1):
        parser.error("give --output and one file of --timeseries, or --summary")
    simulated = arguments.settings.pop("simulated", False)
    settings = QcSettings(**arguments.settings)
    if arguments.summary:
        files = (arguments.summary, arguments.timeseries, arguments.atlas, arguments.output_folder)
        summarise_cohort(settings, *files, simulated)
    else:
        decide_batch(settings, arguments.timeseries[0], arguments.output)


if __name__ == "__main__":
    run_command(main)
