"""Small cohorts with known properties for the tests of splits, probes, tables and report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from semantoks.baselines.tasks import Task
from semantoks.files import provenance, write_table
from semantoks.phenotypes import Phenotype

SCHEMAS = Path(__file__).resolve().parents[1] / "workflow" / "schemas"


def defaults(section: str) -> dict[str, Any]:
    """A section of the configuration with every default filled in."""
    schema = yaml.safe_load((SCHEMAS / f"{section}.schema.yaml").read_text(encoding="utf-8"))
    return {key: value["default"] for key, value in schema["properties"].items() if "default" in value}


def participants_table(n: int = 60, n_sites: int = 3, seed: int = 0) -> pd.DataFrame:
    """Participants ``sub-000`` …: two classes, a number, sites of unequal size, age and sex."""
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "participant_id": [f"sub-{number:03d}" for number in range(n)],
            "group": np.where(np.arange(n) % 2 == 0, "patient", "control"),
            "score": np.round(generator.normal(100, 15, n), 2).astype(str),
            "age": np.round(generator.uniform(18, 60, n), 1).astype(str),
            "sex": generator.choice(["F", "M"], n),
            "site": [f"site{number % n_sites}" for number in range(n)],
        }
    )


def cohort_settings(path: Path, table: pd.DataFrame, **changes: Any) -> dict[str, Any]:
    """Write the participants table and give the settings of a cohort with one phenotype of each type."""
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    settings: dict[str, Any] = {
        "name": "small",
        "participants": {"path": str(path), "id_column": "participant_id"},
        "phenotypes": {
            "group": {"column": "group", "type": "classification", "stratify": ["group"]},
            "score": {"column": "score", "type": "regression"},
        },
        "site_column": "site",
        "site_group": {},
        "family_column": None,
        "confounds": ["age", "sex"],
        "probe": defaults("probe")
        | {
            "repetitions": 3,
            "solved_repetitions": 3,
            "epochs": 3,
            "permutations": {"regression": 99, "classification": 0, "classification_up_to": None},
        },
    }
    return settings | changes


def write_shards(
    path: Path,
    bold: Mapping[str, np.ndarray],
    valid: Mapping[str, np.ndarray] | None = None,
    cohort: str = "small",
    **metadata: Any,
) -> Path:
    """Write recordings (name ``participant`` or ``participant_run-2`` → [ROI, time]) as one shard."""
    rows = []
    for name, values in bold.items():
        known = np.ones(len(values), bool) if valid is None or name not in valid else valid[name]
        rows.append(
            {
                "cohort": cohort,
                "participant_id": name.split("_")[0],
                "session_id": None,
                "recording_id": f"sub-{name}",
                "site": None,
                "tr": 2.0,
                "n_rois": len(values),
                "n_frames": values.shape[1],
                "valid": known.tolist(),
                "bold": np.where(known[:, None], values, 0).astype("<f2").tobytes(),
            }
        )
    n_rois = len(next(iter(bold.values())))
    about = {"roi_names": [f"roi-{number}" for number in range(n_rois)], "networks": ["A"] * n_rois} | metadata
    write_table(path, pa.Table.from_pylist(rows), provenance("shards", {}, (), **about))
    return path


def noise_shards(path: Path, table: pd.DataFrame, n_rois: int = 6, n_frames: int = 80, seed: int = 1) -> Path:
    """Recordings of white noise for every participant of a table."""
    generator = np.random.default_rng(seed)
    names = table["participant_id"].str.removeprefix("sub-")
    return write_shards(path, {name: generator.normal(size=(n_rois, n_frames)) for name in names})


def write_embeddings(
    path: Path,
    features: Mapping[str, np.ndarray],
    encoder: str = "tiny_seed-0",
    seen: tuple[str, ...] | None = (),
    cohort: str = "small",
    pretrained: tuple[tuple[str, str], ...] = (),
) -> Path:
    """Write features (participant → [crops, features]) as an embeddings file; ``seen`` None: nobody knows."""
    rows = [
        {
            "cohort": cohort,
            "participant_id": name,
            "session_id": None,
            "recording_id": f"sub-{name}",
            "crop": crop,
            "start": 5 * crop,
            "features": row.astype(np.float32).tolist(),
        }
        for name, values in features.items()
        for crop, row in enumerate(values)
    ]
    known = None if seen is None else [*([cohort, name] for name in seen), *pretrained]
    about = {"encoder": encoder, "pretrain_recordings": known}
    write_table(path, pa.Table.from_pylist(rows), provenance("embed", {}, (), **about))
    return path


def task(n: int = 40, n_classes: int = 2, target: np.ndarray | None = None) -> Task:
    """A random split of ``n`` participants: half to train on, a quarter to validate, a quarter to test."""
    generator = np.random.default_rng(0)
    order = generator.permutation(n)
    if target is None:
        target = np.arange(n) % n_classes if n_classes else generator.normal(size=n) * 3 + 50
    phenotype = Phenotype("x", "x", "classification" if n_classes else "regression")
    parts = (np.sort(part) for part in (order[: n // 2], order[n // 2 : 3 * n // 4], order[3 * n // 4 :]))
    return Task(phenotype, "random", 0, "0", "", *parts, target, n_classes, None)
