"""Fit one row of the probe table on every split and save its predictions on the test participants.

A row is a kind of features with one or more heads: ``majority``, ``confounds``, functional connectivity in one of its
forms, a user's own table, or an encoder's name with its embeddings. Every row fits on the same training parts, chooses
on the same validation parts and has the same budget.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from semantoks.baselines.confounds import make_confounds, make_covariates
from semantoks.baselines.connectivity import read_connectivity
from semantoks.baselines.feature_table import FeatureTable, read_feature_table
from semantoks.baselines.features import CropFeatures, Features, read_embeddings
from semantoks.baselines.linear import fit, principal_scores, tune
from semantoks.baselines.overlap import seen_by_content
from semantoks.baselines.permutation import LEAVE_SITE_OUT, null_values, permute, permuted_orders
from semantoks.baselines.prediction_rows import Origin, describe, people_of, rows_of, with_key
from semantoks.baselines.tasks import Permuted, Prediction, Task, read_tasks
from semantoks.errors import UserError, run_command
from semantoks.files import provenance, read_metadata, read_table, read_tables, write_table
from semantoks.phenotypes import Cohort, read_participants, sites

MAJORITY = "majority"
CONFOUNDS = "confounds"
CONNECTIVITY = "fc"
KERNEL, TANGENT, POWER, COMBAT = "fc-kernel", "fc-tangent", "fc-power", "fc-combat"
FROM_SHARDS = (CONNECTIVITY, KERNEL, TANGENT, POWER, COMBAT)
"""Rows that are computed from the time series of the shards."""
PUBLISHED = "published"
SOLVED = ("logistic", "ridge")


def predict_majority(tasks: Sequence[Task], refit: bool) -> Iterator[tuple[Task, Prediction]]:
    """Scores without features: class shares, or the mean, of the participants fitted on."""
    for task in tasks:
        fitted = _fitted(task, refit)
        nothing = np.zeros((len(task.target), 1))
        head = fit(MAJORITY, nothing[fitted], task.target[fitted], task.n_classes, [0.0])[0]
        yield task, Prediction(head.scores(nothing[task.test]), "none", len(fitted))


class LabelOrders:
    """Permutations of the labels, the same for every row of a table (:func:`permuted_orders`)."""

    def __init__(self, tasks: Sequence[Task], people: pd.DataFrame, settings: Mapping[str, Any]) -> None:
        self.people, self.counts = people, settings["permutations"]
        self.members: dict[tuple[str, str], set[int]] = {}
        for task in tasks:
            rows = self.members.setdefault((task.phenotype.name, task.protocol), set())
            rows.update(np.concatenate([task.training, task.validation, task.test]).tolist())
        self._orders: dict[tuple[str, str], np.ndarray] = {}

    def of(self, task: Task) -> np.ndarray | None:
        """Whose label each participant gets [permutations, participants]; None where labels are not permuted."""
        count = self.counts["classification" if task.n_classes else "regression"]
        key = (task.phenotype.name, task.protocol)
        if count and key not in self._orders:
            self._orders[key] = permuted_orders(np.array(sorted(self.members[key])), self.people, count, "|".join(key))
        return self._orders.get(key)


def predict_solved(
    features: Features,
    tasks: Sequence[Task],
    heads: Sequence[str],
    settings: Mapping[str, Any],
    orders: LabelOrders | None = None,
) -> Iterator[tuple[str, Task, Prediction]]:
    """Tune, refit and test the solved heads on every task, and again on permuted labels where there are ``orders``.

    Tasks with the same training part share their principal scores, so they are taken together.
    """
    scores: dict[bytes, np.ndarray] = {}
    for task in sorted(tasks, key=lambda task: task.training.tobytes()):
        training, both = task.training, _fitted(task, settings["refit"])
        wanted = {index.tobytes() + _column(features, task): index for index in (training, both)}
        scores = {key: scores[key] for key in wanted if key in scores}
        for key, index in wanted.items():
            if key not in scores:
                scores[key] = principal_scores(features.design(task.phenotype, index), index)
        first, second = (scores[index.tobytes() + _column(features, task)] for index in (training, both))
        for head in heads:
            if head == "logistic" and not task.n_classes:
                continue
            if head == "logistic" and features.name == KERNEL:
                continue
            parts = (training, task.validation)
            penalty, fitted = tune(head, first, task.target, task.n_classes, parts, settings["penalties"])
            if settings["refit"]:
                (fitted,) = fit(head, second[both], task.target[both], task.n_classes, [penalty])
            drawn = None if orders is None else orders.of(task)
            permuted = None if drawn is None else permute(head, task, (first, second), drawn, settings)
            yield head, task, Prediction(fitted.scores(second[task.test]), f"penalty {penalty:g}", len(both), permuted)


def _fitted(task: Task, refit: bool) -> np.ndarray:
    return np.sort(np.concatenate([task.training, task.validation])) if refit else task.training


def _column(features: Features, task: Task) -> bytes:
    """What else the features depend on: confounds and covariates leave out the phenotype's own column."""
    return task.phenotype.column.encode() if features.name in (CONFOUNDS, COMBAT) else b""


