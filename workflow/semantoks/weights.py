"""Import published checkpoints, export encoders: ``python -m semantoks.weights import|export`` (METHOD §4)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from semantoks.errors import UserError, run_command
from semantoks.files import provenance, read_text_table, replacing, sha256, write_json, write_text
from semantoks.model.authors_layout import (
    DESCRIBED,
    aliases,
    authors_views,
    check_keys,
    expected_tensors,
    fresh_dead_tensors,
    load_branch,
    read_described_checkpoint,
    settings_from_checkpoint,
    write_checkpoint,
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
PUBLISHED_WIDTH = 768
_UNUSED = "unused."


@dataclass(frozen=True)
class Untold:
    """What the tensors of a checkpoint do not show; None where the user did not say.

    Attributes
    ----------
    networks, roi_names : of each ROI, in order.
    head_width : size of an attention head.
    patch : samples per patch.
    tr : s, of the training data.
    """

    networks: NetworkTable | None = None
    roi_names: Sequence[str] | None = None
    head_width: int | None = None
    patch: int | None = None
    tr: float | None = None


def import_checkpoint(checkpoint: Path, untold: Untold, output: Path) -> None:
    """Turn a checkpoint in the authors' key layout into a folder with ``weights.safetensors`` and ``config.json``.

    Tensors that no output depends on are kept under ``unused.``, so that exporting gives the same checkpoint again.
    Our own exports say what their tensors do not show; of others, ``untold`` must.

    Raises
    ------
    UserError
        For missing or unexpected keys, other shapes, a network table that is not the checkpoint's, or sizes that
        neither the file nor the user gives.
    """
    state, description = read_described_checkpoint(checkpoint)
    positions = state.get("teacher_encoder.inter_network_transformer.temporal_pos_embedding")
    if positions is None:
        raise UserError(f"{checkpoint}: expected the authors' key layout, found no temporal_pos_embedding")
    told = _described_as(description, untold) if description else _as_published(checkpoint, positions, untold)
    networks = NetworkTable.from_labels(told["networks"], told["network_order"])
    check_published_order(networks)
    settings = settings_from_checkpoint(state, told["head_width"], told["patch"])
    objective = SelfDistillation(Encoder(settings, networks), ObjectiveSettings())
    expected: dict[str, Tensor] = {}
    live: set[str] = set()
    for role, branch in (("student", objective.student), ("teacher", objective.teacher)):
        tensors = branch.state_dict()
        expected |= expected_tensors(tensors, branch.encoder, role, len(positions))
        live |= authors_views(tensors, branch.encoder, role).keys()
    check_keys(state, expected)
    _check_constants(state, {key: value for key, value in expected.items() if key not in live})
    _check_aliases(state)
    for role, branch in (("student", objective.student), ("teacher", objective.teacher)):
        load_branch(branch.state_dict(), branch.encoder, role, state)
    unused = {_UNUSED + key: value for key, value in state.items() if key not in live}
    config = {key: told[key] for key in DESCRIBED if key not in ("head_width", "patch")} | {
        "kind": "imported",
        "seed": None,
        "model": settings.as_dict(),
        "settings": None,
        "pretrain_recordings": None,
        "made_by": provenance("weights", {}, [checkpoint]),
    }
    save_weights(output, objective.state_dict() | unused, config)


def _described_as(description: Mapping[str, Any], untold: Untold) -> dict[str, Any]:
    """What our own export says of itself; a user who says otherwise is told so."""
    given = {
        "head_width": untold.head_width,
        "patch": untold.patch,
        "networks": untold.networks and untold.networks.labels,
        "roi_names": untold.roi_names and list(untold.roi_names),
    }
    for name, value in given.items():
        if value is not None and value != description[name]:
            option = "--networks" if isinstance(value, list) else f"--{name.replace('_', '-')}"
            found = "another table" if isinstance(value, list) else value
            raise UserError(
                f"{option}: expected the {name} that the checkpoint says it was made with, found {found}; leave the "
                "option out"
            )
    stored = (description["shard_settings"] or {}).get("tr")
    if untold.tr is not None and untold.tr != stored:
        raise UserError(f"--tr: expected {stored} s as the checkpoint says, found {untold.tr} s; leave the option out")
    return dict(description)


def _as_published(checkpoint: Path, positions: Tensor, untold: Untold) -> dict[str, Any]:
    """What the user says of a checkpoint that says nothing; the rest as published, for the published width only."""
    width = positions.shape[-1]
    if untold.networks is None or untold.roi_names is None:
        raise UserError(
            f"{checkpoint}: --networks: expected the table of its ROIs and networks, which the file does not say"
        )
    if untold.head_width is None and width != PUBLISHED_WIDTH:
        raise UserError(
            f"{checkpoint}: --head-width: expected the size of an attention head, which the tensors do not show, since "
            f"the width is {width} and not the published {PUBLISHED_WIDTH}; give it, and --tr and --patch if they are "
            "not 2 s and 20 samples"
        )
    patch = untold.patch or 20
    return {
        "head_width": untold.head_width or 64,
        "patch": patch,
        "crop": len(positions) * patch,
        "networks": untold.networks.labels,
        "network_order": list(untold.networks.names),
        "roi_names": list(untold.roi_names),
        "shard_settings": {"tr": untold.tr or 2.0},
        "min_network_valid": 0.5,
        "atlas": None,
    }


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


def _check_aliases(state: Mapping[str, Tensor]) -> None:
    for key, original in aliases(state).items():
        if original not in state or not torch.equal(state[key], state[original]):
            raise UserError(
                f"checkpoint: {key}: expected the same values as {original}, found others; heads of their own for "
                "masked tokens cannot be imported"
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

    What the tensors do not show lies beside them, where strict loaders do not look, so that importing gives the same
    model again.

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
    description = {key: (config | config["model"])[key] for key in DESCRIBED}
    with replacing(output) as temporary:
        write_checkpoint(temporary, state, description)


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
python -m semantoks.embed --weights <this folder> --input <shards> --output embeddings.parquet
```
ROIs are matched by name (`roi_names` in `config.json`); another order or another TR is refused.

## Limits
Features describe scans statistically; they are no diagnosis. Cohorts, scanners and denoising other than those of the
training data shift them. Linear models on functional connectivity are a strong baseline: compare before you conclude.

SHA-256 of the weights this card was made from: `{checksum}`
"""


