"""What the report says, gathered from the files of the stages: counts and summaries, never one person's data."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup

from semantoks.errors import UserError
from semantoks.files import read_json, read_metadata, read_table, read_text_table, sha256
from semantoks.qc_figures import STEP_TEXTS
from semantoks.rendering import body_of

REPORT = Path(__file__).resolve().parents[1] / "report"
"""Folder of the template and of the captions, which Snakemake's own report uses as well."""
STAGES = (
    *("index", "fmriprep", "atlas", "networks", "parcellate", "import_timeseries", "qc", "shards", "pretrain"),
    *("embed", "splits", "probe", "supervised", "tables", "figures"),
)
SHOWN_SETTINGS: dict[str, tuple[str, ...] | None] = {
    "parcellate": None,
    "import_timeseries": ("band_pass", "detrend"),
    "qc": None,
    "shards": None,
    "embed": None,
    "splits": ("probe",),
}
"""Settings on the page (None = all); what names participants or files of a cohort is not among them."""
KINDS = {
    "qc_flow": "Recordings that entered, were dropped and were kept",
    "qc_recordings": "Motion and minutes kept per site",
    "qc_parcels": "Coverage, temporal SNR and share of recordings with data per parcel",
    "qc_fc": "Mean functional connectivity, by network",
    "qc_qcfc": "Motion left in functional connectivity (QC–FC)",
    "qc_carpets": "Single recordings",
    "training": "Pretraining curves",
    "learned": "What the encoder has learned",
    "probes": "Probe results with intervals",
    "sites": "Results at each site",
    "confusion": "Confusion matrices",
    "learning_curve": "Learning curves",
}
"""Kinds of figures, in the order of the page; each has its caption in a file of that name."""
MOST_REASONS = 20
"""Reasons listed per cohort; the rest is counted together."""
MOST_PAIRS = 20
"""Near-identical pairs listed, the most similar; the rest is in the table of the results folder."""


@dataclass(frozen=True)
class Inputs:
    """The files of a report; the place of a file in the results folder says what it is (``results/README.md``)."""

    results: Path
    files: Sequence[Path]

    def __post_init__(self) -> None:
        for path in self.files:
            if not path.is_relative_to(self.results):
                raise UserError(f"{path}: expected a file in {self.results}, found it elsewhere; give --results")
            if not path.is_file():
                raise UserError(f"{path}: expected a file of the workflow, found none; run the stage that writes it")

    def matching(self, pattern: str) -> list[Path]:
        """Files at a place, e.g. ``*/qc/summary.json``, sorted."""
        return sorted(path for path in self.files if path.relative_to(self.results).match(pattern))

    def one(self, pattern: str) -> Path | None:
        """The file at a place, or None."""
        return next(iter(self.matching(pattern)), None)


@dataclass(frozen=True)
class PageFigure:
    """A picture inside the page: what it shows, of what, and the image itself as ``data:`` address."""

    kind: str
    subject: str
    title: str
    caption: str
    data: str


def figure_kind(path: Path) -> tuple[str, str] | None:
    """Kind and subject (cohort or encoder) of a PNG file; None when no such figure is known."""
    if path.parent.name == "qc":
        found = (f"qc_{path.stem}", path.parent.parent.name)
    else:
        parts = re.fullmatch(r"(.+)_(training|learned|probes|sites|confusion|learning_curve)(?:_(.+))?", path.stem)
        if parts is None:
            return None
        subject, kind, protocol = parts.groups()
        found = (kind, f"{subject}, {protocol} splits" if protocol else subject)
    return found if found[0] in KINDS else None


def load_figures(paths: Iterable[Path]) -> list[PageFigure]:
    """The pictures in the order of the page.

    Raises
    ------
    UserError
        When a file is no PNG.
    """
    figures = []
    for path in paths:
        image = path.read_bytes()
        if not image.startswith(b"\x89PNG"):
            raise UserError(f"{path}: expected a PNG image, found something else; make it again with its stage")
        data = "data:image/png;base64," + base64.b64encode(image).decode("ascii")
        kind, subject = figure_kind(path) or ("", path.stem)
        figures.append(PageFigure(kind, subject, KINDS.get(kind, path.stem), caption_of(kind, subject), data))
    order = [*KINDS, ""]
    return sorted(
        figures, key=lambda figure: (order.index(figure.kind), "random" not in figure.subject, figure.subject)
    )


def caption_of(kind: str, subject: str) -> str:
    """Caption of a kind of figures, from the file that Snakemake's own report uses as well."""
    if not kind:
        return ""
    name = subject.partition(",")[0]
    text = (REPORT / f"{kind}.rst").read_text(encoding="utf-8")
    return Environment().from_string(text).render(snakemake={"wildcards": {"cohort": name, "encoder": name}}).strip()


