"""Import, export and what a strict loader needs: every round trip is bit-equal."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import safetensors.torch
import torch
from fake_shards import write_shard
from semantoks import pretrain, weights
from semantoks.errors import UserError
from semantoks.model.encoder_folder import load_encoder
from semantoks.model.networks import NetworkTable


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        assert torch.equal(a[key], b[key]), key


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    shard = write_shard(folder / "a.parquet", 8)
    settings = {"preset": "tiny", "views": {"crop": 60}, "model": {"head_width": 16}}
    pretrain.main(["--settings", json.dumps(settings), "--shards", str(shard), "--seed", "3", "--output", str(folder)])
    return folder


@pytest.fixture
def networks_file(trained, tmp_path):
    config = json.loads((trained / "config.json").read_text())
    path = tmp_path / "networks.tsv"
    pd.DataFrame({"name": config["roi_names"], "network": config["networks"]}).to_csv(path, sep="\t", index=False)
    return path


def run(*arguments) -> None:
    weights.main([str(argument) for argument in arguments])


def run_import(checkpoint, networks_file, output, *further) -> None:
    run("import", "--checkpoint", checkpoint, "--networks", networks_file, "--output", output, *further)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_ours_to_the_authors_layout_and_back(trained, networks_file, tmp_path, suffix):
    run("export", "--weights", trained, "--output", tmp_path / f"theirs{suffix}")
    run_import(tmp_path / f"theirs{suffix}", networks_file, tmp_path / "b")
    ours = safetensors.torch.load_file(trained / "weights.safetensors")
    back = safetensors.torch.load_file(tmp_path / "b" / "weights.safetensors")
    equal(ours, {key: value for key, value in back.items() if not key.startswith("unused.")})
    a, b = load_encoder(trained).encoder, load_encoder(tmp_path / "b").encoder
    bold = torch.randn(2, 12, 60)
    assert torch.equal(a(bold), b(bold))


@pytest.fixture(scope="module")
def unusual(tmp_path_factory):
    """An encoder whose heads, patches, crops and TR are not the published ones, and are not shown by its tensors."""
    folder = tmp_path_factory.mktemp("unusual")
    shard = write_shard(folder / "a.parquet", 4, n_frames=50, settings={"tr": 0.8, "band_pass": [0.01, 0.1]})
    settings = {"preset": "tiny", "views": {"crop": 45}, "model": {"head_width": 4, "patch": 10}}
    arguments = ["--settings", json.dumps(settings), "--shards", str(shard), "--seed", "3", "--output", str(folder)]
    pretrain.main([*arguments, "--random-initialisation"])
    return folder


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_our_exports_say_what_their_tensors_do_not_show(unusual, tmp_path, suffix):
    """Imported with no option at all, the model is the same one: sizes, TR, networks and outputs."""
    run("export", "--weights", unusual, "--output", tmp_path / f"a{suffix}")
    run("import", "--checkpoint", tmp_path / f"a{suffix}", "--output", tmp_path / "b")
    a, b = load_encoder(unusual), load_encoder(tmp_path / "b")
    assert a.config["model"]["head_width"] == 4
    described = ("model", "crop", "networks", "network_order", "roi_names", "shard_settings", "min_network_valid")
    assert {key: a.config[key] for key in described} == {key: b.config[key] for key in described}
    bold = torch.randn(2, 12, 45)
    assert torch.equal(a.encoder(bold), b.encoder(bold))
    run("export", "--weights", tmp_path / "b", "--output", tmp_path / f"again{suffix}")
    assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"a{suffix}").read_bytes()


def test_the_description_is_hidden_from_strict_loaders(unusual, tmp_path):
    run("export", "--weights", unusual, "--output", tmp_path / "a.pth")
    run("export", "--weights", unusual, "--output", tmp_path / "a.safetensors")
    stored = torch.load(tmp_path / "a.pth", weights_only=True)
    assert sorted(stored) == ["model_state_dict", "semantoks"]
    equal(stored["model_state_dict"], safetensors.torch.load_file(tmp_path / "a.safetensors"))
    assert "a.parquet" not in stored["semantoks"]


@pytest.mark.parametrize(
    ("option", "value"), [("--head-width", 16), ("--patch", 20), ("--tr", 2.0), ("--networks", "other.tsv")]
)
def test_options_that_contradict_our_export(unusual, tmp_path, monkeypatch, option, value):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"name": ["a", "b"], "network": ["A", "B"]}).to_csv("other.tsv", sep="\t", index=False)
    run("export", "--weights", unusual, "--output", "a.pth")
    with pytest.raises(UserError, match=f"{option}: .*leave the option out"):
        run("import", "--checkpoint", "a.pth", "--output", "b", option, value)


def test_what_a_foreign_checkpoint_does_not_show_must_be_given(trained, networks_file, tmp_path):
    """Published sizes are assumed at the published width only."""
    run("export", "--weights", trained, "--output", tmp_path / "a.safetensors")
    state = safetensors.torch.load_file(tmp_path / "a.safetensors")
    torch.save({"model_state_dict": state}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match=r"--head-width: .*width is 16 and not the published 768"):
        run_import(tmp_path / "foreign.pth", networks_file, tmp_path / "b")
    with pytest.raises(UserError, match="--networks: expected the table"):
        run("import", "--checkpoint", tmp_path / "foreign.pth", "--output", tmp_path / "b", "--head-width", 16)
    with pytest.raises(UserError, match="--patch: expected a value above 0"):
        run_import(tmp_path / "foreign.pth", networks_file, tmp_path / "b", "--head-width", 16, "--patch", 0)
    run_import(tmp_path / "foreign.pth", networks_file, tmp_path / "b", "--head-width", 16, "--tr", 0.8)
    config = load_encoder(tmp_path / "b").config
    assert (config["shard_settings"], config["crop"]) == ({"tr": 0.8}, 60)


@pytest.mark.parametrize("name", ["reference_d128", "reference_n19_d64", "reference_n1_d64"])
def test_published_layout_round_trip(shared, tmp_path, name):
    """A checkpoint in the authors' layout, dead tensors included, comes back bit for bit with the same keys."""
    import numpy as np

    original = shared / "golden" / f"{name}_state_dict.safetensors"
    network_map = np.load(shared / "golden" / f"{name}_arrays.npz")["network_map"]
    table = pd.DataFrame({"name": [f"roi-{i}" for i in range(457)], "network": network_map.astype(str)})
    order = [str(index) for index in range(network_map.max() + 1)]
    networks = NetworkTable.from_labels(table["network"].tolist(), order)
    untold = weights.Untold(networks, table["name"].tolist(), head_width=64)
    weights.import_checkpoint(original, untold, tmp_path / "ours")
    run("export", "--weights", tmp_path / "ours", "--output", tmp_path / "back.safetensors")
    equal(safetensors.torch.load_file(original), safetensors.torch.load_file(tmp_path / "back.safetensors"))


