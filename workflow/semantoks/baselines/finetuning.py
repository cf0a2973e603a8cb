"""Fine-tuning of a pretrained encoder, fully or by LoRA (EVALUATION §3)."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from semantoks.baselines.features import Index, participant_keys
from semantoks.baselines.network_training import Head, TrainingSettings, decayed, plain_groups
from semantoks.errors import UserError
from semantoks.model.encoder import Encoder, scan_features
from semantoks.objectives.views import ViewSettings, augment
from semantoks.training.corpus import Corpus
from semantoks.training.encoder_corpus import crop_starts

LORA_TARGETS = ["qkv", "projection", "mlp_in", "mlp_out"]
"""Layers of a block that get an adapter."""


class Classifier(nn.Module):
    """An encoder with a BatchNorm + Linear head on ``cls_avg``."""

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = Head(2 * encoder.settings.width, outputs)

    def forward(self, bold: Tensor, absent: Tensor | None = None) -> Tensor:
        """Crops [B, ROI, T] → [B, outputs]; ``absent`` [B, N, P] marks tokens without data."""
        output: Tensor = self.head(scan_features(self.encoder(bold, absent)))
        return output


class FineTuned:
    """All weights of a copy of the encoder, deeper layers faster."""

    def __init__(self, pretrained: Encoder, outputs: int, layer_decay: float) -> None:
        # A copy for every split: the pretrained weights are never changed.
        self.module: nn.Module = Classifier(copy.deepcopy(pretrained).requires_grad_(True), outputs)
        self.depth, self.layer_decay = len(pretrained.blocks), layer_decay

    def layer(self, name: str) -> int:
        """Place of a parameter: 0 for tokenizer and embeddings (lowest rate), 1 … depth for blocks, then the head."""
        if name.startswith("encoder.blocks."):
            return int(name.split(".")[2]) + 1
        if name.startswith(("encoder.norm.", "head.")):
            return self.depth + 1
        return 0

    def groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """Groups by layer and by whether weights decay."""
        members: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.module.named_parameters():
            members[(self.layer(name), decayed(name, parameter))].append(parameter)
        return [
            {
                "params": parameters,
                "weight_decay": settings.weight_decay * decay,
                "lr": self.layer_decay ** (self.depth + 1 - layer),
            }
            for (layer, decay), parameters in sorted(members.items(), key=lambda item: item[0])
        ]


class LoRA:
    """Low-rank adapters (library: peft) in the blocks of a frozen copy of the encoder, and the head."""

    def __init__(self, pretrained: Encoder, outputs: int, rank: int, seed: int) -> None:
        # Here, because its import takes seconds that full fine-tuning does not need.
        from peft import LoraConfig, inject_adapter_in_model

        encoder = copy.deepcopy(pretrained).requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=LORA_TARGETS)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = inject_adapter_in_model(config, encoder)
            self.module: nn.Module = Classifier(adapted, outputs)  # type: ignore[arg-type]

    def groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """Adapters and head, one rate."""
        return plain_groups(self.module, settings)


class Crops:
    """Crops of a corpus for the participants of the tasks.

    Training: one random crop of one random recording, scaled, with noise and a block of zeros, no ROI set to 0.
    Test: ``n_crops`` regular crops of every recording.
    """

    def __init__(
        self,
        corpus: Corpus,
        participants: Sequence[str],
        crop: int,
        patch: int,
        n_crops: int,
        by_session: bool = False,
        batch: int = 64,
    ) -> None:
        self.corpus, self.crop, self.patch, self.batch = corpus, crop, patch, batch
        self.views = replace(ViewSettings(), crop=crop, zeroed_rois=0.0)
        self.complete = corpus.complete(crop)
        sessions = corpus.table["session_id"] if by_session else None
        keys = participant_keys(corpus.table["cohort"], corpus.table["participant_id"], sessions)
        owner = np.array(keys, dtype=str)
        self.scans = [np.flatnonzero(owner == name) for name in participants]
        without = [name for name, scans in zip(participants, self.scans, strict=True) if not len(scans)]
        if without:
            raise UserError(
                f"shards: expected recordings of all participants of the splits, found none of {without[0]}"
            )
        self.starts = [crop_starts(int(length), crop, n_crops) for length in corpus.lengths]

    def training(self, participants: Index, generator: torch.Generator) -> tuple[Tensor, ...]:
        """One augmented crop of each participant."""
        uniform = torch.rand(2, len(participants), generator=generator, dtype=torch.float64)
        scans = torch.tensor(
            [
                self.scans[number][int(u * len(self.scans[number]))]
                for number, u in zip(participants, uniform[0], strict=True)
            ]
        )
        starts = (uniform[1] * (self.corpus.lengths[scans] - self.crop + 1).clamp(min=1)).long()
        return self._inputs(scans, starts, lambda bold: augment(bold, self.views, generator))

    def testing(self, participants: Index) -> Iterator[tuple[Index, tuple[Tensor, ...]]]:
        """Every regular crop."""
        rows = np.array(
            [
                (number, scan, start)
                for number in participants
                for scan in self.scans[number]
                for start in self.starts[scan]
            ],
            dtype=np.int64,
        )
        for first in range(0, len(rows), self.batch):
            part = rows[first : first + self.batch]
            scans, starts = torch.from_numpy(part[:, 1].copy()), torch.from_numpy(part[:, 2].copy())
            yield part[:, 0], self._inputs(scans, starts, lambda bold: bold)

    def _inputs(self, scans: Tensor, starts: Tensor, change: Any) -> tuple[Tensor, ...]:
        bold = change(self.corpus.crops(scans, starts, self.crop))
        if self.complete:
            return (bold,)
        return bold, ~self.corpus.present_tokens(scans, self.crop, self.patch)
