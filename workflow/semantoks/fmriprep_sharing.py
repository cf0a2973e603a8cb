"""Cohorts that share a folder of derivatives: nobody is preprocessed twice, nothing goes that another cohort reads."""

from __future__ import annotations

import itertools
from pathlib import Path

from semantoks.batches import recordings_by_target
from semantoks.errors import UserError
from semantoks.settings import Cohort, Settings


def check_sharing(settings: Settings) -> None:
    """Refuse cohorts that would overwrite or delete derivatives of each other; their batches must be up to date.

    Raises
    ------
    UserError
        Two cohorts of type ``bids`` have a participant in common whom both would preprocess into one folder, or
        ``fmriprep.retention`` would delete what a cohort of type ``fmriprep`` reads.
    """
    raw = [cohort for cohort in settings.cohorts if cohort.source["type"] == "bids"]
    for first, second in itertools.combinations(raw, 2):
        if _derivatives(first) == _derivatives(second):
            _check_participants(first, second, settings)
    readers = [cohort for cohort in settings.cohorts if cohort.source["type"] == "fmriprep"]
    retention = settings.section("fmriprep")["retention"]
    for maker, reader in itertools.product(raw, readers if retention != "all" else []):
        read = Path(reader.source["path"]).resolve()
        if read.is_relative_to(_derivatives(maker)) or _derivatives(maker).is_relative_to(read):
            raise UserError(
                f"key 'fmriprep.retention': expected all, because cohort {reader.name} reads derivatives of cohort "
                f"{maker.name}, found {retention}, which deletes what {maker.name} itself does not need; keep all, or "
                "make one cohort of the two"
            )


def _check_participants(first: Cohort, second: Cohort, settings: Settings) -> None:
    names = [
        set(
            recordings_by_target(
                settings.results / cohort.name / "batches", settings.section("fmriprep")["per_session"]
            )
        )
        for cohort in (first, second)
    ]
    common = sorted(names[0] & names[1])
    if common:
        some = ", ".join(common[:3]) + (", …" if len(common) > 3 else "")
        folder = second.source["derivatives"]
        raise UserError(
            f"cohorts {first.name} and {second.name}: expected other participants in each, because fMRIPrep would run "
            f"twice on each in one folder ({folder}), found {len(common)} in both ({some}); make one cohort of the "
            f"two (with the tasks of both), or, when {first.name} is preprocessed, write `source: {{type: fmriprep, "
            f"path: {folder}}}` for {second.name}, or give different people different folders of derivatives"
        )


def _derivatives(cohort: Cohort) -> Path:
    return Path(cohort.source["derivatives"]).resolve()
