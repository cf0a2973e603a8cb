"""The authors' numbers are reproduced, and the comparison notices every deviation it is meant to notice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from semantoks import parity
from semantoks.errors import UserError
from semantoks.model import tokenizer as tokenizer_module
from semantoks.model.tokenizer import SemanticTokenizer

REFERENCES = ("reference_d128", "reference_n9_d64", "reference_n19_d64", "reference_n1_d64")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small products lose more by waiting for another thread than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def golden(shared) -> Path:
    return shared / "golden"


def read(golden: Path, name: str = "reference_n9_d64") -> parity.Reference:
    return parity.Reference.read(
        golden / f"{name}_state_dict.safetensors", golden / f"{name}_arrays.npz", golden / f"{name}.json"
    )


def arguments(golden: Path, name: str, **others: Path) -> list[str]:
    """The command line for a reference, with some of its files replaced."""
    files = {"state-dict": f"{name}_state_dict.safetensors", "arrays": f"{name}_arrays.npz", "expected": f"{name}.json"}
    return [text for key, file in files.items() for text in (f"--{key}", str(others.get(key, golden / file)))]


@pytest.mark.parametrize("name", REFERENCES[1:])
def test_command_reproduces_the_reference(golden, name, capsys):
    parity.main(arguments(golden, name))
    printed = capsys.readouterr().out
    assert "teacher_tokens_view1" in printed
    assert "FAILED" not in printed


def test_every_quantity_of_the_full_reference_is_reproduced(golden):
    """All arrays except inputs, all scalars of all conditions, the teacher update and all eight steps."""
    reference = read(golden, "reference_d128")
    steps = json.loads((golden / "reference_d128_steps.json").read_text())
    comparison = parity.compare(reference, steps)
    assert not comparison.failed, comparison.report()
    names = set(comparison.errors)
    inputs = {"view1", "view2", "mask1", "mask2", "network_map"}
    assert set(reference.arrays) - inputs <= names
    for condition in ("ttr_on", "ttr_off", "unmasked_ttr_on"):
        for scalar in set(reference.expected[condition]) - {"weight", "grad_norms"}:
            assert f"{condition}: {scalar}" in names
    given = {"description", "learning_rate", "weight_decay", "ttr_weight", "masked", "final_parameter_norms"}
    assert {f"steps: {key}" for key in set(steps) - given} <= names
    assert {"steps: final parameter norms", "teacher norms after update", "ttr_on: gradient norms"} <= names


def scaled(reference: parity.Reference, key: str) -> parity.Reference:
    """The same files with one tensor times 1.001; a flag is flipped."""
    tensor = reference.state[key]
    changed = ~tensor if tensor.dtype == torch.bool else tensor * 1.001
    state = reference.state | {key: changed}
    return parity.Reference(state, reference.arrays, reference.config, reference.expected)


def test_any_scaled_tensor_is_noticed_or_said_not_to_be_compared(golden):
    """Every tensor of the checkpoint with one network, one at a time: none passes in silence."""
    reference = read(golden, "reference_n1_d64")
    ignored = parity.compare(reference).not_compared(reference.state)
    unnoticed = [
        key for key in reference.state if key not in ignored and not parity.compare(scaled(reference, key)).failed
    ]
    assert not unnoticed
    # what no number of this reference can depend on, and nothing else
    weights = ("branches.", "norm.")
    for key in ignored:
        unused = parity.is_dead(key) and any(part in key for part in weights)
        assert unused or key == "teacher_encoder.inter_network_transformer.mask_embedding", key
    assert not [key for key in ignored if key.endswith(("multiplier", "kernel_norm", "initialized"))]


SCHAEFER, TIAN = "network_tokenizers.schaefer400.0.branches.1.slconv.", "network_tokenizers.tian3.0.branches.1.slconv."


@pytest.mark.parametrize(
    ("key", "quantity"),
    [
        (f"student_encoder.{SCHAEFER}multiplier", "fixed: multiplier"),
        (f"teacher_encoder.{SCHAEFER}kernel_norm_initialized", "fixed: kernel_norm_initialized"),
        (f"student_encoder.{TIAN}multiplier", "fixed: multiplier"),
        (f"teacher_encoder.{TIAN}kernel_norm", "fixed: kernel_norm"),
        (f"student_encoder.{TIAN}kernel_norm_initialized", "fixed: kernel_norm_initialized"),
        ("teacher_encoder.inter_network_transformer.temporal_pos_embedding", "fixed: temporal_pos_embedding"),
        ("student_mask_predictor.mlp.0.weight", "aliases of the projection heads"),
        ("teacher_mask_predictor.mlp.2.bias", "aliases of the projection heads"),
    ],
)
def test_fixed_tensors_and_aliases_are_quantities(golden, key, quantity):
    comparison = parity.compare(scaled(read(golden, "reference_n1_d64"), key))
    assert comparison.failed == [quantity]
    assert comparison.worst[quantity] == key


def test_tensors_that_nothing_expected_depends_on_are_printed(golden, capsys):
    """Unused tokenizers as one line per kind; with a teacher update those of the teacher are compared."""
    parity.main(arguments(golden, "reference_n9_d64"))
    printed = capsys.readouterr().out
    assert "depends on it: student_encoder.network_tokenizers.tian3.*.branches.0.weight" in printed
    assert "depends on it: teacher_encoder.inter_network_transformer.norm.weight" in printed
    assert "mask_embedding" not in printed
    reference = read(golden, "reference_d128")
    reads = {
        key for name, values in reference.expected.items() if "ema" in name for key in values["teacher_param_norms"]
    }
    left = parity.Comparison(reads=reads | {"student_", "teacher_"}).not_compared(reference.state)
    assert not [key for key in left if key.startswith("teacher") and key.endswith(("weight", "bias"))]


def test_scaled_mask_embedding_of_the_teacher_is_noticed(golden):
    reference = read(golden)
    key = "teacher_encoder.inter_network_transformer.mask_embedding"
    reference.state[key] = reference.state[key] * 1.001
    assert "teacher_tokens_view1_no_cerebellum" in parity.compare(reference).failed


@pytest.mark.parametrize(
    "key",
    [
        "student_encoder.network_tokenizers.schaefer400.3.branches.1.slconv.kernel_norm",
        "student_encoder.inter_network_transformer.transformer_blocks.0.ls2.gamma",
        "teacher_predictor.mlp.0.weight",
    ],
)
def test_scaled_tensor_is_noticed(golden, key):
    reference = read(golden)
    reference.state[key] = reference.state[key] * 1.001
    assert parity.compare(reference).failed


def test_permuted_network_is_noticed(golden):
    """Two ROIs of different networks swapped: the shapes still fit."""
    reference = read(golden)
    network_map = reference.arrays["network_map"]
    first, second = 0, int(np.flatnonzero(network_map == 3)[0])
    network_map[[first, second]] = network_map[[second, first]]
    assert "teacher_tokens_view1" in parity.compare(reference).failed


def test_network_table_of_other_sizes_is_an_error(golden):
    reference = read(golden)
    network_map = reference.arrays["network_map"]
    reference.arrays["network_map"] = np.where(network_map < 2, 1 - network_map, network_map)
    with pytest.raises(UserError, match="expected the shape"):
        parity.compare(reference)


def test_shifted_kernel_is_noticed(golden, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_LONG_CENTRE", 7)
    assert "teacher_tokens_view1" in parity.compare(read(golden)).failed


def test_recomputed_kernel_norm_is_noticed(golden, monkeypatch):
    """The teacher's kernels have moved since the norm was frozen."""

    def recomputed(self: SemanticTokenizer) -> torch.Tensor:
        kernels = self._unscaled_kernels()
        return kernels / kernels.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    monkeypatch.setattr(SemanticTokenizer, "kernels", recomputed)
    assert "teacher_tokens_view1" in parity.compare(read(golden)).failed


