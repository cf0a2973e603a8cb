"""Names of the ways in which participants are divided into training, validation and test part."""

RANDOM = "random"
"""Repeated random splits, as published."""
LEAVE_SITE_OUT = "leave-site-out"
"""One institution after the other is tested."""
GIVEN = "given"
"""The user's own splits."""
TRANSFER = "transfer"
"""Models of one cohort's random splits, tested on another cohort."""
LEARNING_CURVE = "learning-curve"
"""Growing parts of one training part, always the same test part."""

SEPARATE_FOLDS = frozenset({GIVEN})
"""Where each fold counts as a split of its own; else the folds of a repetition are pooled.

Scores of different models are not on one scale, and the folds of a cross-validation are as many random test parts.
"""
