import shlex
import sys
from pathlib import Path

RULES = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))
REPOSITORY = RULES.parents[1]
sys.path.insert(0, str(REPOSITORY / "workflow"))

from semantoks.batches import current_batches, current_participants, update_batches
from semantoks.code_version import code_version
from semantoks.errors import UserError
from semantoks.settings import load_settings

# Stages run as `python -m semantoks.<stage>`; nothing else on the path may leak into them.
shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={shlex.quote(str(REPOSITORY / 'workflow'))} PYTHONNOUSERSITE=1; "
)

try:
    settings = load_settings(config, ", ".join(map(str, workflow.configfiles)))
    RESULTS = settings.results
    if workflow.is_main_process:
        for cohort in settings.cohorts:
            folder = RESULTS / cohort.name / "batches"
            update_batches({"name": cohort.name, **cohort.settings}, folder, settings.values["batch_size"])
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


wildcard_constraints:
    cohort="[A-Za-z0-9_-]+",
    batch=r"part-\d+",
    encoder=r"[A-Za-z0-9-]+_seed-\d+",
    participant="[A-Za-z0-9+]+",


def grows_with_attempt(amount):
    """A resource that doubles with every new submission of a job."""
    return lambda wildcards, attempt: amount * 2 ** (attempt - 1)


def batches_of(cohort):
    return current_batches(RESULTS / cohort / "batches")


def of_batches(pattern, cohort):
    """One file per batch of a cohort."""
    return expand(str(RESULTS / pattern), cohort=cohort, batch=batches_of(cohort))


def encoders(cohort=None):
    """Names of all encoders, pretrained and as initialised."""
    names = []
    for name, encoder in settings.values["pretrain"]["encoders"].items():
        names += [f"{name}_seed-{seed}" for seed in encoder["seeds"]]
        names += [f"{name}-random_seed-{seed}" for seed in encoder["random_seeds"]]
    return names


def encoder_settings(encoder):
    """Settings of the encoder with that name and seed: name, whether it stays as initialised, seed, settings."""
    name, seed = encoder.rsplit("_seed-", 1)
    untrained = name.removesuffix("-random") not in (name, None) and name not in settings.values["pretrain"]["encoders"]
    name = name.removesuffix("-random") if untrained else name
    return settings.values["pretrain"]["encoders"][name], untrained, int(seed)


def encoder_shards(wildcards):
    encoder, _, _ = encoder_settings(wildcards.encoder)
    cohorts = encoder.get("cohorts", settings.pretrain_cohorts)
    return [shard for cohort in cohorts for shard in of_batches("{cohort}/shards/{batch}.parquet", cohort)]


def final_outputs():
    outputs = [RESULTS / "report.html"]
    return outputs
