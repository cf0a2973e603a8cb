"""Who takes part: demographics, sites, recordings, motion, and each participant's stable traits.

Every participant is drawn from a random stream of their own, so that a larger cohort with the same seed begins with
the same people, except for what is balanced over the cohort (diagnosis and sex within a site).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from semantoks.simulation.atlas import NETWORKS
from semantoks.simulation.dynamics import (
    N_SHARED,
    PEAKS,
    SHARE_GLOBAL,
    SHARE_OWN,
    SHARE_PARCEL,
    SHARE_SHARED,
    Traits,
)

DIAGNOSES = ("control", "patient")
SEXES = ("F", "M")
N_NULL = 20
AGE_RANGE = (20.0, 70.0)
"""Ages are uniform between these [years]."""

# Change of a network's log peak frequency per unit of the phenotype's code (see Participant.code).
PEAK_EFFECTS = {
    "diagnosis": {"Default": 0.25, "SalVentAttn": 0.25},
    "sex": {"SomMot": -0.35, "Vis": 0.35},
    "age": {"Cont": -0.18, "Subcortex": -0.18, "Limbic": -0.18},
}
PEAK_SPREAD = 0.12
"""Standard deviation over people of each network's log peak frequency."""
PROPAGATION_EFFECT = {"DorsAttn": 0.8}
"""Delay [s] from the middle of a network to its end; it runs one way in patients and the other way in controls."""
PROPAGATION_SPREAD = 0.4
"""Standard deviation over people of that delay [s]."""
LOADING_SPREAD = 0.25
"""Relative standard deviation over people of each parcel's coupling: the fingerprint in static FC."""


@dataclass(frozen=True)
class Site:
    """A scanner: ``share`` of the participants, repetition time ``tr`` [s], volumes per run, sessions or none."""

    name: str
    share: float
    tr: float
    n_frames: int
    sessions: bool
    motion_of_patients: float = 1.0
    """Factor on patients' motion: the confounded site has more than 1."""


SITES = (
    Site("north", 0.50, 0.8, 600, sessions=False),
    Site("south", 0.35, 2.5, 192, sessions=False),
    Site("west", 0.15, 2.5, 192, sessions=True, motion_of_patients=2.0),
)


@dataclass(frozen=True)
class Participant:
    """One simulated person.

    Attributes
    ----------
    number : position in the cohort; their random streams depend on it and on the cohort's seed.
    motion : typical framewise displacement [mm].
    recordings : (session or None, run or None) of each recording.
    heavy_motion : index of the recording that must be excluded for motion, or None.
    """

    number: int
    label: str
    site: Site
    age: float
    sex: str
    diagnosis: str
    family: str
    motion: float
    recordings: tuple[tuple[str | None, str | None], ...]
    heavy_motion: int | None = None
    null_phenotypes: dict[str, float | str] = field(default_factory=dict)

    def code(self, phenotype: str) -> float:
        """-.5 or .5 for the two classes, standard score for age."""
        if phenotype == "age":
            low, high = AGE_RANGE
            return float((self.age - (low + high) / 2) / ((high - low) / np.sqrt(12)))
        value, classes = (self.sex, SEXES) if phenotype == "sex" else (self.diagnosis, DIAGNOSES)
        return float(classes.index(value)) - 0.5


def draw_participants(count: int, seed: int) -> list[Participant]:
    """Draw the cohort: sites in fixed shares, diagnosis and sex balanced within each site, age independent of both.

    Motion follows age, sex and diagnosis at no site, except diagnosis at sites with ``motion_of_patients`` above 1.
    """
    sites = _sites(count)
    classes = _balanced_classes(sites, np.random.default_rng([seed, count, 3]))
    participants: list[Participant] = []
    n_at_site: dict[str, int] = {}
    for number, (site, (diagnosis, sex)) in enumerate(zip(sites, classes, strict=True)):
        random = np.random.default_rng([seed, number, 0])
        place = n_at_site[site.name] = n_at_site.get(site.name, -1) + 1
        recordings = _recordings(site, place)
        already_heavy = any(p.heavy_motion is not None for p in participants)
        sibling = number % 10 == 9  # of the participant before
        motion = 0.14 * np.exp(0.3 * random.standard_normal())
        participants.append(
            Participant(
                number=number,
                label=f"{number + 1:03d}",
                site=site,
                age=round(random.uniform(*AGE_RANGE), 1),
                sex=sex,
                diagnosis=diagnosis,
                family=f"family{number - sibling + 1:03d}",
                motion=motion * (site.motion_of_patients if diagnosis == "patient" else 1),
                recordings=recordings,
                heavy_motion=1 if len(recordings) > 1 and not already_heavy else None,
                null_phenotypes=_null_phenotypes(random),
            )
        )
    return participants


