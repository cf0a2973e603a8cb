"""A methods text made from the settings that the files of the results say were really used."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from semantoks.files import read_json, read_text_table
from semantoks.report_content import Inputs

ATLAS_CITATIONS = Path(__file__).resolve().parents[2] / "resources" / "atlas_citations.tsv"
_FILTER = "Butterworth, order 5, both directions"
_SOURCES = {
    "bids": "were preprocessed with fMRIPrep {versions} (Esteban et al. 2019)",
    "fmriprep": "came as derivatives of fMRIPrep {versions} (Esteban et al. 2019)",
    "hdf5": "came as time series extracted elsewhere",
    "files": "came as time series extracted elsewhere",
}


def methods(
    metadata: Iterable[tuple[str, Mapping[str, Any]]], cohorts: Mapping[str, Mapping[str, Any]], inputs: Inputs
) -> list[str]:
    """Paragraphs on preprocessing, parcellation, denoising, inclusion and resampling; settings that differ apart.

    Parameters
    ----------
    metadata : cohort and metadata of every Parquet file.
    cohorts : what the cohort files say, by name.
    inputs : files of the report, for the counts and the atlas.
    """
    found = list(metadata)
    versions: dict[str, set[str | None]] = {name: set() for name in cohorts}
    for cohort, one in found:
        versions.setdefault(cohort, set()).update(one.get("fmriprep_versions", []))
    paragraphs = [_cohort(name, said, versions[name], inputs) for name, said in cohorts.items()]
    if atlas := _atlas(inputs):
        paragraphs.append(atlas)
    writers = {"parcellate": _parcellate, "import_timeseries": _imported, "qc": _inclusion, "shards": _resampling}
    for stage, write in writers.items():
        of_stage = [(cohort, one) for cohort, one in found if one["stage"] == stage]
        texts: dict[str, list[str]] = {}
        for cohort, one in of_stage:
            names = texts.setdefault(write(one), [])
            names += [cohort] if cohort not in names else []
        for text, names in texts.items():
            where = f"{' and '.join(sorted(names))}: " if len(texts) > 1 else ""
            paragraphs.append(where + text)
    return [paragraph for paragraph in paragraphs if paragraph]


def _cohort(name: str, said: Mapping[str, Any], versions: Collection[str | None], inputs: Inputs) -> str:
    tasks = said.get("tasks")
    source = _SOURCES[said["source"]].format(versions=_versions(versions))
    text = f"Recordings of the cohort {name}{' (' + ', '.join(tasks) + ')' if tasks else ''} {source}"
    if done := said.get("already_done"):
        band = _band(done.get("band_pass"))
        steps = [f"filtering {band}"] if band else []
        steps += ["global signal regression"] if done.get("global_signal_regression") else []
        steps += ["z-scoring"] if done.get("z_score") else []
        text += f", after {_listed(steps)}" if steps else ""
    path = inputs.one(f"{name}/qc/summary.json")
    if path is None:
        return text + "."
    counts = read_json(path)
    return (
        f"{text}. Of {counts['recordings']} recordings of {counts['participants']} participants, "
        f"{counts['recordings_kept']} recordings of {counts['participants_kept']} participants were kept."
    )


def _versions(found: Collection[str | None]) -> str:
    """Versions of fMRIPrep, to follow its name; None is one that nothing tells."""
    known = sorted(version for version in found if version)
    if not known:
        return "of unknown version"
    return _listed(known + ["another version that is unknown"] * (None in found))


def _atlas(inputs: Inputs) -> str | None:
    path, networks = inputs.one("atlas/atlas.json"), inputs.one("atlas/networks.tsv")
    if path is None:
        return None
    atlas = read_json(path)
    cited = in_text(atlas_citations(atlas["name"]))
    text = f"The brain was divided by the atlas {atlas['name']}{cited} in the space {atlas['space']}"
    if networks is not None:
        table = read_text_table(networks)
        text += f" into {len(table)} parcels in {table['network'].nunique()} networks"
    return f"{text}; {atlas['note']}." if atlas.get("note") else text + "."


def _parcellate(one: Mapping[str, Any]) -> str:
    settings, strategy = one["settings"], one.get("strategy") or {"name": "", "description": ""}
    text = "Volumes at the start of a run that fMRIPrep had marked as not in steady state were dropped. "
    text += "The signal of a parcel was the mean over its voxels inside the brain mask that vary and are always finite"
    if "minimum_coverage" in settings:
        text += f"; parcels covered less than {settings['minimum_coverage']:.0%} were taken as missing"
    cited = in_text(strategy.get("citations", []))
    text += f". Denoising ({strategy['name']}): {strategy['description'].rstrip('. ')}{cited}. "
    regressed = strategy.get("regresses", True)
    steps = ["linear trends were removed"] if settings.get("detrend") else []
    if band := _band(settings.get("band_pass")):
        what = "signals and confounds were filtered alike" if regressed else "signals were filtered"
        steps.append(f"{what} {band} ({_FILTER})")
    steps += ["confounds were regressed with weights estimated on the volumes kept"] if regressed else []
    if steps:
        done = _listed(steps)
        kept, how = (" on the volumes kept", " without extrapolation") if strategy.get("censors") else ("", "")
        text += f"{done[0].upper()}{done[1:]}, equal{kept} to nilearn's signal.clean{how} (Abraham et al. 2014). "
    if "minimum_degrees_of_freedom" in settings:
        least = settings["minimum_degrees_of_freedom"]
        text += f"Recordings with fewer than {least:g} degrees of freedom left were excluded."
    return text.rstrip()


def _imported(one: Mapping[str, Any]) -> str:
    settings = one["settings"]
    trends = "Linear trends were removed from the imported time series" if settings.get("detrend", True) else ""
    done = settings.get("cohort", {}).get("already_done", {}).get("band_pass")
    band = None if done else _band(settings.get("band_pass"))
    if band:
        what = f"{trends}, which were then" if trends else "The imported time series were"
        return f"{what} filtered {band} ({_FILTER})."
    return f"{trends}." if trends else ""


def _inclusion(one: Mapping[str, Any]) -> str:
    settings = one["settings"]
    limits = {
        "minimum_seconds": "they were shorter than {:g} s",
        "minimum_valid_rois": "fewer than {:.0%} of the parcels had data",
        "minimum_median_coverage": "the median parcel was covered less than {:.0%}",
        "maximum_mean_fd": "mean framewise displacement exceeded {:g} mm (Power et al. 2012)",
        "minimum_minutes_kept": "censoring left less than {:g} min",
        "maximum_share_censored": "more than {:.0%} of the volumes were censored",
        "maximum_gap": "a censored gap was longer than {:g} s",
    }
    texts = [text.format(settings[key]) for key, text in limits.items() if settings.get(key) is not None]
    return f"Recordings were excluded when {_listed(texts, 'or')}." if texts else ""


def _resampling(one: Mapping[str, Any]) -> str:
    if "tr" not in one["settings"]:
        return ""
    tr = one["settings"]["tr"]
    return f"Time series were resampled to {tr:g} s with an anti-aliasing filter and z-scored per parcel."


def atlas_citations(name: str) -> list[str]:
    """What to cite for an atlas whose name contains one of the words we know, in full."""
    known = read_text_table(ATLAS_CITATIONS)
    return [text for word, text in zip(known["word"], known["citation"], strict=True) if word in name.lower()]


def in_text(citations: Sequence[str]) -> str:
    """References as they stand in a sentence, e.g. `` (Friston et al. 1996; Murphy and Fox 2017)``.

    One that is not written as ``Surname, A. B., & Surname, C. (year)`` stands in the list of references only.
    """
    short = []
    for citation in citations:
        if match := re.match(r"([^(]+?)\.?\s*\((\d{4})\)", citation):
            authors, year = match.groups()
            surnames = re.findall(r"([\w'’ -]+), (?:[A-Z]\.[ -]?)+", f"{authors}.")
            if surnames:
                several = len(surnames) > 2 or "et al" in authors
                first = [surname.strip() for surname in surnames[: 1 if several else 2]]
                short.append(f"{' and '.join(first)}{' et al.' if several else ''} {year}")
    return f" ({'; '.join(short)})" if short else ""


def _band(edges: Sequence[float | None] | None) -> str | None:
    """Where a filter passes, to follow ``filtered``; None where it passes everything. An edge at 0 Hz is none."""
    low, high = edges or (None, None)
    if low and high is not None:
        return f"at {low:g}–{high:g} Hz"
    if low:
        return f"to frequencies above {low:g} Hz"
    return None if high is None else f"to frequencies below {high:g} Hz"


def _listed(texts: Sequence[str], word: str = "and") -> str:
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + f" {word} {texts[-1]}"
