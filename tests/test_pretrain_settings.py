"""Settings: the schema, the dataclasses and the presets say the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from semantoks.embed import EmbedSettings
from semantoks.errors import UserError
from semantoks.training.settings import PRESETS, PretrainSettings, from_mapping, resolve_settings

SCHEMAS = Path(__file__).resolve().parents[1] / "workflow" / "schemas"


def schema(name: str) -> dict[str, Any]:
    return yaml.safe_load((SCHEMAS / f"{name}.schema.yaml").read_text())


def defaults(properties: dict[str, Any]) -> dict[str, Any]:
    return {k: defaults(v["properties"]) if "properties" in v else v["default"] for k, v in properties.items()}


def keys(values: dict[str, Any]) -> dict[str, Any]:
    return {k: keys(v) if isinstance(v, dict) else None for k, v in values.items()}


def test_schema_has_the_keys_of_the_settings():
    assert keys(defaults(schema("pretrain")["properties"])) == keys(PretrainSettings().as_dict())
    assert set(schema("embed")["properties"]) == {f.name for f in dataclasses.fields(EmbedSettings)}


@pytest.mark.parametrize("preset", PRESETS)
def test_schema_defaults_resolve_to_the_preset(preset):
    """Filling in every default of the schema changes nothing of a preset."""
    filled = defaults(schema("pretrain")["properties"]) | {"preset": preset}
    assert resolve_settings(filled) == resolve_settings({"preset": preset})


def test_embed_schema_defaults_are_those_of_the_stage():
    assert from_mapping(EmbedSettings, defaults(schema("embed")["properties"]), "embed") == EmbedSettings()


def test_every_preset_of_the_schema_exists():
    assert set(schema("pretrain")["properties"]["preset"]["enum"]) == set(PRESETS)


def test_overrides_win_over_the_preset():
    settings = resolve_settings({"preset": "small", "model": {"depth": 5, "width": None}, "optimiser": {"epochs": 7}})
    assert (settings.model.depth, settings.model.width) == (5, PRESETS["small"]["model"]["width"])
    assert settings.optimiser.epochs == 7


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"preset": "huge"}, "pretrain.preset"),
        ({"modle": {}}, "pretrain.modle"),
        ({"model": {"depht": 2}}, "pretrain.model.depht"),
        ({"model": {"depth": "2"}}, "pretrain.model.depth"),
        ({"model": 3}, "pretrain.model"),
        ({"masks": {"kind": "stripes"}}, "pretrain.masks.kind"),
        ({"masks": {"low": 0.9, "high": 0.2}}, "masks.low"),
        ({"masks": {"probability": 2.0}}, "masks.probability"),
        ({"model": {"width": 100}}, "model.width"),
        ({"model": {"patch": 0}}, "model.patch"),
        ({"model": {"head_width": 0}}, "model.head_width"),
        ({"model": {"depth": 0}}, "model.depth"),
        ({"views": {"crop": 10}}, "views.crop: expected at least one patch"),
        ({"views": {"zeroed_samples": 2.0}}, "views.zeroed_samples"),
        ({"views": {"noise": -1.0}}, "views.noise"),
        ({"optimiser": {"momentum": 2.0}}, "optimiser.momentum"),
        ({"optimiser": {"learning_rate": -1.0}}, "optimiser.learning_rate"),
        ({"model": {"dense_width": 768}}, "model.dense_width"),
        ({"optimiser": {"warmup_epochs": 100.0}}, "optimiser.warmup_epochs"),
        ({"optimiser": {"epochs": 0, "warmup_epochs": 0}}, "optimiser.epochs"),
    ],
)
def test_wrong_settings_name_the_key(given, key):
    with pytest.raises(UserError, match=key):
        resolve_settings(given)
