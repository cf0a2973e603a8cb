"""Who is trained on, chosen on and tested on, per phenotype, protocol, repetition and fold.

Splits are made by participant and family, never by row, before any model sees the data. Every row of a table
uses the same ones; their checksums travel with the predictions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from sklearn.model_selection import train_test_split

from semantoks.errors import UserError, run_command
from semantoks.files import provenance, read_tables, write_table
from semantoks.phenotypes import (
    Cohort,
    Phenotype,
    column_of,
    examples,
    families,
    match_participants,
    phenotype_values,
    read_participants,
    site_groups,
    targets,
)

RANDOM = "random"
LEAVE_SITE_OUT = "leave-site-out"
PROTOCOLS = (RANDOM, LEAVE_SITE_OUT)
FEWEST = 10
"""Fewest participants of a phenotype that can be split into three parts worth naming."""


MOST_STRATA = 10
"""A numeric column with more values than this is stratified by its quarters."""


@dataclass(frozen=True)
class Units:
    """The units of a split: families, each with its participants and the stratum of its first participant."""

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


def random_parts(units: Units, repetition: int, test_share: float, validation_share: float, key: str) -> dict[str, str]:
    """One repetition of the published protocol: part of each participant.

    ``test_share`` is taken of all units and ``validation_share`` of the rest, both with the repetition's number as
    seed (EVALUATION §1: .2, .25).
    """
    rest, test = units.draw(list(units.members), test_share, repetition, key)
    train, validation = units.draw(rest, validation_share, repetition, key)
    return _parts(units, train, validation, units.participants(test))


def site_parts(units: Units, group: pd.Series, held_out: str, validation_share: float, key: str) -> dict[str, str]:
    """One fold of leave-site-out: the participants of ``held_out`` are the test part.

    Their relatives at other sites, and participants without a site, are in no part.
    """
    test = sorted(group.index[group == held_out])
    elsewhere = set(group.index[group.notna() & (group != held_out)])
    rest = [name for name, members in units.members.items() if elsewhere.issuperset(members)]
    train, validation = units.draw(rest, validation_share, 0, key)
    return _parts(units, train, validation, test)


def _parts(units: Units, train: Sequence[str], validation: Sequence[str], test: Sequence[str]) -> dict[str, str]:
    parts = dict.fromkeys(test, "test")
    parts |= dict.fromkeys(units.participants(train), "train")
    parts |= dict.fromkeys(units.participants(validation), "validation")
    return dict(sorted(parts.items()))


def all_parts(
    units: Units, group: pd.Series, protocol: str, settings: Mapping[str, Any], key: str
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Repetition, fold and parts of every split of a protocol.

    Raises
    ------
    UserError
        When leave-site-out is asked for and fewer than two institutions are known.
    """
    if protocol == RANDOM:
        for repetition in range(settings["repetitions"]):
            yield (
                repetition,
                "0",
                random_parts(units, repetition, settings["test_share"], settings["validation_share"], key),
            )
        return
    groups = sorted(set(group.dropna()))
    if len(groups) < 2:
        raise UserError(
            f"{key}: leave-site-out needs at least two sites, found {groups or 'none'}; set site_column in the cohort "
            "file or take leave-site-out out of probe.protocols"
        )
    for held_out in groups:
        yield 0, held_out, site_parts(units, group, held_out, settings["validation_share"], key)


def check_classes(phenotype: Phenotype, values: pd.Series, parts: Mapping[str, str], where: str, whole: bool) -> None:
    """Refuse a split whose parts cannot be fitted or scored.

    The training part needs every class, the validation part two; with ``whole`` the test part too (a held-out site may
    have one: there its own metrics are n/a and the pooled ones stand).
    """
    part = pd.Series(parts)
    training = part.index[part == "train"]
    target, _ = targets(phenotype, values, list(training))
    if phenotype.type == "regression":
        return
    classes = set(target)
    for name in ("train", "validation", "test") if whole else ("train", "validation"):
        found = set(target[part.index[part == name]])
        if len(found) < (len(classes) if name == "train" else 2):
            raise UserError(
                f"{where}: the {name} part has {len(found)} of {len(classes)} classes of the phenotype; name its "
                f"column under phenotypes.{phenotype.name}.stratify, or drop the rare class with values or filter"
            )


