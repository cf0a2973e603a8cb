"""Weights and config on disk: a folder with ``weights.safetensors`` and ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from semantoks.errors import UserError
from semantoks.files import read_json, replacing, write_json
from semantoks.model.encoder import Encoder, ModelSettings
from semantoks.model.networks import NetworkTable

WEIGHTS, CONFIG = "weights.safetensors", "config.json"


class LoadedEncoder(NamedTuple):
    """An encoder in evaluation mode, its config, and the file of its weights."""

    encoder: Encoder
    config: dict[str, Any]
    path: Path


def save_weights(folder: Path | str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write weights, then config, each by renaming.

    Parameters
    ----------
    tensors : ``state_dict()`` of an objective.
    config : must hold ``model``, ``networks`` (name of each ROI's network), ``network_order`` and ``roi_names``;
        ``encoder`` names the part whose features are used, ``teacher.encoder`` by default.
    """
    on_host = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(Path(folder) / WEIGHTS) as temporary:
        safetensors.torch.save_file(on_host, temporary, metadata={"format": "semantoks"})
    write_json(Path(folder) / CONFIG, config)


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
    """Tensors, config and weights file of a folder, or of a ``weights.safetensors`` with ``config.json`` beside it."""
    path = Path(path)
    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise UserError(f"{path}: expected a folder with {WEIGHTS}, or that file, found none; run pretrain or import")
    if weights.suffix != ".safetensors":
        raise UserError(
            f"{weights}: expected {WEIGHTS}, found {weights.suffix or 'no suffix'}; published checkpoints are imported "
            "first, see docs/weights.md"
        )
    config = read_json(weights.parent / CONFIG)
    try:
        tensors = safetensors.torch.load_file(weights)
    except safetensors.SafetensorError as error:
        raise UserError(f"{weights}: expected a safetensors file, found {error}") from None
    return tensors, config, weights


def load_encoder(path: Path | str) -> LoadedEncoder:
    """The encoder that a folder holds, as downstream stages use it: the teacher's."""
    tensors, config, weights = read_weights(path)
    encoder = build_encoder(config)
    prefix = config.get("encoder", "teacher.encoder") + "."
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    check_state(state, encoder.state_dict(), str(weights))
    encoder.load_state_dict(state)
    return LoadedEncoder(encoder.eval().requires_grad_(False), config, weights)


def build_encoder(config: Mapping[str, Any]) -> Encoder:
    """An encoder of a config's sizes and network table, freshly initialised."""
    missing = {"model", "networks", "network_order", "roi_names"} - config.keys()
    if missing:
        raise UserError(f"{CONFIG}: expected the keys model, networks, network_order, roi_names; missing {missing}")
    networks = NetworkTable.from_labels(config["networks"], config["network_order"])
    return Encoder(ModelSettings(**config["model"]), networks)


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """The same names and shapes, or an error that names them."""
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise UserError(
            f"{where}: expected the tensors of {CONFIG}; missing: {missing or 'none'}; unexpected: "
            f"{unexpected or 'none'}"
        )
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{where}: {name}: expected the shape {list(tensor.shape)}, found {list(state[name].shape)}"
            )
