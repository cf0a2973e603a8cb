"""Participants and their phenotypes, as the cohort file describes them.

The participants table is read as text; nothing is converted before its missing codes are taken out.
"""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from semantoks.errors import UserError
from semantoks.files import read_text_table
from semantoks.missing_codes import as_code, without_codes
from semantoks.units import participant_and_session, participant_of, session_of, unit_names

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Phenotype:
    """One target of the probes; the keys are those of ``schemas/phenotype.schema.yaml`` but ``published``."""

    name: str
    column: str
    type: str
    bins: int | None = None
    values: Mapping[str, str | float | None] = field(default_factory=dict)
    missing: Sequence[str] = ()
    filter: Mapping[str, Any] = field(default_factory=dict)
    stratify: Sequence[str] = ()
    negative_control: bool = False

    @property
    def is_numeric(self) -> bool:
        """Whether the column holds numbers (a regression, or classes that are bins of a number)."""
        return self.type == "regression" or self.bins is not None


@dataclass(frozen=True)
class Cohort:
    """What a cohort's settings say about its participants.

    ``site_group`` maps a site to the institution it belongs to; sites that are not named stand for themselves.
    """

    participants: Mapping[str, Any]
    phenotypes: Mapping[str, Phenotype]
    name: str = ""
    site_column: str | None = None
    site_group: Mapping[str, str] = field(default_factory=dict)
    family_column: str | None = None
    confounds: Sequence[str] = ()
    mean_fd_column: str | None = None

    @property
    def by_session(self) -> bool:
        """Whether the unit is the session: the participants table has one row per participant and session."""
        return bool(self.participants.get("session_column"))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Cohort:
        """Take the cohort's part of a stage's settings."""
        described = settings["phenotypes"]
        return cls(
            participants=settings["participants"],
            name=settings["name"],
            phenotypes={name: Phenotype(name=name, **keys) for name, keys in described.items()},
            site_column=settings.get("site_column"),
            site_group=settings.get("site_group") or {},
            family_column=settings.get("family_column"),
            confounds=settings.get("confounds") or (),
            mean_fd_column=settings.get("mean_fd_column"),
        )


def column_of(table: pd.DataFrame, column: str, key: str) -> pd.Series:
    """A column by name.

    Raises
    ------
    UserError
        When it is absent; the message names ``key`` and the nearest columns there are.
    """
    if column in table.columns:
        return table[column]
    near = difflib.get_close_matches(column, list(table.columns), n=3, cutoff=0.4) or list(table.columns[:10])
    source = table.attrs.get("path", "participants table")
    raise UserError(
        f"{source}: {key} names the column {column!r}, which is not there; nearest: {', '.join(near)}. "
        f"Correct {key} or the table"
    )


def read_participants(cohort: Cohort) -> pd.DataFrame:
    """Read the participants table; index: units (:mod:`semantoks.units`), all values text, missing codes null.

    Raises
    ------
    UserError
        When the id column is absent, ``id_pattern`` does not match, or a participant has two rows.
    """
    settings = cohort.participants
    path = Path(settings["path"])
    table = read_text_table(path)
    table.attrs["path"] = str(path)
    raw = column_of(table, settings.get("id_column") or "participant_id", "participants.id_column")
    if raw.isna().any():
        raise UserError(f"{path}: {int(raw.isna().sum())} rows have no {raw.name}; fill them in or delete the rows")
    ids = [participant_of(text, settings.get("id_pattern"), path) for text in raw]
    session = settings.get("session_column")
    if session:
        ids = unit_names(ids, [session_of(cell) for cell in column_of(table, session, "participants.session_column")])
    repeated = sorted(name for name, count in Counter(ids).items() if count > 1)
    if repeated:
        unit = "participant and session" if session else "participant"
        advice = "" if session else " (for instance the first session's), or name participants.session_column"
        raise UserError(
            f"{path}: expected one row per {unit}, found several for {len(repeated)} of them ({examples(repeated)}); "
            f"keep one row each{advice}"
        )
    table = without_codes(table, settings.get("missing") or ())
    table.index = pd.Index(ids, name="participant_id")
    table.attrs["path"] = str(path)
    return table


