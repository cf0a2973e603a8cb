"""The fMRIPrep command of each cohort of raw data, without running it, and what would keep it from starting."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from semantoks import fmriprep
from semantoks.config_loading import load_settings
from semantoks.errors import UserError, run_command
from semantoks.recordings import list_recordings
from semantoks.settings import Cohort, Settings


def stage_arguments(settings: Settings, cohort: Cohort, participant: str | None = None) -> list[str]:
    """What the stage ``fmriprep`` is called with for a participant of a cohort, by default the first.

    Raises
    ------
    UserError
        The cohort has no such participant.
    """
    listing = list_recordings({"name": cohort.name, **cohort.settings}).sort_values("recording_id")
    if participant is not None:
        listing = listing[listing["participant_id"] == participant.removeprefix("sub-")]
    if listing.empty:
        raise UserError(
            f"cohort {cohort.name}: expected participant {participant} in {cohort.source['path']}, found none"
        )
    first = listing.iloc[0]
    per_session = settings.section("fmriprep")["per_session"] and first["session_id"] is not None
    folder = settings.results / cohort.name / "fmriprep"
    arguments = {
        "--settings": settings.json("fmriprep"),
        "--cohort": cohort.name,
        "--bids": cohort.source["path"],
        "--participant": first["participant_id"],
        "--output-derivatives": cohort.source["derivatives"],
        "--work": str(folder / "work"),
        "--status": str(folder / f"sub-{first['participant_id']}.json"),
        "--runs": cohort.runs_json,
        **({"--session": first["session_id"]} if per_session else {}),
    }
    return [word for option in arguments.items() for word in option]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.fmriprep_dry_run", description=__doc__)
    parser.add_argument("--configfile", type=Path, default=Path("config/config.yaml"), help="default %(default)s")
    parser.add_argument("--participant", help="label (default: the first of each cohort)")
    arguments = parser.parse_args(argv)
    if not arguments.configfile.is_file():
        raise UserError(f"{arguments.configfile}: expected a configuration, found no file")
    settings = load_settings(yaml.safe_load(arguments.configfile.read_text()), str(arguments.configfile))
    cohorts = [cohort for cohort in settings.cohorts if cohort.source["type"] == "bids"]
    if not cohorts:
        raise UserError(f"{arguments.configfile}: expected a cohort with `source: {{type: bids}}`, found none")
    for cohort in cohorts:
        given = stage_arguments(settings, cohort, arguments.participant)
        print(f"# {cohort.name}, sub-{given[given.index('--participant') + 1]}", flush=True)
        fmriprep.main([*given, "--dry-run"])


if __name__ == "__main__":
    run_command(main)
