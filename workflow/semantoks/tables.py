"""Model × task tables from the predictions of all rows, with intervals, paired tests and published numbers.

For each cohort: a TSV with every number, the same as Markdown, HTML and LaTeX to be read, the held-out sites' own
values, and a JSON file with what made them.
"""

from __future__ import annotations

import argparse
import html
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from semantoks.confusion import confusion_matrices
from semantoks.errors import UserError, run_command
from semantoks.files import (
    provenance,
    read_metadata,
    read_tables,
    read_text_table,
    replacing,
    write_json,
    write_text,
)
from semantoks.learning_curve import learning_curves
from semantoks.metrics import SMALLER_IS_BETTER
from semantoks.protocols import LEARNING_CURVE
from semantoks.rendering import Block, html_page, to_html, to_latex, to_markdown
from semantoks.row_kinds import row_place
from semantoks.scores import score_tables
from semantoks.table_notes import METRIC_NAMES, SIMULATED, footnotes

TASKS_PER_TABLE = 5


def number(value: float, digits: int = 3) -> str:
    """A number for a cell; – where there is none."""
    return "–" if value is None or np.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def p_value(record: Mapping[str, Any], column: str, untested: str) -> str:
    """A p value for a cell; n/a where the test was undefined."""
    if isinstance(record[untested], str):
        return "n/a"
    return "< 0.001" if record[column] < 0.001 else number(record[column])


def marks(record: Mapping[str, Any], alpha: float) -> str:
    """↑ ↓: better or worse than the reference row; °: not better than the majority row (both Holm); ?: not tested."""
    text = ""
    if record["p_adjusted"] < alpha:
        better = (record["difference"] > 0) != (record["metric"] in SMALLER_IS_BETTER)
        text += "↑" if better else "↓"
    if record["p_majority_adjusted"] >= alpha:
        text += "°"
    if any(isinstance(record[name], str) for name in ("untested", "untested_majority")):
        text += "?"
    return f" {text}" if text else ""


def cell(record: Mapping[str, Any], alpha: float) -> str:
    """Mean ± sd over repetitions, interval and marks."""
    spread = "" if np.isnan(record["sd"]) else f" ± {number(record['sd'])}"
    limits = f" [{number(record['ci_low'])}, {number(record['ci_high'])}]"
    return number(record["mean"]) + spread + limits + marks(record, alpha)


def label(record: Mapping[str, Any] | pd.Series) -> str:
    """Name of a row, with what a reader must know about it."""
    seeds = f", mean of {record['seeds']} seeds" if record["seeds"] > 1 else ""
    seen = ", transductive" if record["transductive"] > 0 else ""
    seen = ", pretraining unknown" if np.isnan(record["transductive"]) else seen
    return str(record["row"]) + (f" ({(seeds + seen)[2:]})" if seeds or seen else "")


def main_blocks(scores: pd.DataFrame, published: pd.DataFrame, settings: Mapping[str, Any]) -> list[Block]:
    """One table per protocol: rows × tasks in the primary metric, published numbers below."""
    blocks = []
    for protocol in _protocols(scores):
        part = scores[scores["primary"] & (scores["protocol"] == protocol)]
        tasks = list(dict.fromkeys(part["phenotype"]))
        if len(tasks) > TASKS_PER_TABLE:
            blocks.append(Block(f"{protocol} splits", level=1))
        for start in range(0, len(tasks), TASKS_PER_TABLE):
            chosen = tasks[start : start + TASKS_PER_TABLE]
            own = part[part["phenotype"].isin(chosen)]
            by_task = {task: own[own["phenotype"] == task].set_index("row") for task in chosen}
            header = ["model", *(f"{task}, {METRIC_NAMES[by_task[task]['metric'].iloc[0]]}" for task in chosen)]
            rows = []
            for row in sorted(set(own["row"]), key=row_place):
                records = own[own["row"] == row]
                cells = [
                    cell(by_task[task].loc[row], settings["alpha"]) if row in by_task[task].index else "–"
                    for task in chosen
                ]
                seen = records["transductive"].max(skipna=False)
                rows.append([label({**records.iloc[0], "transductive": seen}), *cells])
            rows += _size_rows(by_task)
            rows += _published_rows(by_task, published) if protocol == "random" else []
            whole = len(tasks) <= TASKS_PER_TABLE
            title = f"{protocol} splits" + ("" if whole else f": {', '.join(chosen)}")
            blocks.append(Block(title, header, rows, level=1 if whole else 2))
    return blocks


