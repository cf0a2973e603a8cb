"""`make plan`: what the configured recordings will cost, by a run that was measured, against the quota."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from semantoks.config_loading import load_settings
from semantoks.cost import AMOUNTS, COLUMNS, as_text, estimate, exceeded
from semantoks.errors import UserError, run_command
from semantoks.recordings import list_recordings
from semantoks.settings import Settings


def read_measured(path: Path) -> pd.DataFrame:
    """A cost table that a run has written.

    Raises
    ------
    UserError
        When there is none, or it has other columns.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: expected the cost table of a run, found none; run the workflow on a few recordings first "
            "(a cohort's key `include`), then plan the rest with `--measured`"
        )
    table = pd.read_csv(path, sep="\t", keep_default_na=False)
    if list(table.columns) != COLUMNS:
        raise UserError(f"{path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(table.columns)}")
    return table


def count_recordings(settings: Settings, given: int | None) -> dict[str, int]:
    """Recordings of each cohort, as they lie on the disk or as given for every cohort."""
    if given is not None:
        return {cohort.name: given for cohort in settings.cohorts}
    return {cohort.name: len(list_recordings({"name": cohort.name, **cohort.settings})) for cohort in settings.cohorts}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exit code 1 when a quota would be exceeded."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.plan", description=__doc__)
    parser.add_argument("--configfile", type=Path, default=Path("config/config.yaml"), help="default %(default)s")
    parser.add_argument("--measured", type=Path, help="cost table of a run (default: that of the results folder)")
    parser.add_argument("--recordings", type=int, help="per cohort, instead of those on the disk")
    arguments = parser.parse_args(argv)
    if not arguments.configfile.is_file():
        raise UserError(f"{arguments.configfile}: expected a configuration, found no file")
    settings = load_settings(yaml.safe_load(arguments.configfile.read_text()), str(arguments.configfile))
    measured = read_measured(arguments.measured or settings.results / "cost.tsv")
    wanted = count_recordings(settings, arguments.recordings)
    in_training = sum(wanted[cohort] for cohort in settings.pretrain_cohorts)
    estimated = estimate(measured, wanted, in_training, len(settings.encoders))
    print(", ".join(f"{cohort}: {number} recordings" for cohort, number in wanted.items()))
    print(as_text(estimated))
    missing = [name for name in AMOUNTS if settings.values["quota"].get(name) is None]
    if missing:
        print(f"no quota is configured for {', '.join(missing)} (key 'quota')")
    lines = exceeded(estimated, settings.values["quota"])
    if len(missing) < len(AMOUNTS):
        print("\n".join(f"exceeds the quota - {line}" for line in lines) or "within the quota")
    raise SystemExit(1 if lines else 0)


if __name__ == "__main__":
    run_command(main)
