"""Writing the simulated cohort: a BIDS dataset, fMRIPrep-style derivatives beside it, the atlas, and what was planted.

The same values give the same bytes: no timestamps, gzip streams without name and date.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from semantoks import __version__
from semantoks.files import replacing, write_json, write_text
from semantoks.simulation.artefacts import framewise_displacement
from semantoks.simulation.atlas import ATLAS_NAME, NETWORKS, RESOLUTION, SPACE, VOXEL_SIZE, Atlas
from semantoks.simulation.confounds import confounds_table
from semantoks.simulation.dynamics import Traits
from semantoks.simulation.participants import Participant
from semantoks.simulation.recording import Recording

TASK = "rest"
SIMULATED = "Simulated data: no person was scanned."
_GENERATED_BY = {"Name": "semantoks.simulate", "Version": __version__, "Description": SIMULATED}
_ENTITIES = f"space-{SPACE}_res-{RESOLUTION}"


def recording_name(participant: Participant, index: int) -> str:
    """BIDS name without suffix, e.g. ``sub-001_ses-1_task-rest``."""
    session, run = participant.recordings[index]
    parts = [f"sub-{participant.label}", session and f"ses-{session}", f"task-{TASK}", run and f"run-{run}"]
    return "_".join(part for part in parts if part)


def functional_folder(participant: Participant, index: int) -> Path:
    """Folder of a recording below the dataset, e.g. ``sub-001/ses-1/func``."""
    session, _ = participant.recordings[index]
    return Path(f"sub-{participant.label}", *([f"ses-{session}"] if session else []), "func")


def write_recording(folder: Path, atlas: Atlas, participant: Participant, index: int, recording: Recording) -> float:
    """Write the derivatives of one recording below ``folder/derivatives/fmriprep``; returns its mean FD [mm]."""
    name, tr = recording_name(participant, index), participant.site.tr
    target = folder / "derivatives" / "fmriprep" / functional_folder(participant, index)
    in_brain = recording.mask[atlas.brain]
    table, sidecar = confounds_table(
        recording.bold[:, in_brain],
        atlas.tissue[recording.mask],
        recording.artefacts.motion,
        tr,
        int(np.count_nonzero(recording.artefacts.saturation)),
    )
    write_text(target / f"{name}_desc-confounds_timeseries.tsv", _numbers_as_tsv(table))
    write_json(target / f"{name}_desc-confounds_timeseries.json", sidecar)

    image = np.zeros((len(recording.bold), *atlas.brain.shape[::-1]), dtype=np.int16)  # Fortran order on disk
    image[:, atlas.brain.T] = np.rint(recording.bold)[:, _fortran_order(atlas.brain)]
    write_image(target / f"{name}_{_ENTITIES}_desc-preproc_bold.nii.gz", image.T, atlas.affine, tr)
    source = functional_folder(participant, index) / f"{name}_bold.nii.gz"
    resolution = {"Resolution": {RESOLUTION: f"{VOXEL_SIZE:g} mm isotropic"}}
    bold_sidecar = {
        "Description": SIMULATED,
        "RepetitionTime": tr,
        "SkullStripped": True,
        "SliceTimingCorrected": False,
        "Sources": [f"bids:raw:{source.as_posix()}"],
        "TaskName": TASK,
        **resolution,
    }
    write_json(target / f"{name}_{_ENTITIES}_desc-preproc_bold.json", bold_sidecar)
    write_image(
        target / f"{name}_{_ENTITIES}_desc-brain_mask.nii.gz", recording.mask.astype(np.uint8), atlas.affine, None
    )
    write_json(target / f"{name}_{_ENTITIES}_desc-brain_mask.json", {"Type": "Brain", **resolution})
    return float(np.nanmean(framewise_displacement(recording.artefacts.motion)))


def write_image(path: Path, values: np.ndarray, affine: np.ndarray, tr: float | None) -> None:
    """Write a NIfTI-1 image, gzip level 1; ``tr`` [s] for a 4D image."""
    image = nib.Nifti1Image(values, affine, dtype=values.dtype)
    image.header.set_xyzt_units("mm", "sec" if tr else None)
    image.header["descrip"] = b"simulated"
    for code in ("sform", "qform"):
        getattr(image, f"set_{code}")(affine, code="mni")
    if tr:
        image.header["pixdim"][4] = tr
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as stream,
    ):
        stream.write(image.to_bytes())


def write_raw_dataset(folder: Path, participants: list[Participant]) -> None:
    """Write ``folder/bids``: descriptions, participants table, sidecars; its images are empty files."""
    root = folder / "bids"
    write_json(root / "dataset_description.json", _description("Simulated cohort", "raw"))
    write_text(
        root / "README", f"{SIMULATED} Images here are empty files; the derivatives beside this folder are not.\n"
    )
    for participant in participants:
        for index in range(len(participant.recordings)):
            target = root / functional_folder(participant, index)
            name = recording_name(participant, index)
            sidecar = {"Description": SIMULATED, "RepetitionTime": participant.site.tr, "TaskName": TASK}
            write_json(target / f"{name}_bold.json", sidecar)
            (target / f"{name}_bold.nii.gz").write_bytes(b"")
    write_text(root / "participants.tsv", _tsv(participants_table(participants)))
    write_json(root / "participants.json", _data_dictionary(participants))


def participants_table(participants: list[Participant]) -> pd.DataFrame:
    """``participants.tsv``: demographics, site, family and the null phenotypes."""
    return pd.DataFrame(
        {
            "participant_id": f"sub-{p.label}",
            "age": p.age,
            "sex": p.sex,
            "site": p.site.name,
            "diagnosis": p.diagnosis,
            "family": p.family,
            **p.null_phenotypes,
        }
        for p in participants
    )


def write_derivatives_description(folder: Path) -> None:
    """``dataset_description.json`` of the derivatives, which says that fMRIPrep did not run."""
    description = _description(
        "Simulated derivatives in the layout of fMRIPrep 23.2; fMRIPrep was not run", "derivative"
    )
    description["SourceDatasets"] = [{"URL": "../../bids"}]
    write_json(folder / "derivatives" / "fmriprep" / "dataset_description.json", description)


def write_atlas(folder: Path, atlas: Atlas) -> None:
    """``folder/atlas``: label image, label table (index, name, network) and a sidecar."""
    stem = f"atlas-{ATLAS_NAME}_{_ENTITIES}_dseg"
    write_image(folder / "atlas" / f"{stem}.nii.gz", atlas.parcels, atlas.affine, None)
    write_text(folder / "atlas" / f"atlas-{ATLAS_NAME}_dseg.tsv", _tsv(atlas.labels))
    description = {
        "Name": ATLAS_NAME,
        "Description": "Invented parcels and networks for the simulated cohort. Not an atlas of the brain.",
        "Space": SPACE,
        "Resolution": f"{VOXEL_SIZE:g} mm isotropic",
        "Source": "Brain mask and tissue templates shipped with nilearn (MNI152 2009a symmetric).",
    }
    write_json(folder / "atlas" / f"{stem}.json", description)


def write_planted(folder: Path, participants: list[Participant], traits: list[Traits], mean_fd: pd.DataFrame) -> None:
    """``folder/planted``: the true dynamics of every participant and the true motion of every recording."""
    rows = []
    for participant, trait in zip(participants, traits, strict=True):
        row: dict[str, Any] = {"participant_id": f"sub-{participant.label}"}
        row |= {f"peak_{name}": value for name, value in zip(NETWORKS, trait.peak, strict=True)}
        row |= {f"delay_{name}": value for name, value in zip(NETWORKS, trait.propagation, strict=True)}
        rows.append(row)
    write_text(folder / "planted" / "dynamics.tsv", _tsv(pd.DataFrame(rows)))
    write_text(folder / "planted" / "motion.tsv", _tsv(mean_fd))


def _description(name: str, kind: str) -> dict[str, Any]:
    return {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": kind,
        "GeneratedBy": [_GENERATED_BY],
        "License": "CC0",
        "HowToAcknowledge": SIMULATED,
    }


def _data_dictionary(participants: list[Participant]) -> dict[str, Any]:
    """``participants.json``: what each column is."""
    described: dict[str, Any] = {
        "age": {"Description": "Simulated age", "Units": "years"},
        "sex": {"Description": "Simulated sex", "Levels": {"F": "female", "M": "male"}},
        "site": {"Description": "Simulated scanner"},
        "diagnosis": {"Description": "Simulated diagnosis of no real disorder"},
        "family": {"Description": "Simulated family; members are siblings"},
    }
    for name in participants[0].null_phenotypes:
        described[name] = {"Description": "Drawn at random, related to nothing: a null phenotype"}
    return described


def _fortran_order(brain: np.ndarray) -> np.ndarray:
    """Position, in array order, of the brain's voxels taken with the first axis fastest."""
    position = np.zeros(brain.shape, dtype=int)
    position[brain] = np.arange(np.count_nonzero(brain))
    ordered: np.ndarray = position.T[brain.T]
    return ordered


def _numbers_as_tsv(table: pd.DataFrame) -> str:
    """Like :func:`_tsv` for a table of floats, in a tenth of the time."""
    row = "\t".join(["%.9g"] * table.shape[1]) + "\n"
    lines = [(row % tuple(values)).replace("nan", "n/a") for values in table.to_numpy().tolist()]
    return "\t".join(table.columns) + "\n" + "".join(lines)


def _tsv(table: pd.DataFrame) -> str:
    text: str = table.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.9g", lineterminator="\n")
    return text
