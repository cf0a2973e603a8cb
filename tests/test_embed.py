"""Encoding: the right crops, absent parts masked, HDF5 in the authors' layout, metadata of the contract."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from fake_shards import interleaved, write_shard
from semantoks import embed, pretrain, signals
from semantoks.baselines.features import read_embeddings
from semantoks.embed import EmbedSettings, crop_starts
from semantoks.errors import UserError
from semantoks.files import read_metadata, read_table, sha256
from semantoks.model.encoder import scan_features
from semantoks.model.encoder_folder import load_encoder
from semantoks.training.corpus import load_corpus
from semantoks.training.encoder_corpus import load_matching_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder of crops of 60 samples, and shards with a short scan and one without network B."""
    folder = tmp_path_factory.mktemp("embed")
    valid = np.ones((4, 12), dtype=bool)
    valid[2, [label == "B" for label in interleaved((5, 3, 4))]] = False
    write_shard(folder / "shard.parquet", 4, [100, 45, 60, 63], valid=valid)
    settings = {"preset": "tiny", "views": {"crop": 60}}
    train(settings, folder / "shard.parquet", folder / "encoder_seed-0")
    return folder


def train(settings, shard, output, *further):
    arguments = ["--settings", json.dumps(settings), "--shards", str(shard), "--seed", "0", "--output", str(output)]
    pretrain.main([*arguments, *further])


def run(folder, output, settings=None, shards=None, **further):
    arguments = ["--settings", json.dumps(settings or {}), "--weights", str(folder / "encoder_seed-0")]
    if "input" not in further:
        arguments += ["--input", *map(str, shards or [folder / "shard.parquet"])]
    for name, value in further.items():
        arguments += [f"--{name}", str(value)]
    embed.main([*arguments, "--output", str(output)])
    return read_table(output)


def features(table):
    return np.stack(table["features"].to_list())


def test_crop_starts():
    """linspace(0, T − 100, 8) truncated; one crop when T ≤ 100."""
    assert crop_starts(180, 100, 8) == [0, 11, 22, 34, 45, 57, 68, 80]
    assert crop_starts(100, 100, 8) == crop_starts(60, 100, 8) == [0]
    assert crop_starts(103, 100, 8) == [0, 0, 0, 1, 1, 2, 2, 3]
    assert crop_starts(180, 100, 1) == [0]


def test_rows_and_metadata_of_the_contract(folder, tmp_path):
    table = run(folder, tmp_path / "encoder_seed-0.parquet")
    assert table.columns.tolist() == [
        *("cohort", "participant_id", "session_id", "recording_id", "crop", "start", "features")
    ]
    counts = table.groupby("recording_id")["crop"].count().to_dict()
    assert list(counts.values()) == [8, 1, 1, 8]
    assert features(table).shape == (18, 32)
    assert features(table).dtype == np.float32
    metadata = read_metadata(tmp_path / "encoder_seed-0.parquet")
    assert metadata["encoder"] == "encoder_seed-0"
    assert metadata["weights_sha256"] == sha256(folder / "encoder_seed-0" / "weights.safetensors")
    assert metadata["pretrain_recordings"] == [["fake", f"{i:03d}"] for i in range(4)]


def test_features_are_those_of_the_teacher_for_each_crop(folder, tmp_path):
    table = run(folder, tmp_path / "a.parquet", {"batch": 5})
    encoder = load_encoder(folder / "encoder_seed-0").encoder
    corpus = load_corpus([folder / "shard.parquet"])
    for index in (0, 3, 8, 9, 17):
        row = table.iloc[index]
        scan = torch.tensor([corpus.table["recording_id"].tolist().index(row["recording_id"])])
        bold = corpus.crops(scan, torch.tensor([row["start"]]), 60)
        absent = ~corpus.present_tokens(scan, 60, 20)
        expected = scan_features(encoder(bold, absent))[0].detach().numpy()
        np.testing.assert_allclose(row["features"], expected, atol=1e-5)