def examples(names: Iterable[str], most: int = 5) -> str:
    """The first few names, for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def phenotype_values(phenotype: Phenotype, table: pd.DataFrame, varying: bool = True) -> pd.Series:
    """The values of a phenotype, of the participants that have one.

    Parameters
    ----------
    phenotype : its description.
    table : participants, as :func:`read_participants` gives them.
    varying : whether there have to be at least two different values, as for whatever a model is fitted on.

    Returns
    -------
    Series indexed by participant: float64 for numbers, text for classes. Missing and filtered rows are left out.

    Raises
    ------
    UserError
        When the column is absent, a value is no number or not in ``values``, or (``varying``) nothing varies.
    """
    key = f"phenotypes.{phenotype.name}"
    column = column_of(table, phenotype.column, f"{key}.column")
    column = column[passes_filter(phenotype, table)].dropna()
    codes = column.map(as_code)
    missing = {as_code(code) for code in phenotype.missing}
    column, codes = column[~codes.isin(missing)], codes[~codes.isin(missing)]
    if phenotype.values:
        column = _mapped(phenotype, column, codes)
    values = _numbers(phenotype, column) if phenotype.is_numeric else column.map(str)
    if varying and values.nunique() < 2:
        found = f"only {values.iloc[0]!r}" if len(values) else "no value at all"
        raise UserError(
            f"{key}: expected at least two different values in column {phenotype.column!r}, found {found} "
            f"in {len(values)} participants; correct values, missing or filter, or drop the phenotype"
        )
    return values


def passes_filter(phenotype: Phenotype, table: pd.DataFrame) -> pd.Series:
    """Which participants a phenotype's filter keeps: listed values, or numbers from ``min`` to ``max``."""
    keep = pd.Series(True, index=table.index)
    for name, condition in phenotype.filter.items():
        column = column_of(table, name, f"phenotypes.{phenotype.name}.filter")
        if isinstance(condition, Mapping):
            numbers = pd.to_numeric(column, errors="coerce")
            keep &= numbers.between(condition.get("min", -np.inf), condition.get("max", np.inf))
        else:
            keep &= column.map(as_code, na_action="ignore").isin({as_code(value) for value in condition})
    return keep


def _mapped(phenotype: Phenotype, column: pd.Series, codes: pd.Series) -> pd.Series:
    mapping = {as_code(text): value for text, value in phenotype.values.items()}
    unknown = sorted(set(column[~codes.isin(mapping)]))
    if unknown:
        raise UserError(
            f"phenotypes.{phenotype.name}.values: column {phenotype.column!r} also holds {examples(unknown)}; "
            "map these too (null leaves a participant out) or list them under missing"
        )
    return codes.map(mapping).dropna()


