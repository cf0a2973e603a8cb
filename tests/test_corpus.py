"""Shards as a corpus: crops where they should be, absent parts marked, and an error for every bad shard."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from fake_shards import interleaved, write_shard
from semantoks.errors import UserError
from semantoks.files import read_metadata, read_table, write_table
from semantoks.model.networks import NetworkTable
from semantoks.training.corpus import load_corpus, present_networks


def bold_of(path, row):
    record = pq.read_table(path).to_pylist()[row]
    return np.frombuffer(record["bold"], dtype="<f2").reshape(record["n_rois"], -1).astype(np.float32)


def test_crops_are_the_samples_of_the_shard(tmp_path):
    """Scans of different lengths in two files; a crop past the end of a short scan is zero there."""
    first = write_shard(tmp_path / "a.parquet", 3, [60, 80, 50])
    second = write_shard(tmp_path / "b.parquet", 2, [70, 45], prefix="b", seed=1)
    corpus = load_corpus([first, second])
    assert corpus.lengths.tolist() == [60, 80, 50, 70, 45]
    assert corpus.table["participant_id"].tolist() == ["000", "001", "002", "b000", "b001"]
    crops = corpus.crops(torch.tensor([1, 4, 3]), torch.tensor([13, 0, 10]), 60)
    np.testing.assert_array_equal(crops[0], bold_of(first, 1)[:, 13:73])
    np.testing.assert_array_equal(crops[1, :, :45], bold_of(second, 1))
    assert not crops[1, :, 45:].any()
    np.testing.assert_array_equal(crops[2], bold_of(second, 0)[:, 10:70])
    assert crops.dtype == torch.float32


def test_present_tokens_mark_padding_and_absent_networks(tmp_path):
    valid = np.ones((2, 12), dtype=bool)
    labels = np.array(interleaved((5, 3, 4)))
    valid[0, np.flatnonzero(labels == "B")[:2]] = False  # one of three left
    valid[1, np.flatnonzero(labels == "A")[:2]] = False  # three of five left
    corpus = load_corpus([write_shard(tmp_path / "a.parquet", 2, [100, 45], valid=valid)])
    present = corpus.present_tokens(torch.tensor([0, 1]), 100, 20)
    assert present[0].tolist() == [[True] * 5, [False] * 5, [True] * 5]
    assert present[1].tolist() == [[True, True, True, False, False]] * 3
    assert not corpus.complete(100)


def test_threshold_of_valid_rois_is_inclusive():
    networks = NetworkTable.from_labels(["a", "a", "b", "b"])
    valid = np.array([[True, False, False, False]])
    assert present_networks(valid, networks, 0.5).tolist() == [[True, False]]
    assert present_networks(valid, networks, 0.51).tolist() == [[False, False]]
    assert present_networks(valid, networks, 0.0).tolist() == [[True, False]]


def test_linear_tokenizer_has_one_row_per_roi(tmp_path):
    valid = np.ones((1, 12), dtype=bool)
    valid[0, 3] = False
    corpus = load_corpus([write_shard(tmp_path / "a.parquet", 1, valid=valid)], tokenizer="linear")
    assert torch.equal(corpus.present_rows, torch.from_numpy(valid))


def test_parts_of_an_atlas_that_the_shards_lack_are_absent(tmp_path):
    """Shards without the last network, read for a model that has it: matched by name, masked, zero."""
    path = write_shard(tmp_path / "a.parquet", 2, sizes=(2, 2))
    names = ["roi-0", "cerebellum-1", "roi-1", "roi-2", "roi-3", "cerebellum-2"]
    networks = NetworkTable.from_labels(["A", "Cereb", "B", "A", "B", "Cereb"])
    corpus = load_corpus([path], networks=networks, roi_names=names)
    assert corpus.present_rows.tolist() == [[True, False, True]] * 2
    crops = corpus.crops(torch.tensor([1]), torch.tensor([0]), 60)[0]
    np.testing.assert_array_equal(crops[[0, 2, 3, 4]], bold_of(path, 1))
    assert not crops[[1, 5]].any()


def test_an_empty_shard_beside_others_is_fine(tmp_path):
    full = write_shard(tmp_path / "a.parquet", 2)
    table = read_table(full)
    write_table(tmp_path / "b.parquet", table.iloc[:0], read_metadata(full))
    assert len(load_corpus([tmp_path / "b.parquet", full])) == 2
    with pytest.raises(UserError, match="at least one scan"):
        load_corpus([tmp_path / "b.parquet"])


SECOND = {
    "another atlas": ({"atlas": {"name": "other", "sha256": "1" * 64}}, "the same atlas"),
    "another order of ROIs": ({"roi_names": ["roi-1", "roi-0", *(f"roi-{i}" for i in range(2, 12))]}, "at position 0"),
    "other networks": ({"networks": ["Z", *interleaved((5, 3, 4))[1:]]}, "the same network of each ROI"),
    "another TR": ({"settings": {"tr": 0.8}}, "TR of 2.0 s"),
}


@pytest.mark.parametrize("what", SECOND)
def test_shards_that_do_not_belong_together(tmp_path, what):
    metadata, message = SECOND[what]
    first = write_shard(tmp_path / "a.parquet", 2)
    second = write_shard(tmp_path / "b.parquet", 2, **metadata)
    with pytest.raises(UserError, match=message) as error:
        load_corpus([first, second])
    assert "b.parquet" in str(error.value)


def test_shards_of_another_number_of_rois(tmp_path):
    first = write_shard(tmp_path / "a.parquet", 2)
    second = write_shard(tmp_path / "b.parquet", 2, sizes=(5, 3, 5))
    with pytest.raises(UserError, match="13 instead of 12"):
        load_corpus([first, second])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"roi-{i}" for i in (1, 0, *range(2, 12))], "expected ROIs in the order of the model"),
        (["other", *(f"roi-{i}" for i in range(1, 12))], "found 1 others, first 'other'"),
    ],
)
def test_shards_that_do_not_fit_the_model(tmp_path, names, message):
    path = write_shard(tmp_path / "a.parquet", 2, roi_names=names)
    networks = NetworkTable.from_labels(interleaved((5, 3, 4)))
    with pytest.raises(UserError, match=message):
        load_corpus([path], networks=networks, roi_names=[f"roi-{i}" for i in range(12)])


def test_scans_all_too_short(tmp_path):
    with pytest.raises(UserError, match="the longest has 30"):
        load_corpus([write_shard(tmp_path / "a.parquet", 2, [30, 20])])


def test_a_scan_too_short_is_left_out_with_its_reason(tmp_path):
    corpus = load_corpus([write_shard(tmp_path / "a.parquet", 3, [60, 39, 50])])
    assert corpus.table["participant_id"].tolist() == ["000", "002"]
    assert corpus.lengths.tolist() == [60, 50]
    reason = "expected at least 40 samples (two patches), found 39"
    assert corpus.left_out == [["fake", "sub-001_task-rest_run-1", reason]]
    stored = read_table(tmp_path / "a.parquet")["bold"]
    for scan, row in ((0, 0), (1, 2)):
        start, length = int(corpus.starts[scan]), int(corpus.lengths[scan])
        expected = np.frombuffer(stored[row], "<f2").reshape(12, length).T
        np.testing.assert_array_equal(corpus.frames[start : start + length].numpy(), expected)


def test_damaged_values_and_no_shards(tmp_path):
    path = write_shard(tmp_path / "a.parquet", 2)
    table, metadata = read_table(path), read_metadata(path)
    table.loc[1, "bold"] = table.loc[1, "bold"][:-2]
    write_table(path, table, metadata)
    with pytest.raises(UserError, match="sub-001_task-rest_run-1: expected 12 × 60 values"):
        load_corpus([path])
    with pytest.raises(UserError, match="at least one shard"):
        load_corpus([])
    with pytest.raises(UserError, match="expected a Parquet file"):
        load_corpus([tmp_path / "absent.parquet"])
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(UserError, match="written by this workflow"):
        load_corpus([tmp_path / "foreign.parquet"])


def test_a_recording_given_twice_is_named(tmp_path):
    path = write_shard(tmp_path / "a.parquet", 2)
    with pytest.raises(UserError, match="expected every recording once, found sub-000_task-rest_run-1"):
        load_corpus([path, path])


def test_nan_in_a_scan_is_named(tmp_path):
    path = write_shard(tmp_path / "a.parquet", 2)
    table, metadata = read_table(path), read_metadata(path)
    bold = np.frombuffer(table.loc[0, "bold"], dtype="<f2").copy()
    bold[7] = np.nan
    table.loc[0, "bold"] = bold.tobytes()
    write_table(path, table, metadata)
    with pytest.raises(UserError, match="sub-000_task-rest_run-1: expected finite values"):
        load_corpus([path])
