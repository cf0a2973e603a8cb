"""Pretrain an encoder on shards by self-distillation: ``python -m semantoks.pretrain``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from semantoks.errors import run_command
from semantoks.files import provenance, write_text
from semantoks.model.encoder import Encoder
from semantoks.model.encoder_folder import save_weights
from semantoks.objectives.losses import collapsed_coding_rate
from semantoks.objectives.objective import Objective
from semantoks.objectives.parallel import process_rank, processes, world_size
from semantoks.objectives.schedules import Schedules
from semantoks.objectives.self_distillation import SelfDistillation
from semantoks.training.batches import Batches
from semantoks.training.checkpoint import Checkpoints, StopSignals, training_fingerprint
from semantoks.training.corpus import Corpus, describe_shards, load_corpus
from semantoks.training.device import choose_device, choose_precision, compute_reproducibly, keep_freed_memory
from semantoks.training.frames import Place, choose_place
from semantoks.training.monitor import Monitor, measure
from semantoks.training.optimiser import make_optimiser, optimiser_step
from semantoks.training.sampling import Sampler
from semantoks.training.settings import PretrainSettings, resolve_settings
from semantoks.training.step import forward_backward


class Preempted(SystemExit):
    """Training was told to stop; its checkpoint is written and it can be started again."""


def train(
    objective: Objective,
    corpus: Corpus,
    settings: PretrainSettings,
    seed: int,
    metrics: Path,
    checkpoints: Checkpoints,
    device: torch.device,
) -> None:
    """Train on a corpus, from the newest checkpoint if there is one.

    Parameters
    ----------
    objective : with its encoder, on ``device``; trained in place.
    metrics : JSON lines, one per logged step.

    Raises
    ------
    UserError
        When the loss is not finite or the features collapse.
    Preempted
        After SIGTERM, once the checkpoint is written.
    """
    sampler = Sampler(corpus.table, settings.optimiser.batch, seed, settings.masks.probability)
    note_small_corpus(sampler, settings)
    schedules = make_schedules(settings, sampler)
    optimiser = make_optimiser(objective.trained(), settings.optimiser.decay_all)
    batches = Batches(corpus, sampler, settings, device)
    precision = choose_precision(settings.run.precision, device)
    compile_encoders(objective, settings, device)
    log_every = settings.run.log_every or (1 if device.type == "cpu" else 10)
    collapsed = coding_rate_at_collapse(settings, sampler)
    resumed = checkpoints.restore(objective, optimiser)
    first_step, n_steps = resumed.pop("next_step"), schedules.n_steps
    if first_step and process_rank() == 0:
        print(f"going on from the checkpoint after step {first_step - 1} of {n_steps}", file=sys.stderr)
    events = metrics.parent / "tensorboard" if settings.run.tensorboard else None

    with (
        Monitor(
            metrics, settings.run, first_step, n_steps, sampler.batch, collapsed, events=events, **resumed
        ) as monitor,
        StopSignals() as signals,
    ):
        for step, views in enumerate(batches(first_step, n_steps), first_step):
            learning_rate, weights = schedules.learning_rate_at(step), {"ttr": schedules.ttr_weight_at(step)}
            result = forward_backward(objective, views, weights, settings.optimiser, precision)
            norm = optimiser_step(
                optimiser, learning_rate, schedules.weight_decay_at(step), settings.optimiser.clip_norm
            )
            objective.after_step(schedules.momentum_at(step))
            monitor.advance()
            logged = step % log_every == 0 or step == n_steps - 1
            if logged:
                monitor.log(
                    {
                        "step": step,
                        "epoch": step // sampler.steps_per_epoch,
                        **measure(objective, result),
                        "gradient_norm": norm.item(),
                        "learning_rate": learning_rate,
                        **{f"{part}_weight": weight for part, weight in weights.items()},
                        "masked": views.mask is not None,
                    }
                )
            # several processes agree, which waits for the device, only where logging waits anyway
            save, stop = signals.told(device) if logged or world_size() == 1 else (False, False)
            # a step that was not logged may have gone wrong unseen
            if save or (checkpoints.due and logged):
                checkpoints.save(step + 1, objective, optimiser, n_low=monitor.n_low)
            if stop:
                raise Preempted(f"stopped after step {step} of {n_steps}; start again to go on from there")


def make_objective(settings: PretrainSettings, corpus: Corpus, seed: int) -> SelfDistillation:
    """Student and teacher as initialised from ``seed``, on the CPU so that every device starts from the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SelfDistillation(Encoder(settings.model, corpus.networks), settings.objective)