def test_present_tokens_only_and_parts_of_the_features(folder, tmp_path):
    both = features(run(folder, tmp_path / "a.parquet"))
    np.testing.assert_array_equal(features(run(folder, tmp_path / "b.parquet", {"features": "average"})), both[:, :16])
    np.testing.assert_array_equal(features(run(folder, tmp_path / "c.parquet", {"features": "cls"})), both[:, 16:])
    assert [read_embeddings([tmp_path / f"{name}.parquet"]).name for name in "bc"] == ["average", "cls"]
    present = features(run(folder, tmp_path / "d.parquet", {"present_tokens_only": True}))
    assert np.abs(present - both)[:8].max() < 1e-5  # the first scan is complete
    assert np.abs(present - both)[9, :16].max() > 1e-3  # the third lacks a network
    np.testing.assert_array_equal(present[:, 16:], both[:, 16:])


def test_bfloat16_features_are_close(folder, tmp_path):
    exact = features(run(folder, tmp_path / "a.parquet"))
    rounded = features(run(folder, tmp_path / "b.parquet", {"precision": "bf16"}))
    assert np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_same_input_same_bytes(folder, tmp_path):
    run(folder, tmp_path / "a.parquet")
    first = (tmp_path / "a.parquet").read_bytes()
    run(folder, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == first


def write_hdf5(path, bold, lengths, tr, name="cc12"):
    with h5py.File(path, "w") as file:
        file[f"timeseries/{name}"] = bold.astype(np.float16)
        file["long_subject_id"] = np.array([f"site_{i:05d}" for i in range(len(bold))], dtype="S16")
        file["ts_len"] = np.array(lengths, dtype=np.int32)
        file["tr"] = np.array(tr, dtype=np.float32)


def test_hdf5_in_the_authors_layout(folder, tmp_path):
    """Unnormalised float16, padded with NaN, native TR: resampled, z-scored, and encoded like a shard of it."""
    rng = np.random.default_rng(0)
    bold = 100 * rng.standard_normal((2, 12, 90)).cumsum(axis=2)
    bold[1, :, 70:] = np.nan
    bold[1, 4] = 0.0
    write_hdf5(tmp_path / "cohort.h5", bold, [90, 70], [2.0, 1.6])
    table = run(folder, tmp_path / "a.parquet", input=tmp_path / "cohort.h5", atlas="cc12")
    assert table["participant_id"].unique().tolist() == ["site_00000", "site_00001"]
    assert table["cohort"].unique().tolist() == ["cohort"]
    encoder = load_encoder(folder / "encoder_seed-0").encoder
    stored = bold.astype(np.float16).astype(np.float64)
    first = signals.zscore(stored[0])[:, :60].astype(np.float16)
    second = np.zeros((12, 60), dtype=np.float16)
    kept = np.arange(12) != 4
    resampled = signals.zscore(signals.resample(stored[1, kept, :70], 1.6, 2.0))
    second[kept, : resampled.shape[1]] = resampled[:, :60]
    for row, scan in ((0, first), (8, second)):
        n_patches = -(-min(60, resampled.shape[1] if row else 90) // 20)
        mask = torch.arange(3).expand(1, 3, 3) >= n_patches
        expected = scan_features(encoder(torch.from_numpy(scan.astype(np.float32))[None], mask))[0].detach()
        np.testing.assert_allclose(table["features"].iloc[row], expected, atol=1e-5)


def group_of_that_name(file):
    del file["timeseries/cc12"]
    file.create_group("timeseries/cc12")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.__delitem__("tr"), r"missing \['tr'\]"),
        (lambda file: file.move("timeseries/cc12", "timeseries/other"), r"its atlases are \['other'\]"),
        (lambda file: file["long_subject_id"].__setitem__(1, b"site_00000"), "own for every scan, found 'site_00000'"),
        (lambda file: file["long_subject_id"].__setitem__(1, b""), "own for every scan, found ''"),
        (lambda file: replace(file, "ts_len", [60]), "ts_len: expected 2 values"),
        (lambda file: replace(file, "tr", [b"2.0", b"2.0"]), "tr: expected numbers"),
        (lambda file: replace(file, "timeseries/cc12", np.zeros((0, 12, 60))), "expected scans"),
        (lambda file: replace(file, "timeseries/cc12", np.zeros((2, 12))), "expected scans"),
        (lambda file: replace(file, "timeseries/cc12", np.full((2, 12, 60), b"x")), "cc12: expected numbers"),
        (group_of_that_name, r"missing \['timeseries/cc12'\]"),
        (lambda file: replace(file, "tr", [0.0, np.nan]), "found none of 2; site_00000: tr: expected seconds"),
    ],
)
def test_bad_hdf5_is_named(folder, tmp_path, change, message):
    write_hdf5(tmp_path / "a.h5", np.random.default_rng(0).standard_normal((2, 12, 60)), [60, 60], [2.0, 2.0])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        change(file)
    with pytest.raises(UserError, match=message):
        run(folder, tmp_path / "a.parquet", input=tmp_path / "a.h5", atlas="cc12")


