"""Import published checkpoints, export encoders: ``python -m semantoks.weights import|export`` (METHOD §4)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from semantoks.errors import UserError, run_command
from semantoks.files import provenance, read_text_table, replacing, sha256, write_json, write_text
from semantoks.model.authors_layout import (
    authors_views,
    check_keys,
    expected_tensors,
    fresh_dead_tensors,
    load_branch,
    read_checkpoint,
    settings_from_checkpoint,
)
from semantoks.model.encoder import Encoder
from semantoks.model.encoder_folder import CONFIG, WEIGHTS, build_encoder, check_state, read_weights, save_weights
from semantoks.model.networks import NetworkTable
from semantoks.objectives.self_distillation import ObjectiveSettings, SelfDistillation

PUBLISHED_RUNS = (
    *enumerate((31, 37, 23, 22, 13, 22, 52)),
    *enumerate((30, 40, 23, 25, 13, 30, 39)),
    (7, 50),
    (8, 7),
)
"""(network, consecutive ROIs) of the published 457: Schaefer-400 in 7-network order, Tian S3, Buckner-7."""
_UNUSED = "unused."


def import_checkpoint(
    checkpoint: Path,
    networks: NetworkTable,
    roi_names: Sequence[str],
    output: Path,
    head_width: int = 64,
    patch: int = 20,
) -> None:
    """Turn a checkpoint in the authors' key layout into a folder with ``weights.safetensors`` and ``config.json``.

    Tensors that no output depends on are kept under ``unused.``, so that exporting gives the same checkpoint again.
    ``head_width`` and ``patch`` are the sizes that the tensors do not show; the defaults are the published ones.

    Raises
    ------
    UserError
        For missing or unexpected keys, other shapes, or a network table that is not the checkpoint's.
    """
    check_published_order(networks)
    state = read_checkpoint(checkpoint)
    settings = settings_from_checkpoint(state, head_width, patch)
    positions = state.get("teacher_encoder.inter_network_transformer.temporal_pos_embedding")
    if positions is None:
        raise UserError(f"{checkpoint}: expected the authors' key layout, found no temporal_pos_embedding")
    objective = SelfDistillation(Encoder(settings, networks), ObjectiveSettings())
    expected: dict[str, Tensor] = {}
    live: set[str] = set()
    for role, branch in (("student", objective.student), ("teacher", objective.teacher)):
        tensors = branch.state_dict()
        expected |= expected_tensors(tensors, branch.encoder, role, len(positions))
        live |= authors_views(tensors, branch.encoder, role).keys()
    check_keys(state, expected)
    _check_constants(state, {key: value for key, value in expected.items() if key not in live})
    for role, branch in (("student", objective.student), ("teacher", objective.teacher)):
        load_branch(branch.state_dict(), branch.encoder, role, state)
    unused = {_UNUSED + key: value for key, value in state.items() if key not in live}
    config = {
        "kind": "imported",
        "seed": None,
        "model": settings.as_dict(),
        "networks": networks.labels,
        "network_order": list(networks.names),
        "roi_names": list(roi_names),
        "crop": len(positions) * settings.patch,
        "min_network_valid": 0.5,
        "atlas": None,
        "shard_settings": {"tr": 2.0},
        "settings": None,
        "pretrain_recordings": None,
        "made_by": provenance("weights", {}, [checkpoint]),
    }
    save_weights(output, objective.state_dict() | unused, config)


def check_published_order(networks: NetworkTable) -> None:
    """With the published network sizes, the ROIs must be in the published order, too.

    The 17-network order of the same Schaefer parcels has the same sizes and would be a silent error.
    """
    published = tuple(network for network, length in PUBLISHED_RUNS for _ in range(length))
    sizes = sorted(published.count(network) for network in set(published))
    if sorted(networks.sizes) == sizes and networks.of_roi != published:
        position = next(i for i, (a, b) in enumerate(zip(networks.of_roi, published, strict=True)) if a != b)
        raise UserError(
            "network table: expected the published order of the 457 ROIs (Schaefer-400 in 7-network order, Tian S3, "
            f"Buckner-7), found {networks.labels[position]!r} at ROI {position}; is it Schaefer's 17-network order?"
        )


def _check_constants(state: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> None:
    for key, value in constants.items():
        if not torch.allclose(state[key].double(), value.double(), rtol=1e-5, atol=1e-6):
            raise UserError(
                f"checkpoint: {key}: expected the fixed value of METHOD §2–3, found another; the model that wrote it "
                "computes something else"
            )


def export_authors(weights: Path, output: Path) -> None:
    """Write an encoder in the authors' key layout, to ``.pth`` or ``.safetensors``, for tools that load it strictly.

    Raises
    ------
    UserError
        For a linear tokenizer or separate heads, which that layout cannot hold.
    """
    tensors, config, path = read_weights(weights)
    if config["model"]["tokenizer"] != "semantic" or any("network_head" in name for name in tensors):
        raise UserError(
            f"{path}: expected a semantic tokenizer and one shared head, found others; the authors' layout has no "
            "place for them, export to a folder instead"
        )
    if output.suffix not in (".pth", ".safetensors"):
        raise UserError(f"{output}: expected a file ending in .pth or .safetensors, found {output.suffix!r}")
    objective = SelfDistillation(build_encoder(config), ObjectiveSettings())
    check_state(
        {name: value for name, value in tensors.items() if not name.startswith(_UNUSED)},
        objective.state_dict(),
        str(path),
    )
    objective.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(_UNUSED)})
    state: dict[str, Tensor] = {}
    n_patches = config["crop"] // config["model"]["patch"]
    for role, branch in (("student", objective.student), ("teacher", objective.teacher)):
        state |= expected_tensors(branch.state_dict(), branch.encoder, role, n_patches)
        state |= fresh_dead_tensors(branch.encoder, role, seed=config["seed"] or 0)
        head = {key: value for key, value in state.items() if key.startswith(f"{role}_predictor.")}
        state |= {key.replace("_predictor.", "_mask_predictor."): value for key, value in head.items()}
    state |= {key.removeprefix(_UNUSED): value for key, value in tensors.items() if key.startswith(_UNUSED)}
    state = {key: value.detach().contiguous().clone() for key, value in state.items()}
    with replacing(output) as temporary:
        if output.suffix == ".pth":
            torch.save({"model_state_dict": state}, temporary)
        else:
            safetensors.torch.save_file(state, temporary)


def export_folder(weights: Path, output: Path) -> None:
    """Write weights, config and a model card to share; the ids of participants stay out of the config."""
    tensors, config, path = read_weights(weights)
    seen = config.pop("pretrain_recordings")
    counts: dict[str, int] = {}
    for cohort, _ in seen or []:
        counts[cohort] = counts.get(cohort, 0) + 1
    with replacing(output / WEIGHTS) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"format": "semantoks"})
    config = config | {"pretrain_recordings": None, "pretrain_participants": counts if seen is not None else None}
    config["made_by"] = {key: value for key, value in config["made_by"].items() if key != "inputs"}
    write_json(output / CONFIG, config)
    write_text(output / "README.md", model_card(config, sha256(path)))


def model_card(config: Mapping[str, Any], checksum: str) -> str:
    """A model card in Markdown: what the encoder is, what it saw, how to use it, what not to expect."""
    model = config["model"]
    counts = config.get("pretrain_participants")
    if config["kind"] == "random":
        data = "None: the weights are as initialised."
    elif counts is None:
        data = "Not recorded in this file."
    else:
        data = "\n".join(f"- {cohort}: {number} participants" for cohort, number in sorted(counts.items()))
    tr = (config.get("shard_settings") or {}).get("tr")
    atlas = (config.get("atlas") or {}).get("name", "see roi_names in config.json")
    return f"""---
