"""One static page about everything that was run: opens without a server, holds no individual's data."""

from __future__ import annotations

import argparse
import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from semantoks.errors import UserError, run_command
from semantoks.files import read_json, read_metadata, read_text_table, write_text
from semantoks.rendering import Block, body_of, html_page, to_html

WARNING = "SIMULATED DATA: everything on this page describes a simulator, not people."
CAPTIONS = {
    "_probes_random": "Primary metric of every row under repeated random splits. Lines are bootstrap intervals over "
    "participants, given the trained models; the dotted line is the majority row.",
    "_probes_leave-site-out": "Primary metric of every row when each site in turn is left out. Lines are bootstrap "
    "intervals over sites and participants.",
    "_training": "Pretraining: losses, collapse monitors and schedules per step; the shaded steps are the TTR phase.",
    "_connectivity": "Mean functional connectivity of the kept recordings, ROIs ordered by network.",
}


def image(path: Path) -> str:
    """A PNG written into the page, with its caption.

    Raises
    ------
    UserError
        When the file is missing or no PNG.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a figure (PNG), found no file; run figures")
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG"):
        raise UserError(f"{path}: expected a PNG, found something else")
    caption = next((text for end, text in CAPTIONS.items() if path.stem.endswith(end)), "")
    name = html.escape(path.stem.replace("_", " "))
    data = base64.b64encode(content).decode()
    return (
        f'<figure><img alt="{name}" src="data:image/png;base64,{data}">'
        f"<figcaption><b>{name}.</b> {html.escape(caption)}</figcaption></figure>\n"
    )


def cohort_flow(cohort: str, summary: Mapping[str, Any], exclusions: pd.DataFrame) -> Block:
    """How many recordings and participants entered, were left out for which reason, and were kept.

    Parameters
    ----------
    summary : ``summary.json`` of the stage qc.
    exclusions : ``exclusions.tsv``: one row per recording; only counts of it are shown.
    """
    step = exclusions["exclude_reason"].dropna().str.split(";").str[0].str.replace(r"\d[\d.]*", "…", regex=True)
    rows = [["recordings found", str(summary["recordings"]), str(summary["participants"])]]
    rows += [[f"left out: {reason}", str(count), ""] for reason, count in step.value_counts().sort_index().items()]
    rows.append(["kept", str(summary["recordings_kept"]), str(summary["participants_kept"])])
    return Block(f"Cohort {cohort}: who entered", ["", "recordings", "participants"], rows)


def split_flow(path: Path) -> Block:
    """How many participants each phenotype has, from the splits' own file."""
    about = read_metadata(path)
    unmatched = about["unmatched"]
    table = pd.read_parquet(path, columns=["cohort", "participant_id", "phenotype", "protocol", "repetition", "fold"])
    rows = []
    for key, part in table.groupby(["phenotype", "protocol"]):
        phenotype, protocol = map(str, key)
        count = part["participant_id"].nunique()
        splits = part[["repetition", "fold"]].drop_duplicates()
        rows.append([phenotype, protocol, str(count), str(len(splits)), about["checksums"][phenotype][protocol][:12]])
    notes = [
        f"{about['n_participants']} participants have a recording and a row in the participants table; "
        f"{len(unmatched['recording_only'])} only a recording, {len(unmatched['table_only'])} only a row."
    ]
    header = ["phenotype", "protocol", "participants", "splits", "checksum"]
    return Block(f"Cohort {table['cohort'].iloc[0]}: splits", header, rows, notes)


def versions(paths: Sequence[Path]) -> Block:
    """Versions of this workflow and its libraries that made the given files."""
    found: dict[str, set[str]] = {}
    for path in paths:
        for name, version in read_metadata(path)["versions"].items():
            found.setdefault(name, set()).add(version)
    rows = [[name, ", ".join(sorted(values))] for name, values in sorted(found.items())]
    return Block("Versions", ["library", "version"], rows, level=2)


def encoder_settings(path: Path) -> dict[str, Any]:
    """An encoder's settings; of whom it was pretrained on only the number."""
    settings = dict(read_json(path))
    seen = settings.pop("pretrain_recordings", None) or []
    return settings | {"pretrained_on_participants": len({tuple(recording) for recording in seen})}


def settings_text(title: str, value: Any) -> str:
    """Settings, folded, as JSON."""
    text = html.escape(json.dumps(value, indent=2, sort_keys=True))
    return f"<details><summary>{html.escape(title)}</summary><pre>{text}</pre></details>\n"


def build(arguments: argparse.Namespace) -> str:
    """The whole page."""
    parts = ["<h1>Report</h1>"]
    if arguments.settings.get("simulated"):
        parts.append(f'<p class="warning">{WARNING}</p>')
    parts.append("<h1>Cohorts</h1>")
    for folder in arguments.qc:
        cohort = folder.resolve().parent.name
        exclusions = read_text_table(folder / "exclusions.tsv")
        parts.append(to_html([cohort_flow(cohort, read_json(folder / "summary.json"), exclusions)]))
    parts.append(to_html([split_flow(path) for path in arguments.splits]))
    for path in arguments.tables:
        if not path.is_file():
            raise UserError(f"{path}: expected a page of the stage tables, found no file; run tables")
        parts.append(f"<h1>Results: {html.escape(path.stem)}</h1>")
        parts.append(body_of(path.read_text(encoding="utf-8")))
    parts.append("<h1>Figures</h1>")
    parts += [image(path) for path in arguments.figures]
    parts.append("<h1>Settings and versions</h1>")
    parts += [settings_text(f"Encoder {path.parent.name}", encoder_settings(path)) for path in arguments.encoders]
    parts += [
        settings_text(f"Probes of {path.parent.name}", read_metadata(path)["settings"]) for path in arguments.splits
    ]
    parts.append(to_html([versions(arguments.splits)]))
    return html_page("Report", "\n".join(parts))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: write the page."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.report", description=__doc__)
    parser.add_argument("--settings", default={}, type=json.loads, help="simulated")
    parser.add_argument("--qc", nargs="+", default=[], type=Path, help="qc folders of the cohorts")
    parser.add_argument("--splits", nargs="+", default=[], type=Path, help="splits.parquet of the cohorts")
    parser.add_argument("--tables", nargs="+", default=[], type=Path, help="<cohort>.html of the stage tables")
    parser.add_argument("--figures", nargs="+", default=[], type=Path, help="figures (PNG), in this order")
    parser.add_argument("--encoders", nargs="+", default=[], type=Path, help="config.json of the encoders")
    parser.add_argument("--output", required=True, type=Path, help="report.html")
    arguments = parser.parse_args(argv)
    write_text(arguments.output, build(arguments))


if __name__ == "__main__":
    run_command(main)