def _read_networks(path: Path) -> tuple[NetworkTable, list[str]]:
    """Network table and ROI names of a table with the columns name and network."""
    table = read_text_table(path)
    missing = {"name", "network"} - set(table.columns)
    if missing:
        raise UserError(f"{path}: expected the columns name and network, missing {sorted(missing)}")
    return NetworkTable.from_labels(table["network"].tolist()), table["name"].tolist()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="published checkpoint → folder")
    importing.add_argument("--checkpoint", type=Path, required=True, help=".pth or .safetensors, authors' key layout")
    importing.add_argument(
        "--networks", type=Path, help="table with the columns name and network; our own exports carry theirs"
    )
    importing.add_argument("--output", type=Path, required=True, help="folder")
    importing.add_argument("--head-width", type=int, help="size of an attention head (published: 64)")
    importing.add_argument("--patch", type=int, help="samples per patch (published: 20)")
    importing.add_argument("--tr", type=float, help="s, of the training data (published: 2)")
    exporting = commands.add_parser("export", help="folder → folder with model card, or the authors' key layout")
    exporting.add_argument("--weights", type=Path, required=True, help="folder of an encoder")
    exporting.add_argument("--output", type=Path, required=True, help="folder; or .pth, .safetensors: authors' layout")
    arguments = parser.parse_args(argv)
    if arguments.command == "import":
        networks, roi_names = _read_networks(arguments.networks) if arguments.networks else (None, None)
        for name in ("head_width", "patch", "tr"):
            value = getattr(arguments, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name.replace('_', '-')}: expected a value above 0, found {value}")
        untold = Untold(networks, roi_names, arguments.head_width, arguments.patch, arguments.tr)
        import_checkpoint(arguments.checkpoint, untold, arguments.output)
    elif arguments.output.suffix in (".pth", ".safetensors"):
        export_authors(arguments.weights, arguments.output)
    else:
        export_folder(arguments.weights, arguments.output)


if __name__ == "__main__":
    run_command(main)
