"""Shards as one tensor: the scans that training and encoding draw crops from.

Frames of all scans lie one after another, [frame, ROI] in float16, so that a crop is a run of rows wherever the
tensor lies, and scans may differ in length. Casts to float32 come before any sum.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor

from semantoks.errors import UserError
from semantoks.files import KEY, read_metadata, read_tables
from semantoks.model.networks import NetworkTable
from semantoks.training.frames import make_frames

HALF_EXPONENT = 0x7C00
"""Exponent bits of a float16; all of them set means NaN or infinity."""


@dataclass
class Corpus:
    """Scans in memory.

    Attributes
    ----------
    table : one row per scan with the key columns.
    frames : [all frames, ROI] float16, z-scored per ROI and scan.
    starts, lengths : [scan] int64, first row and number of rows of each scan in ``frames``.
    present_rows : [scan, N] bool, token rows (networks, or ROIs for the linear tokenizer) that have data.
    networks, roi_names, source : the shards' network table, ROI names, and the rest of their metadata.
    on_disk : ``frames`` are read from a file as crops touch them.
    left_out : recordings of the shards that are not in it: cohort, recording, reason.
    """

    table: pd.DataFrame
    frames: Tensor
    starts: Tensor
    lengths: Tensor
    present_rows: Tensor
    networks: NetworkTable
    roi_names: list[str]
    source: dict[str, Any] = field(default_factory=dict)
    on_disk: bool = False
    left_out: list[list[str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.table)

    def crops(self, scans: Tensor, starts: Tensor, crop: int) -> Tensor:
        """Crops [B, ROI, crop] float32 of ``scans`` [B] from the samples ``starts`` [B]; zeros after a scan's end."""
        offset = torch.arange(crop, device=self.frames.device)
        sample = starts[:, None] + offset
        inside = sample < self.lengths[scans, None]
        rows = torch.where(inside, self.starts[scans, None] + sample, 0)
        crops = self.frames[rows].transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return crops.mul_(inside[:, None, :])

    def present_tokens(self, scans: Tensor, crop: int, patch: int) -> Tensor:
        """[B, N, P] bool: tokens of a present row in a patch that is not all padding."""
        n_frames = self.lengths[scans].clamp(max=crop)
        patches = torch.arange(crop // patch, device=scans.device) * patch < n_frames[:, None]
        return self.present_rows[scans][:, :, None] & patches[:, None, :]

    def complete(self, crop: int) -> bool:
        """Whether every token of every crop has data, so that nothing need be masked for the teacher."""
        return bool(self.present_rows.all()) and bool((self.lengths >= crop).all())

    def to(self, device: torch.device | str) -> Corpus:
        """The same corpus with its tensors on a device."""
        names = ("frames", "starts", "lengths", "present_rows")
        return replace(self, **{name: getattr(self, name).to(device) for name in names}, on_disk=False)


def load_corpus(
    paths: Sequence[Path | str],
    min_network_valid: float = 0.5,
    tokenizer: str = "semantic",
    min_frames: int = 40,
    networks: NetworkTable | None = None,
    roi_names: Sequence[str] | None = None,
    on_disk: bool = False,
) -> Corpus:
    """Read shards.

    Parameters
    ----------
    paths : shard files of one atlas.
    min_network_valid : a network with a smaller share of valid ROIs is masked (DESIGN, 'a parcel without data').
    tokenizer : of the model; with ``linear`` every ROI is a token row of its own.
    min_frames : shorter scans are left out, with the reason in ``Corpus.left_out``.
    networks, roi_names : of the model, when there is one: ROIs are matched by name, and parcels that the shards
        do not have (no cerebellum, no subcortex) count as parcels without data.
    on_disk : frames are mapped from a file instead of held in memory (:func:`semantoks.training.frames.make_frames`).

    Raises
    ------
    UserError
        For no scans that are long enough, shards that differ in atlas, ROI order, networks or sampling, or do not fit
        the model.
    """
    metadata, table = describe_shards(paths, ["n_frames"], min_frames)
    kept, left_out = (table["n_frames"] >= min_frames).to_numpy(), too_short(table, min_frames)
    table = table[kept].reset_index(drop=True)
    shard_names = list(metadata["roi_names"])
    if networks is None or roi_names is None:
        networks, roi_names = NetworkTable.from_labels(metadata["networks"]), shard_names
    columns = _matching_columns(shard_names, list(roi_names), paths[0])
    lengths = table["n_frames"].to_numpy(np.int64, copy=True)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    # a slice is copied three times faster than a list of columns
    own = slice(None) if columns == list(range(len(roi_names))) else columns

    def fill(target: np.ndarray | None) -> np.ndarray:
        valid = np.zeros((len(table), len(roi_names)), dtype=bool)
        for scan, (start, (bold, with_data)) in enumerate(
            zip(starts, itertools.compress(_scans(paths), kept), strict=True)
        ):
            if target is not None:
                target[start : start + bold.shape[1], own] = bold.T
            valid[scan, own] = with_data
        return valid

    target, valid = make_frames((int(lengths.sum()), len(roi_names)), on_disk, fill)
    present = valid if tokenizer == "linear" else present_networks(valid, networks, min_network_valid)
    return Corpus(
        table=table[KEY],
        frames=_as_tensor(target),
        starts=torch.from_numpy(starts),
        lengths=torch.from_numpy(lengths),
        present_rows=torch.from_numpy(present),
        networks=networks,
        roi_names=list(roi_names),
        source={key: value for key, value in metadata.items() if key in ("atlas", "settings")},
        on_disk=on_disk,
        left_out=left_out,
    )


def _as_tensor(frames: np.ndarray) -> Tensor:
    """Frames as a tensor on the same memory, which may be read-only: nothing writes into a corpus."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(frames)


def describe_shards(
    paths: Sequence[Path | str], columns: Sequence[str] = ("n_frames",), min_frames: int = 40
) -> tuple[dict[str, Any], pd.DataFrame]:
    """What shards of one corpus have in common, and key and ``columns`` of every scan; their time series stay on disk.

    Raises
    ------
    UserError
        For no scans, none long enough, one twice, or shards that differ in atlas, ROI order, networks or sampling.
    """
    if not paths:
        raise UserError("--shards: expected at least one shard file, found none")
    metadata = _common_metadata(paths)
    table = read_tables(paths, [*KEY, *columns])
    if table.empty:
        raise UserError(f"{paths[0]}: expected at least one scan in {len(paths)} shard files, found none; see the qc")
    repeated = table[table.duplicated(["cohort", "recording_id"])]
    if len(repeated):
        name = repeated.iloc[0]["recording_id"]
        raise UserError(f"shards: expected every recording once, found {name} again; name each shard file once")
    _check_lengths(table, min_frames)
    return metadata, table


def present_networks(valid: np.ndarray, networks: NetworkTable, min_share: float) -> np.ndarray:
    """[scan, N] bool: networks of which at least ``min_share`` of the ROIs are valid, of ``valid`` [scan, ROI]."""
    membership = np.eye(len(networks.names))[list(networks.of_roi)]
    shares = valid.astype(np.float64) @ membership / np.asarray(networks.sizes)
    present: np.ndarray = (shares >= min_share) & (shares > 0)
    return present


def _common_metadata(paths: Sequence[Path | str]) -> dict[str, Any]:
    """Metadata of the first shard, after checking that the others agree in all that a model depends on."""
    first, *others = (read_metadata(path) for path in paths)
    for path, other in zip(paths[1:], others, strict=True):
        for key, what in (
            ("atlas", "the same atlas"),
            ("roi_names", "the same ROIs in the same order"),
            ("networks", "the same network of each ROI"),
        ):
            if other.get(key) != first.get(key):
                raise UserError(
                    f"{path}: expected {what} as in {paths[0]}, found {_difference(first.get(key), other.get(key))}; "
                    "train on shards of one atlas and one network table"
                )
        found, expected = (shard["settings"].get("tr") for shard in (other, first))
        if found != expected:
            raise UserError(f"{path}: expected a TR of {expected} s as in {paths[0]}, found {found} s")
    return first


def _difference(expected: Any, found: Any) -> str:
    """Where two metadata values first differ, in words."""
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return f"{len(found)} instead of {len(expected)} entries"
        index = next(i for i, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1])
        return f"{found[index]!r} instead of {expected[index]!r} at position {index}"
    return f"{found!r} instead of {expected!r}"


def _matching_columns(shard_names: list[str], model_names: list[str], path: Path | str) -> list[int]:
    """Position in the model of each ROI of the shards; an unknown ROI or another order is an error."""
    position = {name: index for index, name in enumerate(model_names)}
    unknown = [name for name in shard_names if name not in position]
    if unknown:
        raise UserError(
            f"{path}: expected ROIs that the model knows, found {len(unknown)} others, first {unknown[0]!r}; "
            "encode shards of the atlas that the model was trained on"
        )
    columns = [position[name] for name in shard_names]
    for before, after in itertools.pairwise(columns):
        if after <= before:
            raise UserError(
                f"{path}: expected ROIs in the order of the model, found {model_names[after]!r} after "
                f"{model_names[before]!r}; the label table has another order than the model's"
            )
    return columns


def _check_lengths(table: pd.DataFrame, min_frames: int) -> None:
    """At least one scan is long enough; the others are left out."""
    longest = table["n_frames"].max()
    if longest < min_frames:
        raise UserError(
            f"shards: expected scans of at least {min_frames} samples (two patches), found none among "
            f"{len(table)}; the longest has {longest}; use shorter patches or longer scans"
        )


def too_short(table: pd.DataFrame, min_frames: int) -> list[list[str]]:
    """Scans of a table that are left out: cohort, recording, reason."""
    short = table.loc[table["n_frames"] < min_frames, ["cohort", "recording_id", "n_frames"]]
    return [
        [cohort, recording, f"expected at least {min_frames} samples (two patches), found {n_frames}"]
        for cohort, recording, n_frames in short.itertuples(index=False)
    ]


def _scans(paths: Sequence[Path | str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """BOLD [ROI, time] float16 and valid [ROI] of every scan, in the order of the tables, few in memory at a time.

    Eight scans stay in the processor's cache between reading, checking and transposing.
    """
    columns = ["recording_id", "n_rois", "n_frames", "valid", "bold"]
    for path in paths:
        file = pq.ParquetFile(path, memory_map=True)
        for batch in file.iter_batches(batch_size=8, columns=columns, use_threads=False):
            described = zip(*(batch.column(name).to_pylist() for name in columns[:3]), strict=True)
            for (recording, *shape), valid, stored in zip(
                described, batch.column("valid"), batch.column("bold"), strict=True
            ):
                bits = np.frombuffer(stored.as_buffer(), dtype="<u2")
                name = f"{path}: {recording}"
                if bits.size != shape[0] * shape[1]:
                    raise UserError(
                        f"{name}: expected {shape[0]} × {shape[1]} values, found {bits.size}; the shard is damaged, "
                        "make it again"
                    )
                # isfinite of float16 is ten times slower than looking at the exponent
                if (bits & HALF_EXPONENT == HALF_EXPONENT).any():
                    raise UserError(f"{name}: expected finite values, found NaN or infinity; make the shard again")
                yield bits.view("<f2").reshape(shape), valid.values.to_numpy(zero_copy_only=False)
