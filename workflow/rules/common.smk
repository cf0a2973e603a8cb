import functools
import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

RULES = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))
REPOSITORY = RULES.parents[1]
sys.path.insert(0, str(REPOSITORY / "workflow"))

from semantoks.atlas_recipes import TEMPLATEFLOW, needed_files, source_of
from semantoks.batches import (
    current_batches,
    fmriprep_targets,
    recordings_by_target,
    recordings_of,
    targets_by_last_batch,
    update_batches,
)
from semantoks.code_version import code_version
from semantoks.config_files import check_files
from semantoks.container_binds import container_binds
from semantoks.errors import UserError, disk_error
from semantoks.files import write_json_if_changed
from semantoks.fmriprep_finished import finished_before, update_finished
from semantoks.fmriprep_sharing import check_sharing
from semantoks.launch import training_resources
from semantoks.qc_accept import check_accepted
from semantoks.config_loading import load_settings
from semantoks.settings import RECORDING_KEYS
from semantoks.snakemake_environment import attempts as attempts_of_a_job
from semantoks.snakemake_environment import bind_in_containers
from semantoks.template_mask import checksum_of

# Stages run as `python -m semantoks.<stage>`; nothing else on the path may leak into them.
shell.prefix(f"set -euo pipefail; export PYTHONPATH={shlex.quote(str(REPOSITORY / 'workflow'))} PYTHONNOUSERSITE=1; ")

try:
    settings = load_settings(config, ", ".join(map(str, workflow.configfiles)))
    RESULTS = settings.results
    ATLAS_FILES = needed_files(settings.section("atlas"))
    FMRIPREP_RUNNING = RESULTS / "fmriprep_running.json"
    if workflow.is_main_process:
        check_files(settings)
        if RESULTS.is_dir() and not os.access(RESULTS, os.W_OK):
            # Snakemake would only say that outputs are write-protected. Finished results may be looked at.
            print(
                f"warning: {RESULTS}: this folder cannot be written (a read-only disk, or permissions); choose another one (`results_dir`)",
                file=sys.stderr,
            )
        for cohort in settings.cohorts:
            check_accepted(RESULTS / cohort.name / "qc" / "accepted.json", settings.values["maximum_excluded_share"])
        # A file that is never newer: a moved licence or scratch folder must not preprocess a cohort again.
        if any(cohort.source["type"] == "bids" for cohort in settings.cohorts):
            write_json_if_changed(FMRIPREP_RUNNING, settings.fmriprep_running)
        for cohort in settings.cohorts:
            folder = RESULTS / cohort.name / "batches"
            update_batches(
                {"name": cohort.name, **cohort.settings},
                folder,
                settings.values["batch_size"],
            )
            if cohort.source["type"] == "bids":
                update_finished(
                    RESULTS / cohort.name / "fmriprep",
                    cohort.source,
                    cohort.wanted_runs,
                    settings.fmriprep_deciding,
                    list(recordings_by_target(folder, settings.section("fmriprep")["per_session"])),
                )
        check_sharing(settings)
except (UserError, OSError) as error:
    message = error if isinstance(error, UserError) else disk_error(error)
    if message is None:
        raise
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
    if settings.values["container"] is None:
        print(
            "error: key 'container': expected an image for --sdm apptainer, found none; docs/containers.md says how to build one",
            file=sys.stderr,
        )
        sys.exit(2)
    bind_in_containers(container_binds(settings, REPOSITORY, Path.cwd()))


# Only read with --sdm apptainer.
container: settings.values["container"]


wildcard_constraints:
    # The names there are: `new_sites.tsv` is the table of new_sites, not what `new` has by site.
    cohort="|".join(cohort.name for cohort in settings.cohorts),
    batch=r"part-\d+",
    encoder=r"[A-Za-z0-9-]+_seed-\d+",
    row=r"[A-Za-z][A-Za-z0-9-]*(_seed-\d+)?",
    participant=r"sub-[A-Za-z0-9+]+(_ses-[A-Za-z0-9+]+)?",
    protocol="random|leave-site-out|given|transfer",
    network=r"bnt|windows|(finetuned|lora)-[A-Za-z0-9-]+_seed-\d+",