def draw_traits(participant: Participant, network: np.ndarray, position: np.ndarray, seed: int) -> Traits:
    """The participant's stable dynamics: population values, phenotype effects, own deviations.

    Parameters
    ----------
    network : int [parcel], network of each parcel.
    position : float64 [parcel], place along its network, -1 to 1.
    """
    random = np.random.default_rng([seed, participant.number, 1])
    population = np.random.default_rng([seed, 457, 1])  # the same for everybody
    log_peak = np.log(PEAKS) + PEAK_SPREAD * random.standard_normal(len(NETWORKS))
    for phenotype, effects in PEAK_EFFECTS.items():
        for name, effect in effects.items():
            log_peak[NETWORKS.index(name)] += effect * participant.code(phenotype)
    propagation = np.zeros(len(NETWORKS))
    for name, effect in PROPAGATION_EFFECT.items():
        propagation[NETWORKS.index(name)] = (
            2 * effect * participant.code("diagnosis") + PROPAGATION_SPREAD * random.standard_normal()
        )
    n = len(network)
    own = _amplitudes(SHARE_OWN, (n,), population, random)
    common = _amplitudes(SHARE_GLOBAL, (n,), population, random)
    axis = population.standard_normal((len(NETWORKS), N_SHARED)) + 0.4 * random.standard_normal((9, N_SHARED))
    shared = np.sqrt(SHARE_SHARED) * axis[network] / np.linalg.norm(axis, axis=1)[network, None]
    shared = shared + np.sqrt(SHARE_SHARED) * LOADING_SPREAD * random.standard_normal((n, N_SHARED))
    parcel = np.sqrt(np.full(n, SHARE_PARCEL))
    return Traits(np.exp(log_peak), propagation, own, shared, common, parcel, position, network)


def _sites(count: int) -> list[Site]:
    """Site of each participant, so that every beginning of the cohort has nearly the intended shares."""
    placed = {site.name: 0 for site in SITES}
    order = []
    for number in range(count):
        site = max(SITES, key=lambda site: site.share * (number + 1) - placed[site.name])
        placed[site.name] += 1
        order.append(site)
    return order


def _balanced_classes(sites: list[Site], random: np.random.Generator) -> list[tuple[str, str]]:
    """(diagnosis, sex) of each participant: within a site every block of four has all four combinations."""
    combinations = list(itertools.product(DIAGNOSES, SEXES))
    waiting: dict[str, list[tuple[str, str]]] = {site.name: [] for site in SITES}
    result = []
    for site in sites:
        if not waiting[site.name]:
            waiting[site.name] = [combinations[i] for i in random.permutation(len(combinations))]
        result.append(waiting[site.name].pop())
    return result


def _recordings(site: Site, place: int) -> tuple[tuple[str | None, str | None], ...]:
    """(session, run) of each recording of the ``place``-th participant of a site; sessions and runs are unequal."""
    if site.sessions:
        return (("1", None), ("2", None)) if place % 2 == 0 else (("1", None),)
    return ((None, "1"), (None, "2")) if place % 5 == 0 else ((None, None),)


def _null_phenotypes(random: np.random.Generator) -> dict[str, float | str]:
    """Ten classes and ten scores that depend on nothing."""
    classes = {f"null_{i:02d}": ("low", "high")[random.integers(2)] for i in range(1, 11)}
    scores = {f"null_{i:02d}": round(random.normal(100, 15), 1) for i in range(11, N_NULL + 1)}
    return {**classes, **scores}


def _amplitudes(
    share: float, shape: tuple[int, ...], population: np.random.Generator, random: np.random.Generator
) -> np.ndarray:
    """Amplitudes around sqrt(share): part of the variation is everybody's, part is the person's own."""
    factor = 1 + 0.2 * population.standard_normal(shape) + LOADING_SPREAD * random.standard_normal(shape)
    amplitudes: np.ndarray = np.sqrt(share) * np.maximum(factor, 0.1)
    return amplitudes