def test_a_fresh_export_has_every_key_of_the_published_layout(shared, trained, tmp_path):
    """Dead tensors and buffers included, so that strict loaders take it."""
    run("export", "--weights", trained, "--output", tmp_path / "theirs.safetensors")
    found = safetensors.torch.load_file(tmp_path / "theirs.safetensors")
    published = safetensors.torch.load_file(shared / "golden" / "reference_n9_d64_state_dict.safetensors")

    def few(keys):  # three networks and one block of ours against nine and one
        return {key for key in keys if not any(f".{index}." in key.split("branches")[0] for index in range(3, 9))}

    assert few(found) == few(published)
    constant = "student_encoder.network_tokenizers.tian3.0.branches.1.slconv.kernel_norm_initialized"
    assert torch.equal(found[constant], published[constant])


def test_prefix_of_wrapped_models_is_removed(trained, networks_file, tmp_path):
    run("export", "--weights", trained, "--output", tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth", weights_only=True)["model_state_dict"]
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 100}, tmp_path / "b.pth")
    run_import(tmp_path / "b.pth", networks_file, tmp_path / "b", "--head-width", 16)
    assert (tmp_path / "b" / "weights.safetensors").is_file()


def changed_checkpoint(trained, tmp_path, change) -> str:
    run("export", "--weights", trained, "--output", tmp_path / "a.safetensors")
    state = safetensors.torch.load_file(tmp_path / "a.safetensors")
    change(state)
    safetensors.torch.save_file(state, tmp_path / "changed.safetensors")
    return str(tmp_path / "changed.safetensors")


def drop(state):
    del state["teacher_encoder.norm.bias"]


def add(state):
    state["teacher_encoder.adapter"] = torch.zeros(1)


def reshape(state):
    state["student_encoder.norm.bias"] = torch.zeros(3)


def other_multiplier(state):
    state["student_encoder.network_tokenizers.schaefer400.0.branches.1.slconv.multiplier"] *= 2


