rule networks:
    input:
        rules.atlas.output,
        network_sources(),
    output:
        RESULTS / "atlas" / "networks.tsv",
    log:
        RESULTS / "logs" / "networks.log",
    benchmark:
        RESULTS / "benchmarks" / "networks.tsv"
    conda:
        "../../envs/networks.yaml"
    params:
        settings=settings.json("networks"),
        code=code_version("networks"),
        folder=RESULTS / "atlas",
    shell:
        "python -m semantoks.networks --settings {params.settings:q} --atlas {params.folder:q} --output {output:q}"
        " > {log:q} 2>&1"
