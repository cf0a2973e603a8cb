"""Denoising strategies as data, and what they take from a confounds table of fMRIPrep.

A strategy is a YAML file in ``resources/denoising`` (or the user's own): which confounds are regressed, with
which expansions, and which volumes are censored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from semantoks.confounds import columns_like, framewise_displacement, stretches, without_gaps
from semantoks.errors import UserError

STRATEGIES = Path(__file__).resolve().parents[2] / "resources" / "denoising"
EXPANSIONS = ("derivative1", "power2", "derivative1_power2")
TISSUES = {"white_matter": "WM", "csf": "CSF", "combined": "combined"}


@dataclass(frozen=True)
class Censoring:
    """Which volumes are censored; a threshold of None does not apply."""

    framewise_displacement: float | None = None
    """mm; volumes above it are censored."""
    std_dvars: float | None = None
    """Standardised DVARS, without unit; volumes above it are censored."""
    minimum_segment: int = 1
    """Kept stretches of fewer volumes than this are censored too."""


@dataclass(frozen=True)
class Strategy:
    """What is regressed and censored. The fields are the keys of a strategy's YAML file."""

    name: str
    description: str
    citations: tuple[str, ...] = ()
    confounds: Mapping[str, tuple[str, ...]] | None = None
    """Confound → its expansions, out of :data:`EXPANSIONS`; the confound itself is always in."""
    acompcor: Mapping[str, int] | None = None
    """Tissue (``white_matter``, ``csf`` or ``combined``) → largest number of components."""
    cosines: bool = False
    censoring: Censoring = Censoring()

    @property
    def needs_confounds(self) -> bool:
        """Whether anything of the confounds table is used beyond motion measures."""
        return self.regresses or self.censors

    @property
    def regresses(self) -> bool:
        """Whether anything is regressed."""
        return bool(self.confounds or self.acompcor or self.cosines)

    @property
    def censors(self) -> bool:
        """Whether volumes may be censored."""
        return self.censoring != Censoring()


def available_strategies() -> list[str]:
    """Names of the strategies that come with the workflow."""
    return sorted(path.stem for path in STRATEGIES.glob("*.yaml"))