def general_reason(row: Mapping[str, Any] | pd.Series) -> str:
    """A reason for exclusion without what belongs to one recording: its names, files and numbers."""
    text = re.sub(r"\S*/\S*", "(file)", str(row["exclude_reason"]))
    text = re.sub(r"[\w.-]+\.(?:nii|tsv|csv|json|1D|h5|hdf5|npy|txt)(?:\.gz)?\b", "(file)", text)
    text = re.sub(r"\b(?:sub|ses)-[\w+-]*", "(name)", text)
    for name in ("recording_id", "participant_id", "session_id"):
        if isinstance(row[name], str):
            text = re.sub(rf"(?<!\w){re.escape(row[name])}(?!\w)", "(name)", text)
    return re.sub(r"\d+(?:\.\d+)?", "…", text)


def reasons_of(exclusions: pd.DataFrame) -> list[tuple[str, int]]:
    """How many recordings were excluded for each reason, the most frequent first."""
    excluded = exclusions[exclusions["exclude_reason"].notna()]
    counts = Counter(general_reason(row) for _, row in excluded.iterrows())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[MOST_REASONS:])
    return ranked[:MOST_REASONS] + ([("other reasons", rest)] if rest else [])


def sites_of(exclusions: pd.DataFrame) -> list[dict[str, Any]]:
    """Participants and recordings of each site that entered and were kept."""
    table = exclusions.assign(site=exclusions["site"].fillna("unknown"), kept=exclusions["exclude_reason"].isna())
    rows = []
    for name, part in table.groupby("site", sort=True):
        kept = part[part["kept"]]
        ids = "participant_id"
        rows.append(
            {
                "site": str(name),
                "participants": part[ids].nunique(),
                "participants_kept": kept[ids].nunique(),
                "recordings": len(part),
                "recordings_kept": len(kept),
            }
        )
    return rows


