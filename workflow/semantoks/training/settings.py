"""Settings of pretraining: defaults, presets, and the check of what a user gave."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from semantoks.errors import UserError
from semantoks.model.encoder import ModelSettings
from semantoks.objectives.masks import MaskSettings
from semantoks.objectives.self_distillation import ObjectiveSettings
from semantoks.objectives.views import ViewSettings


@dataclass(frozen=True)
class OptimiserSettings:
    """Length of the training and its schedules (METHOD §7).

    Attributes
    ----------
    epochs : passes over the participants.
    batch : scans per step over all processes; a smaller corpus is used whole.
    micro_batches : a step's scans are encoded in so many parts, to fit memory.
    accumulation : ``exact`` couples the parts through one covariance (their projections are computed twice);
        ``separate`` takes each part's own covariance (cheaper; m is the part's size).
    learning_rate : peak, per 256 scans of batch.
    warmup_epochs : of linear warm-up from 0; then a cosine to 0.
    weight_decay, final_weight_decay : ends of a cosine.
    decay_all : decay biases, norms and scales, too.
    momentum, final_momentum : of the teacher, ends of a cosine.
    clip_norm : largest gradient norm.
    """

    epochs: int = 100
    batch: int = 512
    micro_batches: int = 1
    accumulation: Literal["exact", "separate"] = "exact"
    learning_rate: float = 7e-4
    warmup_epochs: float = 3.0
    weight_decay: float = 0.05
    final_weight_decay: float = 0.3
    decay_all: bool = True
    momentum: float = 0.99
    final_momentum: float = 1.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "micro_batches"):
            if getattr(self, name) < 1:
                raise UserError(f"optimiser.{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("momentum", "final_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optimiser.{name}: expected a value from 0 to 1, found {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise UserError(f"optimiser.{name}: expected more than 0, found {getattr(self, name)}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UserError(
                f"optimiser.warmup_epochs: expected less than optimiser.epochs ({self.epochs}), "
                f"found {self.warmup_epochs}"
            )


@dataclass(frozen=True)
class RunSettings:
    """The machine, logging and stopping; besides ``precision`` nothing here changes what is computed, up to rounding.

    Attributes
    ----------
    device : ``auto`` takes a GPU when there is one.
    precision : ``float32`` or ``bf16`` (autocast; weights, covariances and teacher stay float32); ``auto`` takes
        bf16 on GPUs and on CPUs with AVX-512-bf16 or AMX.
    compile : ``torch.compile`` the encoders; ``auto`` on GPUs.
    reproducible : the same seed gives the same bits on one kind of GPU, too.
    corpus : where the scans lie: on the ``device`` when they fit, else in the ``host``'s memory, else on ``disk``;
        ``auto`` decides.
    threads : CPU threads; 0 leaves the choice to torch.
    log_every : steps between lines of metrics; 0 is every step on a CPU and every tenth on a GPU.
    checkpoint_minutes : between checkpoints, besides one after each stop signal.
    collapse_factor : stop when γR stays below this many times the γR of identical features for ``patience``
        logged steps (random unit features reach 48 times, at the reference batch); 0 never stops.
    patience : see ``collapse_factor``.
    tensorboard : write TensorBoard events beside the checkpoints.
    """

    device: str = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    reproducible: bool = True
    corpus: Literal["auto", "device", "host", "disk"] = "auto"
    threads: int = 0
    log_every: int = 0
    checkpoint_minutes: float = 10.0
    collapse_factor: float = 1.6
    patience: int = 50
    tensorboard: bool = False


@dataclass(frozen=True)
class PretrainSettings:
    """All settings of a pretraining; the defaults are the preset ``semantoks-base``.

    ``min_network_valid``: a network with a smaller share of valid ROIs is a masked token.
    """

    preset: str = "semantoks-base"
    min_network_valid: float = 0.5
    model: ModelSettings = field(default_factory=ModelSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    masks: MaskSettings = field(default_factory=MaskSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        if self.views.crop < self.model.patch:
            raise UserError(
                f"views.crop: expected at least one patch (model.patch: {self.model.patch} samples), "
                f"found {self.views.crop}"
            )

    def as_dict(self) -> dict[str, Any]:
        """All settings, resolved, JSON-able."""
        return dataclasses.asdict(self)


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "semantoks-base": {},
    "small": {
        "model": {
            "width": 64,
            "dense_width": 32,
            "depth": 2,
            "head_width": 32,
            "mlp_width": 256,
            "projection_hidden": 128,
            "projection_width": 64,
        },
        "optimiser": {"epochs": 60, "batch": 64, "learning_rate": 1.6e-2, "warmup_epochs": 3.0, "momentum": 0.95},
    },
    "tiny": {
        "model": {
            "width": 16,
            "dense_width": 8,
            "depth": 1,
            "head_width": 8,
            "mlp_width": 32,
            "projection_hidden": 16,
            "projection_width": 8,
        },
        "optimiser": {"epochs": 2, "batch": 8, "learning_rate": 4e-3, "warmup_epochs": 1.0},
    },
}
"""Differences of the presets from the reference (``semantoks-base``)."""


def resolve_settings(given: Mapping[str, Any]) -> PretrainSettings:
    """Preset and overrides as one; a value of null, or a missing key, is the preset's.

    Raises
    ------
    UserError
        For an unknown preset or key, and for values that contradict each other.
    """
    preset = given.get("preset") or "semantoks-base"
    if preset not in PRESETS:
        raise UserError(f"pretrain.preset: expected one of {sorted(PRESETS)}, found {preset!r}")
    merged: dict[str, Any] = {"preset": preset}
    for key in {**PRESETS[preset], **given}:
        value = given.get(key)
        if isinstance(value, Mapping) or key in PRESETS[preset]:
            overrides = {name: part for name, part in (value or {}).items() if part is not None}
            merged[key] = {**PRESETS[preset].get(key, {}), **overrides}
        elif value is not None:
            merged[key] = value
    return from_mapping(PretrainSettings, merged, "pretrain")


T = TypeVar("T")


def from_mapping(kind: type[T], given: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass from JSON, with nested dataclasses; unknown keys and wrong types are user errors."""
    hints = get_type_hints(kind)
    unknown = sorted(given.keys() - hints.keys())
    if unknown:
        raise UserError(f"{where}.{unknown[0]}: expected one of {sorted(hints)}, found an unknown key")
    values: dict[str, Any] = {}
    for name, value in given.items():
        hint, key = hints[name], f"{where}.{name}"
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise UserError(f"{key}: expected a group of keys, found {value!r}")
            values[name] = from_mapping(hint, value, key)  # type: ignore[arg-type]
        else:
            values[name] = _checked(value, hint, key)
    return kind(**values)


def _checked(value: Any, hint: Any, key: str) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{key}: expected one of {list(get_args(hint))}, found {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{key}: expected {hint.__name__}, found {value!r}")
    return value