def grows_with_attempt(amount):
    """A resource that doubles with every new submission of a job."""
    return lambda wildcards, attempt: amount * 2 ** (attempt - 1)


def attempts(wildcards):
    """How often a job is submitted at most. Only the main process knows; jobs learn it from their environment."""
    known = workflow.is_main_process and workflow.execution_settings
    return attempts_of_a_job((workflow.execution_settings.retries or 0) if known else None)


@functools.cache
def batches_of(cohort):
    return current_batches(RESULTS / cohort / "batches")


def of_batches(pattern, cohort):
    """One file per batch of a cohort."""
    return expand(str(RESULTS / pattern), cohort=cohort, batch=batches_of(cohort))


def as_arguments(option, paths):
    """An option with its paths, quoted for the shell, or nothing when there are none."""
    return " ".join([option, *(shlex.quote(str(path)) for path in paths)]) if paths else ""


def folder_files(folder, names):
    return [RESULTS / folder / name for name in names]


def atlas_sources():
    """Files of the atlas that the configuration names; a changed file makes the atlas anew."""
    atlas = settings.section("atlas")
    fetched = [RESULTS / "atlas" / "sources" / name for name in ATLAS_FILES]
    return fetched + [atlas[key] for key in ("image", "labels", "transform") if atlas[key] not in (None, TEMPLATEFLOW)]


def network_sources():
    networks = settings.section("networks")
    return [networks[key] for key in ("image", "names", "file") if networks[key]]


def accepted(cohorts):
    """The word of quality control that enough of each cohort is left."""
    return [RESULTS / cohort / "qc" / "accepted.json" for cohort in cohorts]


def encoder_of(wildcards):
    return settings.encoder(wildcards.encoder)


def encoder_shards(wildcards):
    cohorts = encoder_of(wildcards).cohorts
    return [shard for cohort in cohorts for shard in of_batches("{cohort}/shards/{batch}.parquet", cohort)]


def fmriprep_statuses(wildcards):
    if settings.cohort(wildcards.cohort).source["type"] != "bids":
        return []
    batch = RESULTS / wildcards.cohort / "batches" / f"{wildcards.batch}.tsv"
    targets = fmriprep_targets(batch, settings.section("fmriprep")["per_session"])
    finished = known_as_finished(wildcards.cohort)
    return [RESULTS / wildcards.cohort / "fmriprep" / f"{target}.json" for target in targets if target not in finished]


@functools.cache
def fmriprep_recordings(cohort):
    """Per participant (or session) its raw recordings: others, e.g. of a new session, open its case again."""
    return recordings_by_target(RESULTS / cohort / "batches", settings.section("fmriprep")["per_session"])


@functools.cache
def known_as_finished(cohort):
    """Who was finished before this workflow ran."""
    return frozenset(finished_before(RESULTS / cohort / "fmriprep"))


@functools.cache
def last_batches(cohort):
    """Per batch the participants (or sessions) of whom it holds the last recordings, with all their batches."""
    return targets_by_last_batch(RESULTS / cohort / "batches", settings.section("fmriprep")["per_session"])


def retention_statuses(wildcards):
    """Whose images may go when a batch is parcellated."""
    targets = last_batches(wildcards.cohort).get(wildcards.batch, {})
    return [RESULTS / wildcards.cohort / "fmriprep" / f"{target}.json" for target in targets]


def retention_batches(wildcards, kind):
    """Time series or indices of all batches with recordings of those participants."""
    targets = last_batches(wildcards.cohort).get(wildcards.batch, {})
    batches = {wildcards.batch}.union(*targets.values())
    return [RESULTS / wildcards.cohort / kind / f"{batch}.parquet" for batch in sorted(batches)]


