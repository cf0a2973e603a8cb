"""The methods paragraph of the report: the steps that were done, with their citations, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from semantoks.denoise import available_strategies, load_strategy
from semantoks.report_content import Inputs
from semantoks.report_methods import in_text, methods

CITATIONS = [
    "Friston, K. J., Williams, S., & Turner, R. (1996). Movement-related effects.",
    "Murphy, K., & Fox, M. D. (2017). Towards a consensus.",
    "Unpublished notes of our group",
]


def methods_of(tmp_path: Path, *files: tuple[str, dict]) -> str:
    settings = {"study": {"source": "fmriprep", "tasks": ["rest"], "already_done": {}}}
    return " ".join(methods(files, settings, Inputs(tmp_path, [])))


def made(stage: str, settings: dict, **further) -> dict:
    return {"stage": stage, "settings": settings, **further}


def test_the_methods_text_says_what_the_settings_say(tmp_path: Path) -> None:
    strategy = {"name": "24P", "description": "Six motion parameters are regressed.", "citations": CITATIONS}
    cleaned = {"band_pass": [0.01, 0.1], "detrend": True, "minimum_coverage": 0.5, "minimum_degrees_of_freedom": 10}
    limits = {"maximum_mean_fd": 0.3, "minimum_seconds": 80, "maximum_gap": 20}
    text = methods_of(
        tmp_path,
        ("study", made("parcellate", cleaned, strategy=strategy)),
        ("study", made("qc", limits)),
        ("study", made("qc", limits)),
        ("study", made("shards", {"tr": 2.0})),
    )
    for words in (
        "Recordings of the cohort study (rest) came as derivatives of fMRIPrep of unknown version (Esteban et al.",
        "parcels covered less than 50% were taken as missing",
        "Denoising (24P): Six motion parameters are regressed (Friston et al. 1996; Murphy and Fox 2017). Linear",
        "Linear trends were removed, signals and confounds were filtered alike at 0.01–0.1 Hz",
        "fewer than 10 degrees of freedom",
        "shorter than 80 s, mean framewise displacement exceeded 0.3 mm (Power et al. 2012) or a censored gap was",
        "resampled to 2 s",
    ):
        assert words in text
    assert text.count("were excluded when") == 1
    other = methods_of(tmp_path, ("study", made("parcellate", cleaned | {"band_pass": None}, strategy=strategy)))
    assert "filtered" not in other


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([["25.2.3"], ["25.2.3"]], "fMRIPrep 25.2.3 (Esteban"),
        ([["24.1.1", "25.2.3"], ["20.2.7"]], "fMRIPrep 20.2.7, 24.1.1 and 25.2.3 (Esteban"),
        ([["25.2.3"], [None]], "fMRIPrep 25.2.3 and another version that is unknown (Esteban"),
        ([[None], []], "fMRIPrep of unknown version (Esteban"),
    ],
)
def test_the_versions_of_fmriprep_are_those_that_made_the_recordings(
    tmp_path: Path, batches: list[list[str | None]], said: str
) -> None:
    strategy = {"name": "none", "description": "Nothing is regressed."}
    files = [("study", made("parcellate", {}, strategy=strategy, fmriprep_versions=versions)) for versions in batches]
    assert said in methods_of(tmp_path, *files)
    assert "fMRIPrep of unknown version" in methods_of(tmp_path, ("other", files[0][1]))


BUTTERWORTH = "(Butterworth, order 5, both directions)"
REGRESSED = "confounds were regressed with weights estimated on the volumes kept"
NILEARN = ", equal to nilearn's signal.clean (Abraham et al. 2014)."
CLEANING = {
    ("24P", (0.01, 0.1), True): "Linear trends were removed, signals and confounds were filtered alike at 0.01–0.1 Hz "
    f"{BUTTERWORTH} and {REGRESSED}{NILEARN}",
    ("24P", (None, 0.09), False): "Signals and confounds were filtered alike to frequencies below 0.09 Hz "
    f"{BUTTERWORTH} and {REGRESSED}{NILEARN}",
    ("24P", (None, None), True): f"Linear trends were removed and {REGRESSED}{NILEARN}",
    ("24P", None, False): f"C{REGRESSED[1:]}{NILEARN}",
    ("none", (0.01, None), True): "Linear trends were removed and signals were filtered to frequencies above 0.01 Hz "
    f"{BUTTERWORTH}{NILEARN}",
    ("none", (0.01, 0.1), False): f"Signals were filtered at 0.01–0.1 Hz {BUTTERWORTH}{NILEARN}",
    ("none", None, True): f"Linear trends were removed{NILEARN}",
    ("none", (None, None), False): "",
}


@pytest.mark.parametrize(("name", "band", "detrend"), CLEANING)
def test_the_methods_text_names_the_steps_that_were_done_and_no_others(
    tmp_path: Path, name: str, band: tuple[float | None, float | None] | None, detrend: bool
) -> None:
    described = {"description": "What is regressed.", "citations": [], "regresses": name != "none"}
    strategy = {"name": name} | described
    settings = {"band_pass": band, "detrend": detrend, "minimum_degrees_of_freedom": 10}
    text = methods_of(tmp_path, ("study", made("parcellate", settings, strategy=strategy)))
    steps = CLEANING[name, band, detrend]
    assert "Volumes at the start of a run that fMRIPrep had marked as not in steady state were dropped. The " in text
    assert text.endswith(
        f"always finite. Denoising ({name}): What is regressed. {steps}{' ' if steps else ''}"
        "Recordings with fewer than 10 degrees of freedom left were excluded."
    )


def test_equality_with_nilearn_is_claimed_for_the_kept_volumes_of_a_strategy_that_censors(tmp_path: Path) -> None:
    strategy = {"name": "x", "description": "What is regressed.", "regresses": True, "censors": True}
    text = methods_of(tmp_path, ("study", made("parcellate", {"detrend": True}, strategy=strategy)))
    words = "equal on the volumes kept to nilearn's signal.clean without extrapolation (Abraham et al. 2014)."
    assert f"{REGRESSED}, {words}" in text


TRENDS = "Linear trends were removed from the imported time series"
IMPORTED = {
    ((0.01, 0.1), None): ("", f"{TRENDS}, which were then filtered at 0.01–0.1 Hz {BUTTERWORTH}."),
    ((None, 0.1), None): ("", f"{TRENDS}, which were then filtered to frequencies below 0.1 Hz {BUTTERWORTH}."),
    ((0.01, None), None): ("", f"{TRENDS}, which were then filtered to frequencies above 0.01 Hz {BUTTERWORTH}."),
    ((None, None), None): ("", f"{TRENDS}."),
    (None, None): ("", f"{TRENDS}."),
    ((0.008, 0.09), (0.01, 0.1)): (", after filtering at 0.01–0.1 Hz", f"{TRENDS}."),
    ((0.008, 0.09), (0, 0.1)): (", after filtering to frequencies below 0.1 Hz", f"{TRENDS}."),
}


@pytest.mark.parametrize(("band", "done"), IMPORTED)
def test_imported_series_that_were_filtered_before_are_not_said_to_be_filtered_again(
    tmp_path: Path, band: tuple[float | None, float | None] | None, done: tuple[float, float] | None
) -> None:
    before, here = IMPORTED[band, done]
    cohort = {"already_done": {"band_pass": done}}
    said = {"study": {"source": "hdf5", "tasks": None, **cohort}}
    file = ("study", made("import_timeseries", {"band_pass": band, "detrend": True, "cohort": cohort}))
    paragraphs = methods([file], said, Inputs(tmp_path, []))
    assert paragraphs == [f"Recordings of the cohort study came as time series extracted elsewhere{before}.", here]


def test_trends_that_were_left_in_imported_series_are_not_said_to_be_removed() -> None:
    settings = {"band_pass": (0.01, 0.1), "detrend": False, "cohort": {"already_done": {"band_pass": None}}}
    files = [("study", made("import_timeseries", settings))]
    inputs = Inputs(Path(), [])
    assert methods(files, {}, inputs) == [f"The imported time series were filtered at 0.01–0.1 Hz {BUTTERWORTH}."]
    settings["band_pass"] = None
    assert methods(files, {}, inputs) == []


@pytest.mark.parametrize(
    ("name", "cited"),
    [
        ("schaefer400-tian3-buckner7", " (Schaefer et al. 2018; Tian et al. 2020; Buckner et al. 2011)"),
        ("cc200", " (Craddock et al. 2012)"),
        ("A424", " (Nemati et al. 2020)"),
        ("my-atlas", ""),
    ],
)
def test_the_parts_of_an_atlas_are_cited(tmp_path: Path, name: str, cited: str) -> None:
    path = tmp_path / "atlas" / "atlas.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"name": name, "space": "MNI152NLin6Asym"}))
    text = " ".join(methods([], {}, Inputs(tmp_path, [path])))
    assert text == f"The brain was divided by the atlas {name}{cited} in the space MNI152NLin6Asym."


@pytest.mark.parametrize("name", available_strategies())
def test_every_citation_of_a_shipped_strategy_stands_in_the_text(name: str) -> None:
    citations = load_strategy(name).citations
    assert in_text(citations).count(";") == max(0, len(citations) - 1)
    assert bool(in_text(citations)) == bool(citations)


def test_cohorts_with_other_settings_are_told_apart(tmp_path: Path) -> None:
    text = methods_of(tmp_path, ("a", made("shards", {"tr": 2.0})), ("b", made("shards", {"tr": 0.72})))
    assert "a: Time series were resampled to 2 s" in text
    assert "b: Time series were resampled to 0.72 s" in text