def checksum(rows: pd.DataFrame) -> str:
    """SHA-256 of the participant lists, independent of row order and of anything else in the file."""
    columns = ["repetition", "fold", "part", "participant_id"]
    lines = sorted("\t".join(map(str, row)) for row in rows[columns].itertuples(index=False))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_phenotype(
    phenotype: Phenotype, table: pd.DataFrame, cohort: Cohort, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """All splits of one phenotype: one row per participant, protocol, repetition and fold.

    Parameters
    ----------
    phenotype : its description.
    table : participants that have a recording.
    cohort : sites and families.
    settings : the section ``probe``.
    """
    values = phenotype_values(phenotype, table)
    if len(values) < FEWEST:
        raise UserError(
            f"phenotypes.{phenotype.name}: expected at least {FEWEST} participants with a value and a recording, "
            f"found {len(values)}; drop the phenotype"
        )
    key = f"phenotypes.{phenotype.name}.stratify"
    strata = [column_of(table, name, key).loc[values.index] for name in phenotype.stratify]
    units = make_units(list(values.index), families(cohort, table), pd.concat(strata, axis=1) if strata else None)
    group = site_groups(cohort, table).loc[values.index]
    rows = []
    for protocol in settings["protocols"]:
        for repetition, fold, parts in all_parts(units, group, protocol, settings, key):
            where = f"phenotypes.{phenotype.name}: {protocol}, repetition {repetition}, fold {fold}"
            check_classes(phenotype, values, parts, where, whole=protocol == RANDOM)
            rows += [
                {
                    "participant_id": participant,
                    "phenotype": phenotype.name,
                    "protocol": protocol,
                    "repetition": repetition,
                    "fold": fold,
                    "part": part,
                }
                for participant, part in parts.items()
            ]
    return rows


def split_cohort(
    cohort: Cohort, settings: Mapping[str, Any], recordings: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Splits of every phenotype of a cohort, and what belongs into the file's metadata.

    Parameters
    ----------
    cohort : its description.
    settings : the section ``probe``.
    recordings : usable recordings, columns ``cohort`` and ``participant_id``.
    """
    if not cohort.phenotypes:
        raise UserError("phenotypes: expected at least one phenotype in the cohort file, found none")
    table = read_participants(cohort)
    common, unmatched = match_participants(table, recordings["participant_id"])
    path = table.attrs["path"]
    table = table.loc[common]
    table.attrs["path"] = path
    rows = [
        row for phenotype in cohort.phenotypes.values() for row in split_phenotype(phenotype, table, cohort, settings)
    ]
    splits = pd.DataFrame(rows)
    splits.insert(0, "cohort", recordings["cohort"].iloc[0])
    checksums: dict[str, dict[str, str]] = {}
    for (phenotype, protocol), part in splits.groupby(["phenotype", "protocol"], sort=True):
        checksums.setdefault(str(phenotype), {})[str(protocol)] = checksum(part)
    return splits, {"checksums": checksums, "unmatched": unmatched, "n_participants": len(common)}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: make the splits of one cohort."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.splits", description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads, help="cohort's participants and section probe")
    parser.add_argument("--shards", required=True, nargs="+", help="the cohort's shards")
    parser.add_argument("--output", required=True, help="splits.parquet")
    arguments = parser.parse_args(argv)
    cohort = Cohort.from_settings(arguments.settings)
    recordings = read_tables(arguments.shards, ["cohort", "participant_id"])
    if recordings.empty:
        raise UserError(f"{examples(arguments.shards)}: expected kept recordings, found none; see the qc report")
    splits, about = split_cohort(cohort, arguments.settings["probe"], recordings)
    inputs = [cohort.participants["path"], *arguments.shards]
    write_table(arguments.output, splits, provenance("splits", arguments.settings, inputs, **about))


if __name__ == "__main__":
    run_command(main)