def other_alias(state):
    state["student_mask_predictor.mlp.0.weight"] *= 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop, "missing keys: \\['teacher_encoder.norm.bias'\\]"),
        (add, "unexpected keys: \\['teacher_encoder.adapter'\\]"),
        (reshape, "student_encoder.norm.bias: expected the shape"),
        (other_multiplier, "multiplier"),
        (other_alias, "student_mask_predictor.mlp.0.weight: expected the same values as student_predictor"),
    ],
)
def test_import_names_what_does_not_fit(trained, networks_file, tmp_path, change, named):
    checkpoint = changed_checkpoint(trained, tmp_path, change)
    with pytest.raises(UserError, match=named):
        run_import(checkpoint, networks_file, tmp_path / "b", "--head-width", 16)


def test_nothing_but_tensors_is_unpickled(networks_file, tmp_path):
    class Surprise:
        def __reduce__(self):
            return print, ("unpickled",)

    torch.save({"model_state_dict": {"a": Surprise()}}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="expected a checkpoint of tensors"):
        run_import(tmp_path / "bad.pth", networks_file, tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "found a Tensor"),
        ([torch.zeros(3)], "found a list"),
        ({"model_state_dict": [torch.zeros(3)]}, "found a list"),
        ({"model_state_dict": {"a": 3}}, "found 'a' with something else"),
        ({"model_state_dict": {}}, "found no tensor"),
        ({"model_state_dict": {1: torch.zeros(3)}}, "found"),
        ({"model_state_dict": {"a": torch.zeros(1)}, "semantoks": "no json"}, "expected JSON under 'semantoks'"),
        ({"model_state_dict": {"a": torch.zeros(1)}, "semantoks": "{}"}, "'head_width'.*under 'semantoks'"),
    ],
)
def test_odd_checkpoints_are_named(networks_file, tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=message):
        run_import(tmp_path / "odd.pth", networks_file, tmp_path / "b")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut short", bytes(200)])
def test_garbage_is_no_reason_to_unpickle_anything(networks_file, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="expected a checkpoint of tensors") as error:
        run_import(tmp_path / name, networks_file, tmp_path / "b")
    assert "weights_only" not in str(error.value)


def test_seventeen_network_order_is_refused():
    """The same sizes in another order: only the order of the labels gives it away."""
    published = [str(network) for network, length in weights.PUBLISHED_RUNS for _ in range(length)]
    weights.check_published_order(NetworkTable.from_labels(published))
    swapped = published.copy()
    swapped[30], swapped[31] = swapped[31], swapped[30]
    with pytest.raises(UserError, match=r"expected the published order .* at ROI 30"):
        weights.check_published_order(NetworkTable.from_labels(swapped))


def test_published_order_is_that_of_the_golden_files(shared):
    import numpy as np

    network_map = np.load(shared / "golden" / "reference_d128_arrays.npz")["network_map"]
    assert [network for network, length in weights.PUBLISHED_RUNS for _ in range(length)] == network_map.tolist()


def test_shared_folder_has_a_model_card_and_no_participants(trained, tmp_path):
    run("export", "--weights", trained, "--output", tmp_path / "card")
    card = (tmp_path / "card" / "README.md").read_text()
    assert "fake: 8 participants" in card
    assert json.loads((trained / "config.json").read_text())["pretrain_recordings"][0] == ["fake", "000"]
    config = json.loads((tmp_path / "card" / "config.json").read_text())
    assert config["pretrain_recordings"] is None
    assert "a.parquet" not in json.dumps(config)
    equal(
        safetensors.torch.load_file(trained / "weights.safetensors"),
        safetensors.torch.load_file(tmp_path / "card" / "weights.safetensors"),
    )


def test_linear_tokenizer_has_no_place_in_the_authors_layout(tmp_path):
    shard = write_shard(tmp_path / "a.parquet", 4)
    settings = {"preset": "tiny", "views": {"crop": 60}, "model": {"tokenizer": "linear"}}
    arguments = ["--settings", json.dumps(settings), "--shards", str(shard), "--seed", "3", "--output", str(tmp_path)]
    pretrain.main([*arguments, "--random-initialisation"])
    with pytest.raises(UserError, match="no place"):
        run("export", "--weights", tmp_path, "--output", tmp_path / "a.pth")


@pytest.mark.parametrize("content", [b"", b"not safetensors"])
def test_broken_weights_are_named(trained, tmp_path, content):
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="expected a safetensors file"):
        load_encoder(tmp_path)
    with pytest.raises(UserError, match="expected a folder with"):
        load_encoder(tmp_path / "absent")
