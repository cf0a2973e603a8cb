"""The features that a row of the probe table names, read from files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from semantoks.baselines.confounds import make_covariates
from semantoks.baselines.connectivity import read_connectivity
from semantoks.baselines.feature_table import FeatureTable, read_feature_table
from semantoks.baselines.features import CropFeatures, Features, read_embeddings
from semantoks.baselines.joined_confounds import read_confounds, with_copies
from semantoks.baselines.overlap import seen_by_content, seen_in_pretraining
from semantoks.baselines.study import Study
from semantoks.baselines.tasks import split_participants
from semantoks.errors import UserError
from semantoks.files import read_metadata, read_tables
from semantoks.phenotypes import sites

MAJORITY = "majority"
CONFOUNDS = "confounds"
CONNECTIVITY = "fc"
KERNEL, TANGENT, POWER, COMBAT = "fc-kernel", "fc-tangent", "fc-power", "fc-combat"
FROM_SHARDS = (CONNECTIVITY, KERNEL, TANGENT, POWER, COMBAT)
"""Rows that are computed from the time series of the shards."""


def read_features(arguments: argparse.Namespace, study: Study) -> list[Features]:
    """The features that ``--row`` names: none for the majority row, several when encoders take turns over the folds.

    Raises
    ------
    UserError
        When the file that they need is not given.
    """
    if arguments.row == MAJORITY:
        return []
    if arguments.row == CONFOUNDS:
        return [read_confounds(study, split_participants(arguments.splits), arguments.qc)]
    if arguments.row in FROM_SHARDS:
        if not arguments.shards:
            raise UserError(f"--row {arguments.row} needs --shards, found none; give the cohort's shards")
        return [_from_shards(arguments, study)]
    own = arguments.settings.get("features") or {}
    if arguments.row in own:
        return [_own_table(arguments.row, arguments.settings, study)]
    if not arguments.embeddings:
        raise UserError(
            f"--row {arguments.row}: expected {MAJORITY}, {CONFOUNDS}, {', '.join(FROM_SHARDS)}, a table under "
            "features of the cohort file, or an encoder's name together with --embeddings; give its embeddings or "
            "correct the name"
        )
    return list(_encoders(arguments, study))


def _encoders(arguments: argparse.Namespace, study: Study) -> list[CropFeatures]:
    """Features of every encoder whose embeddings are given, with whom it saw by id and by content."""
    files: dict[str, list[str]] = {}
    for path in arguments.embeddings:
        files.setdefault(str(read_metadata(path).get("encoder")), []).append(path)
    twins = seen_by_content(arguments.shards, arguments.pretrain_shards)
    found = []
    for encoder, paths in sorted(files.items()):
        pretrained = read_metadata(paths[0]).get("pretrain_recordings")
        people = read_tables(paths, ["cohort", "participant_id", "session_id"])
        seen = seen_in_pretraining(encoder, pretrained, people, twins, study)
        found.append(replace(read_embeddings(paths, study.tested.by_session), seen=seen))
    return found


def _own_table(row: str, settings: Mapping[str, Any], study: Study) -> FeatureTable:
    """A user's table, of both cohorts where models of one are tested on another."""
    by_session = study.tested.by_session
    tables = [read_feature_table(row, settings["features"][row], by_session)]
    if not study.transfers:
        return tables[0]
    other = (settings["fitted_on"].get("features") or {}).get(row)
    if other is None:
        raise UserError(
            f"features.{row}: expected it in {study.fitted.name} as well, found it in {study.tested.name} only"
        )
    tables.append(read_feature_table(row, other, by_session))
    widths = [table.values.shape[1] for table in tables]
    if widths[0] != widths[1]:
        raise UserError(
            f"features.{row}: expected tables of one width, found {widths[0]} columns for {study.tested.name} and "
            f"{widths[1]} for {study.fitted.name}"
        )
    participants = [
        key
        for cohort, table in zip(study.cohorts, tables, strict=True)
        for key in study.keys(cohort, table.participants)
    ]
    return FeatureTable(row, participants, np.concatenate([table.values for table in tables]), tables[0].seen)


def _from_shards(arguments: argparse.Namespace, study: Study) -> Features:
    """Functional connectivity in the form that ``--row`` names."""
    settings = arguments.settings["probe"]
    share, shards = settings["roi_valid_share"], [*arguments.shards, *arguments.fitted_shards]
    by_session = study.tested.by_session
    if arguments.row == CONNECTIVITY:
        return read_connectivity(shards, share, by_session=by_session)
    if arguments.row == COMBAT:
        # Here, as for the rows below, because what they import outlasts the plain row.
        from semantoks.baselines.combat import HarmonisedConnectivity

        connectivity = read_connectivity(shards, share, by_session=by_session)
        cohort, table = study.tested, study.tables[0]
        if cohort.site_column is None:
            raise UserError(f"--row {COMBAT}: ComBat needs sites; set site_column in the cohort file")
        site = sites(cohort, table).reindex(connectivity.participants).to_numpy(dtype=object)
        covariates = with_copies(make_covariates(cohort, table, connectivity.participants), study)
        return HarmonisedConnectivity(COMBAT, connectivity, site, covariates)
    from semantoks.baselines.connectivity_rows import KernelConnectivity, power_edges, read_tangent

    if arguments.row == TANGENT:
        return read_tangent(shards, share, by_session)
    if arguments.row == KERNEL:
        return KernelConnectivity(KERNEL, read_connectivity(shards, share, by_session=by_session))
    return read_connectivity(shards, share, power_edges(settings["power"]), POWER, by_session)