def load_strategy(name: str) -> Strategy:
    """Read a strategy by name, or a user's own by the path of its YAML file.

    Raises
    ------
    UserError
        Unknown name, unknown key or value, or aCompCor without the cosine columns.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else STRATEGIES / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"denoising strategy {name!r}: expected one of {', '.join(available_strategies())} or the path of a YAML "
            "file, found neither"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected YAML, found {error}") from None
    return parse_strategy(content, str(path))


def parse_strategy(content: Any, where: str) -> Strategy:
    """Check the content of a strategy file; ``where`` names it in messages."""
    content = _mapping(content, Strategy, where)
    confounds = _mapping(content.get("confounds") or {}, None, f"{where}: confounds")
    for confound, expansions in confounds.items():
        _among(expansions or (), EXPANSIONS, f"{where}: confounds.{confound}")
    acompcor = _mapping(content.get("acompcor") or {}, None, f"{where}: acompcor")
    _among(acompcor, TISSUES, f"{where}: acompcor")
    for tissue, most in acompcor.items():
        _number(most, f"{where}: acompcor.{tissue}", whole=True)
    if acompcor and not content.get("cosines"):
        raise UserError(
            f"{where}: expected 'cosines: true' beside 'acompcor', found none; fMRIPrep removes these cosines before "
            "it computes aCompCor, so the components must not be regressed without them"
        )
    censoring = _mapping(content.get("censoring") or {}, Censoring, f"{where}: censoring")
    for key, value in censoring.items():
        if value is not None or key == "minimum_segment":
            _number(value, f"{where}: censoring.{key}", whole=key == "minimum_segment")
    for key in ("name", "description"):
        if not isinstance(content.get(key), str) or not content[key].strip():
            raise UserError(f"{where}: expected the key {key!r} with a text, found {content.get(key)!r}")
    if not isinstance(content.get("cosines", False), bool):
        raise UserError(f"{where}: cosines: expected true or false, found {content['cosines']!r}")
    return Strategy(
        name=content["name"],
        description=" ".join(content["description"].split()),
        citations=tuple(content.get("citations") or ()),
        confounds={confound: tuple(expansions or ()) for confound, expansions in confounds.items()},
        acompcor=dict(acompcor),
        cosines=bool(content.get("cosines", False)),
        censoring=Censoring(**censoring),
    )


def _number(value: Any, where: str, whole: bool) -> None:
    """Refuse anything but a number above 0."""
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and value > 0
    if not fits:
        raise UserError(f"{where}: expected a {'whole ' if whole else ''}number above 0, found {value!r}")


def _mapping(value: Any, known: type[Strategy | Censoring] | None, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected keys and values, found {value!r}")
    if known is not None:
        _among(value, [field.name for field in fields(known)], where)
    return value


def _among(found: Any, known: Any, where: str) -> None:
    unknown = [key for key in found if key not in known]
    if unknown:
        raise UserError(f"{where}: expected only {', '.join(known)}, found {', '.join(map(str, unknown))}")


def design(confounds: pd.DataFrame, strategy: Strategy, sidecar: Mapping[str, Any]) -> pd.DataFrame:
    """The regressors of a strategy, raw, one column each.

    Expansions that the table lacks are computed. An empty first row of a derivative takes the second row's value.

    Parameters
    ----------
    confounds : from :func:`read_confounds`, all volumes (before any is dropped).
    strategy : the strategy.
    sidecar : from :func:`read_confounds_sidecar`; tells the tissue of aCompCor components.

    Returns
    -------
    float64 table [time, regressor] without missing values.

    Raises
    ------
    UserError
        A needed column is missing or has missing values elsewhere.
    """
    columns: dict[str, NDArray[np.float64]] = {}
    for confound, expansions in (strategy.confounds or {}).items():
        for name in (confound, *(f"{confound}_{expansion}" for expansion in expansions)):
            columns[name] = _expanded(confounds, confound, name)
    for tissue, most in (strategy.acompcor or {}).items():
        for name in _components(confounds, sidecar, tissue)[:most]:
            columns[name] = confounds[name].to_numpy()
    if strategy.cosines:
        cosines = columns_like(confounds, r"cosine\d+")
        if not cosines:
            raise UserError("confounds: expected cosine columns, found none; choose a denoising strategy without them")
        columns |= {name: confounds[name].to_numpy() for name in cosines}
    values = np.array(list(columns.values())).reshape(len(columns), len(confounds))
    return without_gaps(pd.DataFrame(values.T, index=confounds.index, columns=list(columns)))


def _expanded(confounds: pd.DataFrame, confound: str, name: str) -> NDArray[np.float64]:
    """A column of the table, or an expansion of ``confound`` computed from it."""
    if name in confounds:
        return confounds[name].to_numpy()
    if confound not in confounds:
        raise UserError(f"confounds: expected the column {confound!r}, found none; choose another denoising strategy")
    values: NDArray[np.float64] = confounds[confound].to_numpy()
    expansion = name.removeprefix(f"{confound}_")
    if expansion.startswith("derivative1"):
        values = np.diff(values, prepend=np.nan)
    return values**2 if expansion.endswith("power2") else values


def _components(confounds: pd.DataFrame, sidecar: Mapping[str, Any], tissue: str) -> list[str]:
    """Columns of the aCompCor components of a tissue, in order of explained variance.

    fMRIPrep 21 and later name them by tissue (``w_comp_cor_00``, ``c_comp_cor_00``); before, the sidecar's ``Mask``
    tells it; before 1.4 there are only components of both tissues together.
    """
    prefix = {"white_matter": "w", "csf": "c", "combined": "a"}[tissue]
    numbered = columns_like(confounds, rf"{prefix}_comp_cor_\d+")
    if tissue == "combined":
        numbered = [name for name in numbered if sidecar.get(name, {}).get("Mask", "combined") == "combined"]
    if numbered:
        return numbered
    older = columns_like(confounds, r"a_comp_cor_\d+")
    found = [name for name in older if sidecar.get(name, {}).get("Mask") == TISSUES[tissue]]
    if not found:
        why = "their tissue is not stated in a JSON sidecar" if older and not sidecar else f"none of {tissue}"
        raise UserError(
            f"confounds: expected aCompCor components of {tissue}, found {len(older)} a_comp_cor columns, {why}; "
            "choose a denoising strategy without aCompCor or one with 'acompcor: {combined: …}'"
        )
    return found


def kept_volumes(confounds: pd.DataFrame, censoring: Censoring, first: int = 0) -> NDArray[np.bool_]:
    """Which volumes from number ``first`` on are kept, bool [time − first].

    A volume is censored above a threshold, and with it every kept stretch shorter than the minimum segment.

    References
    ----------
    Power et al. (2014), NeuroImage 84:320-341.
    """
    kept = np.ones(len(confounds), dtype=bool)
    if censoring.framewise_displacement is not None:
        kept &= ~(framewise_displacement(confounds) > censoring.framewise_displacement)
    if censoring.std_dvars is not None:
        if "std_dvars" not in confounds:
            raise UserError("confounds: expected the column 'std_dvars' for censoring, found none")
        without_gaps(confounds[["std_dvars"]])  # n/a elsewhere than in the first row would count as kept
        kept &= ~(confounds["std_dvars"].to_numpy() > censoring.std_dvars)
    kept = kept[first:]
    for start, end in stretches(kept):
        if end - start < censoring.minimum_segment:
            kept[start:end] = False
    return kept


def degrees_of_freedom(
    n_kept: int, tr: float, pass_band: tuple[float | None, float | None], n_regressors: int
) -> float:
    """What cleaning leaves: volumes kept × share of the spectrum in the pass-band − regressors.

    Parameters
    ----------
    n_kept : volumes kept.
    tr : s.
    pass_band : edges in Hz; None leaves that side open.
    n_regressors : number of regressors.
    """
    nyquist = 0.5 / tr
    low, high = pass_band
    share = ((nyquist if high is None else min(high, nyquist)) - (low or 0.0)) / nyquist
    return n_kept * share - n_regressors
