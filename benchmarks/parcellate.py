"""How fast one recording is parcellated, beside merely reading the file and beside nilearn.

Makes a 97×115×97×180 image with noise inside a brain-sized mask, as int16 and float32, in a temporary folder, and
times in one thread: reading the gzip stream with the standard library and with isal (where installed), our
parcellation with cleaning, and nilearn's ``NiftiLabelsMasker`` with the same cleaning; then batches with one and two
workers. Asked: at most 1.25 times the fastest reading, under 2 GiB per worker. Run it on a quiet machine:

    OMP_NUM_THREADS=1 PYTHONPATH=workflow python benchmarks/parcellate.py
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from semantoks.atlas import Atlas, AtlasSettings, write_atlas
from semantoks.denoise import load_strategy
from semantoks.parcel_means import fast_gzip
from semantoks.parcellate import COLUMNS, AtlasFiles, ParcellateSettings, parcellate_batch, parcellate_recording

SHAPE, N_VOLUMES, TR, N_ROIS = (97, 115, 97), 180, 2.0, 457
SPACE = "MNI152NLin2009cAsym"
AFFINE = nibabel.affines.from_matvec(np.diag([2.0, 2.0, 2.0]), [-96.5, -132.5, -78.5])


def brain() -> np.ndarray:
    """An ellipsoid with the volume of a brain, about 230,000 voxels of 2 mm."""
    x, y, z = np.ogrid[-1:1:97j, -1:1:115j, -1:1:97j]
    return (x / 0.75) ** 2 + (y / 0.75) ** 2 + (z / 0.72) ** 2 < 1


def make_atlas(folder: Path, mask: np.ndarray) -> AtlasFiles:
    """457 compact parcels that fill two thirds of the mask."""
    random = np.random.default_rng(0)
    voxels = np.argwhere(mask)
    seeds = voxels[random.choice(len(voxels), N_ROIS, replace=False)]
    from scipy.spatial import cKDTree

    nearest = cKDTree(seeds).query(voxels)[1] + 1
    nearest[random.random(len(voxels)) < 1 / 3] = 0
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[mask] = nearest
    table = pd.DataFrame({"index": range(1, N_ROIS + 1), "name": [f"parcel_{i}" for i in range(1, N_ROIS + 1)]})
    settings = AtlasSettings("benchmark", SPACE, None, 2, None, None, [], [])
    write_atlas(Atlas(table, labels, AFFINE, {}), settings, folder)
    return AtlasFiles.read(folder)


def make_recording(folder: Path, mask: np.ndarray, dtype: Any) -> dict[str, Any]:
    """Noise around 1,000 inside the mask, zero outside, with confounds of 24 motion columns' worth."""
    random = np.random.default_rng(1)
    header = nibabel.Nifti1Image(np.zeros((*SHAPE, 1), dtype=dtype), AFFINE).header
    header.set_data_shape((*SHAPE, N_VOLUMES))
    header["vox_offset"] = 352
    path = folder / "bold.nii.gz"
    with gzip.open(path, "wb", compresslevel=6) as file:  # in a stream, so that peak memory is not the image's size
        file.write(header.binaryblock.ljust(352, b"\0"))
        for _ in range(N_VOLUMES):
            volume = np.zeros(SHAPE, dtype=dtype)
            volume[mask] = (1000 + 30 * random.normal(size=int(mask.sum()))).astype(dtype)
            file.write(volume.tobytes(order="F"))
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), AFFINE), folder / "mask.nii.gz")
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    confounds = pd.DataFrame(np.cumsum(random.normal(size=(N_VOLUMES, 6)), axis=0) / 100, columns=names)
    confounds.to_csv(folder / "confounds.tsv", sep="\t", index=False)
    paths = {"bold_path": str(path), "mask_path": str(folder / "mask.nii.gz")}
    return paths | {"confounds_path": str(folder / "confounds.tsv"), "space": SPACE, "tr": TR}


def read(module: Any, path: str) -> None:
    """Decompress a file volume by volume and throw it away."""
    size = int(np.prod(SHAPE)) * 4
    with module.open(path, "rb") as file:
        while file.read(size):
            pass


SETTINGS = ParcellateSettings("24P", [0.01, 0.1], True, 0.5, 1)
STRATEGY = load_strategy("24P")  # read once for a batch of recordings, by the stage as here


