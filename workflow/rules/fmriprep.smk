rule fmriprep:
    # Derivatives and work folder are no outputs: Snakemake deletes the outputs of a rule that fails.
    output:
        RESULTS / "{cohort}" / "fmriprep" / "sub-{participant}.json",
    log:
        RESULTS / "logs" / "fmriprep" / "{cohort}" / "sub-{participant}.log",
    benchmark:
        RESULTS / "benchmarks" / "fmriprep" / "{cohort}" / "sub-{participant}.tsv"
    conda:
        "../../envs/fmriprep.yaml"
    threads: 8
    resources:
        mem_mb=grows_with_attempt(16000),
        runtime=grows_with_attempt(1440),
    params:
        settings=settings.json("fmriprep"),
        bids=lambda wildcards: settings.cohort(wildcards.cohort).source["path"],
        derivatives=lambda wildcards: settings.cohort(wildcards.cohort).source["derivatives"],
        work=lambda wildcards: RESULTS / wildcards.cohort / "fmriprep" / "work",
    shell:
        "python -m semantoks.fmriprep --settings {params.settings:q} --bids {params.bids:q}"
        " --participant {wildcards.participant:q} --output-derivatives {params.derivatives:q} --work {params.work:q}"
        " --status {output:q} --threads {threads} --mem-mb {resources.mem_mb} > {log:q} 2>&1"