def predict_row(
    features: Features | None, tasks: Sequence[Task], settings: Mapping[str, Any], device: str, orders: LabelOrders
) -> Iterator[tuple[str, Task, Prediction]]:
    """Predictions of every head that suits the features; ``None`` is the majority row."""
    if features is None:
        for task, prediction in predict_majority(tasks, settings["refit"]):
            yield MAJORITY, task, prediction
        return
    if PUBLISHED in settings["heads"] and isinstance(features, CropFeatures):
        # Here, because only this head needs torch, whose import outlasts many a row.
        from semantoks.baselines.published_probe import predict_published

        for task, prediction in predict_published(features, tasks, settings, device):
            yield PUBLISHED, task, prediction
    yield from predict_solved(features, tasks, [head for head in SOLVED if head in settings["heads"]], settings, orders)


def read_mean_fd(qc: Sequence[str]) -> pd.Series | None:
    """Mean framewise displacement [mm] of each participant, averaged over usable recordings; None without QC files."""
    if not qc:
        return None
    table = read_tables(qc, ["participant_id", "mean_fd", "exclude_reason"])
    table = table[table["exclude_reason"].isna()]
    return table.groupby("participant_id")["mean_fd"].mean()


def read_features(arguments: argparse.Namespace, cohort: Cohort, table: pd.DataFrame) -> Features | None:
    """The features that ``--row`` names.

    Raises
    ------
    UserError
        When the file that they need is not given.
    """
    if arguments.row in (MAJORITY, CONFOUNDS):
        if arguments.row == MAJORITY:
            return None
        tested = set(read_table(arguments.splits, ["participant_id"])["participant_id"])
        return make_confounds(cohort, table, sorted(tested), read_mean_fd(arguments.qc))
    if arguments.row in FROM_SHARDS:
        if not arguments.shards:
            raise UserError(f"--row {arguments.row} needs --shards, found none; give the cohort's shards")
        return read_from_shards(arguments, cohort, table)
    own = arguments.settings.get("features") or {}
    if arguments.row in own:
        return read_feature_table(arguments.row, own[arguments.row])
    if not arguments.embeddings:
        raise UserError(
            f"--row {arguments.row}: expected {MAJORITY}, {CONFOUNDS}, {', '.join(FROM_SHARDS)}, a table under "
            "features of the cohort file, or an encoder's name together with --embeddings; give its embeddings or "
            "correct the name"
        )
    features = read_embeddings(arguments.embeddings)
    same = seen_by_content(arguments.shards, arguments.pretrain_shards)
    for participant, (recording, value) in sorted(same.items()):
        print(f"{participant}: pretraining saw the same content as {recording} (FC r {value:.3f})", file=sys.stderr)
    return replace(features, seen=features.seen | set(same))


def read_from_shards(arguments: argparse.Namespace, cohort: Cohort, table: pd.DataFrame) -> Features:
    """Functional connectivity in the form that ``--row`` names."""
    settings = arguments.settings["probe"]
    share = settings["roi_valid_share"]
    if arguments.row == CONNECTIVITY:
        return read_connectivity(arguments.shards, share)
    if arguments.row == COMBAT:
        # Here, as for the rows below, because what they import outlasts the plain row.
        from semantoks.baselines.combat import HarmonisedConnectivity

        connectivity = read_connectivity(arguments.shards, share)
        if cohort.site_column is None:
            raise UserError(f"--row {COMBAT}: ComBat needs sites; set site_column in the cohort file")
        site = sites(cohort, table).reindex(connectivity.participants).to_numpy(dtype=object)
        covariates = make_covariates(cohort, table, connectivity.participants)
        return HarmonisedConnectivity(COMBAT, connectivity, site, covariates)
    from semantoks.baselines.connectivity_rows import KernelConnectivity, power_edges, read_tangent

    if arguments.row == TANGENT:
        return read_tangent(arguments.shards, share)
    if arguments.row == KERNEL:
        return KernelConnectivity(KERNEL, read_connectivity(arguments.shards, share))
    return read_connectivity(arguments.shards, share, power_edges(settings["power"]), POWER)


