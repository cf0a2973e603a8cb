"""Whose labels, sites and families a probe is about: one cohort, or one for testing with that whose models it tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from semantoks.errors import UserError
from semantoks.phenotypes import (
    Cohort,
    Phenotype,
    class_names,
    examples,
    families,
    phenotype_values,
    read_participants,
    site_groups,
    sites,
)
from semantoks.units import participant_and_session


@dataclass(frozen=True)
class Study:
    """The cohort that is tested and, where models come from another one, that too.

    Participants are called as :func:`semantoks.baselines.features.participant_keys` says: by their id in a study of one
    cohort, else ``<cohort>/<id>``.

    Attributes
    ----------
    cohorts : the tested cohort first.
    tables : participants of each, as :func:`read_participants` gives them.
    members : who is in the splits; None for everybody in the tables. What others have in the tables counts for nothing.
    """

    cohorts: tuple[Cohort, ...]
    tables: tuple[pd.DataFrame, ...]
    members: frozenset[str] | None = None

    @classmethod
    def read(cls, settings: Mapping[str, Any], members: Iterable[str] | None = None) -> Study:
        """From a stage's settings; ``fitted_on`` describes the other cohort like the first.

        Parameters
        ----------
        members : names of the participants of the splits.
        """
        further = [settings["fitted_on"]] if settings.get("fitted_on") else []
        cohorts = tuple(Cohort.from_settings(described) for described in (settings, *further))
        if len({cohort.by_session for cohort in cohorts}) > 1:
            raise UserError(
                f"{cohorts[0].name}: participants.session_column: expected it in both or in none of {cohorts[0].name} "
                f"and {cohorts[-1].name}, found it in one; what is predicted is a session or a participant in both"
            )
        known = None if members is None else frozenset(members)
        return cls(cohorts, tuple(read_participants(cohort) for cohort in cohorts), known)

    @property
    def fitted(self) -> Cohort:
        """The cohort that models are fitted on; its descriptions of phenotypes and its class ids hold."""
        return self.cohorts[-1]

    @property
    def tested(self) -> Cohort:
        """The cohort that is tested."""
        return self.cohorts[0]

    @property
    def transfers(self) -> bool:
        """Whether models of one cohort are tested on another."""
        return len(self.cohorts) > 1

    @property
    def phenotypes(self) -> dict[str, Phenotype]:
        """What is predicted: what both cohorts describe."""
        return {name: one for name, one in self.fitted.phenotypes.items() if name in self.tested.phenotypes}

    def keys(self, cohort: Cohort, participants: Sequence[str]) -> list[str]:
        """Names of a cohort's participants."""
        return [f"{cohort.name}/{name}" for name in participants] if self.transfers else list(participants)

    def values(self, name: str) -> pd.Series:
        """Values of a phenotype by participant of the splits.

        Raises
        ------
        UserError
            When the tested cohort has a class that no model is fitted on.
        """
        parts = []
        for cohort, table in zip(self.cohorts, self.tables, strict=True):
            own = table
            if self.members is not None:
                own = table[[key in self.members for key in self.keys(cohort, list(table.index))]]
                own.attrs.update(table.attrs)
            part = phenotype_values(cohort.phenotypes[name], own, varying=cohort is self.fitted)
            parts.append(part.set_axis(self.keys(cohort, list(part.index))))
        if self.transfers and not self.fitted.phenotypes[name].is_numeric:
            known = class_names(self.fitted.phenotypes[name], parts[-1])
            new = sorted(set(parts[0]) - set(known))
            if new:
                raise UserError(
                    f"{self.tested.name}: phenotypes.{name}: expected the classes {examples(known)} of "
                    f"{self.fitted.name}, found {examples(new)}; map them under values (null leaves them out)"
                )
        values: pd.Series = pd.concat(parts)
        return values

    def people(self, participants: Sequence[str]) -> pd.DataFrame:
        """Columns cohort, participant_id, session_id, site, site_group and family of the named units, in order."""
        parts = []
        for cohort, table in zip(self.cohorts, self.tables, strict=True):
            columns = {"site": sites(cohort, table), "site_group": site_groups(cohort, table)}
            part = pd.DataFrame({**columns, "family": families(cohort, table)})
            part.insert(0, "cohort", cohort.name)
            labels = [participant_and_session(name, cohort.by_session) for name in table.index]
            part.insert(1, "participant_id", [participant for participant, _ in labels])
            part.insert(2, "session_id", pd.Series([session for _, session in labels], part.index, dtype=object))
            parts.append(part.set_axis(self.keys(cohort, list(table.index))))
        return pd.concat(parts).reindex(list(participants))

    def describe(self) -> dict[str, Any]:
        """What tables say about each phenotype: its type, classes and bins."""
        described = {}
        for name, phenotype in self.phenotypes.items():
            classes = class_names(phenotype, self.values(name)) if phenotype.type == "classification" else None
            tested = self.tested.phenotypes[name]
            described[name] = {
                "type": phenotype.type,
                "classes": classes,
                "bins": phenotype.bins,
                "negative_control": tested.negative_control,
            }
        return {"phenotypes": described, "fitted_on": self.fitted.name if self.transfers else None}
