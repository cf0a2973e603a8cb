"""Encode every recording of a cohort into features of regular crops: ``python -m semantoks.embed``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from semantoks.errors import UserError, run_command
from semantoks.files import KEY, METADATA_KEY, parquet_options, provenance, read_table, replacing, sha256
from semantoks.model.encoder import Encoder, scan_features
from semantoks.model.encoder_folder import LoadedEncoder, load_encoder
from semantoks.training.corpus import Corpus, describe_shards, too_short
from semantoks.training.device import choose_device, choose_precision, keep_freed_memory
from semantoks.training.encoder_corpus import crop_starts, load_matching_corpus
from semantoks.training.hdf5 import Hdf5Scans
from semantoks.training.settings import from_mapping

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in KEY]
    + [("crop", pa.int64()), ("start", pa.int64()), ("features", pa.list_(pa.float32()))]
)


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
    """Features of every row of ``crops``, float32 [rows of a batch, features], batch by batch; all on ``device``."""
    precision = choose_precision(settings.precision, device)
    complete = corpus.complete(crop)
    for first in range(0, len(crops), settings.batch):
        rows = crops.iloc[first : first + settings.batch]
        scans, starts = (torch.tensor(rows[name].to_numpy(), device=corpus.frames.device) for name in ("scan", "start"))
        present = corpus.present_tokens(scans, crop, encoder.settings.patch)
        bold = corpus.crops(scans, starts, crop)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            tokens = encoder(bold, None if complete else ~present)
        yield select_features(tokens.float(), present, settings).cpu().numpy()


def select_features(tokens: Tensor, present: Tensor, settings: EmbedSettings) -> Tensor:
    """The features of a setting, of encoder tokens [B, 1 + N·P, D]."""
    both = scan_features(tokens, present if settings.present_tokens_only else None)
    average, cls = both.chunk(2, dim=-1)
    return {"cls_avg": both, "average": average, "cls": cls}[settings.features]


def shard_corpora(shards: Sequence[Path], loaded: LoadedEncoder) -> Iterator[Corpus]:
    """One shard after another as the encoder's ROIs; one without a scan to encode is passed over."""
    for shard in shards:
        lengths = read_table(shard, ["n_frames"])["n_frames"]
        if (lengths >= 2 * loaded.config["model"]["patch"]).any():
            yield load_matching_corpus([shard], loaded)


def unusable_scans(shards: Sequence[Path], loaded: LoadedEncoder) -> list[list[str]]:
    """Scans that cannot be encoded (cohort, recording, reason), after checking that the shards belong together."""
    min_frames = 2 * loaded.config["model"]["patch"]
    _, table = describe_shards(shards, min_frames=min_frames)
    return too_short(table, min_frames)


def hdf5_scans(path: Path, atlas: str, loaded: LoadedEncoder) -> Hdf5Scans:
    """An HDF5 file in the authors' layout as the encoder's ROIs, resampled to the encoder's TR."""
    config = loaded.config
    return Hdf5Scans(
        path,
        atlas,
        networks=loaded.encoder.networks,
        roi_names=config["roi_names"],
        target_tr=(config.get("shard_settings") or {}).get("tr", 2.0),
        min_network_valid=config["min_network_valid"],
        tokenizer=config["model"]["tokenizer"],
        min_frames=2 * config["model"]["patch"],
    )


def encoded_rows(
    encoder: Encoder, corpus: Corpus, crop: int, settings: EmbedSettings, device: torch.device
) -> pa.Table:
    """Rows of the contract for all crops of a corpus."""
    crops = all_crops(corpus, crop, settings.crops)
    values = np.concatenate(list(encode(encoder, corpus.to(device), crops, crop, settings, device)))
    features = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    keys = corpus.table.iloc[crops["scan"]]
    columns = [pa.array(keys[name].tolist(), pa.string()) for name in KEY]
    columns += [pa.array(crops[name].to_numpy(), pa.int64()) for name in ("crop", "start")]
    return pa.Table.from_arrays([*columns, features.cast(pa.list_(pa.float32()))], schema=SCHEMA)


def embed(inputs: Sequence[Path], weights: Path, settings: EmbedSettings, output: Path, atlas: str = "") -> None:
    """Encode shards, or with ``atlas`` one HDF5 file in the authors' layout, and write one row per crop.

    One shard, or a part of the HDF5 file, is in memory at a time.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    if device.type == "cpu":
        keep_freed_memory()
    loaded = load_encoder(weights)
    scans = hdf5_scans(inputs[0], atlas, loaded) if atlas else None
    corpora = shard_corpora(inputs, loaded) if scans is None else scans.corpora()
    if scans is None:
        excluded = unusable_scans(inputs, loaded)
    else:
        excluded = [[inputs[0].stem, name, reason] for name, reason in scans.unusable().items()]
    for _, name, reason in excluded:
        print(f"left out {name}: {reason}", file=sys.stderr)
    metadata = provenance(
        "embed",
        asdict(settings),
        inputs,
        encoder=output.stem,
        weights_sha256=sha256(loaded.path),
        pretrain_recordings=loaded.config["pretrain_recordings"],
        excluded=excluded,
    )
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    encoder = loaded.encoder.to(device)
    with (
        replacing(output) as temporary,
        pq.ParquetWriter(temporary, schema, **parquet_options(schema)) as writer,
        tqdm(unit="recording", desc="embed", disable=None) as bar,
    ):
        for corpus in corpora:
            writer.write_table(encoded_rows(encoder, corpus, loaded.config["crop"], settings, device).cast(schema))
            bar.update(len(corpus))


def check_inputs(inputs: Sequence[Path], atlas: str) -> None:
    """Inputs are shards, or one HDF5 file with the name of its atlas, by their suffixes; anything else is an error."""
    suffixes = sorted({path.suffix.lower() for path in inputs})
    if suffixes == [".parquet"]:
        if atlas:
            raise UserError("--atlas: expected with an HDF5 file only, found it beside shards; they name their atlas")
    elif len(inputs) > 1 or suffixes[0] not in HDF5_SUFFIXES:
        raise UserError(
            f"--input: expected shards (.parquet) or one HDF5 file ({', '.join(HDF5_SUFFIXES)}), found "
            f"{', '.join(map(str, inputs))}"
        )
    elif not atlas:
        raise UserError(f"{inputs[0]}: --atlas: expected the name of the dataset under timeseries/, found none")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.embed", description=__doc__)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, see embed.schema.yaml")
    parser.add_argument("--weights", type=Path, required=True, help="folder of an encoder, or its weights.safetensors")
    parser.add_argument(
        *("--input", "--shards"),
        dest="inputs",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        help="shards of one cohort (.parquet), or one HDF5 file in the authors' layout, band-passed",
    )
    parser.add_argument("--atlas", default="", help="dataset under timeseries/ of an HDF5 file")
    parser.add_argument("--output", type=Path, required=True, help="results/<cohort>/embeddings/<encoder>.parquet")
    arguments = parser.parse_args(argv)
    settings: Any = {key: value for key, value in arguments.settings.items() if value is not None}
    check_inputs(arguments.inputs, arguments.atlas)
    embed(
        arguments.inputs,
        arguments.weights,
        from_mapping(EmbedSettings, settings, "embed"),
        arguments.output,
        arguments.atlas,
    )


if __name__ == "__main__":
    run_command(main)