def probe_row(arguments: argparse.Namespace, device: str) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """All predictions of one row, its metrics under permuted labels, and what belongs into the metadata."""
    cohort = Cohort.from_settings(arguments.settings)
    settings = arguments.settings["probe"]
    table = read_participants(cohort)
    features = read_features(arguments, cohort, table)
    splits = read_table(arguments.splits, ["cohort", "participant_id"])
    participants = sorted(set(splits["participant_id"])) if features is None else features.participants
    people = people_of(cohort, table, participants)
    tasks = read_tasks(arguments.splits, cohort, table, participants)
    if arguments.row == COMBAT:
        tasks = without_held_out_sites(tasks)
    row = arguments.row.split("_seed-")[0]
    origin = origin_of(features)
    predictions = predict_row(features, tasks, settings, device, LabelOrders(tasks, people, settings))
    rows, permuted = [], Nulls(people["site_group"].to_numpy())
    for head, task, made in tqdm(predictions, desc=arguments.row, unit="fit", disable=None):
        rows.append(rows_of(row if features is None else f"{row}-{head}", head, origin, task, made, people))
        permuted.add(rows[-1]["row"].iloc[0], task, made.permuted)
    table_of_rows = pd.concat(rows)
    cohort_name = str(splits["cohort"].iloc[0])
    nulls = permuted.table()
    nulls.insert(0, "cohort", cohort_name)
    nulls.insert(2, "pretrain_seed", pd.Series(origin.seed, index=nulls.index, dtype="Int64"))
    return with_key(table_of_rows, cohort_name), nulls, describe(cohort, table)


def origin_of(features: Features | None) -> Origin:
    """Where a row's features come from."""
    if features is None:
        return Origin(MAJORITY)
    if isinstance(features, CropFeatures):
        return Origin(features.name, features.encoder, features.seed, features.seen)
    return Origin(features.name, seen=isinstance(features, FeatureTable) and features.seen)


class Nulls:
    """Collects what was found under permuted labels and gives its metrics."""

    def __init__(self, site: np.ndarray) -> None:
        self.site = site
        self.made: dict[tuple[str, str, str], list[tuple[Task, Permuted]]] = {}

    def add(self, row: str, task: Task, permuted: Permuted | None) -> None:
        """Keep what one task of a row gave."""
        if permuted is not None:
            self.made.setdefault((row, task.phenotype.name, task.protocol), []).append((task, permuted))

    def table(self) -> pd.DataFrame:
        """Columns row, phenotype, protocol, metric, permutation, value."""
        tables = [
            pd.DataFrame({"metric": metric, "permutation": np.arange(len(values)), "value": values}).assign(
                row=row, phenotype=phenotype, protocol=protocol
            )
            for (row, phenotype, protocol), made in sorted(self.made.items())
            for metric, values in null_values(protocol, made, self.site).items()
        ]
        columns = ["row", "phenotype", "protocol", "metric", "permutation", "value"]
        return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def without_held_out_sites(tasks: Sequence[Task]) -> list[Task]:
    """The tasks in which ComBat is defined: a site that nobody was fitted on has no estimate."""
    kept = [task for task in tasks if task.protocol != LEAVE_SITE_OUT]
    message = f"{COMBAT}: leave-site-out is left out, because ComBat has no estimate for a site it was not fitted on"
    if not kept:
        raise UserError(f"{message}; add random to probe.protocols or take {COMBAT} out of probe.rows")
    if len(kept) < len(tasks):
        print(message, file=sys.stderr)
    return kept


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: one row of the probe table."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.probe", description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads, help="cohort's participants and section probe")
    parser.add_argument("--row", required=True, help=f"{MAJORITY}, {CONFOUNDS}, {', '.join(FROM_SHARDS)}, or a name")
    parser.add_argument("--splits", required=True, help="splits.parquet of the cohort")
    parser.add_argument("--embeddings", help="embeddings of the encoder")
    parser.add_argument("--shards", nargs="+", default=[], help="the cohort's shards, for fc")
    parser.add_argument(
        "--pretrain-shards", nargs="+", default=[], help="shards of other cohorts that the encoder was pretrained on"
    )
    parser.add_argument("--qc", nargs="+", default=[], help="the cohort's qc tables, for the confound mean_fd")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where the published head is trained")
    parser.add_argument("--output", required=True, help="predictions (Parquet)")
    parser.add_argument("--permutations", help="where the metrics under permuted labels go (Parquet)")
    arguments = parser.parse_args(argv)
    began = time.perf_counter()
    rows, permuted, about = probe_row(arguments, arguments.device)
    files = [arguments.splits, arguments.embeddings, *arguments.shards, *arguments.pretrain_shards, *arguments.qc]
    own = (arguments.settings.get("features") or {}).get(arguments.row, {}).get("path")
    inputs = [arguments.settings["participants"]["path"], *filter(None, [*files, own])]
    about |= {"cohort": rows["cohort"].iloc[0], "splits": read_metadata(arguments.splits)["settings"]["probe"]}
    write_table(arguments.output, rows, provenance("probe", arguments.settings, inputs, **about))
    if arguments.permutations:
        permuted = permuted.astype({"permutation": "int64", "value": "float64"})
        write_table(arguments.permutations, permuted, provenance("probe", arguments.settings, inputs))
    print(f"{arguments.row}: {len(rows)} predictions in {time.perf_counter() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