def _protocols(scores: pd.DataFrame) -> list[str]:
    """The protocols of the table, the published one first."""
    return sorted(set(scores["protocol"]), key=lambda name: (name != "random", name))


def _size_rows(by_task: Mapping[str, pd.DataFrame]) -> list[list[str]]:
    """Participants fitted on and tested: one row of the table, or several where the models' rows differ."""
    found: list[tuple[list[str], dict[str, str]]] = []
    every = sorted({row for records in by_task.values() for row in records.index}, key=row_place)
    for row in every:
        sizes = {task: _sizes(records.loc[row]) for task, records in by_task.items() if row in records.index}
        for rows, known in found:
            if all(known.get(task, size) == size for task, size in sizes.items()):
                rows.append(row)
                known.update(sizes)
                break
        else:
            found.append(([row], sizes))
    found.sort(key=lambda one: -len(one[0]))
    cells = [[known.get(task, "–") for task in by_task] for _, known in found]
    of = ["" if len(found) == 1 else ": other rows", *(f": {', '.join(rows)}" for rows, _ in found[1:])]
    return [[f"n fitted + tested (tested at all){which}", *line] for which, line in zip(of, cells, strict=True)]


def _sizes(record: Mapping[str, Any]) -> str:
    return f"{record['n_train']:.0f} + {record['n_test']:.0f} ({record['n']})"


def _published_rows(by_task: Mapping[str, pd.DataFrame], published: pd.DataFrame) -> list[list[str]]:
    """Published numbers of tasks that have some, in the primary metric."""
    found: dict[str, dict[str, str]] = {}
    for task, records in by_task.items():
        first = records.iloc[0]
        same = published[(published["task"] == first["published_task"]) & (published["metric"] == first["metric"])]
        for _, line in same.iterrows():
            study = line["study"].split(",")[0]
            found.setdefault(f"published: {line['model']} ({study})", {})[task] = number(float(line["value"]))
    return [[model, *(values.get(task, "–") for task in by_task)] for model, values in found.items()]


def detail_blocks(scores: pd.DataFrame, settings: Mapping[str, Any]) -> list[Block]:
    """One table per protocol and task: all metrics, tests and published value of every row."""
    blocks = [Block("All metrics and tests", level=1)]
    for protocol, task in itertools.product(_protocols(scores), sorted(set(scores["phenotype"]))):
        part = scores[(scores["protocol"] == protocol) & (scores["phenotype"] == task)]
        metrics = list(dict.fromkeys(part["metric"]))
        rows = []
        for _, records in part.groupby("row", sort=False):
            by_metric = records.set_index("metric")
            primary = records[records["primary"]].iloc[0]
            values = [
                number(by_metric.loc[name, "mean"]) + _spread(by_metric.loc[name, "sd"], "±")
                if name in by_metric.index
                else "–"
                for name in metrics
            ]
            sizes = [f"{primary['repetitions']}", f"{primary['n_train']:.0f}", f"{primary['n_test']:.0f}"]
            tests = [number(primary["difference"])]
            tests += [p_value(primary, name, "untested") for name in ("p", "p_adjusted")]
            tests.append(p_value(primary, "p_majority_adjusted", "untested_majority"))
            published = number(primary["published"])
            rows.append([label(primary), *sizes, *values, number(primary["sd_seeds"]), *tests, published])
        header = ["model", "k", "n fitted", "n tested", *(METRIC_NAMES[name] for name in metrics), "sd of seeds"]
        header += ["difference", "p", "p (Holm)", "p majority (Holm)", "published"]
        note = f"difference and p: {METRIC_NAMES[part.loc[part['primary'], 'metric'].iloc[0]]} less that of the "
        note += f"reference row {settings['reference'][part['type'].iloc[0]]}; those of other metrics are in the TSV, "
        note += "unadjusted. k: repetitions; n per split."
        blocks.append(Block(f"{protocol} splits: {task}", header, rows, [note], level=3))
    return blocks


def _spread(value: float, sign: str) -> str:
    return "" if np.isnan(value) else f" {sign} {number(value)}"