def cohort_section(name: str, described: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """What the page says about a cohort; without quality control there are no counts."""
    section: dict[str, Any] = {"name": name, "settings": described, "summary": None, "splits": None}
    section |= {"sites": [], "reasons": []}
    if summary := inputs.one(f"{name}/qc/summary.json"):
        section["summary"] = read_json(summary)
        section["dropped"] = [(STEP_TEXTS.get(step, step), n) for step, n in section["summary"]["dropped"].items()]
    if path := inputs.one(f"{name}/qc/exclusions.tsv"):
        exclusions = read_text_table(path)
        section |= {"sites": sites_of(exclusions), "reasons": reasons_of(exclusions)}
    if path := inputs.one(f"{name}/splits.parquet"):
        section["splits"] = splits_of(path)
    return section


def near_identical(inputs: Inputs, individuals: bool) -> dict[str, Any] | None:
    """Pairs of recordings that are near-identical by content: how many, how many across cohorts, and the most similar.

    Recordings are named only where single recordings may be shown (``individuals``).
    """
    path = inputs.one("near_identical.tsv")
    if path is None:
        return None
    pairs = read_text_table(path)
    within = pairs["cohort_a"] == pairs["cohort_b"]
    shown = pairs[["similarity", "cohort_a", "cohort_b"]].assign(
        one_participant=within & (pairs["participant_id_a"] == pairs["participant_id_b"]),
        recording_a=pairs["recording_id_a"] if individuals else None,
        recording_b=pairs["recording_id_b"] if individuals else None,
    )
    return {"pairs": len(pairs), "across": int((~within).sum()), "shown": shown[:MOST_PAIRS].to_dict("records")}


def splits_of(path: Path) -> dict[str, Any]:
    """Participants and splits of every phenotype and protocol, and how many participants stand in one table only."""
    about = read_metadata(path)
    table = read_table(path, ["cohort", "participant_id", "phenotype", "protocol", "repetition", "fold", "part"])
    if table["cohort"].nunique() > 1:
        # Models of another cohort: here are only those who are tested.
        table = table[table["part"] == "test"]
    rows = []
    for (phenotype, protocol), part in table.groupby(["phenotype", "protocol"], sort=True):
        rows.append(
            {
                "phenotype": phenotype,
                "protocol": protocol,
                "participants": part["participant_id"].nunique(),
                "splits": len(part[["repetition", "fold"]].drop_duplicates()),
                "checksum": about["checksums"][phenotype][protocol],
            }
        )
    unmatched = {kind: len(names) for kind, names in about["unmatched"].items()}
    not_scored = about.get("not_scored") or {"without_site": [], "phenotypes": {}}
    return {
        "rows": rows,
        "participants": about["n_participants"],
        "unmatched": unmatched,
        "left_out": len(about.get("left_out_as_fitted_on") or []),
        "without_site": len(not_scored["without_site"]),
        "not_scored": not_scored["phenotypes"],
    }


def network_rows(networks: pd.DataFrame) -> list[dict[str, Any]]:
    """Parcels per network with the least and the median share of a parcel that lies in its network."""
    shares = networks.assign(share=networks["share"].astype(float)).groupby("network", sort=False)["share"]
    return [
        {"network": name, "parcels": len(part), "least": part.min(), "median": part.median()} for name, part in shares
    ]


def encoder_groups(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Encoders by name, their seeds together; what was seen in pretraining as counts per cohort."""
    groups: dict[str, dict[str, Any]] = {}
    for path in paths:
        config = read_json(path)
        name = path.parent.name.rpartition("_seed-")[0]
        seen = Counter(str(cohort) for cohort, _ in config["pretrain_recordings"])
        group = groups.setdefault(name, {"name": name, "seeds": [], "seen": dict(seen), "config": config})
        group["seeds"].append(config["seed"])
    for group in groups.values():
        group["seeds"].sort()
    return sorted(groups.values(), key=lambda group: (group["config"]["kind"] == "random", group["name"]))


def training_rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Means over the first and the last tenth of the logged steps of every encoder that was trained."""
    rows = []
    for path in paths:
        metrics = pd.DataFrame(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        if metrics.empty:
            continue
        tenth = max(1, len(metrics) // 10)
        row: dict[str, Any] = {"encoder": path.parent.name, "steps": int(metrics["step"].max()) + 1}
        row["epochs"] = int(metrics["epoch"].max()) + 1
        for name in ("cls_loss", "coding_rate", "effective_rank"):
            row[name] = (metrics[name].head(tenth).mean(), metrics[name].tail(tenth).mean())
        rows.append(row)
    return rows


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as lines ``key.below`` → value; of a path its last part."""
    lines = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            lines += flat(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            lines.append((prefix + key, Path(value).name if "/" in value else value))
        else:
            lines.append((prefix + key, json.dumps(value, ensure_ascii=False)))
    return lines


def shown_settings(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings of a stage that belong on the page."""
    stage, settings = metadata["stage"], metadata["settings"]
    own_band = stage == "import_timeseries" and settings["cohort"]["already_done"]["band_pass"]
    if stage not in SHOWN_SETTINGS or own_band:  # a band that the cohort declares is not applied again
        return []
    keys = SHOWN_SETTINGS[stage] or tuple(settings)
    return flat({key: settings[key] for key in keys if key in settings})


def origins(metadata: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Versions, settings per stage and denoising strategies out of the metadata of files, each with its cohort."""
    versions: dict[str, set[str]] = {}
    settings: dict[tuple[str, str], dict[str, Any]] = {}
    strategies: dict[str, Mapping[str, Any]] = {}
    for cohort, one in metadata:
        for package, version in one["versions"].items():
            versions.setdefault(package, set()).add(version)
        if lines := shown_settings(one):
            new = {"stage": one["stage"], "cohorts": [], "files": 0, "of": lines}
            entry = settings.setdefault((one["stage"], str(lines)), new)
            entry["cohorts"] = sorted({*entry["cohorts"], cohort})
            entry["files"] += 1
        if strategy := one.get("strategy"):
            strategies[strategy["name"]] = strategy
    return {
        "versions": [(package, ", ".join(sorted(found))) for package, found in sorted(versions.items())],
        "settings": sorted(settings.values(), key=lambda entry: (STAGES.index(entry["stage"]), entry["cohorts"])),
        "strategies": [strategies[name] for name in sorted(strategies)],
    }


def cost_rows(path: Path | None) -> list[dict[str, Any]]:
    """Rows of the cost table by its columns (text and numbers), in the order of the data; empty without a table."""
    if path is None:
        return []
    order = {stage: place for place, stage in enumerate(STAGES)}
    table = pd.read_csv(path, sep="\t", keep_default_na=False)
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    return sorted(rows, key=lambda row: (order.get(row["stage"], len(order)), row["stage"], row["cohort"]))


def table_bodies(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The tables of every cohort as HTML.

    Raises
    ------
    UserError
        When a file has none of the text that the stage tables writes.
    """
    bodies = []
    for path in paths:
        body = body_of(path.read_text(encoding="utf-8"))
        if not body.strip():
            raise UserError(f"{path}: expected a page of the stage tables, found none of its text; make it again")
        # Written and escaped by the stage tables; everything else on the page is escaped by the template.
        bodies.append({"cohort": path.stem, "html": Markup(body)})
    return bodies


def atlas_section(inputs: Inputs) -> dict[str, Any] | None:
    """Name, space, checksums and networks of the parcellation."""
    path = inputs.one("atlas/atlas.json")
    if path is None:
        return None
    # An atlas of labels alone, for imported time series, has no voxels.
    section: dict[str, Any] = {"voxel_size": None, "networks": [], "networks_sha256": None, **read_json(path)}
    if networks := inputs.one("atlas/networks.tsv"):
        section |= {"networks": network_rows(read_text_table(networks)), "networks_sha256": sha256(networks)}
    return section
