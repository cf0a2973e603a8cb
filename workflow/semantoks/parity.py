"""Recompute the numbers of the authors' implementation from its weights and compare (METHOD §8)."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semantoks.errors import UserError, run_command
from semantoks.files import read_json
from semantoks.model.authors_layout import aliases, authors_views, constant_tensors, dead_constants, is_dead
from semantoks.model.encoder import scan_features
from semantoks.objectives.schedules import Schedules, cosine
from semantoks.objectives.self_distillation import Losses, Projections, SelfDistillation
from semantoks.objectives.views import Views
from semantoks.parity_reference import (
    CONDITIONS,
    OUTPUT_INPUTS,
    SCALARS,
    TEACHER_UPDATE,
    TRAJECTORY,
    Reference,
    check_steps,
)
from semantoks.training.optimiser import make_optimiser, optimiser_step

OUTPUT_TOLERANCE, GRADIENT_TOLERANCE, SCHEDULE_TOLERANCE = 1e-5, 1e-4, 1e-9


@dataclass
class Comparison:
    """Worst relative error of every quantity, and which tensors of the checkpoint the quantities depend on.

    Attributes
    ----------
    errors, tolerances, worst : by quantity; ``worst`` says where within it.
    reads : keys, and prefixes of live keys, that were compared; a mask embedding counts only by its key.
    """

    errors: dict[str, float] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=dict)
    worst: dict[str, str] = field(default_factory=dict)
    reads: set[str] = field(default_factory=set)

    def add(self, quantity: str, found: Any, expected: Any, tolerance: float, detail: str = "") -> None:
        """Compare one array (max|a−b| / max|b|) or scalar (|a−b| / |b|) under a quantity's name."""
        try:
            found, expected = (np.asarray(value, dtype=np.float64) for value in (found, expected))
        except (TypeError, ValueError):
            raise UserError(f"{quantity}: {detail}: expected numbers, found {expected!r}") from None
        if found.shape != expected.shape:
            raise UserError(f"{quantity}: expected the shape {expected.shape}, found {found.shape}")
        if not expected.size:
            raise UserError(f"{quantity}: expected values, found an empty array")
        scale = np.abs(expected).max()
        difference = np.abs(found - expected).max()
        error = float(difference / scale) if scale > 0 else float(difference)
        if quantity not in self.errors or error > self.errors[quantity] or math.isnan(error):
            self.errors[quantity], self.worst[quantity] = error, detail
        self.tolerances[quantity] = tolerance

    @property
    def failed(self) -> list[str]:
        """Quantities above their tolerance; NaN counts as above."""
        return [name for name, error in self.errors.items() if not error <= self.tolerances[name]]

    def not_compared(self, keys: Iterable[str]) -> list[str]:
        """Those of a checkpoint's keys that no compared quantity depends on."""
        prefixes = tuple(name for name in self.reads if name.endswith(("_", ".")))

        def read(key: str) -> bool:
            apart = is_dead(key) or key.endswith(".mask_embedding")
            return key in self.reads or (not apart and key.startswith(prefixes))

        return sorted(key for key in keys if not read(key))

    def report(self) -> str:
        """One line per quantity."""
        lines = [f"{'quantity':<48} {'relative error':>14} {'tolerance':>10}"]
        for name, error in self.errors.items():
            verdict = "FAILED" if name in self.failed else "ok"
            detail = f"  ({self.worst[name]})" if self.worst[name] and name in self.failed else ""
            lines.append(f"{name:<48} {error:>14.2e} {self.tolerances[name]:>10.0e}  {verdict}{detail}")
        return "\n".join(lines)


_MASK_EMBEDDING = "_encoder.inter_network_transformer.mask_embedding"
_READS = {
    "student_tokenizer_output_view1": {"student_encoder.network_tokenizers."},
    "student_tokens_view1_masked": {"student_encoder.", "student" + _MASK_EMBEDDING},
    "teacher_tokens_view1": {"teacher_encoder."},
    "features_cls_avg_view1": {"teacher_encoder."},
    "teacher_projection_cls_view1": {"teacher_"},
    "teacher_tokens_view1_no_cerebellum": {"teacher_encoder.", "teacher" + _MASK_EMBEDDING},
    "teacher_tokens_view1_60_samples": {"teacher_encoder.", "teacher" + _MASK_EMBEDDING},
    "student_proj_std": {"student_"},
    "teacher_proj_std": {"teacher_"},
    "network_mask_loss": set(),
}
"""What each quantity depends on; losses, which are not listed, on student and teacher."""


