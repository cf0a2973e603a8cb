"""Who is trained on, chosen on and tested on, per phenotype, protocol, repetition and fold.

Splits are made by participant and family, never by row, before any model sees the data. Every row of a table
uses the same ones; their checksums travel with the predictions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from semantoks.baselines.overlap import seen_by_content
from semantoks.baselines.study import Study
from semantoks.errors import UserError, run_command
from semantoks.files import provenance, read_table, read_tables, write_table
from semantoks.given_splits import given_parts, read_given
from semantoks.nested_parts import nested_parts
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
from semantoks.protocols import GIVEN, LEARNING_CURVE, LEAVE_SITE_OUT, RANDOM
from semantoks.split_units import Units, make_units
from semantoks.transfer import transfer_splits
from semantoks.units import unit_names, with_labels

FEWEST = 10
"""Fewest participants of a phenotype that can be split into three parts worth naming."""


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
    units: Units,
    group: pd.Series,
    protocol: str,
    settings: Mapping[str, Any],
    key: str,
    curve_stratum: Mapping[str, str],
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Repetition, fold and parts of every split of a protocol; ``curve_stratum`` of each unit in a learning curve."""
    share = settings["validation_share"]
    if protocol == LEARNING_CURVE:
        whole = random_parts(units, 0, settings["test_share"], share, key)
        test = [name for name, members in units.members.items() if whole[members[0]] == "test"]
        yield from nested_parts(units.members, curve_stratum, test, settings["learning_curve"], share)
        return
    if protocol == RANDOM:
        for repetition in range(max(settings["repetitions"], settings["solved_repetitions"])):
            yield repetition, "0", random_parts(units, repetition, settings["test_share"], share, key)
        return
    for held_out in sorted(set(group.dropna())):
        yield 0, held_out, site_parts(units, group, held_out, share, key)


def possible_protocols(asked: Sequence[str], group: pd.Series, name: str) -> list[str]:
    """The protocols that the cohort allows; with one site leave-site-out is left out and said so.

    Raises
    ------
    UserError
        When leave-site-out is the only protocol asked for.
    """
    known = sorted(set(group.dropna()))
    if LEAVE_SITE_OUT not in asked or len(known) >= 2:
        return list(asked)
    found = f"leave-site-out needs at least two sites, found {known or 'none'}"
    if list(asked) == [LEAVE_SITE_OUT]:
        raise UserError(
            f"phenotypes.{name}: {found}; set site_column in the cohort file or use another of probe.protocols"
        )
    print(f"phenotypes.{name}: {found}; it has no such splits", file=sys.stderr)
    return [protocol for protocol in asked if protocol != LEAVE_SITE_OUT]


def wanted_protocols(phenotype: Phenotype, settings: Mapping[str, Any], group: pd.Series, given: bool) -> list[str]:
    """The protocols of a phenotype; negative controls have no learning curve."""
    possible = possible_protocols(settings["protocols"], group, phenotype.name)
    if phenotype.negative_control:
        possible = [protocol for protocol in possible if protocol != LEARNING_CURVE]
    return possible + [GIVEN] * given


def check_classes(phenotype: Phenotype, values: pd.Series, parts: Mapping[str, str], where: str, whole: bool) -> None:
    """Refuse a split whose parts cannot be fitted or scored.

    The training part needs every class, the validation part two; with ``whole`` the test part too (a held-out site may
    have one: there its own metrics are n/a and the pooled ones stand). A number has to vary in the training part and,
    with ``whole``, in the test part: else there is no correlation with it. Somebody has to be chosen on.
    """
    part = pd.Series(parts)
    training = part.index[part == "train"]
    target, _ = targets(phenotype, values, list(training))
    if "validation" not in parts.values():
        raise UserError(f"{where}: nobody is in the validation part; more participants are needed")
    if phenotype.type == "regression":
        for name in ("train", "test") if whole else ("train",):
            found = set(target[part.index[part == name]])
            if len(found) < 2:
                raise UserError(
                    f"{where}: the {name} part holds only the number {found.pop():g}; the column hardly varies: drop "
                    "the phenotype, or leave participants out by its filter"
                )
        return
    classes = set(target)
    for name in ("train", "validation", "test") if whole else ("train", "validation"):
        found = set(target[part.index[part == name]])
        if len(found) < (len(classes) if name == "train" else 2):
            raise UserError(
                f"{where}: the {name} part has {len(found)} of {len(classes)} classes of the phenotype; name its "
                f"column under phenotypes.{phenotype.name}.stratify, or drop the rare class with values or filter"
            )


def _can_be_fitted(phenotype: Phenotype, values: pd.Series, parts: Mapping[str, str], where: str) -> bool:
    """Whether a point of a learning curve has the classes it needs; a small one that lacks some is left out."""
    try:
        check_classes(phenotype, values, parts, where, whole=True)
    except UserError as error:
        print(f"{error} (left out)", file=sys.stderr)
        return False
    return True


