"""Stage ``report``: one static HTML page with everything a reader of the results needs, opened without a server.

``--settings JSON --results FOLDER --files FILE… --output FILE`` writes the page; ``--where FOLDER`` tells where page
and tables lie. The page holds counts and summaries only: no participant, no recording, no path with their names.
Figures of single recordings are on it when they are among the files.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from semantoks import __version__
from semantoks import report_content as content
from semantoks.errors import UserError, run_command
from semantoks.files import read_json, read_metadata, read_text_table, write_text
from semantoks.report_content import REPORT, Inputs
from semantoks.report_methods import atlas_citations, methods
from semantoks.row_kinds import row_place

TASKS_ON_TERMINAL = 3
PROBE_FIGURES = ("probes", "sites", "confusion", "learning_curve")


def page(settings: Mapping[str, Any], inputs: Inputs) -> str:
    """The page as text.

    Parameters
    ----------
    settings : ``simulated`` and ``individuals`` (bool; whether single recordings are shown), and ``cohorts``: what the
        cohort files say, by name.
    inputs : the files to report on; a kind that is absent is named as absent.
    """
    figures = content.load_figures([*inputs.matching("*/qc/*.png"), *inputs.matching("figures/*.png")])
    encoders = content.encoder_groups(inputs.matching("pretrain/*/config.json"))
    metadata = [
        (path.relative_to(inputs.results).parts[0], read_metadata(path)) for path in inputs.matching("*.parquet")
    ]
    metadata += [("pretrain", group["config"]["made_by"]) for group in encoders]
    atlas = content.atlas_section(inputs)
    environment = Environment(
        loader=FileSystemLoader(REPORT),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["flat"] = content.flat
    return environment.get_template("page.html.jinja").render(
        version=__version__,
        simulated=settings["simulated"],
        individuals=settings["individuals"],
        cohorts=[content.cohort_section(name, said, inputs) for name, said in settings["cohorts"].items()],
        atlas=atlas,
        atlas_citations=atlas_citations(atlas["name"]) if atlas else [],
        encoders=encoders,
        training=content.training_rows(inputs.matching("pretrain/*/metrics.jsonl")),
        tables=content.table_bodies(inputs.matching("tables/*.html")),
        quality_figures=[one for one in figures if one.kind.startswith("qc_")],
        training_figures=[one for one in figures if one.kind in ("training", "learned")],
        probe_figures=[one for one in figures if one.kind in (*PROBE_FIGURES, "")],
        near_identical=content.near_identical(inputs, settings["individuals"]),
        methods=methods(metadata, settings["cohorts"], inputs),
        origins=content.origins(metadata),
        costs=content.cost_rows(inputs.one("cost.tsv")),
    )


def main_rows(path: Path) -> list[str]:
    """The rows of a cohort's main table as lines for a terminal: primary metric, the published protocol first.

    Phenotypes whose names end in a number come last, and what is too wide is counted.
    """
    scores = read_text_table(path)
    protocol = sorted(set(scores["protocol"]), key=lambda name: (name != "random", name))[0]
    main = scores[(scores["primary"] == "True") & (scores["protocol"] == protocol)]
    tasks = sorted(set(main["phenotype"]), key=lambda name: (bool(re.search(r"\d$", name)), name))
    shown, left = tasks[:TASKS_ON_TERMINAL], len(tasks) - TASKS_ON_TERMINAL
    metrics = main.drop_duplicates("phenotype").set_index("phenotype")["metric"]
    lines = [["", *(f"{task} ({metrics[task]})" for task in shown)]]
    for row in sorted(set(main["row"]), key=row_place):
        cells = main[main["row"] == row].set_index("phenotype")[["mean", "ci_low", "ci_high"]].astype(float)
        texts = ["{:.3f} [{:.3f}, {:.3f}]".format(*cells.loc[task]) if task in cells.index else "–" for task in shown]
        lines.append([row, *texts])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    more = f" (further phenotypes: {left}, in {path.with_suffix('.md')})" if left > 0 else ""
    return [f"{path.stem}, {protocol} splits: mean [interval]{more}", *(f"  {row}" for row in rows)]


def where(results: Path) -> str:
    """A few lines that say where page and tables lie, with the main table's rows.

    Raises
    ------
    UserError
        When there is no report in that folder.
    """
    report = results / "report.html"
    if not report.is_file():
        raise UserError(f"{report}: expected the report, found none; run snakemake (or give another results folder)")
    every = sorted((results / "tables").glob("*.tsv"))
    tables = [path for path in every if not path.stem.endswith(("_sites", "_confusion", "_learning_curve"))]
    lines = []
    for path in tables:
        lines += [*main_rows(path), ""]
    if any(read_json(path).get("simulated") for path in sorted(results.glob("*/qc/summary.json"))):
        lines.append("SIMULATED DATA: these numbers describe a simulator, not people.")
    lines += [f"tables  {path.with_suffix('')}.{{html,md,tsv,tex}}" for path in tables]
    lines += ["tables  none: no cohort with phenotypes was probed"] if not tables else []
    return "\n".join([*lines, f"report  {report}"])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.report", description=__doc__)
    parser.add_argument("--settings", type=json.loads, help="simulated, and what the cohort files say, as JSON")
    parser.add_argument("--results", type=Path, help="results folder of the files")
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="files of the results folder to report on")
    parser.add_argument("--output", type=Path, help="the page")
    parser.add_argument("--where", type=Path, help="results folder: only tell where its report and tables lie")
    arguments = parser.parse_args(argv)
    if arguments.where:
        print(where(arguments.where))
        return
    if not (arguments.settings and arguments.results and arguments.output):
        parser.error("give --settings, --results and --output, or --where")
    write_text(arguments.output, page(arguments.settings, Inputs(arguments.results, arguments.files)))
    print(f"report: {arguments.output}")


if __name__ == "__main__":
    run_command(main)
