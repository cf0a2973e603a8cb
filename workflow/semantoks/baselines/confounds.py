"""Confounds-only reference: what a head finds from site, motion, age and sex without looking at the brain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from semantoks.baselines.features import Index, Matrix, standardise
from semantoks.errors import UserError
from semantoks.missing_codes import as_code
from semantoks.phenotypes import Cohort, Phenotype, column_of, examples, sites

MOST_CATEGORIES = 10
"""A column with more different numbers than this holds a quantity; a word in it is a mistake or a missing code."""


@dataclass(frozen=True)
class Confounds:
    """Confounds of every participant, as text or numbers: ``columns`` maps a confound's name to its values.

    ``left_out`` names those that are known in one of two cohorts only. ``sources`` are the columns of the participants
    table that a confound is, its name aside: a phenotype on one of them has not that confound.
    """

    name: str
    participants: list[str]
    columns: dict[str, pd.Series]
    left_out: tuple[str, ...] = ()
    sources: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def used(self, phenotype: Phenotype) -> list[str]:
        """Names of the confounds of a phenotype: all that are not itself, whatever they are called."""
        own = phenotype.column
        return [name for name in self.columns if own != name and own not in self.sources.get(name, ())]

    def design(self, phenotype: Phenotype, training: Index) -> Matrix:
        """Numbers standardised, categories as one column each; the phenotype itself is left out (:meth:`used`).

        The training rows decide which a column is: who is tested changes nobody else's row. A category that no
        training participant has (an unseen site) is all zeros; a missing number is the training mean.
        """
        parts: list[Matrix] = []
        for name in self.used(phenotype):
            values = self.columns[name]
            numbers = _as_numbers(values, training)
            if numbers is not None:
                parts.append(standardise(numbers[:, None], training))
            else:
                parts.append(_one_hot(values, training))
        if not parts:
            return np.zeros((len(self.participants), 1), dtype=np.float32)
        return np.concatenate(parts, axis=1)


def _as_numbers(values: pd.Series, training: Index) -> npt.NDArray[np.float64] | None:
    """The values as numbers, NaN where missing or a word; None when a training row holds a word."""
    numbers = pd.to_numeric(values, errors="coerce")
    if (numbers.isna() & values.notna()).iloc[training].any():
        return None
    return numbers.to_numpy(dtype=np.float64)


def _one_hot(values: pd.Series, training: Index) -> Matrix:
    known = sorted(set(values.iloc[training].dropna()))
    return np.stack([(values == name).to_numpy(dtype=np.float32) for name in known] or [np.zeros(len(values))], axis=1)


def make_confounds(
    cohort: Cohort, table: pd.DataFrame, participants: Sequence[str], mean_fd: pd.Series | None
) -> Confounds:
    """Confounds of the named participants: site, mean framewise displacement and the configured columns.

    Parameters
    ----------
    cohort, table : its description and participants table.
    participants : whose confounds; the order of the rows.
    mean_fd : mean framewise displacement of each participant [mm]; None where no recording has one.
    """
    columns: dict[str, pd.Series] = {}
    sources: dict[str, frozenset[str]] = {}
    rows = table.loc[list(participants)]
    rows.attrs.update(table.attrs)
    if cohort.site_column is not None:
        # Site numbers are names, not quantities.
        columns[cohort.site_column] = sites(cohort, rows).map(lambda name: f"site {name}", na_action="ignore")
    if mean_fd is not None and mean_fd.notna().any():
        columns["mean_fd"] = mean_fd.reindex(rows.index)
        if cohort.mean_fd_column is not None:
            sources["mean_fd"] = frozenset({cohort.mean_fd_column})
    for name in cohort.confounds:
        columns[name] = confound_values(cohort, rows, name)
    return Confounds("confounds", list(participants), columns, sources=sources)


def make_covariates(cohort: Cohort, table: pd.DataFrame, participants: Sequence[str]) -> Confounds:
    """The configured confounds alone, whose effects harmonisation keeps: without site and motion.

    A number that is missing is the training mean; participants without a row have none.
    """
    rows = table.reindex(list(participants))
    rows.attrs.update(table.attrs)
    columns = {name: confound_values(cohort, rows, name) for name in cohort.confounds}
    return Confounds("covariates", list(participants), columns)


def confound_values(cohort: Cohort, rows: pd.DataFrame, name: str) -> pd.Series:
    """A confound's column as text, null where missing (also by the codes of a phenotype on the same column).

    Raises
    ------
    UserError
        When words, or infinity, stand among many different numbers.
    """
    values = column_of(rows, name, "confounds")
    described = [phenotype for phenotype in cohort.phenotypes.values() if phenotype.column == name]
    missing = {as_code(code) for phenotype in described for code in phenotype.missing}
    values = values.mask(values.map(as_code, na_action="ignore").isin(missing))
    numbers = pd.to_numeric(values, errors="coerce")
    words = values[values.notna() & ~np.isfinite(numbers.to_numpy(dtype=np.float64))]
    if len(words) and numbers.nunique() > MOST_CATEGORIES:
        raise UserError(
            f"{rows.attrs.get('path', 'participants table')}: confounds: column {name!r}: expected numbers, as in most "
            f"rows, found {examples(sorted(set(words)))}; correct the table, list such codes under "
            "participants.missing, or give all categories names with letters"
        )
    return values
