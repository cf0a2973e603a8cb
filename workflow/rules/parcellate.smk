rule parcellate:
    input:
        index=RESULTS / "{cohort}" / "index" / "{batch}.parquet",
        # Images may have been deleted with their status (`fmriprep.retention`): they are made again first.
        fmriprep=fmriprep_statuses,
        atlas=rules.atlas.output,
        denoising=denoising_strategy,
        template=template_mask,
    output:
        RESULTS / "{cohort}" / "timeseries" / "{batch}.parquet",
    log:
        RESULTS / "logs" / "parcellate" / "{cohort}" / "{batch}.log",
    benchmark:
        RESULTS / "benchmarks" / "parcellate" / "{cohort}" / "{batch}.tsv"
    conda:
        "../../envs/parcellate.yaml"
    # Recordings at a time; more by `--set-threads parcellate=4`.
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt, threads: (2000 + 2000 * threads) * 2 ** (attempt - 1),
        runtime=grows_with_attempt(120),
    params:
        settings=parcellate_settings,
        code=lambda wildcards: code_version(parcellate_module(wildcards)),
        module=parcellate_module,
        atlas=RESULTS / "atlas",
    shell:
        "OMP_NUM_THREADS=1 python -m semantoks.{params.module} --settings {params.settings:q} --index {input.index:q}"
        " --batch {wildcards.batch} --atlas {params.atlas:q} --output {output:q} --workers {threads} > {log:q} 2>&1"