def parcellate_settings(wildcards):
    cohort = settings.cohort(wildcards.cohort)
    if cohort.imports_timeseries:
        section = settings.section("parcellate")
        return json.dumps(
            {
                "cohort": json.loads(cohort.json(RECORDING_KEYS)),
                "band_pass": section["band_pass"],
                "detrend": section["detrend"],
            }
        )
    return settings.json("parcellate")


def denoising_strategy(wildcards):
    """The file of the strategy, shipped or the user's own: editing it makes time series anew."""
    if settings.cohort(wildcards.cohort).imports_timeseries:
        return []
    name = settings.section("parcellate")["denoising"]
    shipped = REPOSITORY / "resources" / "denoising" / f"{name}.yaml"
    return shipped if shipped.is_file() else name


def template_mask(wildcards):
    """The file that says where the template's brain mask is, or the user's own mask."""
    mask = settings.section("parcellate")["template_mask"]
    if mask is None or settings.cohort(wildcards.cohort).imports_timeseries:
        return []
    return RESULTS / "atlas" / "template_mask.json" if mask == TEMPLATEFLOW else mask


def parcellate_module(wildcards):
    """Cohorts of images are parcellated; those that bring time series enter here."""
    return "import_timeseries" if settings.cohort(wildcards.cohort).imports_timeseries else "parcellate"


def cost_settings():
    """What the benchmark files do not say: recordings per cohort, and cores and GPUs of a stage's jobs."""
    pretrain = settings.values["pretrain"]
    training = training_resources(pretrain["gpus"], pretrain["nodes"])
    return {
        "recordings": {
            cohort.name: sum(
                recordings_of(RESULTS / cohort.name / "batches" / f"{batch}.tsv") for batch in batches_of(cohort.name)
            )
            for cohort in settings.cohorts
        },
        "pretrain_cohorts": settings.pretrain_cohorts,
        "threads": {
            "pretrain": pretrain["threads"] * training["nodes"],
            "embed": pretrain["threads"],
            "supervised": pretrain["threads"],
            "fmriprep": 8,
        },
        "gpus": {
            "pretrain": pretrain["gpus"] * training["nodes"],
            "embed": min(1, pretrain["gpus"]),
            "supervised": min(1, pretrain["gpus"]),
        },
    }


def of_individuals(path, **about):
    """A figure of single recordings: in a report only when the configuration asks for it."""
    return report(path, **about) if settings.values["individuals_in_report"] else path


def quality_for_report(outputs):
    """Summaries and figures of quality control that the report may show."""
    hidden = [] if settings.values["individuals_in_report"] else [outputs.recordings, outputs.carpets]
    return [path for path in outputs if path not in hidden]


def results_of_stages():
    """What the configuration asks for, but for the pages about it."""
    outputs = [RESULTS / cohort.name / "index.parquet" for cohort in settings.cohorts]
    for name in ("summary.json", "accepted.json"):
        outputs += [RESULTS / cohort.name / "qc" / name for cohort in settings.cohorts]
    outputs.append(RESULTS / "near_identical.tsv")
    outputs += [RESULTS / "pretrain" / encoder / "weights.safetensors" for encoder in settings.encoders]
    outputs += [RESULTS / "figures" / f"{encoder}_training.png" for encoder in settings.trained_encoders]
    for cohort in settings.cohorts:
        outputs += of_batches("{cohort}/shards/{batch}.parquet", cohort.name)
        if settings.section("fmriprep")["retention"] == "none" and cohort.source["type"] == "bids":
            outputs += of_batches("{cohort}/fmriprep/deleted/{batch}.json", cohort.name)
    for cohort in settings.probe_cohorts:
        outputs += [RESULTS / "tables" / f"{cohort}.tsv", *probe_figures(cohort)]
    files = {"hdf5": "timeseries.h5", "bids": "bids/dataset_description.json"}
    outputs += [
        RESULTS / c.name / "export" / files[kind] for c in settings.cohorts for kind in settings.values["export"]
    ]
    return outputs


def final_outputs():
    """What `snakemake` without a target makes."""
    return [*results_of_stages(), RESULTS / "cost.tsv", RESULTS / "report.html"]
