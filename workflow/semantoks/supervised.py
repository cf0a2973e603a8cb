"""Networks trained on the labels of every split: encoders fine-tuned fully or by LoRA, BNT, window transformer.

``python -m semantoks.supervised`` writes the same rows as the stage probe. Same splits, no refit: the validation part
chooses the epoch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from semantoks.baselines.connectivity import read_connectivity
from semantoks.baselines.features import Index
from semantoks.baselines.finetuning import Crops, FineTuned, LoRA
from semantoks.baselines.network_training import Inputs, Network, TrainingSettings, fit_network
from semantoks.baselines.overlap import seen_by_content, seen_in_pretraining
from semantoks.baselines.prediction_rows import Origin, rows_of, with_key
from semantoks.baselines.study import Study
from semantoks.baselines.supervised_networks import (
    BrainNetworkTransformer,
    FromNothing,
    Matrices,
    WindowTransformer,
    without_mask,
)
from semantoks.baselines.tasks import Prediction, Task, read_tasks, split_participants, tested_cohort, trained_by_steps
from semantoks.errors import UserError, run_command
from semantoks.files import provenance, read_metadata, read_tables, write_table
from semantoks.model.encoder_folder import LoadedEncoder, load_encoder
from semantoks.training.corpus import load_corpus
from semantoks.training.device import choose_device, compute_reproducibly
from semantoks.training.encoder_corpus import load_matching_corpus

FULL, LORA, BNT, WINDOWS = "finetuned", "lora", "bnt", "windows"
MODELS = (FULL, LORA, BNT, WINDOWS)
CROP = 100
"""Frames that the window transformer sees at once."""


class WindowCrops(Crops):
    """Crops without marks of absent tokens."""

    def training(self, participants: Index, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """One augmented crop of each participant."""
        return without_mask(super().training(participants, generator))

    def testing(self, participants: Index) -> Iterator[tuple[Index, tuple[torch.Tensor, ...]]]:
        """Every regular crop."""
        for owner, inputs in super().testing(participants):
            yield owner, without_mask(inputs)


class Recipe:
    """How to make a model's inputs and, for every split, a fresh network."""

    def __init__(self, inputs: Inputs, fresh: Callable[[Task], Network], settings: TrainingSettings) -> None:
        self.inputs, self.fresh, self.settings = inputs, fresh, settings


def pretrained_encoder(model: str, weights: Path | None) -> LoadedEncoder | None:
    """The encoder that a model starts from; None for networks from nothing.

    Raises
    ------
    UserError
        When an encoder is needed and not given.
    """
    if model in (BNT, WINDOWS):
        return None
    if weights is None:
        raise UserError(f"--model {model} needs --weights, found none; name the folder of an encoder")
    return load_encoder(weights)


def origin_of(model: str, loaded: LoadedEncoder | None, arguments: argparse.Namespace, study: Study) -> Origin:
    """Which encoder is behind a model and whom its pretraining saw, by id and by content."""
    if loaded is None:
        return Origin(model)
    name = loaded.path.parent.name
    people = read_tables([*arguments.shards, *arguments.fitted_shards], ["cohort", "participant_id", "session_id"])
    twins = seen_by_content(arguments.shards, arguments.pretrain_shards)
    seen = seen_in_pretraining(name, loaded.config.get("pretrain_recordings"), people, twins, study)
    return Origin(model, name, _seed(name), seen)


def make_recipe(
    model: str,
    loaded: LoadedEncoder | None,
    shards: Sequence[Path],
    participants: Sequence[str],
    given: Mapping[str, Any],
    by_session: bool,
) -> Recipe:
    """Inputs and network of a model."""
    own = ("epochs", "batch", "weight_decay", "clip_norm")
    settings = TrainingSettings(**{name: given[name] for name in own}, learning_rate=given["learning_rate"][model])
    if model == BNT:
        connectivity = read_connectivity(shards, 0.0, by_session=by_session)
        rows = [connectivity.participants.index(name) for name in participants]
        inputs: Inputs = Matrices.from_edges(connectivity.edges[rows], connectivity.valid.shape[1])
        n_rois = connectivity.valid.shape[1]
        return Recipe(inputs, _from_nothing(BrainNetworkTransformer, n_rois), settings)
    if model == WINDOWS:
        corpus = load_corpus(shards)
        inputs = WindowCrops(corpus, participants, CROP, CROP, given["crops"], by_session)
        return Recipe(inputs, _from_nothing(WindowTransformer, len(corpus.roi_names)), settings)
    assert loaded is not None
    corpus = load_matching_corpus(shards, loaded)
    encoder, config = loaded.encoder, loaded.config
    crops = Crops(corpus, participants, config["crop"], config["model"]["patch"], given["crops"], by_session)

    def fresh(task: Task) -> Network:
        outputs = max(task.n_classes, 1)
        with torch.random.fork_rng():
            torch.manual_seed(task.seed)
            if model == FULL:
                return FineTuned(encoder, outputs, given["layer_decay"])
            return LoRA(encoder, outputs, given["lora_rank"], task.seed)

    return Recipe(crops, fresh, settings)


