"""The key layout of the published checkpoints, in both directions (METHOD §4).

One mapping serves import, export and comparison: :func:`authors_views` shows packed tensors under the authors' keys
as views, so that writing into a view imports and reading it exports.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from semantoks.errors import UserError
from semantoks.model.encoder import Encoder, ModelSettings, temporal_positions
from semantoks.model.networks import NetworkTable
from semantoks.model.tokenizer import SemanticTokenizer

LIVE_ATLAS = "schaefer400"
DEAD_ATLASES = ("tian3", "buckner7")
DESCRIPTION = "semantoks"
"""Key of our exports beside ``model_state_dict`` (in safetensors: of the metadata)."""
DESCRIBED = (
    *("head_width", "patch", "crop", "networks", "network_order", "roi_names"),
    *("shard_settings", "min_network_valid", "atlas"),
)
"""What it holds: a config's values that the tensors do not show."""
_BLOCK_NAMES = {
    "attention_norm.weight": "norm1.weight",
    "attention_norm.bias": "norm1.bias",
    "attention.qkv.weight": "attn.qkv.weight",
    "attention.projection.weight": "attn.proj.weight",
    "attention.projection.bias": "attn.proj.bias",
    "attention_scale": "ls1.gamma",
    "mlp_norm.weight": "norm2.weight",
    "mlp_norm.bias": "norm2.bias",
    "mlp_in.weight": "mlp.0.weight",
    "mlp_in.bias": "mlp.0.bias",
    "mlp_out.weight": "mlp.3.weight",
    "mlp_out.bias": "mlp.3.bias",
    "mlp_scale": "ls2.gamma",
}
_HEAD_NAMES = {
    "hidden.weight": "0.weight",
    "hidden.bias": "0.bias",
    "output.weight": "2.weight",
    "output.bias": "2.bias",
}


def authors_views(tensors: Mapping[str, Tensor], encoder: Encoder, role: str) -> dict[str, Tensor]:
    """Tensors of a branch (parameters, buffers or gradients) under the authors' keys, as views.

    Parameters
    ----------
    tensors : by the names of ``Branch.state_dict()``; names that are absent are left out.
    encoder : its tokenizer tells networks and heads.
    role : ``student`` or ``teacher``.
    """
    assert isinstance(encoder.tokenizer, SemanticTokenizer)
    views: dict[str, Tensor] = {}
    for index in range(len(encoder.networks.names)):
        prefix = f"{role}_encoder.network_tokenizers.{LIVE_ATLAS}.{index}."
        views |= {prefix + key: view for key, view in _tokenizer_views(tensors, encoder.tokenizer, index).items()}
    transformer = f"{role}_encoder.inter_network_transformer."
    for name, key, shape in (
        ("cls_token", "cls_token", (1, 1, -1)),
        ("mask_embedding", "mask_embedding", (1, -1)),
        ("network_embedding", "network_learnable_pos_embedding.weight", (encoder.n_networks, -1)),
    ):
        if f"encoder.{name}" in tensors:
            views[transformer + key] = tensors[f"encoder.{name}"].view(shape)
    for depth in range(encoder.settings.depth):
        for name, key in _BLOCK_NAMES.items():
            if f"encoder.blocks.{depth}.{name}" in tensors:
                views[f"{transformer}transformer_blocks.{depth}.{key}"] = tensors[f"encoder.blocks.{depth}.{name}"]
    for name in ("weight", "bias"):
        if f"encoder.norm.{name}" in tensors:
            views[f"{role}_encoder.norm.{name}"] = tensors[f"encoder.norm.{name}"]
    for name, key in _HEAD_NAMES.items():
        if f"head.{name}" in tensors:
            views[f"{role}_predictor.mlp.{key}"] = tensors[f"head.{name}"]
    return views


def _tokenizer_views(tensors: Mapping[str, Tensor], tokenizer: SemanticTokenizer, index: int) -> dict[str, Tensor]:
    """Views on the unpadded tensors of one network; a channel is roi·heads + head, the authors store [head, roi]."""
    n_rois, heads = tokenizer.networks.sizes[index], tokenizer.heads[index]
    n_channels = n_rois * heads

    def by_head(values: Tensor) -> Tensor:
        view: Tensor = values[:n_channels].unflatten(0, (n_rois, heads)).transpose(0, 1)
        return view

    shown = {
        "dense_weight": lambda t: {"branches.0.weight": t[:, :n_rois]},
        "dense_bias": lambda t: {"branches.0.bias": t},
        "long_skip": lambda t: {"branches.1.slconv.D": by_head(t)},
        "long_kernels": lambda t: {f"branches.1.slconv.kernel_list.{s}": by_head(t[:, s]) for s in range(t.shape[1])},
        "kernel_norm": lambda t: {"branches.1.slconv.kernel_norm": by_head(t)[..., None]},
        "long_weight": lambda t: {"branches.1.projection.weight": t[:, :n_channels]},
        "long_bias": lambda t: {"branches.1.projection.bias": t},
        "norm_weight": lambda t: {"norm.weight": t},
        "norm_bias": lambda t: {"norm.bias": t},
    }
    views: dict[str, Tensor] = {}
    for name, show in shown.items():
        if f"encoder.tokenizer.{name}" in tensors:
            views |= show(tensors[f"encoder.tokenizer.{name}"][index])
    return views


