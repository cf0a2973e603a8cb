"""Splits of a cohort that is for testing only: models of another cohort's random splits are tested on it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from semantoks.baselines.overlap import Twin
from semantoks.baselines.study import Study
from semantoks.errors import UserError
from semantoks.phenotypes import match_participants, phenotype_values
from semantoks.protocols import RANDOM, TRANSFER
from semantoks.units import participant_and_session, unit_names, with_labels


def transfer_splits(
    study: Study, fitted: pd.DataFrame, recordings: pd.DataFrame, twins: Mapping[str, Sequence[Twin]]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Splits of a cohort for testing only: the random splits of another cohort, whose test part it becomes.

    So the models are those whose results stand in the other cohort's table.

    Parameters
    ----------
    study : both cohorts.
    fitted : splits of the cohort that models are fitted on.
    recordings : usable recordings of the tested cohort, columns ``cohort``, ``participant_id`` and ``session_id``.
    twins : participants whose recording is in the other cohort as well (:func:`seen_by_content`); they are left out.

    Raises
    ------
    UserError
        When there are no random splits of a phenotype, or nobody is left to be tested.
    """
    own, table = study.tested, study.tables[0]
    sessions = recordings["session_id"] if own.by_session else None
    common, unmatched = match_participants(table, unit_names(recordings["participant_id"], sessions))
    participant = {name: participant_and_session(name, own.by_session)[0] for name in common}
    left_out = sorted(set(twins) & set(participant.values()))
    for name in left_out:
        same = f"{twins[name][0].recording_id} of {twins[name][0].cohort}"
        print(f"{own.name}: {name} is left out, its recording is that of {same}", file=sys.stderr)
    kept = table.loc[[name for name in sorted(common) if participant[name] not in left_out]]
    kept.attrs["path"] = table.attrs["path"]
    parts = []
    for name in study.phenotypes:
        models = fitted[(fitted["phenotype"] == name) & (fitted["protocol"] == RANDOM) & (fitted["part"] != "test")]
        if models.empty:
            raise UserError(
                f"{own.name}: fitted_on: {study.fitted.name} has no random splits of the phenotype {name}: no models "
                "are there to be tested; add random to probe.protocols"
            )
        tested = phenotype_values(own.phenotypes[name], kept).index
        for repetition, split in models.groupby("repetition", sort=True):
            test = pd.DataFrame({"cohort": own.name, "participant_id": tested, "phenotype": name, "part": "test"})
            test = with_labels(test, own.by_session).assign(repetition=repetition, fold="0")
            parts.append(pd.concat([split, test]).assign(protocol=TRANSFER))
    splits = pd.concat(parts, ignore_index=True)[list(fitted.columns)]
    twin_names = [[name, twins[name][0].cohort, twins[name][0].recording_id] for name in left_out]
    about = {"unmatched": unmatched, "n_participants": len(kept)}
    return splits, about | {"left_out_as_fitted_on": twin_names}