def ours(row: dict[str, Any], atlas: AtlasFiles) -> np.ndarray:
    """Cleaned time series [ROI, time] by the stage parcellate."""
    result = parcellate_recording(row, atlas, STRATEGY, SETTINGS)
    cleaned: np.ndarray = result["bold"].reshape(N_ROIS, -1)
    return cleaned


def nilearn(row: dict[str, Any], atlas: AtlasFiles) -> np.ndarray:
    """The same by nilearn."""
    from nilearn.maskers import NiftiLabelsMasker
    from semantoks.confounds import read_confounds
    from semantoks.denoise import design

    regressors = design(read_confounds(row["confounds_path"]), STRATEGY, {})
    masker = NiftiLabelsMasker(
        atlas.folder / "atlas.nii.gz", mask_img=row["mask_path"], t_r=TR, high_pass=0.01, low_pass=0.1, detrend=True,
        standardize=None, resampling_target=None,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cleaned: np.ndarray = masker.fit_transform(row["bold_path"], confounds=regressors.to_numpy()).T
    return cleaned


def best_of(repetitions: int, functions: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, float]]:
    """Shortest wall time and shortest CPU time in s of each; the second means something on a shared machine, too.

    They take turns, so that a machine that is slower for a while is so for all of them.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            start = time.perf_counter(), time.process_time()
            function()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: (min(wall for wall, _ in own), min(cpu for _, cpu in own)) for name, own in times.items()}


def compare(row: dict[str, Any], atlas: AtlasFiles, repetitions: int) -> None:
    """Print the times for one image."""
    ours(row, atlas)  # the first of a batch also brings the atlas onto the grid
    times = best_of(
        repetitions,
        {
            f"reading with {fast_gzip.__name__}": lambda: read(fast_gzip, row["bold_path"]),
            "semantoks.parcellate": lambda: ours(row, atlas),
        },
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    others = {
        "reading with gzip": lambda: read(gzip, row["bold_path"]),
        "nilearn, same cleaning": lambda: nilearn(row, atlas),
    }
    times |= best_of(min(repetitions, 3), others)
    fastest = [min(one[kind] for text, one in times.items() if text.startswith("reading")) for kind in (0, 1)]
    print(f"  {'':28}{'wall':>8}{'CPU':>8}   times the fastest reading")
    for text, (wall, cpu) in times.items():
        print(f"  {text:28}{wall:8.2f}{cpu:8.2f}{wall / fastest[0]:8.2f}{cpu / fastest[1]:8.2f}")
    theirs = nilearn(row, atlas)
    difference = np.abs(ours(row, atlas) - theirs).max() / np.abs(theirs).max()
    print(f"  largest difference to nilearn {difference:.1e} of the largest value; peak memory {memory:.2f} GiB")


def compare_workers(row: dict[str, Any], atlas: AtlasFiles) -> None:
    """Print how long a batch takes with one and with two workers, and the largest memory of one of them."""
    rows = pd.DataFrame([dict.fromkeys(COLUMNS) | row | {"recording_id": f"sub-{n:02d}"} for n in range(6)])
    seconds = {}
    for workers in (1, 2):
        start = time.perf_counter()
        parcellate_batch(rows, atlas, STRATEGY, SETTINGS, workers)
        seconds[workers] = time.perf_counter() - start
        print(f"  six recordings, {workers} worker{'s' * (workers > 1)}: {seconds[workers]:.2f} s")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"  two workers are {seconds[1] / seconds[2]:.2f} times as fast; peak memory of a worker {memory:.2f} GiB")


def measure(dtype: Any, repetitions: int) -> None:
    """Make one image and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder, mask = Path(name), brain()
        atlas = make_atlas(folder, mask)
        row = make_recording(folder, mask, dtype)
        print(f"{np.dtype(dtype).name}, {Path(row['bold_path']).stat().st_size / 2**20:.0f} MiB")
        compare(row, atlas, repetitions)
        compare_workers(row, atlas)


def main() -> None:
    """Measure each data type in a process of its own, so that peak memory is its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10)
    repetitions = parser.parse_args().repetitions
    for dtype in ("int16", "float32"):
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(dtype, repetitions))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