def read_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a ``.pth`` (nothing is unpickled but tensors) or safetensors file, without the prefix ``module.``."""
    state, _ = read_described_checkpoint(path)
    return state


def read_described_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors as :func:`read_checkpoint` gives them, and what :func:`write_checkpoint` stored beside them, if anything.

    Raises
    ------
    UserError
        For a file that is no checkpoint of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: expected a checkpoint (.pth or .safetensors), found no file")
    stored = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled_tensors(path)
    state = stored.get("model_state_dict", stored) if isinstance(stored, dict) else stored
    tensors = isinstance(state, dict) and {
        str(key): value for key, value in state.items() if isinstance(value, Tensor) and isinstance(key, str)
    }
    if not tensors or len(tensors) < len(state):
        raise UserError(
            f"{path}: expected a dictionary `model_state_dict` of tensors, found {_described(state)}; give the "
            "checkpoint as its authors published it"
        )
    return {key.removeprefix("module."): value for key, value in tensors.items()}, _description(stored, path)


def write_checkpoint(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write ``.pth`` or safetensors; the description lies outside of the ``model_state_dict`` that strict loaders read.

    Parameters
    ----------
    description : what the tensors do not show, JSON-able.
    """
    tensors, text = dict(state), json.dumps(description, sort_keys=True)
    if path.suffix == ".pth":
        with open(path, "wb") as file:  # given a path, torch writes its name into the file
            torch.save({"model_state_dict": tensors, DESCRIPTION: text}, file)
    else:
        safetensors.torch.save_file(tensors, path, metadata={DESCRIPTION: text})


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata() or {}
        return {**about, "model_state_dict": safetensors.torch.load_file(path)}
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: expected a checkpoint of tensors (.safetensors), found {error}") from None


