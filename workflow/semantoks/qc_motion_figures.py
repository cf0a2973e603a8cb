"""Figures of motion in the quality control of one cohort: QC–FC against distance, and carpets of recordings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import norm

from semantoks.qc_figures import DROPPED, KEPT, by_network


class Series(Protocol):
    """What carpets need: z-scored series [ROI, time] and kept volumes [time], by recording."""

    carpets: dict[str, NDArray[np.float64]]
    kept_volumes: dict[str, NDArray[np.bool_]]


def motion_and_connectivity(
    correlations: NDArray[np.float64],
    distances: NDArray[np.float64] | None,
    of_site: Mapping[str, tuple[int, NDArray[np.float64]]],
) -> Figure:
    """QC–FC: correlation of every pair's connectivity with motion over recordings, against the distance of the pair.

    Parameters
    ----------
    correlations : [ROI, ROI], over all recordings.
    distances : [ROI, ROI] in mm; None where unknown.
    of_site : number of recordings and correlations [ROI, ROI] over them, by site; a second row when there are any.
    """
    pairs = np.triu_indices(len(correlations), 1)
    r = correlations[pairs]
    known = np.isfinite(r)
    rows = 2 if of_site and known.any() else 1
    heights = [4, max(2.6, 1.2 + 0.24 * len(of_site))][:rows]
    figure: Figure = plt.figure(figsize=(10, sum(heights)), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False, height_ratios=heights)
    if not known.any():
        for axes in grid.ravel():
            axes.set_axis_off()
        figure.text(0.5, 0.5, "QC–FC needs ten recordings with known motion", ha="center")
        return figure
    for axes in grid.ravel():
        axes.spines[["top", "right"]].set_visible(False)
    left, right = grid[0]
    left.hist(r[known], bins=60, color=KEPT)
    left.axvline(0, color="0.3", linewidth=0.8)
    left.set_xlabel("correlation of connectivity and mean FD")
    left.set_ylabel("pairs of ROIs")
    left.locator_params(axis="x", nbins=5)
    left.set_title(f"median |r| = {np.median(np.abs(r[known])):.3f}, {known.sum():,} pairs", fontsize=10)
    apart = None if distances is None else distances[pairs]
    if apart is None or not np.isfinite(apart[known]).any():
        right.set_axis_off()
        right.text(0.5, 0.5, "distances are not known: the atlas has no image", ha="center", transform=right.transAxes)
    else:
        _against_distance(right, apart[known & np.isfinite(apart)], r[known & np.isfinite(apart)])
    if rows == 2:
        _sites(grid[1], {site: (n, matrix[pairs]) for site, (n, matrix) in of_site.items()}, apart)
    return figure


def _sites(
    grid: Any, of_site: Mapping[str, tuple[int, NDArray[np.float64]]], apart: NDArray[np.float64] | None
) -> None:
    """Per site: how strong QC–FC is, beside what chance alone gives, and how it changes with distance."""
    left, right = grid
    names = list(of_site)
    height = np.arange(len(names))
    sizes = np.array([n for n, _ in of_site.values()])
    strength = [np.nanmedian(np.abs(r)) if np.isfinite(r).any() else np.nan for _, r in of_site.values()]
    left.scatter(strength, height, s=22, color=KEPT, label="found", zorder=3)
    # the median of |r| between unrelated normal variables
    chance = norm.ppf(0.75) / np.sqrt(sizes - 1)
    left.scatter(chance, height, s=60, marker="|", color="0.3", label="by chance")
    left.set_xlim(0, 1.1 * np.nanmax([*strength, *chance]))
    left.set_xlabel("median |r| of connectivity and mean FD")
    left.legend(fontsize=8, frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1), borderaxespad=0.2)
    right.axvline(0, color="0.3", linewidth=0.8)
    right.set_xlabel("Spearman correlation of r with distance")
    if apart is None or not np.isfinite(apart).any():
        right.set_axis_off()
    else:
        right.scatter([_spearman(apart, r) for _, r in of_site.values()], height, s=22, color=DROPPED, zorder=3)
        limit = 1.1 * max(0.1, *np.abs(right.get_xlim()))
        right.set_xlim(-limit, limit)
    left.set_yticks(height, [f"{name} ({n})" for name, n in zip(names, sizes, strict=True)], fontsize=8)
    right.set_yticks(height, [""] * len(names))
    for axes in (left, right):
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    left.set_ylabel("site (recordings)")


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(pd.Series(a).corr(pd.Series(b), method="spearman"))


def _against_distance(axes: Axes, apart: NDArray[np.float64], r: NDArray[np.float64]) -> None:
    counts = axes.hexbin(apart, r, gridsize=45, cmap="Blues", mincnt=1, bins="log", linewidths=0)
    axes.figure.colorbar(counts, ax=axes, label="pairs of ROIs", shrink=0.85)
    edges = np.quantile(apart, np.linspace(0, 1, 16))
    bins = np.clip(np.searchsorted(edges, apart, side="right") - 1, 0, 14)
    present = [number for number in range(15) if (bins == number).any()]
    medians = [float(np.median(r[bins == number])) for number in present]
    axes.plot([apart[bins == number].mean() for number in present], medians, color=DROPPED, marker="o", markersize=3)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel("distance of the two ROIs (mm)")
    axes.set_ylabel("correlation of connectivity and mean FD")
    axes.set_title(f"Spearman with distance = {_spearman(apart, r):.3f}; red: medians", fontsize=10)


def carpets(chosen: pd.DataFrame, series: Series, networks: pd.DataFrame) -> Figure:
    """Time series of single recordings, ROIs by network, censored volumes marked; no recording is named.

    Parameters
    ----------
    chosen : columns recording_id, mean_fd (mm), tr (s), exclude_reason and why (it was chosen).
    """
    shown: list[Any] = [row for row in chosen.to_dict("records") if row["recording_id"] in series.carpets]
    order, starts, names = by_network(networks)
    figure: Figure = plt.figure(figsize=(12, 1.2 + 3.1 * max(1, (len(shown) + 1) // 2)), layout="constrained")
    if not shown:
        figure.text(0.5, 0.5, "no recording to show", ha="center")
        return figure
    grid = figure.subplots((len(shown) + 1) // 2, 2, squeeze=False).ravel()
    for axes, row in zip(grid, shown, strict=False):
        bold, kept = series.carpets[row["recording_id"]][order], series.kept_volumes[row["recording_id"]]
        colours = plt.get_cmap("gray").with_extremes(bad="#f4c7c3")
        extent = (0.0, bold.shape[1] * row["tr"], len(order) - 0.5, -0.5)
        image = axes.imshow(bold, aspect="auto", cmap=colours, vmin=-2, vmax=2, extent=extent, interpolation="nearest")
        for volume in np.flatnonzero(~kept):
            axes.axvspan(volume * row["tr"], (volume + 1) * row["tr"], ymax=0.03, color=DROPPED, linewidth=0)
        for start in starts[1:]:
            axes.axhline(start - 0.5, color="#d95f02", linewidth=0.5)
        if len(names) <= 20:
            middles = [(a + b - 1) / 2 for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]
            axes.set_yticks(middles, names, fontsize=7)
        motion = "motion unknown" if pd.isna(row["mean_fd"]) else f"mean FD {row['mean_fd']:.2f} mm"
        state = "kept" if row["exclude_reason"] is None else "dropped"
        axes.set_title(f"{row['why']}: {motion}, {state}", fontsize=9)
        axes.set_xlabel("time (s)", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=grid.tolist(), label="z-score of the cleaned signal", shrink=0.6)
    return figure