library_name: semantoks
tags: [fmri, neuroimaging, self-supervised-learning]
---
# Brain-Semantoks encoder ({config["kind"]}, seed {config["seed"]})

Encodes parcellated fMRI: {len(config["roi_names"])} ROIs (atlas: {atlas}) in {len(config["network_order"])} networks,
crops of {config["crop"]} samples, TR {tr} s, z-scored per ROI. Width {model["width"]}, {model["depth"]} blocks.
Method: Gijsen, Schulz & Ritter, ICLR 2026 (arXiv:2512.11582).

## Training data
{data}

## Use
```
python -m semantoks.embed --weights <this folder> --shards <shards> --output embeddings.parquet
```
ROIs are matched by name (`roi_names` in `config.json`); another order or another TR is refused.

## Limits
Features describe scans statistically; they are no diagnosis. Cohorts, scanners and denoising other than those of the
training data shift them. Linear models on functional connectivity are a strong baseline: compare before you conclude.

SHA-256 of the weights this card was made from: `{checksum}`
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="published checkpoint → folder")
    importing.add_argument("--checkpoint", type=Path, required=True, help=".pth or .safetensors, authors' key layout")
    importing.add_argument("--networks", type=Path, required=True, help="table with the columns name and network")
    importing.add_argument("--output", type=Path, required=True, help="folder")
    importing.add_argument("--head-width", type=int, default=64, help="size of an attention head (published: 64)")
    importing.add_argument("--patch", type=int, default=20, help="samples per patch (published: 20)")
    exporting = commands.add_parser("export", help="folder → folder with model card, or the authors' key layout")
    exporting.add_argument("--weights", type=Path, required=True, help="folder of an encoder")
    exporting.add_argument("--output", type=Path, required=True, help="folder; or .pth, .safetensors: authors' layout")
    arguments = parser.parse_args(argv)
    if arguments.command == "import":
        table = read_text_table(arguments.networks)
        missing = {"name", "network"} - set(table.columns)
        if missing:
            raise UserError(f"{arguments.networks}: expected the columns name and network, missing {sorted(missing)}")
        networks = NetworkTable.from_labels(table["network"].tolist())
        import_checkpoint(
            arguments.checkpoint,
            networks,
            table["name"].tolist(),
            arguments.output,
            arguments.head_width,
            arguments.patch,
        )
    elif arguments.output.suffix in (".pth", ".safetensors"):
        export_authors(arguments.weights, arguments.output)
    else:
        export_folder(arguments.weights, arguments.output)


if __name__ == "__main__":
    run_command(main)
