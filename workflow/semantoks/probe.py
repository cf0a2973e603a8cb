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
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from semantoks.baselines.confounds import Confounds
from semantoks.baselines.feature_table import FeatureTable
from semantoks.baselines.features import CropFeatures, Features
from semantoks.baselines.linear import fit, principal_scores, tune
from semantoks.baselines.permutation import null_values, permute, permuted_orders
from semantoks.baselines.prediction_rows import Origin, rows_of, with_key
from semantoks.baselines.row_features import COMBAT, CONFOUNDS, FROM_SHARDS, KERNEL, MAJORITY, read_features
from semantoks.baselines.study import Study
from semantoks.baselines.tasks import (
    Permuted,
    Prediction,
    Task,
    read_tasks,
    split_participants,
    tested_cohort,
    trained_by_steps,
)
from semantoks.errors import UserError, run_command
from semantoks.files import provenance, read_metadata, write_table
from semantoks.phenotypes import examples
from semantoks.protocols import GIVEN, LEARNING_CURVE, LEAVE_SITE_OUT, RANDOM

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
        key = (task.phenotype.name, task.protocol)
        count = self._count(task, len(self.members[key]))
        if count and key not in self._orders:
            self._orders[key] = permuted_orders(np.array(sorted(self.members[key])), self.people, count, "|".join(key))
        return self._orders.get(key)

    def _count(self, task: Task, participants: int) -> int:
        if task.protocol == LEARNING_CURVE:
            return 0
        if not task.n_classes:
            return int(self.counts["regression"])
        most = self.counts["classification_up_to"]
        return int(self.counts["classification"]) if most is None or participants <= most else 0


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

        for task, prediction in predict_published(features, trained_by_steps(tasks, settings), settings, device):
            yield PUBLISHED, task, prediction
    yield from predict_solved(features, tasks, [head for head in SOLVED if head in settings["heads"]], settings, orders)


def probe_row(arguments: argparse.Namespace, device: str) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """All predictions of one row, its metrics under permuted labels, and what belongs into the metadata."""
    settings = arguments.settings["probe"]
    study = Study.read(arguments.settings, split_participants(arguments.splits))
    alternatives = read_features(arguments, study)
    participants = alternatives[0].participants if alternatives else split_participants(arguments.splits)
    people = study.people(participants)
    tasks = read_tasks(arguments.splits, study, participants)
    if arguments.row == COMBAT:
        tasks = without_site_as_target(tasks, study.tested.site_column)
        tasks = with_known_sites(tasks, people["site"].to_numpy())
    orders = LabelOrders(tasks, people, settings)
    row = arguments.row.split("_seed-")[0]
    rows, permuted = [], Nulls(people["site_group"].to_numpy())
    for features, own in turns(arguments.row, alternatives, tasks):
        predictions = predict_row(features, own, settings, device, orders)
        origin = origin_of(features)
        for head, task, made in tqdm(predictions, desc=arguments.row, unit="fit", disable=None):
            rows.append(rows_of(row if features is None else f"{row}-{head}", head, origin, task, made, people))
            permuted.add(rows[-1]["row"].iloc[0], task, made.permuted)
    cohort = tested_cohort(arguments.splits)
    nulls = permuted.table()
    nulls.insert(0, "cohort", cohort)
    nulls.insert(2, "pretrain_seed", pd.Series(rows[-1]["pretrain_seed"].iloc[0], index=nulls.index, dtype="Int64"))
    about = study.describe()
    for features in alternatives:
        if isinstance(features, Confounds):
            about["confounds"] = {"used": sorted(features.columns), "left_out": list(features.left_out)}
    return with_key(pd.concat(rows), cohort), nulls, about


