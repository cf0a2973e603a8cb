"""Splits of a learning curve: growing parts of one training part, always the same test part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np


def nested_parts(
    members: Mapping[str, Sequence[str]],
    stratum: Mapping[str, str],
    test: Sequence[str],
    settings: Mapping[str, Any],
    validation_share: float,
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Draw, size and parts of every point of a learning curve.

    In each draw the units outside the test part are put into a random order in which every beginning has the shares of
    the strata; a point takes as many from the beginning as have ``size`` participants. A larger point holds a smaller
    one of its draw, in training and in validation part alike.

    Parameters
    ----------
    members : participants of each unit (family or participant).
    stratum : of each unit.
    test : units of the test part.
    settings : ``sizes`` (participants to fit and choose on; what is larger than there are is all of them, once) and
        ``draws``.
    validation_share : of every point, and of each stratum, to choose on.
    """
    pool = sorted(set(members) - set(test))
    tested = {participant: "test" for name in test for participant in members[name]}
    everybody = sum(len(members[name]) for name in pool)
    sizes = sorted({min(size, everybody) for size in settings["sizes"]})
    for draw in range(settings["draws"]):
        order = _order(pool, stratum, np.random.default_rng(draw), validation_share)
        parts: dict[str, str] = {}
        taken = iter(order)
        for size in sizes:
            while len(parts) < size:
                name, part = next(taken)
                parts |= dict.fromkeys(members[name], part)
            yield draw, str(size), dict(sorted((tested | parts).items()))


def _order(
    pool: Sequence[str], stratum: Mapping[str, str], generator: np.random.Generator, validation_share: float
) -> list[tuple[str, str]]:
    """Units with their part, in an order whose beginnings have the shares of the strata."""
    placed: list[tuple[float, str, str]] = []
    strata = sorted({stratum[name] for name in pool})
    # Strata begin to choose at evenly spread places, so that many small ones together have the share, too.
    phases = (generator.permutation(len(strata)) + generator.uniform()) / len(strata)
    for value, phase in zip(strata, phases, strict=True):
        names = generator.permutation([name for name in pool if stratum[name] == value])
        # Every stratum is spread evenly over the order; the offset decides who comes first among equals.
        offset = generator.uniform()
        for place, name in enumerate(names):
            chosen = int((place + 1) * validation_share + phase) > int(place * validation_share + phase)
            placed.append(((place + offset) / len(names), str(name), "validation" if chosen else "train"))
    return [(name, part) for _, name, part in sorted(placed)]
