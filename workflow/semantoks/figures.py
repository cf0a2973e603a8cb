"""Figures of probe results: ``<cohort>_<kind>_<protocol>.png`` from the tables of a cohort."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semantoks.drawing import new_figure, save
from semantoks.errors import run_command
from semantoks.files import read_text_table
from semantoks.result_figures import confusion, learning_curve, sites
from semantoks.row_kinds import COLOURS, LABELS, METRIC_LABELS, kind_of, row_place

PANELS_ACROSS = 4
UNKNOWN = "#bbbbbb"
"""Fill of rows of which nobody knows whom their pretraining saw."""
KINDS = ("probes", "confusion", "sites", "learning_curve")
NUMBERS = [
    *("mean", "sd", "ci_low", "ci_high", "transductive", "published", "p_majority", "value", "n", "difference"),
    *("participants", "share", "size", "n_train"),
]


def forest(scores: pd.DataFrame, simulated: bool = False) -> Figure:
    """Primary metric of every row with its interval, one panel per phenotype; negative controls share one panel.

    Parameters
    ----------
    scores : rows of a table (TSV) of one cohort and protocol, numbers converted.
    simulated : whether to say that the data are simulated.
    """
    primary = scores[scores["primary"]]
    rows = sorted(set(primary["row"]), key=row_place)
    controls = primary[primary["negative_control"]]
    tasks = sorted(set(primary["phenotype"]) - set(controls["phenotype"]))
    panels = len(tasks) + bool(len(controls))
    down = -(-panels // PANELS_ACROSS)
    across = -(-panels // down)  # five panels are three and two, not four and one
    longest = max(map(len, rows))
    width = 2.6 * across + 0.075 * longest + 0.3
    figure, axes = new_figure(width, (0.24 * len(rows) + 1.0) * down + 0.6, down, across, simulated, sharey=True)
    for axis, task in zip(axes.flat, tasks, strict=False):
        _forest_panel(axis, primary[primary["phenotype"] == task], task, rows)
    if len(controls):
        _controls_panel(axes.flat[len(tasks)], controls, rows)
    for axis in axes.flat[panels:]:
        axis.set_visible(False)
    kinds = list(dict.fromkeys(map(kind_of, rows)))
    handles = [plt.Line2D([], [], color=COLOURS[kind], marker="o", linestyle="-", label=LABELS[kind]) for kind in kinds]
    handles += _further_handles(primary)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3), frameon=False, fontsize=8)
    return figure


def without_results(protocol: str, simulated: bool = False) -> Figure:
    """A figure that says that the cohort allows no such splits."""
    figure, axes = new_figure(5.0, 0.9, 1, 1, simulated)
    axes[0, 0].axis("off")
    text = f"No {protocol} splits of this cohort: fewer than two sites are known."
    axes[0, 0].text(0.5, 0.5, text, ha="center", va="center", fontsize=9)
    return figure


def _further_handles(primary: pd.DataFrame) -> list[Any]:
    handles = []
    if (primary["row"] == "majority").any():
        handles.append(plt.Line2D([], [], color="#777777", linestyle=":", label="majority"))
    if (primary["transductive"] > 0).any():
        style = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black", "linestyle": ""}
        handles.append(plt.Line2D([], [], label="transductive (open)", **style))
    if primary["transductive"].isna().any():
        style = {"marker": "o", "markerfacecolor": UNKNOWN, "markeredgecolor": "black", "linestyle": ""}
        handles.append(plt.Line2D([], [], label="pretraining unknown (grey)", **style))
    if primary["published"].notna().any():
        handles.append(plt.Line2D([], [], color="black", marker="D", linestyle="", markersize=4, label="published"))
    return handles


def _forest_panel(axis: Axes, records: pd.DataFrame, task: str, rows: Sequence[str]) -> None:
    for _, record in records.iterrows():
        height, colour = rows.index(record["row"]), COLOURS[kind_of(record["row"])]
        if record["row"] == "majority":
            axis.axvline(record["mean"], color="#777777", linestyle=":", linewidth=1, zorder=0)
        axis.plot([record["ci_low"], record["ci_high"]], [height, height], color=colour, linewidth=1.6)
        fill = "white" if record["transductive"] > 0 else colour
        fill = UNKNOWN if np.isnan(record["transductive"]) else fill
        axis.plot(record["mean"], height, "o", color=colour, markerfacecolor=fill, markersize=5)
        if not np.isnan(record["published"]):
            axis.plot(record["published"], height, "D", color="black", markersize=4)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_title(task, fontsize=9)
    axis.set_xlabel(METRIC_LABELS[records["metric"].iloc[0]], fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="#eeeeee")
    axis.set_axisbelow(True)


def _controls_panel(axis: Axes, records: pd.DataFrame, rows: Sequence[str]) -> None:
    """P of every negative control against the majority row, unadjusted: one in twenty belongs left of the line."""
    for _, record in records.iterrows():
        height, colour = rows.index(record["row"]), COLOURS[kind_of(record["row"])]
        axis.plot(record["p_majority"], height, "|", color=colour, markersize=7)
    axis.axvline(0.05, color="#b00020", linestyle="--", linewidth=1, zorder=0)
    axis.set_xlim(-0.02, 1.02)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_title(f"{records['phenotype'].nunique()} negative controls", fontsize=9)
    axis.set_xlabel("p against majority (line: 0.05)", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)


def read_scores(path: Path) -> pd.DataFrame:
    """A table of the stage tables, numbers converted."""
    table = read_text_table(path)
    for column in table.columns.intersection(NUMBERS):
        table[column] = pd.to_numeric(table[column])
    for column in table.columns.intersection(["primary", "negative_control"]):
        table[column] = table[column] == "True"
    return table


def draw(kind: str, table: Path, protocol: str, simulated: bool) -> Figure:
    """One figure of a cohort: ``probes``, ``confusion``, ``sites`` or ``learning_curve``.

    Parameters
    ----------
    table : the cohort's table; those of the other kinds lie beside it.
    protocol : whose results; without meaning for learning curves.
    """
    source = table if kind == "probes" else table.with_name(f"{table.stem}_{kind}.tsv")
    results = read_scores(source)
    if kind == "learning_curve":
        return learning_curve(results, simulated)
    scores = read_scores(table)
    part = results[results["protocol"] == protocol]
    if not len(scores[scores["protocol"] == protocol]):
        return without_results(protocol, simulated)
    if kind == "probes":
        return forest(part, simulated)
    controls = set(scores.loc[scores["negative_control"], "phenotype"])
    part = part[~part["phenotype"].isin(controls)]
    return (confusion if kind == "confusion" else sites)(part, simulated)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: figures of the given tables."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.figures", description=__doc__)
    parser.add_argument("--settings", default={}, type=json.loads, help="simulated")
    parser.add_argument("--tables", nargs="+", required=True, type=Path, help="<cohort>.tsv of the stage tables")
    parser.add_argument("--kinds", nargs="+", default=["probes"], choices=KINDS, help="what to draw")
    parser.add_argument("--protocol", nargs="*", help="protocols to draw; all that the tables hold by default")
    parser.add_argument("--output-folder", required=True, type=Path, help="folder of the figures")
    arguments = parser.parse_args(argv)
    simulated = bool(arguments.settings.get("simulated"))
    for path, kind in itertools.product(arguments.tables, arguments.kinds):
        protocols = arguments.protocol or sorted(set(read_scores(path)["protocol"]))
        for protocol in [""] if kind == "learning_curve" else protocols:
            name = f"{path.stem}_{kind}" + (f"_{protocol}" if protocol else "")
            save(draw(kind, path, protocol, simulated), arguments.output_folder / f"{name}.png")


if __name__ == "__main__":
    run_command(main)
