rule pretrain:
    input:
        shards=encoder_shards,
        quality=lambda wildcards: accepted(encoder_of(wildcards).cohorts),
    output:
        folder_files(
            "pretrain/{encoder}",
            ["weights.safetensors", "config.json", "metrics.jsonl"],
        ),
    log:
        RESULTS / "logs" / "pretrain" / "{encoder}.log",
    benchmark:
        RESULTS / "benchmarks" / "pretrain" / "{encoder}.tsv"
    conda:
        "../../envs/pretrain.yaml"
    threads: settings.values["pretrain"]["threads"]
    resources:
        **training_resources(settings.values["pretrain"]["gpus"], settings.values["pretrain"]["nodes"]),
        mem_mb=grows_with_attempt(16000),
        runtime=grows_with_attempt(240),
    params:
        settings=lambda wildcards: encoder_of(wildcards).json(),
        seed=lambda wildcards: encoder_of(wildcards).seed,
        untrained=lambda wildcards: ("--random-initialisation" if encoder_of(wildcards).untrained else ""),
        code=code_version("pretrain"),
        folder=lambda wildcards: RESULTS / "pretrain" / wildcards.encoder,
        # Not an output: Snakemake deletes the outputs of a rule that fails, and checkpoints must survive that.
        checkpoints=lambda wildcards: RESULTS / "checkpoints" / wildcards.encoder,
    shell:
        "OMP_NUM_THREADS={threads} python -m semantoks.launch --nodes {resources.nodes} --processes {resources.processes} --threads {threads}"
        " -- --settings {params.settings:q} --shards {input.shards:q} --seed {params.seed}"
        " {params.untrained} --checkpoints {params.checkpoints:q} --output {params.folder:q} > {log:q} 2>&1"
