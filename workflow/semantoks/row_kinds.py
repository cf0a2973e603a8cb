"""How figures of probe results show rows and metrics: colours, words, order."""

from __future__ import annotations

from semantoks.scores import row_place

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


def kind_of(row: str) -> str:
    """What a row of the table rests on; decides its colour."""
    place = row_place(row)[0]
    return ("reference", "reference", "connectivity", "supervised", "untrained", "pretrained")[place]
