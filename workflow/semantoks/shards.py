"""Stage ``shards``: included recordings resampled, z-scored and packed as float16, in the form the encoder reads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from semantoks import signals
from semantoks.errors import UserError, run_command
from semantoks.files import (
    KEY,
    METADATA_KEY,
    parquet_options,
    provenance,
    read_metadata,
    read_table,
    read_text_table,
    replacing,
)

SCHEMA = pa.schema(
    [(name, pa.string()) for name in [*KEY, "task", "site"]]
    + [("tr", pa.float64()), ("n_rois", pa.int32()), ("n_frames", pa.int32())]
    + [("valid", pa.list_(pa.bool_())), ("bold", pa.binary())]
)


def pack_recording(bold: NDArray[np.floating], tr: float, target_tr: float) -> dict[str, Any]:
    """Resample without aliasing, z-score, store.

    Parameters
    ----------
    bold : float [ROI, time] at native TR; a parcel without data is NaN.
    tr, target_tr : seconds.

    Returns
    -------
    Columns ``tr``, ``n_rois``, ``n_frames``, ``valid`` [ROI] and ``bold``: little-endian float16, ROI-major, with 0 for
    a parcel without data.
    """
    valid = signals.rows_with_data(bold)
    n_frames = signals.n_resampled(bold.shape[1], tr, target_tr)
    packed = np.zeros((len(bold), n_frames), dtype="<f2")
    packed[valid] = signals.zscore(signals.resample(bold[valid], tr, target_tr))
    return {"tr": target_tr, "n_rois": len(bold), "n_frames": n_frames, "valid": valid, "bold": packed.tobytes()}


def write_shard(
    timeseries: Path, kept: set[str], target_tr: float, row_group_size: int, metadata: Mapping[str, Any], output: Path
) -> int:
    """Stream one time-series file into one shard, recording by recording; returns how many were written."""
    n_rois = len(metadata["roi_names"])
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    written = 0
    options = parquet_options(schema)
    with replacing(output) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        rows: list[dict[str, Any]] = []
        for batch in pq.ParquetFile(timeseries).iter_batches(batch_size=8):
            for record in batch.to_pylist():
                if record["recording_id"] not in kept:
                    continue
                bold = np.asarray(record["bold"], dtype=np.float32).reshape(n_rois, -1)
                row = {name: record[name] for name in [*KEY, "task", "site"]}
                rows.append(row | pack_recording(bold, record["tr"], target_tr))
                written += 1
            if len(rows) >= row_group_size:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return written


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.shards", description=__doc__)
    parser.add_argument(
        "--settings", type=json.loads, required=True, help="section `shards` and the pass-band, as JSON"
    )
    parser.add_argument("--timeseries", type=Path, required=True)
    parser.add_argument("--qc", type=Path, required=True, help="decisions of the qc stage for the same batch")
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    settings = arguments.settings
    made = read_metadata(arguments.timeseries)
    networks = read_text_table(arguments.networks)
    if networks["name"].tolist() != made["roi_names"]:
        raise UserError(
            f"{arguments.networks}: expected the ROIs of {arguments.timeseries} in the same order, found others; "
            "rerun the stages atlas, networks and parcellate with one atlas"
        )
    decisions = read_table(arguments.qc, ["recording_id", "exclude_reason"])
    kept = set(decisions.loc[decisions["exclude_reason"].isna(), "recording_id"])
    metadata = provenance(
        "shards",
        settings,
        [arguments.timeseries, arguments.qc, arguments.networks],
        roi_names=made["roi_names"],
        networks=networks["network"].tolist(),
        atlas=made["atlas"],
        timeseries=made["settings"],
    )
    written = write_shard(
        arguments.timeseries, kept, settings["tr"], settings["row_group_size"], metadata, arguments.output
    )
    print(f"{written} of {len(decisions)} recordings")


if __name__ == "__main__":
    run_command(main)
