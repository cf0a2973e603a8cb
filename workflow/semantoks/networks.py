"""Stage ``networks``: the network of each parcel, from names, voxel overlap or a table."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semantoks.errors import UserError, run_command
from semantoks.files import read_json, read_text_table, write_text
from semantoks.label_images import Labels, check_labels, on_grid, read_label_image, read_label_table

NAME_PATTERNS = [
    (re.compile(r"^(?:(?:7|17)Networks_)?[LR]H_([A-Za-z]+)_"), None),
    (re.compile(r".*-[lr]h$"), "Subcortex"),
    (re.compile(r"^Buckner_"), "Cerebellum"),
]
"""Schaefer et al. (2018), Tian et al. (2020), Buckner et al. (2011): pattern of a parcel's name, and its network."""


@dataclass(frozen=True)
class NetworksSettings:
    """Section ``networks`` of the configuration (see ``workflow/schemas/networks.schema.yaml``)."""

    method: str
    image: str | None
    space: str
    names: str | None
    drop_labels: list[int]
    minimum_share: float
    unassigned_name: str
    file: str | None


def assign_networks(settings: NetworksSettings, folder: Path) -> pd.DataFrame:
    """The network of every parcel of the atlas in ``folder``.

    Returns
    -------
    Columns index, name, network, share, and one column per candidate network with its share; rows in the order of
    the label table, candidates in the order of their table or of first appearance.

    Raises
    ------
    UserError
        What the method needs is missing, in another space, or does not cover every parcel.
    """
    table = read_label_table(folder / "labels.tsv")
    if settings.method == "overlap":
        shares = _overlap(settings, folder, table)
        return from_shares(table, shares, settings.minimum_share, settings.unassigned_name)
    if settings.method == "labels":
        networks = table["network"] if "network" in table else from_names(table["name"])
        if networks.isna().any():
            first = table["name"][networks.isna()].iloc[0]
            raise UserError(
                f"{folder / 'labels.tsv'}: expected a network for every parcel, found none for {first!r}; name it in a "
                "column 'network' of the label table, or choose another 'networks.method'"
            )
    elif settings.method == "file":
        networks = from_file(settings.file, table["name"])
    else:
        networks = pd.Series("All", index=table.index) if settings.method == "single" else table["name"]
    candidates = pd.unique(networks)
    shares = pd.DataFrame({name: (networks == name).astype(float) for name in candidates})
    return from_shares(table, shares, 0.0, settings.unassigned_name)


def from_names(names: pd.Series) -> pd.Series:
    """Network of each parcel as its name tells; null where no pattern fits."""

    def network(name: str) -> str | None:
        for pattern, fixed in NAME_PATTERNS:
            match = pattern.match(name)
            if match:
                return fixed or match[1]
        return None

    return names.map(network)


def from_file(path: str | None, names: pd.Series) -> pd.Series:
    """Network of each parcel from a table with the columns name and network, matched by name."""
    if path is None:
        raise UserError("key 'networks.file': expected the path of a table for the method 'file', found none")
    table = read_text_table(path)
    if not {"name", "network"} <= set(table.columns):
        raise UserError(f"{path}: expected the columns name and network, found {', '.join(table.columns)}")
    if table["name"].duplicated().any():
        raise UserError(
            f"{path}: expected one row per parcel, found {table['name'][table['name'].duplicated()].iloc[0]!r} twice"
        )
    networks = table.set_index("name")["network"].reindex(names).reset_index(drop=True)
    if networks.isna().any():
        missing = names.reset_index(drop=True)[networks.isna()]
        raise UserError(
            f"{path}: expected a network for every parcel, found none for {missing.iloc[0]!r} ({len(missing)} in all); "
            "names must equal those of the label table"
        )
    return networks


def from_shares(table: pd.DataFrame, shares: pd.DataFrame, minimum: float, unassigned: str) -> pd.DataFrame:
    """Give each parcel the network with the largest share; ties go to the first, too small shares to ``unassigned``.

    Parameters
    ----------
    table : columns index and name.
    shares : one column per candidate network, rows as in ``table``.
    minimum : smallest share that counts.
    unassigned : network of the parcels below it.
    """
    largest = shares.max(axis=1)
    network = shares.idxmax(axis=1).where(largest >= minimum, unassigned)
    result = table[["index", "name"]].assign(network=network, share=largest)
    return pd.concat([result, shares], axis=1)


def _overlap(settings: NetworksSettings, folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    atlas_space = read_json(folder / "atlas.json")["space"]
    if settings.image is None or settings.names is None:
        key = "image" if settings.image is None else "names"
        raise UserError(f"key 'networks.{key}': expected a path for the method 'overlap', found none")
    if settings.space != atlas_space:
        raise UserError(
            f"key 'networks.space': expected the space of the atlas, {atlas_space}, found {settings.space}; use a "
            "network image in that space, spaces are not converted silently"
        )
    if not (folder / "atlas.nii.gz").is_file():
        raise UserError(f"{folder}: expected atlas.nii.gz for the method 'overlap', found an atlas without image")
    labels, affine = read_label_image(folder / "atlas.nii.gz")
    networks, network_affine = read_label_image(settings.image)
    networks[np.isin(networks, settings.drop_labels)] = 0
    names = read_label_table(settings.names)
    check_labels(names, settings.names)
    beyond = sorted(set(np.unique(networks[networks > 0]).tolist()) - set(names["index"].tolist()))
    if beyond:
        raise UserError(
            f"{settings.image}: expected only the networks of {settings.names}, found also "
            f"{', '.join(map(str, beyond))}; list stray labels under 'networks.drop_labels'"
        )
    networks = on_grid(networks, network_affine, labels.shape, affine)
    shares = overlap_shares(labels, networks, table["index"].to_numpy(), names["index"].to_numpy())
    return pd.DataFrame(shares, columns=names["name"])


def overlap_shares(
    labels: Labels, networks: Labels, parcel_index: NDArray[np.integer], network_index: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Share of each parcel's voxels that lie in each network, float64 [ROI, network]; 0 for an empty parcel.

    Parameters
    ----------
    labels, networks : int32 [x, y, z] on one grid.
    parcel_index, network_index : labels of the rows and columns.
    """
    size = int(max(networks.max(), network_index.max())) + 1
    inside = labels > 0
    pairs = labels[inside].astype(np.int64) * size + networks[inside]
    counts = np.bincount(pairs, minlength=(int(parcel_index.max()) + 1) * size).reshape(-1, size)[parcel_index]
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares: NDArray[np.float64] = counts[:, network_index] / total
    return shares


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m semantoks.networks", description=__doc__)
    parser.add_argument("--settings", type=json.loads, required=True, help="section `networks` of the config, as JSON")
    parser.add_argument("--atlas", type=Path, required=True, help="folder of the atlas stage")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    table = assign_networks(NetworksSettings(**arguments.settings), arguments.atlas)
    text = table.to_csv(sep="\t", index=False, float_format="%.4f", lineterminator="\n")
    write_text(arguments.output, text)
    counts = table["network"].value_counts(sort=False)
    print(f"{len(counts)} networks: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run_command(main)
