"""Figures of probe results, of pretraining and of functional connectivity.

Each kind of input makes its figures: tables of a cohort (``<cohort>_probes_<protocol>.png``), metrics of an encoder
(``<encoder>_training.png``), shards of a cohort (``<cohort>_connectivity.png``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semantoks.baselines.connectivity import correlation, read_recordings
from semantoks.errors import UserError, run_command
from semantoks.files import read_metadata, read_table, read_text_table, replacing
from semantoks.scores import row_place

SIMULATED = "SIMULATED DATA"
METRIC_LABELS = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "macro_f1": "macro-F1",
    "site_auroc": "within-site AUROC",
    "r": "Pearson r",
    "r2": "R²",
    "mae": "mean absolute error",
    "site_r": "within-site Pearson r",
}
COLOURS = {"reference": "#777777", "connectivity": "#0072B2", "untrained": "#E69F00", "pretrained": "#009E73"}
LABELS = {
    "reference": "without brain data",
    "connectivity": "functional connectivity",
    "untrained": "encoder as initialised",
    "pretrained": "pretrained encoder",
}
PANELS_ACROSS = 4


def kind_of(row: str) -> str:
    """What a row of the table rests on; decides its colour."""
    place = row_place(row)[0]
    return ("reference", "reference", "connectivity", "untrained", "pretrained")[place]


def new_figure(
    width: float, height: float, rows: int, columns: int, simulated: bool, **further: Any
) -> tuple[Figure, Any]:
    """A figure with a grid of axes [rows, columns]; sizes in inches; says so when the data are simulated."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", dpi=130, **further
    )
    if simulated:
        figure.suptitle(SIMULATED, color="#b00020", fontweight="bold")
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a PNG by renaming, with nothing in it that differs between runs."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    plt.close(figure)


def forest(scores: pd.DataFrame, simulated: bool = False) -> Figure:
    """Primary metric of every row with its interval, one panel per phenotype.

    Parameters
    ----------
    scores : rows of a table (TSV) of one cohort and protocol, numbers converted.
    simulated : whether to say that the data are simulated.
    """
    primary = scores[scores["primary"]]
    tasks = sorted(set(primary["phenotype"]))
    rows = sorted(set(primary["row"]), key=row_place)
    across = min(PANELS_ACROSS, len(tasks))
    down = -(-len(tasks) // across)
    longest = max(map(len, rows))
    width = 2.6 * across + 0.075 * longest + 0.3
    figure, axes = new_figure(width, (0.24 * len(rows) + 1.0) * down + 0.6, down, across, simulated, sharey=True)
    for axis, task in zip(axes.flat, tasks, strict=False):
        _forest_panel(axis, primary[primary["phenotype"] == task], task, rows)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    kinds = list(dict.fromkeys(map(kind_of, rows)))
    handles = [plt.Line2D([], [], color=COLOURS[kind], marker="o", linestyle="-", label=LABELS[kind]) for kind in kinds]
    handles += _further_handles(primary)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3), frameon=False, fontsize=8)
    return figure


def _further_handles(primary: pd.DataFrame) -> list[Any]:
    handles = []
    if (primary["row"] == "majority").any():
        handles.append(plt.Line2D([], [], color="#777777", linestyle=":", label="majority"))
    if (primary["transductive"] > 0).any():
        style = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black", "linestyle": ""}
        handles.append(plt.Line2D([], [], label="transductive (open)", **style))
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


