# Where snakemake was started: compute nodes often have no network.
localrules:
    fmriprep_prepare,
    fmriprep_retention,


rule fmriprep_prepare:
    # Templates and `fsaverage` are no outputs: Snakemake deletes the outputs of a rule that fails.
    input:
        running=ancient(FMRIPREP_RUNNING),
    output:
        RESULTS / "{cohort}" / "fmriprep" / "prepared.json",
    log:
        RESULTS / "logs" / "fmriprep" / "{cohort}" / "prepare.log",
    benchmark:
        RESULTS / "benchmarks" / "fmriprep" / "{cohort}" / "prepare.tsv"
    conda:
        "../../envs/fmriprep.yaml"
    # It starts a container of its own.
    container:
        None
    params:
        settings=lambda wildcards: json.dumps(settings.fmriprep_deciding, sort_keys=True),
        bids=lambda wildcards: settings.cohort(wildcards.cohort).source["path"],
        derivatives=lambda wildcards: settings.cohort(wildcards.cohort).source["derivatives"],
    shell:
        "python -m semantoks.fmriprep_prepare --settings {params.settings:q} --running {input.running:q}"
        " --cohort {wildcards.cohort:q} --bids {params.bids:q} --output-derivatives {params.derivatives:q}"
        " --output {output:q} > {log:q} 2>&1"


rule fmriprep:
    # Derivatives and work folder are no outputs: Snakemake deletes the outputs of a rule that fails.
    input:
        prepared=RESULTS / "{cohort}" / "fmriprep" / "prepared.json",
        running=ancient(FMRIPREP_RUNNING),
    output:
        RESULTS / "{cohort}" / "fmriprep" / "{participant}.json",
    log:
        RESULTS / "logs" / "fmriprep" / "{cohort}" / "{participant}.log",
    benchmark:
        RESULTS / "benchmarks" / "fmriprep" / "{cohort}" / "{participant}.tsv"
    conda:
        "../../envs/fmriprep.yaml"
    # It starts a container of its own.
    container:
        None
    threads: 8
    resources:
        mem_mb=grows_with_attempt(16000),
        runtime=grows_with_attempt(1440),
        attempt=lambda wildcards, attempt: attempt,
        attempts=attempts,
    params:
        settings=lambda wildcards: json.dumps(settings.fmriprep_deciding, sort_keys=True),
        bids=lambda wildcards: settings.cohort(wildcards.cohort).source["path"],
        derivatives=lambda wildcards: settings.cohort(wildcards.cohort).source["derivatives"],
        runs=lambda wildcards: settings.cohort(wildcards.cohort).runs_json,
        # Not for the command: a participant with other recordings than before is asked again whether it is finished.
        recordings=lambda wildcards: " ".join(fmriprep_recordings(wildcards.cohort).get(wildcards.participant, [])),
        work=lambda wildcards: RESULTS / wildcards.cohort / "fmriprep" / "work",
    shell:
        "python -m semantoks.fmriprep --settings {params.settings:q} --running {input.running:q}"
        " --cohort {wildcards.cohort:q} --bids {params.bids:q} --participant {wildcards.participant:q}"
        " --output-derivatives {params.derivatives:q} --work {params.work:q}"
        " --runs {params.runs:q} --status {output:q} --threads {threads} --mem-mb {resources.mem_mb}"
        " --attempt {resources.attempt} --attempts {resources.attempts} --prepared {input.prepared:q} > {log:q} 2>&1"


rule fmriprep_retention:
    # With `retention: none`. Statuses go with what they speak of, as files of Snakemake's own `temp()` would.
    input:
        timeseries=lambda wildcards: retention_batches(wildcards, "timeseries"),
        index=lambda wildcards: retention_batches(wildcards, "index"),
    output:
        RESULTS / "{cohort}" / "fmriprep" / "deleted" / "{batch}.json",
    log:
        RESULTS / "logs" / "fmriprep" / "{cohort}" / "deleted_{batch}.log",
    benchmark:
        RESULTS / "benchmarks" / "fmriprep" / "{cohort}" / "deleted_{batch}.tsv"
    conda:
        "../../envs/fmriprep.yaml"
    params:
        derivatives=lambda wildcards: settings.cohort(wildcards.cohort).source["derivatives"],
        statuses=retention_statuses,
    shell:
        "python -m semantoks.fmriprep_retention --timeseries {input.timeseries:q} --index {input.index:q}"
        " --status {params.statuses:q} --derivatives {params.derivatives:q} --output {output:q} > {log:q} 2>&1"
