"""A cohort's scans as an encoder reads them, and the regular crops in which they are tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semantoks.errors import UserError
from semantoks.model.encoder_folder import LoadedEncoder
from semantoks.training.corpus import Corpus, load_corpus


def crop_starts(n_frames: int, crop: int, n_crops: int) -> list[int]:
    """First samples of evenly spaced crops: linspace(0, T − crop, n) truncated; one crop when T ≤ crop."""
    if n_frames <= crop:
        return [0]
    return [int(start) for start in np.linspace(0, n_frames - crop, n_crops)]


def load_matching_corpus(shards: Sequence[Path], loaded: LoadedEncoder) -> Corpus:
    """Shards as the encoder's ROIs; another sampling interval or unknown ROIs are errors."""
    config = loaded.config
    corpus = load_corpus(
        shards,
        config["min_network_valid"],
        config["model"]["tokenizer"],
        networks=loaded.encoder.networks,
        roi_names=config["roi_names"],
        min_frames=2 * config["model"]["patch"],
    )
    expected = (config.get("shard_settings") or {}).get("tr")
    found = (corpus.source.get("settings") or {}).get("tr")
    if expected is not None and found is not None and expected != found:
        raise UserError(
            f"{shards[0]}: expected a TR of {expected} s, as {loaded.path} was trained on, found {found} s; "
            "make shards with that TR"
        )
    return corpus