def test_failure_is_exit_code_1_and_names_the_quantity(golden, tmp_path, capsys):
    name = "reference_n1_d64"
    state = safetensors.torch.load_file(golden / f"{name}_state_dict.safetensors")
    state["teacher_encoder.norm.weight"] *= 1.001
    safetensors.torch.save_file(state, tmp_path / "changed.safetensors")
    with pytest.raises(SystemExit) as stop:
        parity.main(arguments(golden, name, **{"state-dict": tmp_path / "changed.safetensors"}))
    assert stop.value.code == 1
    assert "FAILED: teacher_tokens_view1" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_keys_are_named(golden, change):
    reference = read(golden, "reference_n1_d64")
    key = "student_encoder.norm.weight"
    if change == "missing":
        del reference.state[key]
    else:
        key = "student_encoder.surprise"
        reference.state[key] = torch.zeros(1)
    with pytest.raises(UserError, match=f"{change}.*{key}"):
        parity.compare(reference)


def test_nan_counts_as_failure():
    comparison = parity.Comparison()
    comparison.add("loss", float("nan"), 1.0, 1e-5)
    comparison.add("loss", 1.0, 1.0, 1e-5)
    assert comparison.failed == ["loss"]


N1 = "reference_n1_d64"


def without(name):
    return lambda description: description["config"].pop(name)


