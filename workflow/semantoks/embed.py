"""Encode every recording of a cohort into features of regular crops: ``python -m semantoks.embed``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from semantoks.errors import UserError, run_command
from semantoks.files import KEY, provenance, sha256, write_table
from semantoks.model.encoder import Encoder, scan_features
from semantoks.model.encoder_folder import LoadedEncoder, load_encoder
from semantoks.training.corpus import Corpus
from semantoks.training.device import choose_device, choose_precision
from semantoks.training.encoder_corpus import crop_starts, load_matching_corpus
from semantoks.training.hdf5 import load_hdf5
from semantoks.training.settings import from_mapping


@dataclass(frozen=True)
class EmbedSettings:
    """How recordings are encoded.

    Attributes
    ----------
    crops : per recording, evenly spaced; a recording no longer than a crop gives one.
    features : ``cls_avg`` (mean of the tokens, then CLS), ``average`` or ``cls``.
    present_tokens_only : average only tokens with data; the reference averages all.
    batch : crops encoded at once.
    device, precision, threads : as for pretraining; features of ``auto`` precision are float32 on most CPUs.
    """

    crops: int = 8
    features: Literal["cls_avg", "average", "cls"] = "cls_avg"
    present_tokens_only: bool = False
    batch: int = 64
    device: str = "auto"
    precision: Literal["auto", "float32", "bf16"] = "float32"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.crops < 1 or self.batch < 1:
            raise UserError(f"embed.crops, embed.batch: expected at least 1, found {self.crops} and {self.batch}")


def all_crops(corpus: Corpus, crop: int, n_crops: int) -> pd.DataFrame:
    """One row per crop: scan (row of the corpus), crop (number), start (sample)."""
    rows = [
        (scan, number, start)
        for scan, n_frames in enumerate(corpus.lengths.tolist())
        for number, start in enumerate(crop_starts(n_frames, crop, n_crops))
    ]
    return pd.DataFrame(rows, columns=["scan", "crop", "start"])


@torch.inference_mode()
def encode(
    encoder: Encoder, corpus: Corpus, crops: pd.DataFrame, crop: int, settings: EmbedSettings, device: torch.device
) -> Iterator[np.ndarray]:
    """Features of every row of ``crops``, float32 [rows of a batch, features], batch by batch."""
    precision = choose_precision(settings.precision, device)
    complete = corpus.complete(crop)
    for first in range(0, len(crops), settings.batch):
        rows = crops.iloc[first : first + settings.batch]
        scans, starts = (torch.tensor(rows[name].to_numpy()) for name in ("scan", "start"))
        present = corpus.present_tokens(scans, crop, encoder.settings.patch).to(device)
        bold = corpus.crops(scans, starts, crop).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            tokens = encoder(bold, None if complete else ~present)
        yield select_features(tokens.float(), present, settings).cpu().numpy()


def select_features(tokens: Tensor, present: Tensor, settings: EmbedSettings) -> Tensor:
    """The features of a setting, of encoder tokens [B, 1 + N·P, D]."""
    both = scan_features(tokens, present if settings.present_tokens_only else None)
    average, cls = both.chunk(2, dim=-1)
    return {"cls_avg": both, "average": average, "cls": cls}[settings.features]


def load_matching_hdf5(path: Path, atlas: str, loaded: LoadedEncoder) -> Corpus:
    """An HDF5 file in the authors' layout as the encoder's ROIs, resampled to the encoder's TR."""
    config = loaded.config
    return load_hdf5(
        path,
        atlas,
        networks=loaded.encoder.networks,
        roi_names=config["roi_names"],
        target_tr=(config.get("shard_settings") or {}).get("tr", 2.0),
        min_network_valid=config["min_network_valid"],
        tokenizer=config["model"]["tokenizer"],
        min_frames=2 * config["model"]["patch"],
    )


def embed(inputs: Sequence[Path], weights: Path, settings: EmbedSettings, output: Path, atlas: str = "") -> None:
    """Encode shards, or with ``atlas`` one HDF5 file in the authors' layout, and write one row per crop."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    loaded = load_encoder(weights)
    corpus = load_matching_hdf5(inputs[0], atlas, loaded) if atlas else load_matching_corpus(inputs, loaded)
    crop = loaded.config["crop"]
    crops = all_crops(corpus, crop, settings.crops)
    batches = encode(loaded.encoder.to(device), corpus, crops, crop, settings, device)
    features = []
    with tqdm(total=len(crops), unit="crop", desc="embed", disable=None) as bar:
        for batch in batches:
            features.append(batch)
            bar.update(len(batch))
    table = corpus.table.iloc[crops["scan"]][KEY].reset_index(drop=True)
    table = pa.Table.from_pandas(table.assign(crop=crops["crop"], start=crops["start"]), preserve_index=False)
    values = np.concatenate(features)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]).cast(pa.list_(pa.float32()))
    metadata = provenance(
        "embed",
        asdict(settings),
        inputs,
        encoder=output.stem,
        weights_sha256=sha256(loaded.path),
        pretrain_recordings=loaded.config["pretrain_recordings"],
    )
    write_table(output, table.append_column("features", column), metadata)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.embed", description=__doc__)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, see embed.schema.yaml")
    parser.add_argument("--weights", type=Path, required=True, help="folder of an encoder, or its weights.safetensors")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--shards", type=Path, nargs="+", help="shard files of one cohort")
    data.add_argument("--input", type=Path, help="HDF5 file in the authors' layout, band-passed")
    parser.add_argument("--atlas", help="dataset under timeseries/ of --input")
    parser.add_argument("--output", type=Path, required=True, help="results/<cohort>/embeddings/<encoder>.parquet")
    arguments = parser.parse_args(argv)
    settings: Any = {key: value for key, value in arguments.settings.items() if value is not None}
    if bool(arguments.input) != bool(arguments.atlas):
        raise UserError("--atlas: expected exactly when --input is given; name the dataset under timeseries/")
    embed(
        arguments.shards or [arguments.input],
        arguments.weights,
        from_mapping(EmbedSettings, settings, "embed"),
        arguments.output,
        arguments.atlas or "",
    )


if __name__ == "__main__":
    run_command(main)