def compare(reference: Reference, steps: Mapping[str, Any] | None = None) -> Comparison:
    """Recompute all quantities that the reference holds."""
    comparison = Comparison()
    _compare_outputs(reference, comparison)
    _compare_fixed(reference, comparison)
    for name in CONDITIONS:
        if name in reference.expected:
            _compare_losses(reference, name, comparison)
    for name, values in reference.expected.items():
        if TEACHER_UPDATE.fullmatch(name):
            _compare_teacher_update(reference, name, values, comparison)
    if steps is not None:
        _compare_steps(reference, steps, comparison)
    return comparison


@torch.no_grad()
def _compare_outputs(reference: Reference, comparison: Comparison) -> None:
    """Tokenizer, tokens, features and projections, those that are stored."""
    objective = reference.objective()
    student, teacher = objective.student, objective.teacher
    view1, mask1 = reference.bold("view1"), reference.mask("mask1")
    tokens = teacher.encoder(view1)
    found = {
        "student_tokenizer_output_view1": lambda: student.encoder.tokenizer(view1),
        "student_tokens_view1_masked": lambda: student.encoder(view1, mask1),
        "teacher_tokens_view1": lambda: tokens,
        "features_cls_avg_view1": lambda: scan_features(tokens),
        "teacher_projection_cls_view1": lambda: teacher.head(tokens[:, 0]),
        "teacher_tokens_view1_no_cerebellum": lambda: teacher.encoder(view1, reference.mask("mask_no_cerebellum")),
        "teacher_tokens_view1_60_samples": lambda: teacher.encoder(
            reference.bold("view1_60_samples_padded"), reference.mask("mask_padding")
        ),
    }
    assert found.keys() == OUTPUT_INPUTS.keys()
    for name, compute in found.items():
        if name in reference.arrays:
            comparison.add(name, compute(), reference.arrays[name], OUTPUT_TOLERANCE)
            comparison.reads |= _READS[name]


def _compare_fixed(reference: Reference, comparison: Comparison) -> None:
    """Tensors that the method fixes, those of unused atlases included, and aliases against their originals."""
    objective, state = reference.objective(), reference.state
    for role, branch in (("student", objective.student), ("teacher", objective.teacher)):
        constants = constant_tensors(branch.encoder, role, reference.n_patches) | dead_constants(state, role)
        for key, value in constants.items():
            comparison.add(f"fixed: {key.split('.')[-1]}", state[key], value, OUTPUT_TOLERANCE, key)
            comparison.reads.add(key)
    for key, original in aliases(state).items():
        if original not in state:
            raise UserError(f"checkpoint: {key}: expected {original} beside it, found none")
        comparison.add("aliases of the projection heads", state[key], state[original], 0.0, key)
        comparison.reads.add(key)


def _step_losses(
    objective: SelfDistillation, views: Views, ttr_weight: float
) -> tuple[Losses, Projections, Projections]:
    weights = {"ttr": ttr_weight}
    student, teacher = objective.predictions(views, weights), objective.targets(views, weights)
    return objective.losses(student, teacher, views, weights), student, teacher


def _compare_losses(reference: Reference, name: str, comparison: Comparison) -> None:
    """All losses of one condition, and its gradient norms."""
    expected, masked = reference.expected[name], "unmasked" not in name
    objective, views = reference.objective(), reference.views(masked)
    default = 0.0 if name == "ttr_off" else reference.config["network_loss_weight"]
    weight = expected.get("weight", default)
    losses, student, teacher = _step_losses(objective, views, weight)
    found = {
        "cls_loss": losses.cls,
        "network_loss": weight * losses.ttr,
        "within_view_loss": losses.token,
        "mask_loss": reference.config["mask_loss_weight"] * losses.token,
        "total_loss": losses.total.detach(),
        "student_proj_std": student.cls[0].detach().std(dim=0).mean(),
        "teacher_proj_std": teacher.cls[0].std(dim=0).mean(),
        "network_mask_loss": 0.0,
    }
    assert found.keys() == set(SCALARS)
    for key in [key for key in expected if key in found]:
        comparison.add(f"{name}: {key}", found[key], expected[key], OUTPUT_TOLERANCE)
        comparison.reads |= _READS.get(key, {"student_", "teacher_"})
        if masked and "student_" in _READS.get(key, {"student_"}):
            comparison.reads.add("student" + _MASK_EMBEDDING)
    if "grad_norms" in expected:
        losses.total.backward()
        norms = _authors_norms({n: p.grad for n, p in objective.student.named_parameters()}, objective, "student")
        _compare_norms(comparison, f"{name}: gradient norms", norms, expected["grad_norms"], GRADIENT_TOLERANCE)