def replace(file, name, values):
    del file[name]
    file[name] = values


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file["timeseries/cc12"].__setitem__((0, 3, 5), np.nan), "expected data in all samples"),
        (lambda file: file["timeseries/cc12"].__setitem__((0, 3, 5), np.inf), "expected data in all samples"),
        (lambda file: file["timeseries/cc12"].__setitem__(0, 0.0), "0 of 12 ROIs have data"),
        (lambda file: file["timeseries/cc12"].__setitem__(0, np.nan), "0 of 12 ROIs have data"),
        (lambda file: file["ts_len"].__setitem__(0, 30), "expected at least 40 samples at 2 s, found 30"),
        (lambda file: file["ts_len"].__setitem__(0, 61), "ts_len: expected 1 to 60 samples as stored, found 61"),
        (lambda file: file["ts_len"].__setitem__(0, -1), "ts_len: expected 1 to 60 samples as stored, found -1"),
        (lambda file: file["tr"].__setitem__(0, np.nan), "tr: expected seconds above 0 and up to 30, found nan"),
        (lambda file: file["tr"].__setitem__(0, 2000), "tr: expected seconds above 0 and up to 30, found 2000"),
    ],
)
def test_a_scan_that_cannot_be_encoded_is_left_out_with_its_reason(folder, tmp_path, capsys, change, reason):
    """The others are encoded; the reason is printed and kept in the metadata."""
    write_hdf5(tmp_path / "a.h5", np.random.default_rng(0).standard_normal((2, 12, 60)), [60, 60], [2.0, 2.0])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        change(file)
    table = run(folder, tmp_path / "a.parquet", input=tmp_path / "a.h5", atlas="cc12")
    assert table["recording_id"].tolist() == ["site_00001"]
    [[cohort, recording, kept]] = read_metadata(tmp_path / "a.parquet")["excluded"]
    assert (cohort, recording) == ("a", "site_00000")
    assert reason in kept
    assert f"left out site_00000: {kept}" in capsys.readouterr().err


def test_a_damaged_scan_is_left_out_with_its_reason(folder, tmp_path):
    bold = np.random.default_rng(0).standard_normal((2, 12, 60))
    write_hdf5(tmp_path / "a.h5", bold, [60, 60], [2.0, 2.0])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["timeseries/cc12"]
        packed = file.create_dataset("timeseries/cc12", data=bold, chunks=(1, 12, 60), compression="gzip")
        file.flush()
        where = packed.id.get_chunk_info(0)
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[where.byte_offset + 50 : where.byte_offset + 90] = bytes(40)
    (tmp_path / "a.h5").write_bytes(content)
    table = run(folder, tmp_path / "a.parquet", input=tmp_path / "a.h5", atlas="cc12")
    assert table["recording_id"].tolist() == ["site_00001"]
    [[_, _, reason]] = read_metadata(tmp_path / "a.parquet")["excluded"]
    assert reason.startswith("expected data that can be read, found ")