def _from_nothing(kind: type[torch.nn.Module], n_rois: int) -> Callable[[Task], Network]:
    return lambda task: FromNothing(kind, n_rois, max(task.n_classes, 1), task.seed)


def _seed(encoder: str) -> int | None:
    name, _, seed = encoder.rpartition("_seed-")
    return int(seed) if name and seed.isdigit() else None


def predict(
    recipe: Recipe, origin: Origin, row: str, tasks: Sequence[Task], people: pd.DataFrame, device: torch.device
) -> pd.DataFrame:
    """Train on every split and give all predictions."""
    rows = []
    for task in tqdm(tasks, desc=row, unit="split", disable=None):
        torch.manual_seed(task.seed)  # of dropout: a split's result does not depend on the splits before it
        prediction, _ = fit_network(recipe.fresh(task), recipe.inputs, task, recipe.settings, device)
        rows.append(rows_of(row, origin.features, origin, task, prediction, people))
    return pd.concat(rows)


def no_rows(row: str, origin: Origin, task: Task, people: pd.DataFrame) -> pd.DataFrame:
    """The table of predictions without a row, for a cohort that has no splits of the protocols asked for."""
    nobody = replace(task, test=task.test[:0])
    return rows_of(row, origin.features, origin, nobody, Prediction(np.empty((0, 1)), "", 0), people)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: one model on every split of a cohort."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.supervised", description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads, help="cohort's participants, section supervised")
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument("--weights", type=Path, help="folder of the encoder to fine-tune")
    parser.add_argument("--splits", required=True, help="splits.parquet of the cohort")
    parser.add_argument("--shards", required=True, nargs="+", type=Path, help="the cohort's shards")
    parser.add_argument(
        "--fitted-shards", nargs="+", default=[], type=Path, help="shards of the cohort that models are fitted on"
    )
    parser.add_argument(
        "--pretrain-shards",
        nargs="+",
        default=[],
        type=Path,
        help="shards of other cohorts that the encoder was pretrained on",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the choice to torch")
    parser.add_argument("--output", required=True, help="predictions (Parquet)")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    participants = split_participants(arguments.splits)
    study, given = Study.read(arguments.settings, participants), arguments.settings["supervised"]
    device = choose_device(given["device"])
    compute_reproducibly(device)
    probe = read_metadata(arguments.splits)["settings"]["probe"]
    every = trained_by_steps(read_tasks(arguments.splits, study, participants), probe)
    # Models of another cohort are those of its random splits.
    tasks = every if study.transfers else [task for task in every if task.protocol in given["protocols"]]
    if not tasks:
        found = ", ".join(sorted({task.protocol for task in every}))
        print(f"supervised.protocols: {given['protocols']}, the splits are {found}: nothing to train", file=sys.stderr)
    loaded = pretrained_encoder(arguments.model, arguments.weights)
    origin = origin_of(arguments.model, loaded, arguments, study)
    shards = [*arguments.shards, *arguments.fitted_shards]
    recipe = make_recipe(arguments.model, loaded, shards, participants, given, study.tested.by_session)
    encoder = (origin.encoder or "").split("_seed-")[0]
    row = f"{encoder}-{arguments.model}" if encoder else arguments.model
    people, cohort = study.people(participants), tested_cohort(arguments.splits)
    rows = predict(recipe, origin, row, tasks, people, device) if tasks else no_rows(row, origin, every[0], people)
    rows = with_key(rows, cohort)
    about = study.describe() | {"cohort": cohort, "splits": probe}
    tables = [cohort.participants["path"] for cohort in study.cohorts]
    inputs = [*tables, arguments.splits, *map(str, [*shards, *arguments.pretrain_shards])]
    write_table(arguments.output, rows, provenance("supervised", arguments.settings, inputs, **about))
    seconds = time.perf_counter() - began
    print(f"{row}: {len(rows)} predictions of {len(tasks)} splits in {seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
