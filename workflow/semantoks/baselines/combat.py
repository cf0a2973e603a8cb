"""ComBat inside the fold: site effects of location and scale are estimated on the participants fitted on.

Estimated by neuroHarmonize (Pomponio et al., NeuroImage 208, 2020) with the cohort's confounds as covariates, never the
target. A site that was not fitted on has no estimate, so leave-site-out is not possible with it.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from neuroHarmonize import harmonizationLearn

from semantoks.baselines.confounds import Confounds
from semantoks.baselines.connectivity import Connectivity
from semantoks.baselines.features import Index, Matrix, standardise
from semantoks.errors import UserError
from semantoks.phenotypes import Phenotype

FEWEST = 3
"""Sites with fewer participants fitted on are left as they are: they have no variance to speak of."""


@dataclass(frozen=True)
class HarmonisedConnectivity:
    """FC whose site effects are taken out in every fold.

    ``site`` [participants] names (null where unknown); ``covariates`` are the confounds without site and motion.
    """

    name: str
    connectivity: Connectivity
    site: npt.NDArray[np.object_]
    covariates: Confounds

    @property
    def participants(self) -> list[str]:
        """Participants in the order of the rows."""
        return self.connectivity.participants

    def design(self, phenotype: Phenotype, training: Index) -> Matrix:
        """Standardised, harmonised edges; missing ones are imputed with the training mean before."""
        edges = standardise(self.connectivity.kept(training), training)
        covariates = self.covariates.design(phenotype, training)
        return standardise(harmonise(edges, self.site, covariates, training), training)


def harmonise(values: Matrix, site: npt.NDArray[np.object_], covariates: Matrix, training: Index) -> Matrix:
    """Take out site effects estimated on the training rows.

    Parameters
    ----------
    values : [n, features].
    site : [n] site names.
    covariates : [n, covariates] whose effects are kept; columns that follow from others or from the site are dropped.
    training : row numbers.

    Raises
    ------
    UserError
        When fewer than two sites have enough training participants.
    """
    counts = pd.Series(site[training]).value_counts()
    known = sorted(counts.index[counts >= FEWEST])
    if len(known) < 2:
        raise UserError(
            f"ComBat needs two sites with at least {FEWEST} participants to fit on, found {len(known)} "
            f"({dict(counts)}); take fc-combat out of probe.rows"
        )
    fitted = training[np.isin(site[training].astype(str), known)]
    sites = site[fitted, None].astype(str) == np.array(known, dtype=str)
    covariates = covariates[:, independent(covariates[fitted], sites.astype(np.float32))]
    varies = np.ptp(values[fitted], axis=0) > 0
    frame = pd.DataFrame(covariates[fitted].astype(np.float64))
    frame.columns = [f"covariate {number}" for number in range(frame.shape[1])]
    frame.insert(0, "SITE", site[fitted].astype(str))
    with contextlib.redirect_stdout(io.StringIO()):
        model, _ = harmonizationLearn(values[np.ix_(fitted, varies)].astype(np.float64), frame)
    adjusted = values.copy()
    for number, name in enumerate(model["SITE_labels"]):
        rows = np.flatnonzero(site == name)
        adjusted[np.ix_(rows, varies)] = _adjust(values[np.ix_(rows, varies)], covariates[rows], model, number)
    return adjusted


def independent(covariates: Matrix, others: Matrix) -> list[int]:
    """Numbers of the columns that no linear combination of earlier ones and of ``others`` gives."""
    kept: list[int] = []
    for number in range(covariates.shape[1]):
        design = np.concatenate([others, covariates[:, [*kept, number]]], axis=1)
        if np.linalg.matrix_rank(design) == design.shape[1]:
            kept.append(number)
    return kept


def _adjust(values: Matrix, covariates: Matrix, model: dict[str, Any], number: int) -> npt.NDArray[np.float64]:
    """One site's rows with its location and scale taken out, as ``harmonizationApply`` does it row by row."""
    pooled = np.sqrt(model["var_pooled"][:, 0])
    expected = model["stand_mean"][:, 0] + covariates @ model["B_hat"][len(model["SITE_labels"]) :]
    standard = (values - expected) / pooled
    standard = (standard - model["gamma_star"][number]) / np.sqrt(model["delta_star"][number])
    adjusted: npt.NDArray[np.float64] = standard * pooled + expected
    return adjusted