def test_hdf5_in_parts(folder, tmp_path):
    """A long file is read a few scans at a time; the parts are the whole."""
    bold = np.random.default_rng(0).standard_normal((5, 12, 60))
    bold[2] = 0.0
    write_hdf5(tmp_path / "a.h5", bold, [60] * 5, [2.0] * 5)
    scans = embed.hdf5_scans(tmp_path / "a.h5", "cc12", load_encoder(folder / "encoder_seed-0"))
    parts, [whole] = list(scans.corpora(2)), list(scans.corpora())
    assert [part.table["recording_id"].tolist() for part in parts] == [
        ["site_00000", "site_00001"],
        ["site_00003"],
        ["site_00004"],
    ]
    assert torch.equal(torch.cat([part.frames for part in parts]), whole.frames)


def test_shards_are_encoded_one_at_a_time(folder, tmp_path, monkeypatch):
    """Features of all shards, one in memory; a shard without recordings is none to encode."""
    write_shard(tmp_path / "b.parquet", 2, 60, seed=1, prefix="b")
    write_shard(tmp_path / "empty.parquet", 2)
    table = pq.read_table(tmp_path / "empty.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    loaded = []

    def load(paths, *others, **named):
        loaded.append(list(paths))
        return load_matching_corpus(paths, *others, **named)

    monkeypatch.setattr(embed, "load_matching_corpus", load)
    shards = [folder / "shard.parquet", tmp_path / "empty.parquet", tmp_path / "b.parquet"]
    both = run(folder, tmp_path / "both.parquet", shards=shards)
    assert loaded == [[shards[0]], [shards[2]]]
    assert pq.ParquetFile(tmp_path / "both.parquet").num_row_groups == 2
    alone = [run(folder, tmp_path / "one.parquet", shards=[shard]) for shard in (shards[0], shards[2])]
    pd.testing.assert_frame_equal(both, pd.concat(alone, ignore_index=True))


def test_a_scan_of_a_shard_that_is_too_short_is_left_out_with_its_reason(folder, tmp_path, capsys):
    """Whether its shard holds others or not."""
    write_shard(tmp_path / "b.parquet", 2, [60, 30], seed=1, prefix="b")
    write_shard(tmp_path / "c.parquet", 1, 30, seed=1, prefix="c")
    table = run(folder, tmp_path / "e.parquet", shards=[tmp_path / "b.parquet", tmp_path / "c.parquet"])
    assert table["participant_id"].unique().tolist() == ["b000"]
    reason = "expected at least 40 samples (two patches), found 30"
    names = ["sub-b001_task-rest_run-1", "sub-c000_task-rest_run-1"]
    assert read_metadata(tmp_path / "e.parquet")["excluded"] == [["fake", name, reason] for name in names]
    assert f"left out {names[0]}: {reason}" in capsys.readouterr().err


def test_shards_that_do_not_belong_together(folder, tmp_path):
    """What is checked across shards is checked before the first is encoded."""
    write_shard(tmp_path / "b.parquet", 2, 60, prefix="b", atlas={"name": "other", "sha256": "1" * 64})
    with pytest.raises(UserError, match="expected the same atlas"):
        run(folder, tmp_path / "a.parquet", shards=[folder / "shard.parquet", tmp_path / "b.parquet"])
    with pytest.raises(UserError, match="expected every recording once"):
        run(folder, tmp_path / "a.parquet", shards=[folder / "shard.parquet", folder / "shard.parquet"])
    assert not (tmp_path / "a.parquet").exists()


def test_input_is_told_apart_by_its_suffix(folder, tmp_path):
    """Shards under either option; HDF5 asks for its atlas, shards refuse one."""
    run(folder, tmp_path / "a.parquet", input=folder / "shard.parquet")
    arguments = ["--weights", str(folder / "encoder_seed-0"), "--output", str(tmp_path / "b.parquet")]
    embed.main([*arguments, "--shards", str(folder / "shard.parquet")])
    pd.testing.assert_frame_equal(read_table(tmp_path / "a.parquet"), read_table(tmp_path / "b.parquet"))
    for inputs, message in (
        ((folder / "shard.parquet", "--atlas", "cc12"), "--atlas: expected with an HDF5 file only"),
        (("a.h5",), "a.h5: --atlas: expected the name"),
        (("a.h5", "b.h5", "--atlas", "cc12"), "expected shards .* or one HDF5 file"),
        (("a.h5", folder / "shard.parquet", "--atlas", "cc12"), "expected shards .* or one HDF5 file"),
        (("a.npy",), "expected shards .* or one HDF5 file .* found a.npy"),
    ):
        with pytest.raises(UserError, match=message):
            embed.main([*arguments, "--input", *map(str, inputs)])


def test_hdf5_of_another_atlas_or_no_hdf5(folder, tmp_path):
    write_hdf5(tmp_path / "a.h5", np.zeros((2, 13, 60)), [60, 60], [2.0, 2.0])
    with pytest.raises(UserError, match="expected 12 ROIs as the encoder has, found 13"):
        run(folder, tmp_path / "a.parquet", input=tmp_path / "a.h5", atlas="cc12")
    (tmp_path / "b.h5").write_text("no hdf5")
    with pytest.raises(UserError, match="expected an HDF5 file"):
        run(folder, tmp_path / "a.parquet", input=tmp_path / "b.h5", atlas="cc12")
    with pytest.raises(UserError, match="--atlas"):
        run(folder, tmp_path / "a.parquet", input=tmp_path / "b.h5")


def test_shards_of_another_tr_are_refused(folder, tmp_path):
    shard = write_shard(tmp_path / "a.parquet", 2, settings={"tr": 0.8})
    with pytest.raises(UserError, match=r"expected a TR of 2\.0 s"):
        run(folder, tmp_path / "b.parquet", shards=[shard])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"crops": 0}, "embed.crops"), ({"cropz": 3}, "embed.cropz"), ({"features": "all"}, "embed.features")],
)
def test_wrong_settings_are_named(folder, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        run(folder, tmp_path / "a.parquet", settings)


def test_defaults_are_the_published_evaluation():
    assert EmbedSettings() == EmbedSettings(crops=8, features="cls_avg", present_tokens_only=False, precision="float32")


def test_abide_in_the_authors_layout(shared, tmp_path):
    """The real file: 821 scans at native TRs of 1.5–3 s, parcels without data included."""
    source = shared / "data" / "abide1_cc200" / "abide1_cc200.h5"
    with h5py.File(source) as file:
        chosen = [0, 400, 820]
        bold, lengths, tr = file["timeseries/cc200"][chosen], file["ts_len"][chosen], file["tr"][chosen]
    write_hdf5(tmp_path / "abide.h5", bold, lengths, tr, "cc200")
    shard = write_shard(tmp_path / "s.parquet", 4, 100, sizes=(60, 50, 90))
    settings = {"preset": "tiny"}
    train(settings, shard, tmp_path / "encoder_seed-0", "--random-initialisation")
    table = run(tmp_path, tmp_path / "a.parquet", input=tmp_path / "abide.h5", atlas="cc200")
    assert np.isfinite(features(table)).all()
    seconds = pd.Series(lengths) * tr
    expected = [8 if length >= 202 else 1 for length in seconds]
    assert table.groupby("recording_id", sort=False)["crop"].count().tolist() == expected