def read_metrics(path: Path) -> pd.DataFrame:
    """Metrics of a training, one row per logged step.

    Raises
    ------
    UserError
        When the file is missing, a line is no JSON, or ``step`` is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected the metrics of a pretraining, found no file; run pretrain")
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: expected one JSON object per line, found {error}") from None
    table = pd.DataFrame(lines)
    if len(table) and "step" not in table:
        raise UserError(f"{path}: expected the key 'step' in every line, found {list(table.columns)}")
    return table


TRAINING_PANELS = (
    ("loss", (("loss", "total"), ("cls_loss", "CLS"), ("ttr_loss", "TTR"), ("token_loss", "tokens"))),
    ("coding rate", (("coding_rate", "coding rate"),)),
    ("effective rank", (("effective_rank", "effective rank"),)),
    ("gradient norm", (("gradient_norm", "gradient norm"),)),
    ("learning rate", (("learning_rate", "learning rate"),)),
    ("TTR weight", (("ttr_weight", "TTR weight"),)),
)


def training(metrics: pd.DataFrame, name: str, simulated: bool = False) -> Figure:
    """Losses, collapse monitors and schedules against the step; the TTR phase is shaded.

    Parameters
    ----------
    metrics : one row per logged step; columns that are absent leave their panel out.
    name : the encoder's name.
    """
    metrics = _where_computed(metrics)
    known = [(title, [(key, label) for key, label in lines if key in metrics]) for title, lines in TRAINING_PANELS]
    panels = [(title, lines) for title, lines in known if lines]
    figure, axes = new_figure(10.5, 2.7 * -(-len(panels) // 3) + 0.3, -(-len(panels) // 3), 3, simulated)
    phase = metrics.loc[metrics["ttr_weight"] > 0, "step"] if "ttr_weight" in metrics else pd.Series(dtype=float)
    window = max(1, len(metrics) // 50)
    for axis, (title, lines) in zip(axes.flat, panels, strict=False):
        if len(phase):
            axis.axvspan(phase.min(), phase.max(), color="#fff0c2", zorder=0, label="TTR phase")
        for number, (key, label) in enumerate(lines):
            known_steps = metrics[["step", key]].dropna()
            smooth = known_steps[key].astype(float).rolling(window, center=True, min_periods=1).mean()
            if window > 1:
                axis.plot(known_steps["step"], known_steps[key], color=f"C{number}", alpha=0.2, linewidth=0.7)
            axis.plot(known_steps["step"], smooth, color=f"C{number}", linewidth=1.4, label=label)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel(title, fontsize=8)
        axis.tick_params(labelsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    axes.flat[0].set_title(name, fontsize=9, loc="left")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    return figure


def _where_computed(metrics: pd.DataFrame) -> pd.DataFrame:
    """Losses only of the steps that compute them: TTR while it has weight, tokens in masked steps."""
    metrics = metrics.copy()
    for loss, switch in (("ttr_loss", "ttr_weight"), ("token_loss", "masked")):
        if loss in metrics and switch in metrics:
            metrics[loss] = metrics[loss].where(metrics[switch].astype(float) > 0)
    return metrics


def mean_connectivity(shards: Sequence[Path]) -> npt.NDArray[np.float64]:
    """Mean Pearson correlation [ROI, ROI] over recordings, averaged as Fisher z; NaN where no recording has data."""
    total: npt.NDArray[np.float64] | None = None
    count: npt.NDArray[np.float64] | None = None
    for recording in read_recordings(shards):
        matrix = correlation(recording.bold, recording.valid).astype(np.float64)
        np.fill_diagonal(matrix, np.nan)
        z = np.arctanh(np.clip(matrix, -1 + 1e-6, 1 - 1e-6))
        known = ~np.isnan(z)
        if total is None or count is None:
            total, count = np.zeros_like(z), np.zeros_like(z)
        total[known] += z[known]
        count += known
    if total is None or count is None:
        raise UserError(f"{', '.join(map(str, shards))}: expected kept recordings, found none; see the qc report")
    mean: npt.NDArray[np.float64] = np.tanh(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))
    return mean


def connectivity(matrix: npt.NDArray[np.float64], networks: Sequence[str], simulated: bool = False) -> Figure:
    """Connectivity matrix with the ROIs ordered by network, networks in the order of their first ROI."""
    names = list(dict.fromkeys(networks))
    order = np.argsort([names.index(name) for name in networks], kind="stable")
    sizes = [sum(name == other for other in networks) for name in names]
    edges = np.cumsum([0, *sizes])
    figure, axes = new_figure(7.2, 6.4, 1, 1, simulated)
    axis = axes[0, 0]
    limit = max(0.1, float(np.nanquantile(np.abs(matrix), 0.99)))
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="#dddddd")
    image = axis.imshow(matrix[np.ix_(order, order)], cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
    for edge in edges[1:-1]:
        axis.axhline(edge - 0.5, color="black", linewidth=0.6)
        axis.axvline(edge - 0.5, color="black", linewidth=0.6)
    middle = (edges[:-1] + edges[1:]) / 2 - 0.5
    axis.set_xticks(middle, names, rotation=90, fontsize=8)
    axis.set_yticks(middle, names, fontsize=8)
    axis.set_xlabel("ROI, by network")
    axis.set_ylabel("ROI, by network")
    figure.colorbar(image, ax=axis, shrink=0.8, label="mean Pearson correlation (grey: no data)")
    return figure


def read_scores(path: Path) -> pd.DataFrame:
    """A table of the stage tables, numbers converted."""
    table = read_text_table(path)
    for column in ("mean", "ci_low", "ci_high", "transductive", "published"):
        table[column] = pd.to_numeric(table[column])
    table["primary"] = table["primary"] == "True"
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: the figures of the given inputs."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.figures", description=__doc__)
    parser.add_argument("--settings", default={}, type=json.loads, help="simulated")
    parser.add_argument("--tables", nargs="+", default=[], type=Path, help="<cohort>.tsv of the stage tables")
    parser.add_argument("--metrics", nargs="+", default=[], type=Path, help="<encoder>/metrics.jsonl of pretrain")
    parser.add_argument("--shards", nargs="+", default=[], type=Path, help="shards of one cohort")
    parser.add_argument("--output-folder", required=True, type=Path, help="folder of the figures")
    arguments = parser.parse_args(argv)
    folder, simulated = arguments.output_folder, bool(arguments.settings.get("simulated"))
    for path in arguments.tables:
        for protocol, scores in read_scores(path).groupby("protocol"):
            save(forest(scores, simulated), folder / f"{path.stem}_probes_{protocol}.png")
    for path in arguments.metrics:
        metrics = read_metrics(path)
        if metrics.empty:
            print(f"{path}: no training steps, so no figure")
            continue
        save(training(metrics, path.parent.name, simulated), folder / f"{path.parent.name}_training.png")
    if arguments.shards:
        networks = read_metadata(arguments.shards[0])["networks"]
        cohort = read_table(arguments.shards[0], ["cohort"])["cohort"].iloc[0]
        figure = connectivity(mean_connectivity(arguments.shards), networks, simulated)
        save(figure, folder / f"{cohort}_connectivity.png")


if __name__ == "__main__":
    run_command(main)