def checksum(rows: pd.DataFrame) -> str:
    """SHA-256 of the participant lists, independent of row order and of anything else in the file."""
    columns = ["repetition", "fold", "part", "participant_id"] + ["session_id"] * int(rows["session_id"].notna().any())
    columns += ["cohort"] * (rows["cohort"].nunique() > 1)
    lines = sorted("\t".join(map(str, row)) for row in rows[columns].itertuples(index=False))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_phenotype(
    phenotype: Phenotype,
    table: pd.DataFrame,
    cohort: Cohort,
    settings: Mapping[str, Any],
    given: pd.DataFrame | None = None,
) -> list[dict[str, Any]]:
    """All splits of one phenotype: one row per participant, protocol, repetition and fold.

    Parameters
    ----------
    phenotype : its description.
    table : participants that have a recording.
    cohort : sites and families.
    settings : the section ``probe``.
    given : the user's own splits (:func:`read_given`).
    """
    values = phenotype_values(phenotype, table)
    if len(values) < FEWEST:
        raise UserError(
            f"phenotypes.{phenotype.name}: expected at least {FEWEST} participants with a value and a recording, "
            f"found {len(values)}; drop the phenotype"
        )
    key = f"phenotypes.{phenotype.name}.stratify"
    strata = [column_of(table, name, key).loc[values.index] for name in phenotype.stratify]
    family = families(cohort, table)
    units = make_units(list(values.index), family, pd.concat(strata, axis=1) if strata else None)
    # The points of a learning curve are stratified in any case, by the phenotype itself where no column is named.
    curve_stratum = units.stratum or make_units(list(values.index), family, values.to_frame()).stratum
    assert curve_stratum is not None
    group = site_groups(cohort, table).loc[values.index]
    rows = []
    for protocol in wanted_protocols(phenotype, settings, group, given is not None):
        if protocol == GIVEN:
            assert given is not None
            every = given_parts(given, phenotype.name, units, settings["split_file"])
        else:
            every = all_parts(units, group, protocol, settings, key, curve_stratum)
        for repetition, fold, parts in every:
            where = f"phenotypes.{phenotype.name}: {protocol}, repetition {repetition}, fold {fold}"
            if protocol == LEARNING_CURVE and not _can_be_fitted(phenotype, values, parts, where):
                continue
            check_classes(phenotype, values, parts, where, whole=protocol != LEAVE_SITE_OUT)
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
    recordings : usable recordings, columns ``cohort``, ``participant_id`` and ``session_id``.
    """
    if not cohort.phenotypes:
        raise UserError("phenotypes: expected at least one phenotype in the cohort file, found none")
    table = read_participants(cohort)
    sessions = recordings["session_id"] if cohort.by_session else None
    common, unmatched = match_participants(table, unit_names(recordings["participant_id"], sessions))
    path = table.attrs["path"]
    table = table.loc[common]
    table.attrs["path"] = path
    given = read_given(settings["split_file"], table, cohort.by_session) if settings.get("split_file") else None
    rows = [
        row
        for phenotype in cohort.phenotypes.values()
        for row in split_phenotype(phenotype, table, cohort, settings, given)
    ]
    splits = with_labels(pd.DataFrame(rows), cohort.by_session)
    splits.insert(0, "cohort", recordings["cohort"].iloc[0])
    return splits, {"checksums": checksums(splits), "unmatched": unmatched, "n_participants": len(common)}


def checksums(splits: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Checksum of each phenotype's splits by protocol."""
    found: dict[str, dict[str, str]] = {}
    for (phenotype, protocol), part in splits.groupby(["phenotype", "protocol"], sort=True):
        found.setdefault(str(phenotype), {})[str(protocol)] = checksum(part)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: make the splits of one cohort."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.splits", description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads, help="cohort's participants and section probe")
    parser.add_argument("--shards", required=True, nargs="+", help="the cohort's shards")
    parser.add_argument("--fitted-splits", help="splits of the cohort whose models are tested on this one")
    parser.add_argument("--fitted-shards", nargs="+", default=[], help="shards of that cohort")
    parser.add_argument("--output", required=True, help="splits.parquet")
    arguments = parser.parse_args(argv)
    recordings = read_tables(arguments.shards, ["cohort", "participant_id", "session_id"])
    if recordings.empty:
        raise UserError(f"{examples(arguments.shards)}: expected kept recordings, found none; see the qc report")
    settings = arguments.settings
    inputs = [settings["participants"]["path"], *arguments.shards, *arguments.fitted_shards]
    if arguments.fitted_splits:
        study = Study.read(settings)
        twins = seen_by_content(arguments.shards, arguments.fitted_shards)
        splits, about = transfer_splits(study, read_table(arguments.fitted_splits), recordings, twins)
        about["checksums"] = checksums(splits)
        inputs += [settings["fitted_on"]["participants"]["path"], arguments.fitted_splits]
    else:
        splits, about = split_cohort(Cohort.from_settings(settings), settings["probe"], recordings)
        given = settings["probe"].get("split_file")
        inputs += [given] if given else []
    write_table(arguments.output, splits, provenance("splits", settings, inputs, **about))


if __name__ == "__main__":
    run_command(main)