def coding_rate_at_collapse(settings: PretrainSettings, sampler: Sampler) -> float:
    """What is logged as coding rate when all scans that share one covariance have the same features."""
    parts = settings.optimiser.micro_batches if settings.optimiser.accumulation == "separate" else 1
    n_rows = max(1, sampler.batch // parts)
    return collapsed_coding_rate(n_rows, settings.model.projection_width, settings.objective.epsilon)


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


def note_small_corpus(sampler: Sampler, settings: PretrainSettings) -> None:
    """Say so when the batch is the whole corpus."""
    if sampler.batch < settings.optimiser.batch and process_rank() == 0:
        print(
            f"note: the corpus has {sampler.n_participants} participants, fewer than optimiser.batch "
            f"({settings.optimiser.batch}); every step uses all of them, and the learning rate follows",
            file=sys.stderr,
        )


def compile_encoders(objective: Objective, settings: PretrainSettings, device: torch.device) -> None:
    """Compile the encoders in place; names of parameters stay."""
    if settings.run.compile == "on" or (settings.run.compile == "auto" and compiles(device)):
        # gradients or not, all tokens or CLS alone, micro-batches of two sizes: more variants than torch allows unasked
        torch._dynamo.config.recompile_limit = 32
        for encoder in objective.encoders():
            encoder.compile_parts()


def compiles(device: torch.device) -> bool:
    """Whether compiling pays and can be done: on a GPU, where there is the C compiler that Triton needs."""
    if device.type != "cuda":
        return False
    found = any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    if not found and process_rank() == 0:
        print("note: no C compiler (cc, gcc, clang) was found, so encoders are not compiled: slower", file=sys.stderr)
    return found


def corpus_place(shards: Sequence[Path], settings: PretrainSettings, device: torch.device, min_frames: int) -> Place:
    """Where the frames of these shards go."""
    metadata, table = describe_shards(shards, ["n_frames"], min_frames)
    n_bytes = 2 * int(table["n_frames"].sum()) * len(metadata["roi_names"])
    return choose_place(settings.run.corpus, n_bytes, device)


def resolved_run(settings: PretrainSettings, corpus: Corpus, seed: int) -> dict[str, Any]:
    """What ``auto`` and the size of the corpus came to."""
    device = choose_device(settings.run.device)
    sampler = Sampler(corpus.table, settings.optimiser.batch, seed, settings.masks.probability)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": world_size(),
        "precision": str(choose_precision(settings.run.precision, device)).removeprefix("torch."),
        "scans": len(corpus),
        "participants": sampler.n_participants,
        "batch": sampler.batch,
        "steps": settings.optimiser.epochs * sampler.steps_per_epoch,
    }


def make_config(settings: PretrainSettings, corpus: Corpus, seed: int, kind: str) -> dict[str, Any]:
    """What ``config.json`` says about an encoder: sizes, network table, data and settings that made it."""
    participants = corpus.table[["cohort", "participant_id"]].drop_duplicates()
    seen = sorted(participants.itertuples(index=False, name=None)) if kind == "pretrained" else []
    return {
        "kind": kind,
        "encoder": SelfDistillation.features,
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
        "resolved": resolved_run(settings, corpus, seed),
        "left_out": corpus.left_out,
        "pretrain_recordings": [list(key) for key in seen],
    }


def pretrain(
    shards: Sequence[Path],
    settings: PretrainSettings,
    seed: int,
    output: Path,
    checkpoint_folder: Path | None = None,
    random_initialisation: bool = False,
) -> None:
    """Train on shards, or only initialise, and write ``weights.safetensors``, ``config.json``, ``metrics.jsonl``.

    Raises
    ------
    UserError
        For shards that do not fit together or cannot be trained on.
    """
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    device = choose_device(settings.run.device)
    if device.type == "cpu":
        keep_freed_memory()
    if settings.run.reproducible:
        compute_reproducibly(device)
    model, min_frames = settings.model, 2 * settings.model.patch
    place = corpus_place(shards, settings, device, min_frames)
    corpus = load_corpus(
        shards, settings.min_network_valid, model.tokenizer, min_frames=min_frames, on_disk=place == "disk"
    )
    kind = "random" if random_initialisation else "pretrained"
    config = make_config(settings, corpus, seed, kind) | {"made_by": provenance("pretrain", {}, shards)}
    config["resolved"]["corpus"] = place
    if process_rank() == 0:
        print(json.dumps(config["resolved"], indent=2), file=sys.stderr)
        for _, name, reason in corpus.left_out:
            print(f"left out {name}: {reason}", file=sys.stderr)
    if random_initialisation:
        save_weights(output, make_objective(settings, corpus, seed).state_dict(), config)
        write_text(output / "metrics.jsonl", "")
        return
    precision = choose_precision(settings.run.precision, device)
    fingerprint = training_fingerprint(settings, corpus, seed, precision, config["made_by"]["inputs"].values())
    checkpoints = Checkpoints(checkpoint_folder, fingerprint, settings.run.checkpoint_minutes)
    metrics = (checkpoint_folder or output) / f"metrics-{fingerprint}.jsonl"
    with checkpoints.alone(device) as finished:
        if finished and (output / "metrics.jsonl").is_file():
            print("another run of this training has finished it meanwhile", file=sys.stderr)
            return
        objective = make_objective(settings, corpus, seed).to(device)
        corpus = corpus.to(device) if place == "device" else corpus
        train(objective, corpus, settings, seed, metrics, checkpoints, device)
        if process_rank() == 0:
            save_weights(output, objective.state_dict(), config)
            write_text(output / "metrics.jsonl", metrics.read_text(encoding="utf-8"))
            checkpoints.remove()  # first, so that nothing goes on from a checkpoint whose metrics are gone
            metrics.unlink()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; under torchrun every process trains on its part of each batch."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.pretrain", description=__doc__)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON: a preset and overrides")
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="shard files of one atlas")
    parser.add_argument("--seed", type=int, required=True, help="of initialisation, data order, views and masks")
    parser.add_argument("--output", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--checkpoints", type=Path, help="folder for checkpoints to go on from")
    parser.add_argument("--random-initialisation", action="store_true", help="write the encoder as initialised")
    arguments = parser.parse_args(argv)
    settings = resolve_settings(arguments.settings)
    with processes(choose_device(settings.run.device)):
        if process_rank() == 0:
            print(json.dumps(settings.as_dict(), indent=2), file=sys.stderr)
        pretrain(
            arguments.shards,
            settings,
            arguments.seed,
            arguments.output,
            arguments.checkpoints,
            arguments.random_initialisation,
        )


if __name__ == "__main__":
    run_command(main)
