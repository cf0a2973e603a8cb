"""Stage shards: what the encoder reads is what was measured, resampled and z-scored."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from semantoks.errors import UserError
from semantoks.files import provenance, read_metadata, read_table, write_table
from semantoks.shards import main, pack_recording

NAMES = ["a", "b", "c"]


def stage(tmp_path, recordings, excluded=(), names=NAMES, **settings):
    """Write the inputs of the stage for ``recordings`` (name → (bold, tr)), run it, give the shard back."""
    key = {"cohort": "own", "session_id": None, "task": "rest", "site": "s", "exclude_reason": None}
    rows = [
        {
            **key,
            "participant_id": name,
            "recording_id": f"sub-{name}",
            "tr": tr,
            "bold": bold.astype(np.float32).ravel(),
        }
        for name, (bold, tr) in recordings.items()
    ]
    metadata = provenance("parcellate", {}, roi_names=NAMES, atlas={"name": "own"})
    write_table(tmp_path / "timeseries.parquet", pd.DataFrame(rows), metadata)
    decisions = pd.DataFrame(
        {
            "recording_id": [f"sub-{n}" for n in recordings],
            "exclude_reason": ["motion" if n in excluded else None for n in recordings],
        }
    )
    write_table(tmp_path / "qc.parquet", decisions, {})
    networks = pd.DataFrame({"index": [1, 2, 3], "name": names, "network": ["Vis", "Default", "Vis"], "share": 1.0})
    networks.to_csv(tmp_path / "networks.tsv", sep="\t", index=False)
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("timeseries", "qc")}
    arguments = ["--settings", json.dumps({"tr": 2.0, "row_group_size": 2, **settings})]
    arguments += [
        "--timeseries",
        paths["timeseries"],
        "--qc",
        paths["qc"],
        "--networks",
        str(tmp_path / "networks.tsv"),
    ]
    main([*arguments, "--output", str(tmp_path / "shard.parquet")])
    return read_table(tmp_path / "shard.parquet").set_index("participant_id")


def unpacked(row):
    return np.frombuffer(row["bold"], dtype="<f2").reshape(row["n_rois"], row["n_frames"]).astype(np.float32)


def test_a_slow_sine_survives_resampling_and_is_z_scored(tmp_path):
    def sine(tr, n_frames):
        time = np.arange(n_frames) * tr
        return np.stack(
            [np.sin(2 * np.pi * f * time) * amplitude + 100 for f, amplitude in ((0.02, 1), (0.05, 7), (0.09, 3))]
        )

    shard = stage(
        tmp_path, {"fast": (sine(0.735, 490), 0.735), "slow": (sine(2.5, 144), 2.5), "same": (sine(2.0, 180), 2.0)}
    )
    assert shard["n_frames"].to_dict() == {"fast": 180, "slow": 179, "same": 180}
    expected = sine(2.0, 180)
    expected = (expected - expected.mean(1, keepdims=True)) / expected.std(1, keepdims=True)
    for name in ("fast", "same"):
        values = unpacked(shard.loc[name])
        np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-3)
        np.testing.assert_allclose(values.std(axis=1), 1, atol=1e-3)
        np.testing.assert_allclose(values[:, 10:-10], expected[:, 10:-10], atol=0.02)


def test_frequencies_above_the_new_nyquist_do_not_fold_back():
    time = np.arange(490) * 0.735
    bold = np.sin(2 * np.pi * 0.03 * time) + np.sin(2 * np.pi * 0.45 * time)
    packed = pack_recording(bold[None], 0.735, 2.0)
    values = np.frombuffer(packed["bold"], "<f2").astype(float)
    power = np.abs(np.fft.rfft(values * np.hanning(len(values)))) ** 2
    frequency = np.fft.rfftfreq(len(values), 2.0)
    assert power[frequency > 0.045].sum() / power.sum() < 1e-3


def test_a_parcel_without_data_is_zero_and_marked(tmp_path):
    bold = np.random.default_rng(0).normal(size=(3, 60))
    bold[1] = np.nan
    row = stage(tmp_path, {"01": (bold, 2.0)}).loc["01"]
    assert list(row["valid"]) == [True, False, True]
    assert (unpacked(row)[1] == 0).all()


def test_only_included_recordings_are_packed_and_the_file_says_what_it_is(tmp_path):
    bold = np.random.default_rng(0).normal(size=(3, 60))
    shard = stage(tmp_path, dict.fromkeys(("01", "02", "03", "04"), (bold, 2.0)), excluded=("02",))
    assert sorted(shard.index) == ["01", "03", "04"]
    metadata = read_metadata(tmp_path / "shard.parquet")
    assert metadata["roi_names"] == NAMES
    assert metadata["networks"] == ["Vis", "Default", "Vis"]
    assert metadata["settings"]["tr"] == 2.0
    first = (tmp_path / "shard.parquet").read_bytes()
    stage(tmp_path, dict.fromkeys(("01", "02", "03", "04"), (bold, 2.0)), excluded=("02",))
    assert (tmp_path / "shard.parquet").read_bytes() == first


def test_a_network_table_of_another_order_is_refused(tmp_path):
    with pytest.raises(UserError, match="in the same order, found others"):
        stage(tmp_path, {"01": (np.ones((3, 60)), 2.0)}, names=["b", "a", "c"])


def test_a_batch_in_which_nothing_is_left_is_an_empty_shard(tmp_path):
    bold = np.random.default_rng(0).normal(size=(3, 60))
    assert len(stage(tmp_path, {"01": (bold, 2.0)}, excluded=("01",))) == 0