def renamed(condition, name):
    def change(description):
        description["expected"][condition][name] = 1.0

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["expected"].clear(), "found nothing to compare"),
        (lambda d: d["expected"].update(ttr_on={}), "ttr_on: .*nothing to compare"),
        (lambda d: d["expected"]["ttr_on"].update(grad_norms={}), "grad_norms: .*nothing to compare"),
        (lambda d: d["expected"].update(ttr_maybe={"cls_loss": 1.0}), "expected.ttr_maybe"),
        (lambda d: d["expected"].update({"ema_after_update(step=3)": {}}), r"ema_after_update\(step=3\)"),
        (renamed("ttr_on", "cls_los"), "cls_los"),
        (lambda d: d["expected"]["ttr_on"].update(cls_loss="low"), "cls_loss: .*expected numbers"),
        (without("heads"), "'heads'"),
        (without("mask_loss_weight"), "'mask_loss_weight'"),
        (without("tokenizer_config"), "tokenizer_config"),
        (lambda d: d["config"].update(heads=0), "config.heads"),
        (lambda d: d["config"].update(heads=5), "config.heads"),
        (lambda d: d.pop("config"), "`config`"),
    ],
)
def test_nothing_expected_is_passed_over(golden, tmp_path, change, message):
    description = json.loads((golden / f"{N1}.json").read_text())
    change(description)
    (tmp_path / "changed.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=message):
        parity.main(arguments(golden, N1, expected=tmp_path / "changed.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(teacher_tokens_view3=a["view1"]), "unknown: .*teacher_tokens_view3"),
        (lambda a: a.pop("mask2"), "missing: .*mask2"),
        (lambda a: a.update(teacher_tokens_view1_no_cerebellum=a["view1"]), "mask_no_cerebellum"),
        (lambda a: a.update(mask1=a["mask1"].astype(float)), "mask1: expected a bool array"),
        (lambda a: a.update(view2=a["view2"][:, :400]), "view2: expected the shape"),
        (lambda a: a.update(teacher_tokens_view1=a["teacher_tokens_view1"][:0]), "teacher_tokens_view1"),
    ],
)
def test_no_array_is_passed_over(golden, tmp_path, change, message):
    with np.load(golden / f"{N1}_arrays.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(UserError, match=message):
        parity.main(arguments(golden, N1, arrays=tmp_path / "changed.npz"))


def test_a_file_of_arrays_that_is_none(golden, tmp_path):
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(UserError, match=r"a\.npz: expected a file of arrays"):
        parity.main(arguments(golden, N1, arrays=tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(surprise=[1.0]), "unknown: .*surprise"),
        (lambda s: s.pop("cls_token_norm"), "missing: .*cls_token_norm"),
        (lambda s: s.update(masked=s["masked"][:3]), "one value per step"),
        (lambda s: s.update({key: [] for key in s if isinstance(s[key], list)}), "one value per step"),
    ],
)
def test_no_part_of_a_trajectory_is_passed_over(golden, tmp_path, change, message):
    steps = json.loads((golden / "reference_d128_steps.json").read_text())
    change(steps)
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    with pytest.raises(UserError, match=message):
        parity.main([*arguments(golden, "reference_d128"), "--steps", str(tmp_path / "steps.json")])
