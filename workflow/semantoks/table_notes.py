"""What stands below a table: how its numbers were made, and what they cannot say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from semantoks.metrics import PAIR_METRICS
from semantoks.protocols import GIVEN, LEAVE_SITE_OUT, RANDOM, TRANSFER
from semantoks.row_kinds import METRIC_LABELS, row_place
from semantoks.scores import PERMUTATION
from semantoks.statistics import MOST_UNDEFINED
from semantoks.summaries import BOOTSTRAP, T_TEST

METRIC_NAMES = METRIC_LABELS | {"r": "r", "mae": "MAE", "site_r": "within-site r"}
"""As in figures, but short."""
SIMULATED = "SIMULATED DATA. These numbers describe a simulator, not people."
ENOUGH_REPETITIONS = 100
"""Random splits of heads that are solved, from which on splits add little to the error of an estimate."""
ENOUGH_STEPPED = 10
"""The same of heads and networks that are trained by steps; the published number."""
STEPPED = ("published", "finetuned", "lora", "bnt", "windows")
"""Heads and networks that are trained by steps."""


def footnotes(
    cohort: str,
    about: Mapping[str, Any],
    scores: pd.DataFrame,
    settings: Mapping[str, Any],
    published: pd.DataFrame,
) -> list[str]:
    """What the numbers are: protocol, splits, overlap with pretraining, intervals, tests, published numbers.

    Parameters
    ----------
    cohort, about : its name, and what made the table.
    scores : :func:`semantoks.scores.score_tables`, with type, published value and published task.
    settings : the section ``tables``.
    published : ``resources/published.tsv``.
    """
    probe = about["settings"]["probe"]
    notes = [
        f"Cohort {cohort}. {_divided(scores, about)}",
        *_units(about),
        *_not_scored(about.get("not_scored") or {}),
        *_few_repetitions(scores),
        "All rows have the same splits, by participant and family. "
        f"{_fitted(scores, probe['refit'])} Budget: {len(probe['penalties'])} penalties (logistic, ridge), "
        f"{len(probe['rates'])} learning rates (published head). Scaling, imputation and bins come from the "
        "participants fitted on." + _left_out(about),
        _intervals(scores, settings["confidence"]),
        f"↑ ↓ better or worse than the reference row ({settings['reference']['classification']} for classes, "
        f"{settings['reference']['regression']} for numbers), ° not better than the majority row, at "
        f"{settings['alpha']} after Holm's adjustment over all rows and tasks of a protocol. Two-sided against the "
        "reference, one-sided (better) against the majority row, which has r = 0 by definition. "
        + _tests(scores, probe["permutations"]),
        *_untested(scores),
        *_out_of_reach(scores, settings["alpha"]),
        "Within-site AUROC: mean over sites weighted by the pairs compared; within-site r: weighted by participants "
        "less one. Sites with one class have none.",
        _overlap(scores),
    ]
    studies = sorted(set(published.loc[published["task"].isin(scores["published_task"].dropna()), "study"]))
    if studies:
        notes.append(
            "Published numbers are taken from secondary sources (resources/published.tsv); their participants, atlas, "
            "splits and preprocessing differ from ours, and their protocol is that of their study: "
            f"{'; '.join(studies)}."
        )
    return ([SIMULATED] if settings.get("simulated") else []) + notes


def _named(rows: pd.Series) -> str:
    return ", ".join(sorted(set(rows), key=row_place))


def _repetitions(probe: Mapping[str, Any]) -> str:
    few, many = probe["repetitions"], max(probe["repetitions"], probe["solved_repetitions"])
    if few == many:
        return f"{few} repetitions"
    return f"{many} repetitions ({few} for heads trained by steps; two rows are compared over those that both have)"


def _divided(scores: pd.DataFrame, about: Mapping[str, Any]) -> str:
    """How participants were divided, in the protocols that are in the table or were asked for."""
    probe, protocols = about["settings"]["probe"], set(scores["protocol"])
    random = (
        f"{_repetitions(probe)}, {probe['test_share']:.0%} of the participants tested on, "
        f"{probe['validation_share']:.0%} of the others for choosing; stratified by the columns that the phenotype "
        "names."
    )
    if TRANSFER in protocols:
        return (
            f"For testing only. Models fitted on the training parts of the random splits of {about['fitted_on']} "
            f"({random[:-1]}), each tested on everybody here: the same participants in every repetition."
        )
    notes = [f"Random splits: {random}"] if RANDOM in protocols else []
    if LEAVE_SITE_OUT in {*protocols, *probe["protocols"]}:
        notes.append(f"Leave-site-out: {_sites_held_out(scores)}.")
    own = scores[scores["protocol"] == GIVEN].groupby("phenotype", sort=True)["repetitions"].max()
    if len(own):
        counts = ", ".join(f"{name}: {count}" for name, count in own.items())
        notes.append(f"Given: the user's own splits ({counts}), each fold counted as one.")
    return " ".join(notes)


def _sites_held_out(scores: pd.DataFrame) -> str:
    """For which phenotypes leave-site-out was possible."""
    why = "fewer than two sites are known"
    by_site = scores["protocol"] == LEAVE_SITE_OUT
    if not by_site.any():
        return f"not here, {why}"
    text = "one institution after the other is tested on"
    absent = sorted(set(scores["phenotype"]) - set(scores.loc[by_site, "phenotype"]))
    return f"{text} (not for {', '.join(absent)}: {why})" if absent else text


def _units(about: Mapping[str, Any]) -> list[str]:
    """What is meant by a participant where sessions are predicted."""
    if about["unit"] != "session":
        return []
    return [
        "Sessions are the unit: a participant, here and in numbers of participants, is one session of somebody. All "
        "sessions of one person are in one part of a split, and intervals draw them together."
    ]


def _not_scored(what: Mapping[str, Any]) -> list[str]:
    """Which participants and phenotypes of a cohort for testing are left out, and why."""
    notes = []
    if what.get("without_site"):
        count = len(what["without_site"])
        notes.append(
            f"Left out: {count} participant{'s' * (count > 1)} of unknown site, since results are within sites."
        )
    if what.get("phenotypes"):
        found = "; ".join(f"{name} ({reason})" for name, reason in sorted(what["phenotypes"].items()))
        notes.append(f"Not scored: {found}.")
    return notes


def _left_out(about: Mapping[str, Any]) -> str:
    """Confounds that models of another cohort cannot use."""
    names = about["confounds_left_out"]
    return f" Confounds left out, since one of the two cohorts does not know them: {', '.join(names)}." if names else ""


def _few_repetitions(scores: pd.DataFrame) -> list[str]:
    """Which rows rest on few random splits."""
    own = scores[~scores["protocol"].isin([LEAVE_SITE_OUT, GIVEN])]
    enough = np.where(own["head"].isin(STEPPED), ENOUGH_STEPPED, ENOUGH_REPETITIONS)
    few = own[own["repetitions"] < enough]
    if few.empty:
        return []
    every = set(own["row"])
    notes = [
        f"k = {count} ({'all rows' if set(rows) == every else _named(rows)})"
        for count, rows in few.groupby("repetitions", sort=True)["row"]
    ]
    return [
        f"Few random splits: {'; '.join(notes)}. A mean over so few depends on which they are, and its test has k − 1 "
        f"degrees of freedom; {ENOUGH_REPETITIONS} for heads that are solved (probe.solved_repetitions) and "
        f"{ENOUGH_STEPPED} for what is trained by steps (probe.repetitions) are what it takes to be steadier."
    ]


def _fitted(scores: pd.DataFrame, refit: bool) -> str:
    """On which parts which rows were fitted."""
    trained = scores.loc[scores["head"].isin(STEPPED[1:]), "row"]
    if not refit:
        text = "They are fitted on the training part only"
    else:
        text = "They are fitted on training and validation part after the choice"
    if trained.empty:
        return f"{text}."
    rest = "networks trained on the training part alone; the validation part chooses the epoch"
    return f"{text}{', but for' if refit else '; so are'} {_named(trained)}: {rest}."


def _intervals(scores: pd.DataFrame, confidence: float) -> str:
    """What spread and intervals are."""
    draws = " to ".join(f"{count}" for count in sorted({scores["draws"].min(), scores["draws"].max()}))
    text = (
        "± is the standard deviation over repetitions, which share participants: it is no standard error. "
        f"[…] is a {confidence:.0%} bootstrap interval ({draws} draws) over participants (families), stratified "
        "by class, given the trained models; where whole sites are new to the models (leave-site-out, and a cohort for "
        "testing with several sites) over sites, then participants within sites."
    )
    undefined = scores[scores["primary"] & (scores["undefined_draws"] > 0)]
    if undefined.empty:
        return text
    worst = undefined["undefined_draws"].max()
    return (
        f"{text} Draws that lack a class, or in which all numbers are the same, are left out "
        f"({_named(undefined['phenotype'])}: up to {worst:.1%} of them); with more than {MOST_UNDEFINED:.0%} there is "
        "no interval and no p."
    )


def _tests(scores: pd.DataFrame, permutations: Mapping[str, int]) -> str:
    """Which test stands behind which comparison."""
    primary = scores[scores["primary"]]
    texts = []
    by_t = primary[primary["test"] == T_TEST]
    if not by_t.empty:
        text = "corrected resampled t-test (Nadeau & Bengio 2003), with the smaller n fitted of the two rows"
        pairs = sorted({METRIC_NAMES[name] for name in set(by_t["metric"]) & PAIR_METRICS})
        if pairs:
            text += f"; for {', '.join(pairs)} with the larger correlation that repetitions have there (docs/tables.md)"
        texts.append(f"{_protocol_names(by_t, primary)}: {text}.")
    by_draws = primary[primary["test"] == BOOTSTRAP]
    if not by_draws.empty:
        text = "bootstrap of the paired difference, given the trained models"
        if set(by_draws["protocol"]) & {LEAVE_SITE_OUT, TRANSFER}:
            text += "; over sites it is liberal with fewer than five"
        if GIVEN in set(by_draws["protocol"]):
            text += "; where given splits test the same participants again and again, or there is one only, nothing "
            text += "says what models of other participants would have given"
        texts.append(f"{_protocol_names(by_draws, primary)}: {text}.")
    return " ".join([*texts, _permutation_note(primary, permutations)]).strip()


def _protocol_names(tested: pd.DataFrame, primary: pd.DataFrame) -> str:
    """Protocols of one test; with the phenotypes where the protocol has another test for others."""
    names = {RANDOM: "random splits", GIVEN: "given splits", TRANSFER: "cohorts for testing"}
    found = []
    for protocol, part in tested.groupby("protocol", sort=False):
        every = primary[(primary["protocol"] == protocol) & primary["test"].notna()]
        which = "" if every["test"].nunique() == 1 else f" ({', '.join(sorted(set(part['phenotype'])))})"
        found.append(names.get(str(protocol), str(protocol)) + which)
    text = ", ".join(found)
    return text[0].upper() + text[1:]


def _permutation_note(scores: pd.DataFrame, counts: Mapping[str, int]) -> str:
    """Which comparisons with the majority row rest on permuted labels."""
    kinds = {"classification": "classes", "regression": "numbers"}
    found = set(scores.loc[scores["test_majority"] == PERMUTATION, "type"])
    made = [f"{kinds[kind]} {counts[kind]} times" for kind in sorted(found) if counts.get(kind)]
    if not made:
        return ""
    return (
        f"Logistic and ridge against the majority row: labels permuted within sites ({', '.join(made)}), tuning and "
        "refit included; p = (1 + as good) / (1 + permutations)."
    )


def _untested(scores: pd.DataFrame) -> list[str]:
    """What could not be tested and why."""
    primary = scores[scores["primary"]]
    reasons: dict[str, list[str]] = {}
    for column, against in (("untested", "reference"), ("untested_majority", "majority")):
        for _, record in primary[primary[column].notna()].iterrows():
            where = f"{record['row']} against the {against} row ({record['protocol']}, {record['phenotype']})"
            reasons.setdefault(record[column], []).append(where)
    if not reasons:
        return []
    found = "; ".join(f"{reason}: {', '.join(where)}" for reason, where in sorted(reasons.items()))
    return [f"? not tested (p is n/a): {found}."]


def _out_of_reach(scores: pd.DataFrame, alpha: float) -> list[str]:
    """Comparisons whose smallest possible p, times the tests of their protocol, is above the level."""
    notes = []
    for protocol, part in scores[scores["primary"]].groupby("protocol", sort=True):
        for column, sides, against in (("", 2, "reference"), ("_majority", 1, "majority")):
            tested = part[part[f"p{column}"].notna()]
            for test in sorted(set(tested[f"test{column}"])):
                rows = tested[tested[f"test{column}"] == test]
                if test == BOOTSTRAP:
                    floor = sides / (1 + rows["draws"].min())
                elif test == PERMUTATION:
                    floor = rows["smallest_p_majority"].max()
                else:
                    continue
                if floor * len(tested) >= alpha:
                    notes.append(
                        f"{protocol}, against the {against} row by {test}: the smallest possible p, {floor:.2g}, times "
                        f"{len(tested)} tests is {min(floor * len(tested), 1):.2g}"
                    )
    if not notes:
        return []
    raise_them = "raise tables.draws or probe.permutations (not where few labels can move), or test fewer rows"
    return [f"Out of reach of {alpha} for whatever is tested alone: {'; '.join(notes)}; {raise_them}."]


def _overlap(scores: pd.DataFrame) -> str:
    """Of which rows pretraining saw tested participants, or may have."""
    seen, unknown = scores.loc[scores["transductive"] > 0, "row"], scores.loc[scores["transductive"].isna(), "row"]
    by = "(by id within the cohort, by near-identical FC in other cohorts)."
    if seen.empty:
        note = f"Inductive: no {'' if unknown.empty else 'other '}row's pretraining saw a tested participant {by}"
    else:
        note = f"Transductive: the pretraining of {_named(seen)} saw recordings of tested participants, without "
        note += f"labels {by}"
    if not unknown.empty:
        note += f" Unknown: whether the pretraining of {_named(unknown)} saw tested participants; nothing says it."
    return note
