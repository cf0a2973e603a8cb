"""What a split keeps together: families, or participants alone, each with the units (:mod:`semantoks.units`) in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from sklearn.model_selection import train_test_split

from semantoks.errors import UserError

MOST_STRATA = 10
"""A numeric column with more values than this is stratified by its quarters."""


@dataclass(frozen=True)
class Units:
    """Families, each with its participants (or sessions of participants) and the stratum of the first of them."""

    members: Mapping[str, list[str]]
    stratum: Mapping[str, str] | None

    def draw(self, names: Sequence[str], share: float, seed: int, key: str) -> tuple[list[str], list[str]]:
        """Split unit names at random into (rest, share), as ``sklearn.model_selection.train_test_split`` does."""
        strata = None if self.stratum is None else [self.stratum[name] for name in names]
        try:
            rest, drawn = train_test_split(list(names), test_size=share, random_state=seed, stratify=strata)
        except ValueError as error:
            raise UserError(
                f"{key}: {len(names)} participants cannot be split with a share of {share} ({error}); "
                "name fewer or coarser columns under stratify, or use a larger cohort"
            ) from None
        return rest, drawn

    def participants(self, names: Sequence[str]) -> list[str]:
        """The participants of the named units, sorted."""
        return sorted(participant for name in names for participant in self.members[name])


def make_units(participants: Sequence[str], family: pd.Series, strata: pd.DataFrame | None) -> Units:
    """Group participants into families.

    Units are in the order of their first participant, so that a cohort without families is split exactly as
    ``train_test_split`` splits its sorted participant ids.
    """
    members: dict[str, list[str]] = {}
    for participant in sorted(participants):
        members.setdefault(str(family[participant]), []).append(participant)
    if strata is None:
        return Units(members, None)
    joint = strata.apply(_coarse).agg(" | ".join, axis=1)
    return Units(members, {name: str(joint[group[0]]) for name, group in members.items()})


def _coarse(column: pd.Series) -> pd.Series:
    """A column as few strata: a number with many values as its quarter, anything else as it is."""
    numbers = pd.to_numeric(column, errors="coerce")
    if column.nunique() > MOST_STRATA and numbers.notna().eq(column.notna()).all():
        column = pd.qcut(numbers, 4, labels=False, duplicates="drop")
    return column.map(str, na_action="ignore").fillna("n/a")
