"""The configuration as one object for the whole workflow: cohorts, encoders and sections, validated and complete."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDING_KEYS = (
    *("source", "tasks", "entities", "space", "resolution", "tr", "already_done"),
    *("participants", "site_column", "mean_fd_column"),
)
"""Keys of a cohort that decide what becomes of a recording. Not what is predicted, and not ``include`` and
``exclude``: they decide who is in the lists of the batches, and one participant more must not redo all others."""

FMRIPREP_KEYS = (
    *("image", "version", "output_spaces", "freesurfer", "freesurfer_folder", "bids_filter_file", "random_seed"),
    *("per_session", "extra_arguments"),
)
"""Keys of the section ``fmriprep`` that decide about results; of the others a change reruns nothing."""

PROBE_KEYS = (
    "participants",
    "phenotypes",
    "site_column",
    "site_group",
    "family_column",
    "confounds",
    "mean_fd_column",
)
"""Keys of a cohort that decide about what is predicted."""

OF_COHORT = "{cohort}"
"""What stands for a cohort's name in the key ``fmriprep.freesurfer_folder``."""

TEST = "test"
"""Role of a cohort on which the models of another one are tested."""


@dataclass(frozen=True)
class Cohort:
    """One cohort: its name and its validated settings (see ``config/README.md`` for the keys)."""

    name: str
    settings: Mapping[str, Any]

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the data are: ``type``, ``path`` and the keys of that type."""
        source: Mapping[str, Any] = self.settings["source"]
        return source

    @property
    def imports_timeseries(self) -> bool:
        """Whether the cohort brings extracted time series instead of images."""
        return self.source["type"] in ("hdf5", "files")

    @property
    def wanted_runs(self) -> dict[str, list[str | None]]:
        """Entity → labels of the runs that the cohort uses; entities without restriction are left out."""
        tasks = self.settings["tasks"]
        return {**self.settings["entities"], **({} if tasks is None else {"task": tasks})}

    @property
    def runs_json(self) -> str:
        """``wanted_runs`` as JSON, in the form in which the stage ``fmriprep`` receives them."""
        return json.dumps(self.wanted_runs, sort_keys=True)

    def probe_json(self, **sections: Any) -> str:
        """What probes need to know of the cohort, with further sections, as JSON.

        What a phenotype's results are compared with is no part of it: no prediction depends on that.
        """
        chosen = {key: self.settings[key] for key in PROBE_KEYS}
        chosen["phenotypes"] = {
            name: {key: value for key, value in described.items() if key != "published"}
            for name, described in chosen["phenotypes"].items()
        }
        return json.dumps({"name": self.name, **chosen, **sections}, sort_keys=True)

    @property
    def published_tasks(self) -> dict[str, str]:
        """Published task of the phenotypes that have one."""
        described = self.settings["phenotypes"].items()
        return {name: phenotype["published"] for name, phenotype in described if phenotype["published"]}

    def json(self, keys: Sequence[str] = ()) -> str:
        """Name and settings (all, or those keys) as JSON, in the form in which stages receive them."""
        chosen = {key: self.settings[key] for key in keys or self.settings}
        return json.dumps({"name": self.name, **chosen}, sort_keys=True)


@dataclass(frozen=True)
class Encoder:
    """One encoder to train, or to leave as initialised, with one seed.

    Its name is ``<name>_seed-<seed>``, or ``<name>-random_seed-<seed>`` as initialised.
    """

    name: str
    seed: int
    untrained: bool
    cohorts: tuple[str, ...]
    settings: Mapping[str, Any]

    def json(self) -> str:
        """Settings of the pretrain stage as JSON."""
        return json.dumps(self.settings, sort_keys=True)


@dataclass(frozen=True)
class Settings:
    """The validated configuration with every default filled in."""

    values: Mapping[str, Any]
    cohorts: tuple[Cohort, ...]

    @property
    def results(self) -> Path:
        """Folder of all outputs."""
        return Path(self.values["results_dir"])

    def section(self, name: str) -> dict[str, Any]:
        """One section of the configuration, e.g. ``parcellate``."""
        section: dict[str, Any] = copy.deepcopy(self.values[name])
        return section

    def probe_section(self, cohort: str) -> dict[str, Any]:
        """The section ``probe`` as it holds for a cohort: with its own splits, or those of the cohort it is tested for.

        Without the keys that only say which rows there are.
        """
        section = {key: value for key, value in self.section("probe").items() if key not in ("rows", "inductive")}
        own = self.cohort(cohort).settings
        shares = self.cohort(own["fitted_on"] or cohort).settings["splits"]
        own_shares = {key: value for key, value in shares.items() if value is not None}
        return {**section, **own_shares, "split_file": own["split_file"]}

    @property
    def fmriprep_deciding(self) -> dict[str, Any]:
        """The keys of the section ``fmriprep`` that decide about results."""
        return {key: self.section("fmriprep")[key] for key in FMRIPREP_KEYS}

    @property
    def fmriprep_running(self) -> dict[str, Any]:
        """All other keys of the section ``fmriprep``: where and how it runs."""
        return {key: value for key, value in self.section("fmriprep").items() if key not in FMRIPREP_KEYS}

    def json(self, name: str, **further: Any) -> str:
        """One section as JSON, with further keys, in the form in which stages receive it."""
        return json.dumps(self.section(name) | further, sort_keys=True)

    def cohort(self, name: str) -> Cohort:
        """The cohort of that name."""
        return next(cohort for cohort in self.cohorts if cohort.name == name)

    @property
    def pretrain_cohorts(self) -> list[str]:
        """Names of the cohorts that are pretrained on unless an encoder says otherwise."""
        return [cohort.name for cohort in self.cohorts if cohort.settings["role"] in ("pretrain", "both")]

    @property
    def encoders(self) -> dict[str, Encoder]:
        """All encoders by name: trained ones and, as references, those that stay as initialised."""
        found = {}
        for name, settings in self.values["pretrain"]["encoders"].items():
            own = {key: value for key, value in settings.items() if key not in ("cohorts", "seeds", "random_seeds")}
            cohorts = tuple(settings.get("cohorts", self.pretrain_cohorts))
            for untrained, seeds in ((False, settings["seeds"]), (True, settings["random_seeds"])):
                for seed in seeds:
                    full = f"{name}{'-random' if untrained else ''}_seed-{seed}"
                    found[full] = Encoder(full, seed, untrained, cohorts, own)
        return found

    @property
    def trained_encoders(self) -> list[str]:
        """Names of the encoders that are really trained."""
        return [name for name, encoder in self.encoders.items() if not encoder.untrained]

    def encoder(self, name: str) -> Encoder:
        """The encoder of that full name."""
        return self.encoders[name]

    @property
    def probe_cohorts(self) -> list[str]:
        """Names of the cohorts that are probed: with a role for it and at least one phenotype."""
        roles = ("probe", "both", TEST)
        return [c.name for c in self.cohorts if c.settings["role"] in roles and c.settings["phenotypes"]]
