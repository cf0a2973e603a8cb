"""Splits of a cohort that is for testing only: models of another cohort's random splits are tested on it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from semantoks.baselines.overlap import Twin
from semantoks.baselines.study import Study
from semantoks.errors import UserError
from semantoks.phenotypes import Cohort, class_names, examples, match_participants, site_groups, targets
from semantoks.protocols import RANDOM, TRANSFER
from semantoks.units import participant_and_session, unit_names, with_labels


def transfer_splits(
    study: Study, fitted: pd.DataFrame, recordings: pd.DataFrame, twins: Mapping[str, Sequence[Twin]]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Splits of a cohort for testing only: the random splits of another cohort, whose test part it becomes.

    So the models are those whose results stand in the other cohort's table. A phenotype of which those who are tested
    lack a class is left out: what is then called balanced accuracy would be the recall of the classes that are there.

    Parameters
    ----------
    study : both cohorts.
    fitted : splits of the cohort that models are fitted on.
    recordings : usable recordings of the tested cohort, columns ``cohort``, ``participant_id`` and ``session_id``.
    twins : participants whose recording is in the other cohort as well (:func:`seen_by_content`); they are left out.

    Raises
    ------
    UserError
        When there are no random splits of a phenotype, a class is unknown to the models, or nothing is left to be
        tested.
    """
    own, table = study.tested, study.tables[0]
    sessions = recordings["session_id"] if own.by_session else None
    common, unmatched = match_participants(table, unit_names(recordings["participant_id"], sessions))
    kept, twin_names = _without_twins(own, common, twins)
    kept, without_site = _with_known_sites(own, table, kept)
    parts, left_out = [], {}
    for name in study.phenotypes:
        models = _models(study, fitted, name)
        members = [*study.keys(study.fitted, _units(models, own.by_session)), *study.keys(own, kept)]
        values = replace(study, members=frozenset(members)).values(name)
        tested = [unit for unit, key in zip(kept, study.keys(own, kept), strict=True) if key in values.index]
        reason = _why_not_scored(study, name, values, models, study.keys(own, tested))
        if reason:
            print(f"{own.name}: phenotypes.{name} is left out: {reason}", file=sys.stderr)
            left_out[name] = reason
            continue
        for repetition, split in models.groupby("repetition", sort=True):
            test = pd.DataFrame({"cohort": own.name, "participant_id": tested, "phenotype": name, "part": "test"})
            test = with_labels(test, own.by_session).assign(repetition=repetition, fold="0")
            parts.append(pd.concat([split, test]).assign(protocol=TRANSFER))
    if not parts:
        reasons = "; ".join(f"phenotypes.{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"{own.name}: expected a phenotype that can be scored here, found none: {reasons}")
    splits = pd.concat(parts, ignore_index=True)[list(fitted.columns)]
    about = {"unmatched": unmatched, "n_participants": len(kept), "left_out_as_fitted_on": twin_names}
    return splits, about | {"not_scored": {"without_site": without_site, "phenotypes": left_out}}


def _without_twins(
    own: Cohort, common: Sequence[str], twins: Mapping[str, Sequence[Twin]]
) -> tuple[list[str], list[list[str]]]:
    """Units whose participant has no recording in the other cohort, and who is left out as being there."""
    participant = {name: participant_and_session(name, own.by_session)[0] for name in common}
    left_out = sorted(set(twins) & set(participant.values()))
    for name in left_out:
        same = f"{twins[name][0].recording_id} of {twins[name][0].cohort}"
        print(f"{own.name}: {name} is left out, its recording is that of {same}", file=sys.stderr)
    kept = [name for name in sorted(common) if participant[name] not in left_out]
    return kept, [[name, twins[name][0].cohort, twins[name][0].recording_id] for name in left_out]


def _with_known_sites(own: Cohort, table: pd.DataFrame, kept: Sequence[str]) -> tuple[list[str], list[str]]:
    """Units of known site where there are several sites, as under leave-site-out; else all. And who is left out."""
    group = site_groups(own, table).loc[list(kept)]
    without = list(group.index[group.isna()]) if group.nunique() > 1 else []
    if without:
        print(
            f"{own.name}: {len(without)} of {len(kept)} have no {own.site_column} ({examples(without)}) and are left "
            "out, since results are within sites; fill it in, or set site_column to null to test everybody regardless "
            "of sites",
            file=sys.stderr,
        )
    return [name for name in kept if name not in set(without)], without


def _models(study: Study, fitted: pd.DataFrame, name: str) -> pd.DataFrame:
    """Training and validation parts of the random splits of a phenotype."""
    models = fitted[(fitted["phenotype"] == name) & (fitted["protocol"] == RANDOM) & (fitted["part"] != "test")]
    if models.empty:
        raise UserError(
            f"{study.tested.name}: fitted_on: {study.fitted.name} has no random splits of the phenotype {name}: no "
            "models are there to be tested; add random to probe.protocols"
        )
    return models


def _units(rows: pd.DataFrame, by_session: bool) -> list[str]:
    return unit_names(rows["participant_id"], rows["session_id"] if by_session else None)


def _why_not_scored(
    study: Study, name: str, values: pd.Series, models: pd.DataFrame, tested: Sequence[str]
) -> str | None:
    """Why a phenotype cannot be scored on those who are tested; None where it can.

    Parameters
    ----------
    values : of everybody, by the study's keys.
    models : training and validation parts.
    tested : keys of who is tested.
    """
    phenotype = study.fitted.phenotypes[name]
    if not len(tested):
        return "nobody here has a value"
    if phenotype.type == "regression":
        found = set(values.loc[list(tested)])
        return f"everybody here has the number {found.pop():g}" if len(found) < 2 else None
    classes = class_names(phenotype, values)
    absent: Counter[str] = Counter()
    training = [rows for _, rows in models[models["part"] == "train"].groupby("repetition", sort=True)]
    for rows in training:
        target, _ = targets(phenotype, values, study.keys(study.fitted, _units(rows, study.tested.by_session)))
        there = set(target.loc[list(tested)])
        absent.update(one for number, one in enumerate(classes) if number not in there)
    if not absent:
        return None
    missing = ", ".join(
        f"{one} (in {count} of {len(training)} splits)" if phenotype.bins else one for one, count in absent.items()
    )
    return f"of {len(classes)} classes of {study.fitted.name} nobody here has {missing}"
