rule splits:
    input:
        shards=cohort_shards,
        quality=lambda wildcards: accepted([wildcards.cohort]),
        participants=participants_table,
        given=split_file,
        fitted_splits=fitted_splits,
        fitted_shards=fitted_shards,
    output:
        RESULTS / "{cohort}" / "splits.parquet",
    log:
        RESULTS / "logs" / "splits" / "{cohort}.log",
    benchmark:
        RESULTS / "benchmarks" / "splits" / "{cohort}.tsv"
    conda:
        "../../envs/probe.yaml"
    params:
        settings=probe_settings,
        code=code_version("splits"),
        fitted_splits=lambda wildcards, input: as_arguments("--fitted-splits", input.fitted_splits),
        fitted_shards=lambda wildcards, input: as_arguments("--fitted-shards", input.fitted_shards),
    shell:
        "OMP_NUM_THREADS={threads} python -m semantoks.splits --settings {params.settings:q} --shards {input.shards:q}"
        " {params.fitted_splits} {params.fitted_shards} --output {output:q} > {log:q} 2>&1"


rule probe:
    input:
        splits=rules.splits.output,
        participants=participants_table,
        embeddings=row_embeddings,
        features=own_feature_files,
        shards=probe_shards,
        fitted_shards=probe_fitted_shards,
        pretrain_shards=foreign_pretraining,
        qc=confound_files,
    output:
        predictions=RESULTS / "{cohort}" / "probes" / "{row}.parquet",
        permutations=RESULTS / "{cohort}" / "permutations" / "{row}.parquet",
    log:
        RESULTS / "logs" / "probe" / "{cohort}" / "{row}.log",
    benchmark:
        RESULTS / "benchmarks" / "probe" / "{cohort}" / "{row}.tsv"
    conda:
        "../../envs/probe.yaml"
    # The problems are small: rows side by side are faster than threads inside a row.
    threads: 1
    resources:
        mem_mb=grows_with_attempt(8000),
        runtime=grows_with_attempt(120),
    params:
        settings=probe_settings,
        code=code_version("probe"),
        embeddings=lambda wildcards, input: as_arguments("--embeddings", input.embeddings),
        shards=lambda wildcards, input: as_arguments("--shards", input.shards),
        fitted_shards=lambda wildcards, input: as_arguments("--fitted-shards", input.fitted_shards),
        pretrain_shards=lambda wildcards, input: as_arguments("--pretrain-shards", input.pretrain_shards),
        qc=lambda wildcards, input: as_arguments("--qc", input.qc),
    shell:
        "OMP_NUM_THREADS={threads} python -m semantoks.probe --settings {params.settings:q} --row {wildcards.row} --splits {input.splits:q}"
        " {params.embeddings} {params.shards} {params.fitted_shards} {params.pretrain_shards} {params.qc} --output {output.predictions:q}"
        " --permutations {output.permutations:q} > {log:q} 2>&1"
