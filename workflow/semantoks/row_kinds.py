"""Kinds of rows, and how tables and figures show them: order, colours, words."""

from __future__ import annotations

METRIC_LABELS = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "macro_f1": "macro-F1",
    "site_auroc": "within-site AUROC",
    "r": "Pearson r",
    "r2": "R²",
    "mae": "mean absolute error",
    "site_r": "within-site Pearson r",
}
COLOURS = {
    "reference": "#777777",
    "connectivity": "#0072B2",
    "supervised": "#CC79A7",
    "untrained": "#E69F00",
    "pretrained": "#009E73",
}
LABELS = {
    "reference": "without brain data",
    "connectivity": "functional connectivity",
    "supervised": "trained on labels alone",
    "untrained": "encoder as initialised",
    "pretrained": "pretrained encoder",
}


FROM_NOTHING = ("bnt", "windows")
"""Rows of networks that were trained on the labels alone."""


def row_place(name: str) -> tuple[int, str]:
    """Where a row stands in a table: references first, then networks trained on labels alone, what was pretrained last.

    0 majority, 1 confounds, 2 connectivity, 3 networks from nothing, 4 encoders as initialised, 5 everything else.
    """
    kinds = ("majority", "confounds-", "fc-")
    place = next((number for number, kind in enumerate(kinds) if name.startswith(kind)), len(kinds))
    if place == len(kinds) and name not in FROM_NOTHING:
        place += 1 if "-random-" in name else 2
    return place, name


def kind_of(row: str) -> str:
    """What a row of the table rests on; decides its colour."""
    place = row_place(row)[0]
    return ("reference", "reference", "connectivity", "supervised", "untrained", "pretrained")[place]
