"""Pretrain an encoder on shards by self-distillation: ``python -m semantoks.pretrain``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from semantoks.errors import run_command
from semantoks.files import provenance, write_text
from semantoks.model.encoder import Encoder
from semantoks.model.weights import save_weights
from semantoks.objectives.schedules import Schedules
from semantoks.objectives.self_distillation import SelfDistillation
from semantoks.training.batches import Batches
from semantoks.training.corpus import Corpus, load_corpus
from semantoks.training.device import choose_device, choose_precision
from semantoks.training.monitor import MetricsLog, Watchdog, measure, progress_bar
from semantoks.training.optimiser import make_optimiser, optimiser_step
from semantoks.training.sampling import Sampler
from semantoks.training.settings import PretrainSettings, resolve_settings
from semantoks.training.step import forward_backward


def make_objective(settings: PretrainSettings, corpus: Corpus, seed: int) -> SelfDistillation:
    """Student and teacher as initialised from ``seed``, on the CPU so that every device starts from the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SelfDistillation(Encoder(settings.model, corpus.networks), settings.objective)


def make_schedules(settings: PretrainSettings, sampler: Sampler) -> Schedules:
    """The curves of a training on this corpus."""
    optimiser, objective = settings.optimiser, settings.objective
    return Schedules(
        n_steps=optimiser.epochs * sampler.steps_per_epoch,
        warmup_steps=round(optimiser.warmup_epochs * sampler.steps_per_epoch),
        peak_learning_rate=optimiser.learning_rate * sampler.batch / 256,
        weight_decay=optimiser.weight_decay,
        final_weight_decay=optimiser.final_weight_decay,
        momentum=optimiser.momentum,
        final_momentum=optimiser.final_momentum,
        ttr_weight=objective.ttr_weight,
        ttr_share=objective.ttr_share,
    )


def train(
    corpus: Corpus, settings: PretrainSettings, seed: int, log_path: Path, device: torch.device
) -> SelfDistillation:
    """Train on a corpus; metrics go to ``log_path`` line by line.

    Raises
    ------
    UserError
        When the loss is not finite or the features collapse.
    """
    sampler = Sampler(corpus.table, settings.optimiser.batch, seed, settings.masks.probability)
    schedules = make_schedules(settings, sampler)
    objective = make_objective(settings, corpus, seed).to(device)
    optimiser = make_optimiser(objective.student.parameters(), settings.optimiser.decay_all)
    precision = choose_precision(settings.run.precision, device)
    log_every = settings.run.log_every or (1 if device.type == "cpu" else 10)
    watchdog = Watchdog(settings.run.min_coding_rate, settings.run.patience)
    log, bar = MetricsLog(log_path, 0), progress_bar(schedules.n_steps, 0)

    for step, views in enumerate(Batches(corpus, sampler, settings, device)(0, schedules.n_steps)):
        learning_rate, ttr_weight = schedules.learning_rate_at(step), schedules.ttr_weight_at(step)
        result = forward_backward(
            objective,
            views,
            ttr_weight,
            settings.optimiser.micro_batches,
            settings.optimiser.accumulation == "exact",
            precision,
        )
        norm = optimiser_step(optimiser, learning_rate, schedules.weight_decay_at(step), settings.optimiser.clip_norm)
        objective.after_step(schedules.momentum_at(step))
        bar.update()
        if step % log_every == 0 or step == schedules.n_steps - 1:
            metrics = {
                "step": step,
                "epoch": step // sampler.steps_per_epoch,
                **{name: value.item() for name, value in measure(*result).items()},
                "gradient_norm": norm.item(),
                "learning_rate": learning_rate,
                "ttr_weight": ttr_weight,
                "masked": views.mask is not None,
            }
            log.write(metrics)
            watchdog.check(metrics)
            bar.set_postfix_str(f"loss {metrics['loss']:.3f}, γR {metrics['coding_rate']:.3f}", refresh=False)
    log.close()
    bar.close()
    return objective


def make_config(settings: PretrainSettings, corpus: Corpus, seed: int, kind: str) -> dict[str, Any]:
    """What ``config.json`` says about an encoder: sizes, network table, data and settings that made it."""
    participants = corpus.table[["cohort", "participant_id"]].drop_duplicates()
    seen = sorted(participants.itertuples(index=False, name=None)) if kind == "pretrained" else []
    return {
        "kind": kind,
        "seed": seed,
        "model": settings.model.as_dict(),
        "networks": corpus.networks.labels,
        "network_order": list(corpus.networks.names),
        "roi_names": corpus.roi_names,
        "crop": settings.views.crop,
        "min_network_valid": settings.min_network_valid,
        "atlas": corpus.source.get("atlas"),
        "shard_settings": corpus.source.get("settings"),
        "settings": settings.as_dict(),
        "pretrain_recordings": [list(key) for key in seen],
    }


def pretrain(
    shards: Sequence[Path], settings: PretrainSettings, seed: int, output: Path, random_initialisation: bool = False
) -> None:
    """Train on shards, or only initialise, and write ``weights.safetensors``, ``config.json``, ``metrics.jsonl``."""
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    device = choose_device(settings.run.device)
    corpus = load_corpus(
        shards, settings.min_network_valid, settings.model.tokenizer, min_frames=2 * settings.model.patch
    )
    log_path = output / "metrics.jsonl"
    if random_initialisation:
        objective = make_objective(settings, corpus, seed)
        write_text(log_path, "")
    else:
        objective = train(corpus.to(device), settings, seed, log_path, device)
    kind = "random" if random_initialisation else "pretrained"
    config = make_config(settings, corpus, seed, kind) | {"made_by": provenance("pretrain", {}, shards)}
    save_weights(output, objective.state_dict(), config)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.pretrain", description=__doc__)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON: a preset and overrides")
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="shard files of one atlas")
    parser.add_argument("--seed", type=int, required=True, help="of initialisation, data order, views and masks")
    parser.add_argument("--output", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--random-initialisation", action="store_true", help="write the encoder as initialised")
    arguments = parser.parse_args(argv)
    settings = resolve_settings(arguments.settings)
    print(json.dumps(settings.as_dict(), indent=2), file=sys.stderr)
    pretrain(arguments.shards, settings, arguments.seed, arguments.output, arguments.random_initialisation)


if __name__ == "__main__":
    run_command(main)