def turns(
    row: str, alternatives: Sequence[Features], tasks: Sequence[Task]
) -> Iterator[tuple[Features | None, list[Task]]]:
    """Which features predict which tasks: of several encoders the first whose pretraining saw nobody who is tested.

    A protocol of which every encoder saw some test part (random splits) is left out as a whole.

    Raises
    ------
    UserError
        When there are several encoders and one does not say whom it saw, each has seen somebody in every test part, or
        all of them saw some of the held-out sites.
    """
    if len(alternatives) < 2:
        yield (alternatives[0] if alternatives else None), list(tasks)
        return
    left, chosen = list(tasks), []
    for features in alternatives:
        assert isinstance(features, CropFeatures)
        names = features.participants
        if features.seen is None:
            raise UserError(
                f"--row {row}: {features.encoder} does not say whom it was pretrained on, so that nobody is known to "
                "be left out; take it out of probe.inductive"
            )
        saw = [bool(features.seen.intersection(names[number] for number in task.test)) for task in left]
        own = [task for task, one in zip(left, saw, strict=True) if not one]
        left = [task for task, one in zip(left, saw, strict=True) if one]
        if own:
            chosen.append((features, own))
    if len(left) == len(tasks):
        raise UserError(
            f"--row {row}: expected encoders whose pretraining left out the participants of some test part, found that "
            "each saw somebody in every one; list encoders that were pretrained without one group of sites each"
        )
    _refuse_sites_that_all_saw(row, left, [task for _, own in chosen for task in own])
    seen_by_all = {task.protocol for task in left}
    if left:
        count = sum(task.protocol in seen_by_all for task in tasks)
        print(
            f"{row}: {count} splits ({', '.join(sorted(seen_by_all))}) left out: every encoder saw the participants "
            f"tested in {len(left)} of them",
            file=sys.stderr,
        )
    for features, own in chosen:
        kept = [task for task in own if task.protocol not in seen_by_all]
        if kept:
            yield features, kept


def _refuse_sites_that_all_saw(row: str, left: Sequence[Task], predicted: Sequence[Task]) -> None:
    """A row that lacks some held-out sites cannot stand beside rows that have all of them."""
    sites = sorted({task.fold for task in left if task.protocol == LEAVE_SITE_OUT})
    if sites and any(task.protocol == LEAVE_SITE_OUT for task in predicted):
        raise UserError(
            f"--row {row}: expected for every held-out site an encoder whose pretraining saw nobody of it, found none "
            f"for {examples(sites, 10)}; name an encoder that was pretrained without them under probe.inductive, or "
            "put them into one site_group with sites that an encoder left out"
        )


def origin_of(features: Features | None) -> Origin:
    """Where a row's features come from."""
    if features is None:
        return Origin(MAJORITY)
    if isinstance(features, CropFeatures):
        return Origin(features.name, features.encoder, features.seed, features.seen)
    return Origin(features.name, seen=features.seen if isinstance(features, FeatureTable) else False)


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
        """Columns row, phenotype, protocol, metric, permutation, value, unchanged."""
        tables = []
        for (row, phenotype, protocol), made in sorted(self.made.items()):
            unchanged = np.all([permuted.unchanged for _, permuted in made], axis=0)
            for metric, values in null_values(made, self.site).items():
                one = pd.DataFrame({"permutation": np.arange(len(values)), "value": values, "unchanged": unchanged})
                tables.append(one.assign(row=row, phenotype=phenotype, protocol=protocol, metric=metric))
        columns = ["row", "phenotype", "protocol", "metric", "permutation", "value", "unchanged"]
        return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def without_site_as_target(tasks: Sequence[Task], site_column: str | None) -> list[Task]:
    """The tasks whose target is not what ComBat takes out: features harmonised by the target hold the answer.

    Raises
    ------
    UserError
        When nothing else is predicted.
    """
    kept = [task for task in tasks if task.phenotype.column != site_column]
    names = examples(sorted({task.phenotype.name for task in tasks if task.phenotype.column == site_column}))
    if not kept:
        raise UserError(
            f"{COMBAT}: expected a phenotype that is not the site (site_column {site_column}), found {names} on "
            f"{site_column}; take {COMBAT} out of probe.rows"
        )
    if names:
        print(f"{COMBAT}: {names} is left out, its column {site_column} names ComBat's batches", file=sys.stderr)
    return kept


