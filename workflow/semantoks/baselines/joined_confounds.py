"""Confounds of everybody in the splits: of one cohort, or of two whose columns and codes may differ."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from semantoks.baselines.confounds import Confounds, make_confounds
from semantoks.baselines.study import Study
from semantoks.errors import UserError
from semantoks.files import read_tables
from semantoks.missing_codes import as_code
from semantoks.phenotypes import Cohort, examples
from semantoks.units import unit_names

SITE, MEAN_FD = "site", "mean_fd"
MOST_CODES = 5
"""A column of at most so many different whole numbers holds codes (of sex, of a scanner), not a quantity."""


COPY = 0.999
"""Numbers that correlate more (in absolute value) are the same quantity under two names."""

FEWEST_TO_COMPARE = 5
"""Fewer participants say nothing about whether two columns of numbers are the same."""


def read_mean_fd(qc: Sequence[str], by_session: bool = False) -> pd.DataFrame | None:
    """Mean framewise displacement [mm] of each unit, averaged over usable recordings; None without QC files.

    Returns
    -------
    Columns cohort, unit, mean_fd.
    """
    if not qc:
        return None
    table = read_tables(qc, ["cohort", "participant_id", "session_id", "mean_fd", "exclude_reason"])
    table = table[table["exclude_reason"].isna()]
    units = unit_names(table["participant_id"], table["session_id"] if by_session else None)
    return table.assign(unit=units).groupby(["cohort", "unit"])["mean_fd"].mean().reset_index()


def read_confounds(study: Study, participants: Sequence[str], qc: Sequence[str]) -> Confounds:
    """Confounds of the named participants; of two cohorts those that both know, in the codes of the fitted one."""
    motion = read_mean_fd(qc, study.tested.by_session)
    made = []
    for cohort, table in zip(study.cohorts, study.tables, strict=True):
        wanted = set(participants)
        ids = [
            name for name, key in zip(table.index, study.keys(cohort, list(table.index)), strict=True) if key in wanted
        ]
        own = None
        if motion is not None:
            rows = motion if not study.transfers else motion[motion["cohort"] == cohort.name]
            own = rows.set_index("unit")["mean_fd"]
        one = make_confounds(cohort, table, sorted(ids), own)
        made.append(replace(one, participants=study.keys(cohort, one.participants)))
    return with_copies(made[0] if len(made) == 1 else joined(made, study), study)


def with_copies(confounds: Confounds, study: Study) -> Confounds:
    """The same confounds, with a phenotype's column among the sources of every number that is the phenotype again.

    Months of age are years of age, and a column of motion is the motion in the recordings: a correlation above
    ``COPY`` over all participants that have both. Categories are not compared: a site that has the patients alone is
    what this row is there to show.
    """
    sources = dict(confounds.sources)
    numbers = {
        name: pd.to_numeric(values, errors="coerce").set_axis(confounds.participants)
        for name, values in confounds.columns.items()
    }
    for phenotype in study.phenotypes.values():
        if not phenotype.is_numeric:
            continue
        target = study.values(phenotype.name)
        for name in confounds.used(phenotype):
            both = pd.concat([numbers[name], target], axis=1, join="inner").dropna()
            if len(both) >= FEWEST_TO_COMPARE and abs(both.corr().to_numpy()[0, 1]) > COPY:
                print(f"confounds: {name} is left out for {phenotype.name}, it is the same numbers", file=sys.stderr)
                sources[name] = sources.get(name, frozenset()) | {phenotype.column}
    return replace(confounds, sources=sources)


def joined(made: Sequence[Confounds], study: Study) -> Confounds:
    """Confounds of the tested and of the fitted cohort as one table.

    Parameters
    ----------
    made : of the tested cohort, then of the fitted one.

    Raises
    ------
    UserError
        When the tested cohort has codes that nobody was fitted on and no phenotype says what they mean.
    """
    # The site is a confound of both whatever its column is called.
    tested, fitted = (
        {(SITE if source == cohort.site_column else source): values for source, values in one.columns.items()}
        for one, cohort in zip(made, study.cohorts, strict=True)
    )
    tested, fitted = ({name: one for name, one in own.items() if one.notna().any()} for own in (tested, fitted))
    common, left_out = sorted(tested.keys() & fitted.keys()), sorted(tested.keys() ^ fitted.keys())
    for name in left_out:
        without = study.tested.name if name in fitted else study.fitted.name
        print(f"confounds: {name} is left out, {without} does not know it", file=sys.stderr)
    columns = {}
    for name in common:
        own = tested[name] if name in (SITE, MEAN_FD) else translated(tested[name], fitted[name], name, study)
        columns[name] = pd.concat([own, fitted[name]])
    participants = [key for one in made for key in one.participants]
    aligned = {name: values.set_axis(participants) for name, values in columns.items()}
    return Confounds(made[0].name, participants, aligned, tuple(left_out), _sources(made, study, common))


def _sources(made: Sequence[Confounds], study: Study, names: Sequence[str]) -> dict[str, frozenset[str]]:
    """Columns of the fitted cohort's phenotypes that are, in either cohort, one of the named confounds."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for one, cohort in zip(made, study.cohorts, strict=True):
        renamed = {SITE: one.sources.get(str(cohort.site_column), frozenset()) | {str(cohort.site_column)}}
        for name, described in study.phenotypes.items():
            own = cohort.phenotypes[name].column
            for confound in names:
                columns = renamed.get(confound, one.sources.get(confound, frozenset()) | {confound})
                if own in columns:
                    found[confound].add(described.column)
    return {name: frozenset(columns) for name, columns in found.items()}