def _numbers(phenotype: Phenotype, column: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    bad = column[~np.isfinite(numbers)]
    if len(bad):
        raise UserError(
            f"phenotypes.{phenotype.name}: expected numbers in column {phenotype.column!r}, found "
            f"{examples(sorted(set(map(str, bad))))}; list such codes under missing or map them under values"
        )
    return numbers


def class_names(phenotype: Phenotype, values: pd.Series) -> list[str]:
    """The classes in the order of their ids: that of ``values`` in the settings, else sorted; fixed over all splits."""
    if phenotype.bins is not None:
        return [f"bin {number}" for number in range(1, phenotype.bins + 1)]
    present = set(values)
    declared = [str(value) for value in phenotype.values.values() if value is not None]
    order = dict.fromkeys(name for name in declared if name in present)
    return list(order) if order else sorted(present)


def quantile_edges(training: Floats, bins: int, name: str) -> Floats:
    """Inner edges [bins − 1] of equally filled bins of the training part's values.

    Raises
    ------
    UserError
        When the values do not allow that many bins (edges coincide).
    """
    edges = np.quantile(training, np.arange(1, bins) / bins)
    labels = np.bincount(assign_bins(training, edges), minlength=bins)
    if np.any(labels == 0) or np.any(np.diff(edges) <= 0):
        raise UserError(
            f"phenotypes.{name}.bins: {bins} bins asked for, but the {len(np.unique(training))} different values of "
            f"the {len(training)} training participants do not fill them; use fewer bins"
        )
    return edges


def assign_bins(values: Floats, edges: Floats) -> Labels:
    """The bin (0 … bins − 1) of each value; a value on an edge belongs to the bin above it."""
    return np.searchsorted(edges, values, side="right").astype(np.int64)


def targets(phenotype: Phenotype, values: pd.Series, training: Sequence[str]) -> tuple[pd.Series, list[float] | None]:
    """What a head predicts: class ids (int64) or numbers (float64), with bin edges fitted on the training part.

    Parameters
    ----------
    phenotype, values : description and values of all participants (:func:`phenotype_values`).
    training : participants on whom bins are fitted.

    Returns
    -------
    Series indexed like ``values``, and the inner bin edges (None without bins).
    """
    if phenotype.type == "regression":
        return values, None
    if phenotype.bins is not None:
        edges = quantile_edges(values.loc[list(training)].to_numpy(), phenotype.bins, phenotype.name)
        return pd.Series(assign_bins(values.to_numpy(), edges), index=values.index), edges.tolist()
    ids = {name: number for number, name in enumerate(class_names(phenotype, values))}
    return values.map(ids).astype(np.int64), None


def sites(cohort: Cohort, table: pd.DataFrame) -> pd.Series:
    """Site of each participant (null where unknown); all null when no ``site_column`` is configured."""
    if cohort.site_column is None:
        return pd.Series(None, index=table.index, dtype=object)
    return column_of(table, cohort.site_column, "site_column")


def site_groups(cohort: Cohort, table: pd.DataFrame) -> pd.Series:
    """Institution of each participant: ``site_group`` of its site, else the site itself.

    Raises
    ------
    UserError
        When ``site_group`` names a site that no participant has.
    """
    site = sites(cohort, table)
    unknown = sorted(set(cohort.site_group) - set(site.dropna()))
    if unknown:
        raise UserError(
            f"site_group: no participant has the sites {examples(unknown)}; the sites are "
            f"{examples(sorted(set(site.dropna())), 20)}"
        )
    return site.map(lambda name: cohort.site_group.get(name, name), na_action="ignore")


def families(cohort: Cohort, table: pd.DataFrame) -> pd.Series:
    """Family of each unit; a participant who has none named is a family alone, with all sessions.

    Raises
    ------
    UserError
        When the sessions of a participant have several families.
    """
    participant = pd.Series([participant_and_session(name, cohort.by_session)[0] for name in table.index], table.index)
    alone = "participant " + participant
    if cohort.family_column is None:
        return alone
    named = column_of(table, cohort.family_column, "family_column").groupby(participant)
    several = named.nunique()
    if (several > 1).any():
        raise UserError(
            f"family_column: {examples(several.index[several > 1])} have different families in different sessions; "
            "correct the table"
        )
    return named.transform("first").map(lambda name: f"family {name}", na_action="ignore").fillna(alone)


def match_participants(table: pd.DataFrame, with_data: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Participants that have both a row in the table and a recording; who has only one of them is reported.

    Returns
    -------
    The common participants, sorted, and ``{"recording_only": [...], "table_only": [...]}``.

    Raises
    ------
    UserError
        When there is no common participant.
    """
    in_table, in_data = set(table.index), set(with_data)
    unmatched = {"recording_only": sorted(in_data - in_table), "table_only": sorted(in_table - in_data)}
    common = sorted(in_table & in_data)
    path = table.attrs.get("path", "participants table")
    if not common:
        raise UserError(
            f"{path}: none of its participants ({examples(sorted(in_table))}) has a recording "
            f"({examples(sorted(in_data))}); correct participants.id_column or id_pattern"
        )
    for kind, what in (
        ("recording_only", "have a recording but no row"),
        ("table_only", "have a row but no recording"),
    ):
        if unmatched[kind]:
            count = len(unmatched[kind])
            print(f"{path}: {count} participants {what} ({examples(unmatched[kind])})", file=sys.stderr)
    return common, unmatched