def with_known_sites(tasks: Sequence[Task], site: np.ndarray) -> list[Task]:
    """The tasks in which ComBat is defined: a site that nobody was fitted on has no estimate.

    A protocol that holds out sites is left out as a whole: leave-site-out, and a user's own splits where one of them
    does. A small site that is only tested by chance stays as it is (:func:`semantoks.baselines.combat.harmonise`).

    Parameters
    ----------
    site : [participants] of the tasks' row numbers, null where unknown.
    """
    unknown = sorted({name for task in tasks if task.protocol == GIVEN for name in _held_out_sites(task, site)})
    possible = (RANDOM,) if unknown else (RANDOM, GIVEN)
    kept = [task for task in tasks if task.protocol in possible]
    message = f"{COMBAT}: {' and '.join(possible)} splits only, because ComBat has no estimate for a site it was not "
    message += f"fitted on{' (given splits hold out ' + examples(unknown) + ')' if unknown else ''}"
    if not kept:
        raise UserError(f"{message}; add random to probe.protocols or take {COMBAT} out of probe.rows")
    if len(kept) < len(tasks):
        print(message, file=sys.stderr)
    return kept


def _held_out_sites(task: Task, site: np.ndarray) -> list[str]:
    """Sites of at least as many tested participants as ComBat needs, of whom nobody is in the training part."""
    # Here, because what it imports outlasts every other row.
    from semantoks.baselines.combat import FEWEST

    tested = pd.Series(site[task.test]).value_counts()
    return sorted(set(tested.index[tested >= FEWEST]) - set(site[task.training]))


def input_files(arguments: argparse.Namespace) -> list[str]:
    """What the command line names."""
    lists = (arguments.embeddings, arguments.shards, arguments.fitted_shards, arguments.pretrain_shards, arguments.qc)
    return [arguments.splits, *(path for paths in lists for path in paths)]


def own_files(settings: Mapping[str, Any], row: str) -> list[str]:
    """What the settings name: participants tables, and the user's table behind the row."""
    files = []
    for described in filter(None, (settings, settings.get("fitted_on"))):
        table = (described.get("features") or {}).get(row)
        files += [described["participants"]["path"], *([table["path"]] if table else [])]
    return files


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: one row of the probe table."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.probe", description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads, help="cohort's participants and section probe")
    parser.add_argument("--row", required=True, help=f"{MAJORITY}, {CONFOUNDS}, {', '.join(FROM_SHARDS)}, or a name")
    parser.add_argument("--splits", required=True, help="splits.parquet of the cohort")
    parser.add_argument(
        "--embeddings",
        nargs="+",
        default=[],
        help="embeddings of the encoder; of several, each predicts what it has not seen",
    )
    parser.add_argument("--shards", nargs="+", default=[], help="the cohort's shards, for fc")
    parser.add_argument("--fitted-shards", nargs="+", default=[], help="shards of the cohort that models are fitted on")
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
    inputs = [*input_files(arguments), *own_files(arguments.settings, arguments.row)]
    splits = read_metadata(arguments.splits)
    about |= {
        "cohort": rows["cohort"].iloc[0],
        "splits": splits["settings"]["probe"],
        "not_scored": splits.get("not_scored"),
    }
    write_table(arguments.output, rows, provenance("probe", arguments.settings, inputs, **about))
    if arguments.permutations:
        permuted = permuted.astype({"permutation": "int64", "value": "float64", "unchanged": "bool"})
        write_table(arguments.permutations, permuted, provenance("probe", arguments.settings, inputs))
    print(f"{arguments.row}: {len(rows)} predictions in {time.perf_counter() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
