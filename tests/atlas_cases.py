"""The stage ``atlas`` with all defaults, for its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import synthetic_images as synthetic
from semantoks import atlas

DEFAULTS: dict[str, Any] = {
    "name": "boxes",
    "space": synthetic.SPACE,
    "folder": None,
    "resolution": 2,
    "transform": None,
    "image": None,
    "labels": None,
    "drop_labels": [],
    "empty_labels": [],
}


def make(where: Path, /, **changes: Any) -> Path:
    """Run the stage; returns its folder."""
    output = where / "out"
    atlas.main(["--settings", json.dumps(DEFAULTS | changes), "--output-folder", str(output)])
    return output