def _read_pickled_tensors(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own text advises to unpickle anything
        raise UserError(
            f"{path}: expected a checkpoint of tensors (.pth), found something else: no checkpoint, or one with Python "
            "objects, which are not unpickled; save its state dict alone, or as .safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise UserError(
            f"{path}: expected a checkpoint of tensors (.pth), found a file that is damaged or none; fetch it again"
        ) from None


def _described(state: Any) -> str:
    """What was found instead of a dictionary of tensors."""
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    others = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    return f"{others[0]!r} with something else" if others else "no tensor"


def _description(stored: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    text = stored.get(DESCRIPTION)
    if text is None:
        return None
    try:
        description = json.loads(text)
        missing = sorted(set(DESCRIBED) - description.keys())
    except (TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: expected JSON under {DESCRIPTION!r}, found something else; export it again") from None
    if missing:
        raise UserError(f"{path}: expected {missing} under {DESCRIPTION!r}, found none; export it again")
    return dict(description)


def constant_tensors(encoder: Encoder, role: str, n_patches: int) -> dict[str, Tensor]:
    """What the authors store beside weights: multipliers, flags and the fixed temporal positions."""
    constants: dict[str, Tensor] = {}
    for index, size in enumerate(encoder.networks.sizes):
        prefix = f"{role}_encoder.network_tokenizers.{LIVE_ATLAS}.{index}.branches.1.slconv."
        constants[prefix + "multiplier"] = torch.full((1, size, 1), 2.0)
        constants[prefix + "kernel_norm_initialized"] = torch.tensor(True)
    positions = temporal_positions(n_patches, encoder.settings.width).float()
    constants[f"{role}_encoder.inter_network_transformer.temporal_pos_embedding"] = positions
    return constants


def dead_constants(state: Mapping[str, Tensor], role: str) -> dict[str, Tensor]:
    """Fixed buffers of the unused tokenizers that a checkpoint has: no forward pass has ever set their norms."""
    values = {"multiplier": 2.0, "kernel_norm": 1.0, "kernel_norm_initialized": False}
    constants: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key.split(".")[-1]
        if is_dead(key) and key.startswith(f"{role}_encoder.") and name in values:
            constants[key] = torch.full_like(tensor, values[name])
    return constants


def aliases(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Keys that repeat another tensor of a checkpoint, and the key of that other tensor."""
    return {key: key.replace("_mask_predictor.", "_predictor.") for key in state if "_mask_predictor." in key}


def is_dead(key: str) -> bool:
    """Whether a key of the authors' layout holds a tensor that no output depends on."""
    return any(f"network_tokenizers.{atlas}." in key for atlas in DEAD_ATLASES) or (
        ".inter_network_transformer.norm." in key
    )


def settings_from_checkpoint(state: Mapping[str, Tensor], head_width: int = 64, patch: int = 20) -> ModelSettings:
    """Sizes of the model that a checkpoint in the authors' layout holds, read off its tensors."""
    transformer = "teacher_encoder.inter_network_transformer."
    tokenizer = f"teacher_encoder.network_tokenizers.{LIVE_ATLAS}.0.branches.0.weight"
    try:
        width = state[transformer + "cls_token"].shape[-1]
        depth = 1 + max(
            int(key.removeprefix(transformer + "transformer_blocks.").split(".")[0])
            for key in state
            if key.startswith(transformer + "transformer_blocks.")
        )
        return ModelSettings(
            width=width,
            dense_width=state[tokenizer].shape[0],
            depth=depth,
            head_width=head_width,
            mlp_width=state[transformer + "transformer_blocks.0.mlp.0.weight"].shape[0],
            patch=patch,
            projection_hidden=state["teacher_predictor.mlp.0.weight"].shape[0],
            projection_width=state["teacher_predictor.mlp.2.weight"].shape[0],
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"checkpoint: expected the authors' key layout, found no {error}") from None


def check_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Every key expected and nothing else, with the right shapes; otherwise an error that names the keys."""
    known = {key for key in state if is_dead(key) or "_mask_predictor." in key}
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys() - known)
    if missing or unexpected:
        raise UserError(
            f"checkpoint: expected {len(expected)} live tensors; missing keys: {missing or 'none'}; "
            f"unexpected keys: {unexpected or 'none'}; is it of another model, or is the network table another?"
        )
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise UserError(
                f"checkpoint: {key}: expected the shape {list(tensor.shape)}, found {list(state[key].shape)}; "
                "the network table or the sizes are another model's"
            )


@torch.no_grad()
def load_branch(tensors: Mapping[str, Tensor], encoder: Encoder, role: str, state: Mapping[str, Tensor]) -> None:
    """Copy one role's live tensors of a checkpoint into ``tensors`` (a branch's ``state_dict``), in place."""
    for key, view in authors_views(tensors, encoder, role).items():
        view.copy_(state[key])


def expected_tensors(tensors: Mapping[str, Tensor], encoder: Encoder, role: str, n_patches: int) -> dict[str, Tensor]:
    """All live tensors and constants of one role, by the authors' keys."""
    return authors_views(tensors, encoder, role) | constant_tensors(encoder, role, n_patches)


def networks_from_map(network_of_roi: list[int]) -> NetworkTable:
    """A network table from indices alone; networks are named by their number."""
    return NetworkTable(tuple(str(index) for index in range(max(network_of_roi) + 1)), tuple(network_of_roi))


def fresh_dead_tensors(encoder: Encoder, role: str, seed: int) -> dict[str, Tensor]:
    """Dead tensors as initialised, which strict loaders ask for: two more sets of tokenizers and a norm."""
    dead: dict[str, Tensor] = {}
    settings = encoder.settings
    for number, atlas in enumerate(DEAD_ATLASES):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            tokenizer = SemanticTokenizer(encoder.networks, settings.width, settings.dense_width, settings.patch)
        tensors = {f"encoder.tokenizer.{name}": value.detach() for name, value in tokenizer.state_dict().items()}
        tensors["encoder.tokenizer.kernel_norm"] = torch.ones_like(tokenizer.kernel_norm)
        for index, size in enumerate(encoder.networks.sizes):
            prefix = f"{role}_encoder.network_tokenizers.{atlas}.{index}."
            dead |= {prefix + key: view for key, view in _tokenizer_views(tensors, tokenizer, index).items()}
            dead[prefix + "branches.1.slconv.multiplier"] = torch.full((1, size, 1), 2.0)
            dead[prefix + "branches.1.slconv.kernel_norm_initialized"] = torch.tensor(False)
    transformer = f"{role}_encoder.inter_network_transformer.norm."
    return dead | {
        transformer + "weight": torch.ones(settings.width),
        transformer + "bias": torch.zeros(settings.width),
    }
