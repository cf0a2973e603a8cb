"""Figures beside the forest plot: confusion matrices, results by site, learning curves."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semantoks.drawing import new_figure
from semantoks.row_kinds import COLOURS, METRIC_LABELS, kind_of, row_place

PANELS_ACROSS = 4
MARKERS = "osD^vP<>X*"
LINES = ("-", "--", ":", "-.")


def nothing(text: str, simulated: bool) -> Figure:
    """A figure that says why there is none."""
    figure, axes = new_figure(5.0, 0.9, 1, 1, simulated)
    axes[0, 0].axis("off")
    axes[0, 0].text(0.5, 0.5, text, ha="center", va="center", fontsize=9)
    return figure


def ordered_rows(table: pd.DataFrame) -> list[str]:
    """Rows in the order of the tables."""
    return sorted(set(table["row"]), key=row_place)


def confusion(table: pd.DataFrame, simulated: bool = False) -> Figure:
    """One matrix per row and phenotype, the shares of each true class written into its cells.

    Parameters
    ----------
    table : ``<cohort>_confusion.tsv`` of one protocol, numbers converted.
    """
    if table.empty:
        return nothing("No phenotype with classes.", simulated)
    tasks, rows = sorted(set(table["phenotype"])), ordered_rows(table)
    classes = {task: list(dict.fromkeys(table.loc[table["phenotype"] == task, "true"])) for task in tasks}
    cells = [len(classes[task]) for task in tasks]
    width = sum(0.55 * count + 1.0 for count in cells) + 0.8
    height = len(rows) * (0.17 * max(cells) + 0.3) + 0.9
    figure, axes = new_figure(
        width, height, len(rows), len(tasks), simulated, gridspec_kw={"width_ratios": [0.55 * n + 1.0 for n in cells]}
    )
    for across, task in enumerate(tasks):
        for down, row in enumerate(rows):
            part = table[(table["phenotype"] == task) & (table["row"] == row)]
            last = down == len(rows) - 1
            _matrix(axes[down, across], part, classes[task], row if across == 0 else "", last)
        axes[0, across].set_title(task, fontsize=9)
    figure.supxlabel("predicted (shares of the true class)", fontsize=8)
    return figure


def _matrix(axis: Axes, part: pd.DataFrame, classes: Sequence[str], row: str, last: bool) -> None:
    if part.empty:
        axis.axis("off")
        return
    matrix = part.pivot(index="true", columns="predicted", values="share").loc[list(classes), list(classes)].to_numpy()
    axis.imshow(matrix, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (true, guess), share in np.ndenumerate(matrix):  # type: ignore[misc]
        colour = "white" if share > 0.6 else "black"
        axis.text(guess, true, f"{share:.2f}", ha="center", va="center", fontsize=6, color=colour)
    axis.set_yticks(range(len(classes)), classes, fontsize=6)
    axis.set_xticks(range(len(classes)), classes if last else [""] * len(classes), fontsize=6, rotation=90)
    axis.tick_params(length=0)
    if row:
        axis.set_ylabel(row, fontsize=7, rotation=0, ha="right", va="center")


def sites(table: pd.DataFrame, simulated: bool = False) -> Figure:
    """Every row's value at every site, one panel per phenotype; sites by size, the largest first.

    Parameters
    ----------
    table : ``<cohort>_sites.tsv`` of one protocol, numbers converted. An empty cell has no value (one class only).
    """
    if table.empty:
        return nothing("No results by site: fewer than two sites are known.", simulated)
    tasks, rows = sorted(set(table["phenotype"])), ordered_rows(table)
    n_sites = table["site_group"].nunique()
    longest = max(map(len, rows))
    figure, axes = new_figure(
        0.36 * n_sites + 0.075 * longest + 1.4, (0.22 * len(rows) + 1.3) * len(tasks) + 0.3, len(tasks), 1, simulated
    )
    for axis, task in zip(axes[:, 0], tasks, strict=True):
        part = table[table["phenotype"] == task]
        _sites_panel(axis, part, rows)
        axis.set_title(f"{task}: {METRIC_LABELS[part['metric'].iloc[0]]} at each site", fontsize=9)
    return figure


def _sites_panel(axis: Axes, part: pd.DataFrame, every_row: Sequence[str]) -> None:
    rows = [row for row in every_row if row in set(part["row"])]
    sizes = part.groupby("site_group")["n"].first().sort_values(ascending=False, kind="stable")
    values = part.pivot(index="row", columns="site_group", values="value").reindex(
        index=list(rows), columns=sizes.index
    )
    chance = 0.5 if part["metric"].iloc[0] == "site_auroc" else 0.0
    reach = max(0.1, float(np.nanmax(np.abs(values.to_numpy(dtype=np.float64) - chance), initial=0)))
    axis.imshow(values.to_numpy(), cmap="RdBu_r", vmin=chance - reach, vmax=chance + reach, aspect="auto")
    for (down, across), value in np.ndenumerate(values.to_numpy()):
        if not np.isnan(value):
            text = f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")
            colour = "white" if abs(value - chance) > 0.7 * reach else "black"
            axis.text(across, down, text, ha="center", va="center", fontsize=6, color=colour)
    axis.set_yticks(range(len(rows)), rows, fontsize=7)
    axis.set_xticks(range(len(sizes)), [f"{site} ({n:.0f})" for site, n in sizes.items()], fontsize=7, rotation=90)
    axis.tick_params(length=0)


def learning_curve(table: pd.DataFrame, simulated: bool = False) -> Figure:
    """The primary metric by the participants to fit and choose on, one panel per phenotype, one line per row.

    Parameters
    ----------
    table : ``<cohort>_learning_curve.tsv``, numbers converted. Bars are the sd over draws.
    """
    if table.empty:
        return nothing("No learning curves: the protocol learning-curve was not asked for.", simulated)
    tasks, rows = sorted(set(table["phenotype"])), ordered_rows(table)
    across = min(PANELS_ACROSS, len(tasks))
    down = -(-len(tasks) // across)
    legend = 0.18 * (-(-(len(rows) + 1) // 3)) + 0.3
    figure, axes = new_figure(max(3.0 * across, 5.5), 2.6 * down + legend, down, across, simulated)
    seen = set(table.loc[table["transductive"] > 0, "row"])
    for axis, task in zip(axes.flat, tasks, strict=False):
        _curve_panel(axis, table[table["phenotype"] == task], rows, seen)
        axis.set_title(task, fontsize=9)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    handles = [plt.Line2D([], [], label=row, markersize=4, **_style(row, rows, seen)) for row in rows]
    if seen:
        style: dict[str, Any] = {"color": "black", "marker": "o", "markerfacecolor": "white", "linestyle": ""}
        handles.append(plt.Line2D([], [], label="transductive (open)", markersize=4, **style))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure


def _style(row: str, rows: Sequence[str], seen: Set[str]) -> dict[str, Any]:
    """Colour by the kind of the row, marker and line by its place among that kind; open if transductive."""
    kind = kind_of(row)
    place = [other for other in rows if kind_of(other) == kind].index(row)
    style = {"color": COLOURS[kind], "marker": MARKERS[place % len(MARKERS)], "linestyle": LINES[place % len(LINES)]}
    return style | {"markerfacecolor": "white" if row in seen else COLOURS[kind]}


def _curve_panel(axis: Axes, part: pd.DataFrame, rows: Sequence[str], seen: Set[str]) -> None:
    present = [row for row in rows if row in set(part["row"])]
    for number, row in enumerate(present):
        line = part[part["row"] == row].sort_values("size")
        # Beside each other, so that bars do not hide each other.
        x = line["size"] * (1 + 0.02 * (number - (len(present) - 1) / 2))
        style = _style(row, rows, seen)
        axis.errorbar(x, line["mean"], yerr=line["sd"], markersize=3, linewidth=1, elinewidth=0.6, **style)
    sizes = sorted(set(part["size"]))
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:.0f}" for size in sizes], fontsize=7)
    axis.minorticks_off()
    axis.tick_params(axis="y", labelsize=7)
    axis.set_xlabel("participants to fit and choose on", fontsize=8)
    axis.set_ylabel(METRIC_LABELS[part["metric"].iloc[0]], fontsize=8)
    axis.grid(color="#eeeeee")
    axis.set_axisbelow(True)
