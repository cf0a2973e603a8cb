"""Files of a golden reference (METHOD §8), checked so that nothing is passed over, and the model they declare."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semantoks.errors import UserError
from semantoks.files import read_json
from semantoks.model.authors_layout import (
    check_keys,
    expected_tensors,
    load_branch,
    networks_from_map,
    read_checkpoint,
)
from semantoks.model.encoder import Encoder, ModelSettings
from semantoks.objectives.self_distillation import ObjectiveSettings, SelfDistillation
from semantoks.objectives.views import Views

CONDITIONS = ("ttr_on", "ttr_off", "unmasked_ttr_on")
SCALARS = (
    *("cls_loss", "network_loss", "within_view_loss", "mask_loss", "total_loss"),
    *("student_proj_std", "teacher_proj_std", "network_mask_loss"),
)
TRAJECTORY = (
    *("total_loss", "gradient_norm_before_clipping", "mask_embedding_norm", "cls_token_norm"),
    "teacher_projection_head_norm",
)
OUTPUT_INPUTS = {
    "student_tokenizer_output_view1": (),
    "student_tokens_view1_masked": (),
    "teacher_tokens_view1": (),
    "features_cls_avg_view1": (),
    "teacher_projection_cls_view1": (),
    "teacher_tokens_view1_no_cerebellum": ("mask_no_cerebellum",),
    "teacher_tokens_view1_60_samples": ("view1_60_samples_padded", "mask_padding"),
}
"""Arrays that are recomputed, and the further inputs of each."""
TEACHER_UPDATE = re.compile(r"ema_after_update\(step=(\d+),total=(\d+)\)")
_INPUTS = ("network_map", "view1", "view2", "mask1", "mask2")
_SIZES = (
    *("embedding_dim", "depth", "heads", "mlp_dim", "patch_size", "target_time_length"),
    *("projection_hidden_dim", "projection_bottleneck_dim"),
)
_NUMBERS = ("layer_scale_init_value", "mask_loss_weight", "network_loss_weight")
_SCHEDULED = ("learning_rate", "weight_decay", "ttr_weight", "masked")


@dataclass
class Reference:
    """Files of a golden reference, and the model built from them."""

    state: dict[str, Tensor]
    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    expected: dict[str, Any]
    dtype: torch.dtype = torch.float32

    @classmethod
    def read(cls, state_dict: Path, arrays: Path, expected: Path) -> Reference:
        """Read weights, arrays and expected scalars.

        Raises
        ------
        UserError
            For anything missing, and for anything that no comparison reads: an unknown name is never skipped.
        """
        description = read_json(expected)
        if not isinstance(description, dict):
            raise UserError(f"{expected}: expected an object with `config` and `expected`, found something else")
        for part in ("config", "expected"):
            if not isinstance(description.get(part), dict):
                raise UserError(f"{expected}: expected an object `{part}`, found {sorted(description)}")
        _check_config(description["config"], str(expected))
        _check_expected(description["expected"], str(expected))
        if any(TEACHER_UPDATE.fullmatch(name) for name in description["expected"]):
            _check_numbers(description["config"], ("base_teacher_momentum",), f"{expected}: config")
        reference = cls(
            read_checkpoint(state_dict), _read_arrays(arrays), description["config"], description["expected"]
        )
        _check_arrays(reference.arrays, str(arrays))
        return reference

    @property
    def n_patches(self) -> int:
        """Patches of a crop."""
        patches: int = self.config["target_time_length"] // self.config["patch_size"]
        return patches

    def objective(self) -> SelfDistillation:
        """Student, teacher and heads with the stored weights."""
        config, widths = self.config, [branch["out_channels"] for branch in self.config["tokenizer_config"]]
        settings = ModelSettings(
            width=config["embedding_dim"],
            dense_width=widths[0],
            depth=config["depth"],
            head_width=config["embedding_dim"] // config["heads"],
            mlp_width=config["mlp_dim"],
            layer_scale=config["layer_scale_init_value"],
            patch=config["patch_size"],
            projection_hidden=config["projection_hidden_dim"],
            projection_width=config["projection_bottleneck_dim"],
        )
        encoder = Encoder(settings, networks_from_map(self.arrays["network_map"].tolist()))
        objective = SelfDistillation(
            encoder,
            ObjectiveSettings(token_weight=config["mask_loss_weight"], ttr_weight=config["network_loss_weight"]),
        ).to(self.dtype)
        roles = {"student": objective.student, "teacher": objective.teacher}
        expected: dict[str, Tensor] = {}
        for role, branch in roles.items():
            expected |= expected_tensors(branch.state_dict(), branch.encoder, role, self.n_patches)
        check_keys(self.state, expected)
        for role, branch in roles.items():
            load_branch(branch.state_dict(), branch.encoder, role, self.state)
        return objective

    def views(self, masked: bool) -> Views:
        """The stored views, with the stored masks or none."""
        mask = torch.cat([self.mask("mask1"), self.mask("mask2")]) if masked else None
        return Views(torch.cat([self.bold("view1"), self.bold("view2")]), None, mask)

    def bold(self, name: str) -> Tensor:
        """A stored view, [B, ROI, T]."""
        return torch.from_numpy(self.arrays[name]).to(self.dtype)

    def mask(self, name: str) -> Tensor:
        """A stored mask, [B, N, P] bool."""
        return torch.from_numpy(self.arrays[name])


def check_steps(steps: Any, where: str) -> None:
    """A trajectory has every key, one value per step, and nothing that is not compared."""
    if not isinstance(steps, dict):
        raise UserError(f"{where}: expected an object with the keys {[*_SCHEDULED, *TRAJECTORY]}, found none")
    needed = (*_SCHEDULED, *TRAJECTORY, "final_parameter_norms")
    _check_names(steps, (*needed, "description"), needed, where)
    lengths = {key: len(steps[key]) for key in (*_SCHEDULED, *TRAJECTORY) if isinstance(steps[key], list)}
    if len(lengths) < len(needed) - 1 or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise UserError(f"{where}: expected lists with one value per step, found the lengths {lengths}")


def _check_config(config: Mapping[str, Any], where: str) -> None:
    _check_numbers(config, (*_SIZES, *_NUMBERS), f"{where}: config")
    small = [key for key in _SIZES if not isinstance(config[key], int) or config[key] < 1]
    if small:
        raise UserError(f"{where}: config.{small[0]}: expected a whole number above 0, found {config[small[0]]!r}")
    if config["embedding_dim"] % config["heads"]:
        raise UserError(
            f"{where}: config.heads: expected a divisor of embedding_dim ({config['embedding_dim']}), found "
            f"{config['heads']}"
        )
    branches = config.get("tokenizer_config")
    entries = [entry for entry in branches if isinstance(entry, dict)] if isinstance(branches, list) else []
    found = [(entry.get("type"), isinstance(entry.get("out_channels"), int)) for entry in entries]
    if found != [("dense", True), ("sgconv", True)]:
        raise UserError(
            f"{where}: config.tokenizer_config: expected a dense and a sgconv branch, each with out_channels, "
            f"found {branches!r}"
        )


def _check_numbers(config: Mapping[str, Any], keys: Collection[str], where: str) -> None:
    missing = sorted(key for key in keys if not isinstance(config.get(key), (int, float)))
    if missing:
        raise UserError(f"{where}: expected numbers under {missing}, found the keys {sorted(config)}")


def _check_expected(expected: Mapping[str, Any], where: str) -> None:
    """Every entry is one that is compared, and there is at least one."""
    if not expected:
        raise UserError(f"{where}: `expected`: expected at least one of {list(CONDITIONS)}, found nothing to compare")
    for name, values in expected.items():
        here = f"{where}: expected.{name}"
        if not isinstance(values, dict):
            raise UserError(f"{here}: expected an object, found {values!r}")
        if TEACHER_UPDATE.fullmatch(name):
            _check_names(values, ("momentum", "teacher_param_norms"), ("momentum", "teacher_param_norms"), here)
        elif name in CONDITIONS:
            _check_names(values, (*SCALARS, "weight", "grad_norms"), (), here)
            if not values.keys() - {"weight"}:
                raise UserError(f"{here}: expected at least one of {list(SCALARS)}, found nothing to compare")
        else:
            raise UserError(
                f"{here}: expected one of {list(CONDITIONS)} or ema_after_update(step=…,total=…), found a condition "
                "that is not known"
            )
        if "weight" in values:
            _check_numbers(values, ("weight",), here)
        for norms in ("grad_norms", "teacher_param_norms"):
            if norms in values and not values[norms]:
                raise UserError(f"{here}.{norms}: expected at least one norm, found nothing to compare")


def _check_names(values: Mapping[str, Any], known: Collection[str], needed: Collection[str], where: str) -> None:
    unknown, missing = sorted(values.keys() - set(known)), sorted(set(needed) - values.keys())
    if unknown or missing:
        raise UserError(
            f"{where}: expected the keys {list(needed or known)}; unknown: {unknown or 'none'}; missing: "
            f"{missing or 'none'}"
        )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise UserError(f"{path}: expected a file of arrays (.npz), found none")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError, TypeError):
        raise UserError(f"{path}: expected a file of arrays (.npz), found something else") from None


def _check_arrays(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Inputs are there and fit each other; nothing is unknown."""
    further = {name for names in OUTPUT_INPUTS.values() for name in names}
    _check_names(arrays, (*_INPUTS, *OUTPUT_INPUTS, *further), _INPUTS, where)
    for output, inputs in OUTPUT_INPUTS.items():
        if output in arrays and not set(inputs) <= arrays.keys():
            raise UserError(f"{where}: {output}: expected the arrays {list(inputs)} beside it, found {sorted(arrays)}")
    n_rois, n_scans = len(arrays["network_map"]), len(arrays["view1"])
    for name, values in arrays.items():
        if name.startswith("view") and (values.ndim != 3 or values.shape[:2] != (n_scans, n_rois)):
            raise UserError(f"{where}: {name}: expected the shape [{n_scans}, {n_rois}, T], found {values.shape}")
        if name.startswith("mask") and (values.ndim != 3 or len(values) != n_scans or values.dtype != bool):
            raise UserError(
                f"{where}: {name}: expected a bool array [{n_scans}, N, P], found {values.dtype} {values.shape}"
            )
