# From BIDS datasets to the tables of a paper. Stages, in the order of the data:
# index · fmriprep · atlas · networks · parcellate · qc · shards · pretrain · embed · probe · tables · figures · report
from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


# A configuration given with --configfile replaces the demo's, it is not merged into it.
if not workflow.configfiles:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/index.smk"
include: "workflow/rules/fmriprep.smk"
include: "workflow/rules/atlas.smk"
include: "workflow/rules/networks.smk"
include: "workflow/rules/parcellate.smk"
include: "workflow/rules/qc.smk"
include: "workflow/rules/shards.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/embed.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/supervised.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/cost.smk"
include: "workflow/rules/report.smk"


# Seconds of one core each: under Slurm they run where snakemake does. The atlas may need the network that compute nodes lack.
localrules:
    all,
    atlas,
    networks,
    index_of_cohort,
    figures_of_encoder,
    figures_of_probes,
    cost,
    report,


rule all:
    default_target: True
    input:
        final_outputs(),