def translated(tested: pd.Series, fitted: pd.Series, name: str, study: Study) -> pd.Series:
    """The tested cohort's values of a confound in the fitted cohort's codes.

    Codes have the meaning that ``values`` of a phenotype on the same column gives them. What is not known in the
    fitted cohort is refused, for a head would take it for something else.
    """
    meaning = _meanings(study.tested, name)
    code_of: dict[str, str] = {}
    for code, label in _meanings(study.fitted, name).items():
        code_of.setdefault(label, code)
    original = {as_code(value): value for value in fitted.dropna()}
    codes = tested.map(as_code, na_action="ignore")
    if meaning or code_of:
        codes = codes.replace(dict(meaning)).replace(code_of)
    where = f"{study.tested.name}: confounds: column {name}"
    numbers = pd.to_numeric(pd.Series(list(original)), errors="coerce")
    if numbers.notna().all() and not _are_codes(numbers, name, study.fitted):
        words = tested[pd.to_numeric(codes, errors="coerce").isna() & tested.notna()]
        if len(words):
            raise UserError(
                f"{where}: expected numbers as in {study.fitted.name}, found {examples(sorted(set(words)))}; correct "
                "the table, or list such codes under participants.missing"
            )
        return codes
    unknown = sorted(set(tested[tested.notna() & ~codes.isin(original)]))
    if unknown:
        raise UserError(
            f"{where}: expected the codes {examples(sorted(set(original.values())), 10)} of {study.fitted.name}, found "
            f"{examples(unknown)}; say what the codes mean with values of a phenotype on this column in both cohort "
            "files, list them under participants.missing, or take the column out of confounds"
        )
    return codes.map(original, na_action="ignore")


def _meanings(cohort: Cohort, column: str) -> Mapping[str, str]:
    """Code → class name, as the phenotypes on a column say it."""
    described = [phenotype for phenotype in cohort.phenotypes.values() if phenotype.column == column]
    return {
        as_code(code): as_code(str(label))
        for phenotype in described
        for code, label in phenotype.values.items()
        if label is not None
    }


def _are_codes(numbers: pd.Series, column: str, cohort: Cohort) -> bool:
    """Whether numbers are names of categories: whole, few of them, and no phenotype takes them as a quantity."""
    quantity = any(one.is_numeric and one.column == column for one in cohort.phenotypes.values())
    return bool(not quantity and numbers.nunique() <= MOST_CODES and np.all(numbers % 1 == 0))