def _compare_teacher_update(
    reference: Reference, name: str, expected: Mapping[str, Any], comparison: Comparison
) -> None:
    """One EMA update; dead tensors, which this implementation does not carry, are updated from the file."""
    matched = TEACHER_UPDATE.fullmatch(name)
    assert matched is not None
    step, total = map(int, matched.groups())
    momentum = cosine(reference.config["base_teacher_momentum"], 1.0, step / total)
    comparison.add("teacher momentum", momentum, expected["momentum"], SCHEDULE_TOLERANCE)
    objective = reference.objective()
    objective.after_step(momentum)
    norms = _authors_norms(dict(objective.teacher.named_parameters()), objective, "teacher")
    for key in expected["teacher_param_norms"]:
        if is_dead(key) and key in reference.state:
            teacher, student = reference.state[key], reference.state[key.replace("teacher_", "student_", 1)]
            norms[key] = float(torch.lerp(teacher, student, 1 - momentum).norm())
    _compare_norms(comparison, "teacher norms after update", norms, expected["teacher_param_norms"], OUTPUT_TOLERANCE)
    comparison.reads |= expected["teacher_param_norms"].keys()


def _compare_steps(reference: Reference, steps: Mapping[str, Any], comparison: Comparison) -> None:
    """Optimiser steps from the stored weights on the stored views, in float64 like the reference."""
    exact = Reference(reference.state, reference.arrays, reference.config, reference.expected, torch.float64)
    objective = exact.objective()
    optimiser = make_optimiser(objective.student.named_parameters())
    n_steps = len(steps["total_loss"])
    schedules = Schedules(n_steps, 0, 0.0, momentum=reference.config["base_teacher_momentum"])
    for step in range(n_steps):
        losses, _, _ = _step_losses(objective, exact.views(bool(steps["masked"][step])), steps["ttr_weight"][step])
        losses.total.backward()
        norm = optimiser_step(optimiser, steps["learning_rate"][step], steps["weight_decay"][step], max_norm=1.0)
        objective.after_step(schedules.momentum_at(step))
        head = torch.cat([parameter.flatten() for parameter in objective.teacher.head.parameters()])
        found = {
            "total_loss": losses.total.detach(),
            "gradient_norm_before_clipping": norm,
            "mask_embedding_norm": objective.student.encoder.mask_embedding.detach().norm(),
            "cls_token_norm": objective.student.encoder.cls_token.detach().norm(),
            "teacher_projection_head_norm": head.norm(),
        }
        assert found.keys() == set(TRAJECTORY)
        for key, value in found.items():
            comparison.add(f"steps: {key}", value, steps[key][step], OUTPUT_TOLERANCE, f"step {step}")
    norms = _authors_norms(dict(objective.student.named_parameters()), objective, "student")
    norms |= _authors_norms(dict(objective.teacher.named_parameters()), objective, "teacher")
    _compare_norms(comparison, "steps: final parameter norms", norms, steps["final_parameter_norms"], OUTPUT_TOLERANCE)
    comparison.reads |= steps["final_parameter_norms"].keys()


def _authors_norms(tensors: Mapping[str, Tensor | None], objective: SelfDistillation, role: str) -> dict[str, float]:
    """L2 norm of each tensor by the authors' keys."""
    present = {name: tensor.detach() for name, tensor in tensors.items() if tensor is not None}
    encoder = objective.student.encoder
    return {key: float(view.norm()) for key, view in authors_views(present, encoder, role).items()}


def _compare_norms(
    comparison: Comparison, quantity: str, found: Mapping[str, float], expected: Mapping[str, float], tolerance: float
) -> None:
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise UserError(f"{quantity}: expected a norm of {missing[0]}, found none (and {len(missing) - 1} more)")
    for key, value in expected.items():
        comparison.add(quantity, found[key], value, tolerance, key)


def _by_kind(keys: Iterable[str]) -> list[str]:
    """Keys of all networks of an atlas as one, with ``*`` for the network."""
    return list(dict.fromkeys(re.sub(r"(network_tokenizers\.\w+)\.\d+\.", r"\1.*.", key) for key in keys))


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print one line per quantity, exit with 1 when one is above its tolerance."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.parity", description=__doc__)
    parser.add_argument("--state-dict", type=Path, required=True, help="weights in the authors' key layout")
    parser.add_argument("--arrays", type=Path, required=True, help="views, masks and expected arrays (.npz)")
    parser.add_argument("--expected", type=Path, required=True, help="config and expected scalars (.json)")
    parser.add_argument("--steps", type=Path, help="expected trajectory of optimiser steps (.json)")
    arguments = parser.parse_args(argv)
    reference = Reference.read(arguments.state_dict, arguments.arrays, arguments.expected)
    steps = read_json(arguments.steps) if arguments.steps else None
    if steps is not None:
        check_steps(steps, str(arguments.steps))
    comparison = compare(reference, steps)
    print(comparison.report())
    for line in _by_kind(comparison.not_compared(reference.state)):
        print(f"not compared, nothing expected depends on it: {line}")
    if comparison.failed:
        print(f"FAILED: {', '.join(comparison.failed)}")
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