def add_published(
    scores: pd.DataFrame,
    described: Mapping[str, Any],
    tasks: Mapping[str, str],
    published: pd.DataFrame,
    models: Mapping[str, str],
) -> pd.DataFrame:
    """Add each phenotype's type and published task, and the published value of the model that a row stands for.

    Parameters
    ----------
    scores : of :func:`score_tables`.
    described : what the probe files say about each phenotype.
    tasks : published task of the phenotypes that have one.
    published : ``resources/published.tsv``.
    models : published model of the rows that have one (``tables.published``).

    Raises
    ------
    UserError
        When a task has no published numbers.
    """
    scores = scores.copy()
    scores["type"] = [described[name]["type"] for name in scores["phenotype"]]
    scores["negative_control"] = [bool(described[name].get("negative_control")) for name in scores["phenotype"]]
    scores["published_task"] = [tasks.get(name) for name in scores["phenotype"]]
    values = {(line["task"], line["model"], line["metric"]): float(line["value"]) for _, line in published.iterrows()}
    unknown = sorted(set(scores["published_task"].dropna()) - set(published["task"]))
    if unknown:
        raise UserError(
            f"phenotypes: no published task is called {unknown}; the tasks are {sorted(set(published['task']))}"
        )
    scores["published"] = [
        values.get((record["published_task"], models.get(record["row"]), record["metric"]), np.nan)
        if record["protocol"] == "random"
        else np.nan
        for _, record in scores.iterrows()
    ]
    return scores


def write_cohort(
    folder: Path,
    cohort: str,
    scores: pd.DataFrame,
    further: Mapping[str, pd.DataFrame],
    published: pd.DataFrame,
    about: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Write all formats of one cohort's tables; ``further`` ones are files of their own, by the end of their name."""
    notes = footnotes(cohort, about, scores, settings, published)
    tables = [*main_blocks(scores, published, settings), Block("What the numbers are", notes=notes, level=1)]
    tables += detail_blocks(scores, settings)
    title = f"{cohort}: probe results" + (f" — {SIMULATED}" if settings.get("simulated") else "")
    warning = f'<p class="warning">{SIMULATED}</p>' if settings.get("simulated") else ""
    for name, table in {cohort: scores, **{f"{cohort}_{end}": table for end, table in further.items()}}.items():
        with replacing(folder / f"{name}.tsv") as path:
            table.to_csv(path, sep="\t", index=False, na_rep="n/a", float_format="%.6g")
    write_text(folder / f"{cohort}.md", f"# {title}\n\n" + to_markdown(tables))
    write_text(folder / f"{cohort}.html", html_page(title, f"<h1>{html.escape(title)}</h1>" + warning, to_html(tables)))
    write_text(folder / f"{cohort}.tex", to_latex(tables))
    write_json(folder / f"{cohort}.json", {**about, "notes": notes})


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: tables of all cohorts that the probe files hold."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.tables", description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads, help="section tables, simulated, published_tasks")
    parser.add_argument("--probes", required=True, nargs="+", help="predictions of all rows")
    parser.add_argument("--permutations", nargs="*", default=[], help="metrics of the rows under permuted labels")
    parser.add_argument("--published", required=True, help="resources/published.tsv")
    parser.add_argument("--output-folder", required=True, type=Path, help="folder of the tables")
    arguments = parser.parse_args(argv)
    settings = arguments.settings
    published = read_text_table(arguments.published)
    predictions = read_tables(arguments.probes)
    metadata = {path: read_metadata(path) for path in arguments.probes}
    permuted = read_tables(arguments.permutations) if arguments.permutations else None
    for cohort, part in predictions.groupby("cohort", sort=True):
        own = [path for path in arguments.probes if metadata[path]["cohort"] == cohort]
        described = metadata[own[0]]["phenotypes"]
        kinds = {name: value["type"] for name, value in described.items()}
        scores, sites = score_tables(part, kinds, settings, permuted)
        scores = add_published(
            scores, described, settings["published_tasks"].get(cohort, {}), published, settings["published"]
        )
        tables = {
            "sites": sites,
            "confusion": confusion_matrices(
                part[part["protocol"] != LEARNING_CURVE], {name: one["classes"] for name, one in described.items()}
            ),
            "learning_curve": learning_curves(part, kinds, settings),
        }
        left_out = {name for path in own for name in metadata[path].get("confounds", {}).get("left_out", [])}
        further = {
            "fitted_on": metadata[own[0]].get("fitted_on"),
            "unit": "session" if part["session_id"].notna().any() else "participant",
            "confounds_left_out": sorted(left_out),
            "not_scored": next((found for path in own if (found := metadata[path].get("not_scored"))), None),
        }
        about = provenance(
            "tables", settings | {"probe": metadata[own[0]]["splits"]}, [*own, arguments.published], **further
        )
        write_cohort(arguments.output_folder, str(cohort), scores, tables, published, about, settings)


if __name__ == "__main__":
    run_command(main)
