"""Figures of the quality control of one cohort."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from semantoks.files import replacing

KEPT, DROPPED = "#2166ac", "#b2182b"
STEP_TEXTS = {
    "unusable": "no usable file or time series",
    "minimum_seconds": "too short",
    "minimum_valid_rois": "too few ROIs with data",
    "minimum_median_coverage": "parcels covered too little",
    "maximum_mean_fd": "too much motion",
    "minimum_minutes_kept": "too little left by censoring",
    "maximum_share_censored": "too large a share censored",
    "maximum_gap": "too long a censored gap",
}


class Parcels(Protocol):
    """What the figures need to know of the parcels of a cohort."""

    recordings: int
    recordings_in_fc: int
    valid: NDArray[np.float64]

    def mean(self, name: str) -> NDArray[np.float64]:
        """Mean of ``coverage`` or ``tsnr`` per ROI."""

    def fc(self) -> NDArray[np.float64]:
        """Mean functional connectivity [ROI, ROI]."""


def draw_all(
    decisions: pd.DataFrame,
    summary: Mapping[str, Any],
    parcels: Parcels,
    networks: pd.DataFrame,
    limits: Mapping[str, float | None],
    folder: Path,
    simulated: bool,
) -> None:
    """Draw ``flow.png``, ``recordings.png``, ``parcels.png`` and ``fc.png`` into ``folder``."""
    figures = {
        "flow": flow(summary),
        "recordings": recordings(decisions, limits),
        "parcels": parcel_quality(parcels, networks),
        "fc": functional_connectivity(parcels.fc(), networks, parcels.recordings_in_fc),
    }
    save_all(figures, folder, simulated)


def save_all(figures: Mapping[str, Figure], folder: Path, simulated: bool) -> None:
    """Write figures as ``<name>.png`` into ``folder``, marked when the data are simulated."""
    for name, figure in figures.items():
        if simulated:
            figure.text(0.995, 0.005, "simulated data", ha="right", va="bottom", fontsize=8, color=DROPPED)
        with replacing(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=120, metadata={"Software": None})
        plt.close(figure)


def flow(summary: Mapping[str, Any]) -> Figure:
    """How many recordings entered, were dropped at which step, and stayed."""
    steps = list(summary["dropped"].items())
    axes: Axes
    figure: Figure = plt.figure(figsize=(8, 0.9 + 0.6 * (len(steps) + 1)), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(0, 10)
    axes.set_ylim(-(len(steps) + 1) - 0.5, 0.5)

    def box(x: float, y: float, text: str, colour: str, align: Literal["center", "left"] = "center") -> None:
        style = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour, "linewidth": 1.4}
        axes.text(x, y, text, ha=align, va="center", fontsize=10, bbox=style)

    arrow = {"arrowstyle": "-|>", "color": "0.35", "shrinkA": 0, "shrinkB": 0, "zorder": 0}
    end = -(len(steps) + 1)
    axes.annotate("", (3, end + 0.2), (3, -0.2), arrowprops=arrow)
    for number, (step, count) in enumerate(steps, 1):
        axes.annotate("", (5.45, -number), (3, -number), arrowprops=arrow)
        box(5.55, -number, f"{count} dropped: {STEP_TEXTS.get(step, step)}", DROPPED, "left")
    box(3, 0, f"{summary['recordings']} recordings of {summary['participants']} participants", "0.35")
    box(3, end, f"{summary['recordings_kept']} recordings of {summary['participants_kept']} participants kept", KEPT)
    return figure


def recordings(decisions: pd.DataFrame, limits: Mapping[str, float | None]) -> Figure:
    """Mean framewise displacement, minutes kept and (where known) the mask's Dice of every recording, per site.

    Parameters
    ----------
    decisions : the decision table.
    limits : limit of a column, drawn as a line; None where there is none.
    """
    site = decisions["site"].fillna("unknown")
    names = sorted(site.unique())
    panels = [("mean_fd", "mean framewise displacement (mm)"), ("minutes_kept", "minutes kept")]
    if decisions["mask_dice"].notna().any():
        panels.append(("mask_dice", "Dice of brain mask and template"))
    figure: Figure = plt.figure(figsize=(5 * len(panels), max(2.6, 1.4 + 0.32 * len(names))), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for panel, (column, label) in zip(axes, panels, strict=True):
        _points_per_site(panel, decisions.assign(site=site), names, column, limits[column])
        panel.set_xlabel(label)
        if decisions[column].isna().all():
            panel.set_xticks([])
            panel.text(0.5, 0.5, "not known for this cohort", ha="center", va="center", transform=panel.transAxes)
    axes[0].set_ylabel("site")
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=c, markersize=5) for c in (KEPT, DROPPED)]
    handles += [plt.Line2D([], [], color="black"), plt.Line2D([], [], color="0.4", linestyle="--", linewidth=1)]
    figure.legend(
        handles, ["kept", "dropped", "median", "limit"], loc="outside upper right", ncols=4, frameon=False, fontsize=9
    )
    return figure


def _points_per_site(axes: Axes, table: pd.DataFrame, names: list[str], column: str, limit: float | None) -> None:
    random = np.random.default_rng(0)
    for position, name in enumerate(names):
        rows = table[(table["site"] == name) & table[column].notna()]
        height = position + random.uniform(-0.25, 0.25, len(rows))
        colours = np.where(rows["exclude_reason"].isna(), KEPT, DROPPED)
        axes.scatter(rows[column], height, s=9, c=list(colours), alpha=0.6, linewidths=0)
        if len(rows):
            axes.plot([rows[column].median()] * 2, [position - 0.35, position + 0.35], color="black", linewidth=1.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    if table[column].isna().all():
        return
    if limit is not None:
        axes.axvline(limit, color="0.4", linewidth=1, linestyle="--")
    if column == "mask_dice":  # all near 1
        axes.set_xlim(min(0.8, table[column].min() - 0.02, (limit or 1) - 0.02), 1.01)
    else:
        axes.set_xlim(0, 1.05 * max(table[column].max(), limit or 0) or 1)


def parcel_quality(parcels: Parcels, networks: pd.DataFrame) -> Figure:
    """Coverage, temporal SNR and share of recordings with data for every parcel, ordered by network."""
    order, starts, names = by_network(networks)
    share = parcels.valid / max(parcels.recordings, 1)
    panels = [
        ("coverage", parcels.mean("coverage")),
        ("temporal SNR", parcels.mean("tsnr")),
        ("share of recordings\nwith data", share),
    ]
    known = [(label, values) for label, values in panels if np.isfinite(values).any()]
    figure: Figure = plt.figure(figsize=(11, 1.2 + 1.7 * len(known)), layout="constrained")
    rows = figure.subplots(len(known), 1, sharex=True, squeeze=False)
    for axes, (label, values) in zip(rows[:, 0], known, strict=True):
        axes.scatter(np.arange(len(order)), values[order], s=7, color=KEPT, linewidths=0)
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.05 * np.nanmax(values) if label == "temporal SNR" else 1.05)
        for start in starts[1:]:
            axes.axvline(start - 0.5, color="0.7", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1, 0].set_xlim(-1, len(order))
    rows[-1, 0].set_xlabel("ROI, ordered by network")
    _name_networks(rows[-1, 0], starts, names, len(order), axis="x")
    return figure


def functional_connectivity(fc: NDArray[np.float64], networks: pd.DataFrame, n_recordings: int) -> Figure:
    """Mean functional connectivity, ROIs ordered by network, and its means within and between networks."""
    order, starts, names = by_network(networks)
    ordered = fc[np.ix_(order, order)]
    few = len(names) <= 20
    figure: Figure = plt.figure(figsize=(14 if few else 8.2, 7), layout="constrained")
    axes, *further = figure.subplots(1, 2 if few else 1, squeeze=False)[0]
    finite = np.abs(ordered[np.isfinite(ordered)])
    limit = max(0.1, float(np.quantile(finite, 0.99))) if finite.size else 1.0
    colours = plt.get_cmap("RdBu_r").with_extremes(bad="0.85")
    image = axes.imshow(ordered, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="black", linewidth=0.6)
        axes.axhline(start - 0.5, color="black", linewidth=0.6)
    _name_networks(axes, starts, names, len(order), axis="x")
    _name_networks(axes, starts, names, len(order), axis="y")
    axes.set_title(f"Mean functional connectivity, {n_recordings} recordings, {len(order)} ROIs", fontsize=11)
    figure.colorbar(image, ax=axes, label="Pearson correlation (mean of Fisher's z)", shrink=0.85)
    for panel in further:
        _between_networks(panel, ordered, [*starts, len(order)], names, limit)
    return figure


def _between_networks(
    axes: Axes, ordered: NDArray[np.float64], edges: list[int], names: list[str], limit: float
) -> None:
    """Mean connectivity of every pair of networks, as colours and numbers."""
    blocks = [slice(a, b) for a, b in itertools.pairwise(edges)]
    cells = [[ordered[a, b][np.isfinite(ordered[a, b])] for b in blocks] for a in blocks]
    means = np.array([[cell.mean() if cell.size else np.nan for cell in row] for row in cells])
    colours = plt.get_cmap("RdBu_r").with_extremes(bad="0.85")
    axes.imshow(means, cmap=colours, vmin=-limit, vmax=limit)
    for (row, column), value in np.ndenumerate(means):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.7 * limit else "black"
            axes.text(column, row, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.tick_params(length=0)
    axes.set_title("Mean within and between networks", fontsize=11)


def by_network(networks: pd.DataFrame) -> tuple[NDArray[np.intp], list[int], list[str]]:
    """Order of ROIs by network (as they first appear), where each network starts, and its name."""
    codes, names = pd.factorize(networks["network"])
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(names))).tolist()
    return order, starts, [str(name) for name in names]


def _name_networks(axes: Axes, starts: list[int], names: list[str], n_rois: int, axis: str) -> None:
    """Write the names of networks at their middle; without names where there are too many to read."""
    if len(names) > 40:
        return
    middles = [(start + end - 1) / 2 for start, end in zip(starts, [*starts[1:], n_rois], strict=True)]
    if axis == "x":
        axes.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    else:
        axes.set_yticks(middles, names, fontsize=9)
    axes.tick_params(length=0)
