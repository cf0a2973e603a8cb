rule cost:
    # It reads the benchmark files, which belong to no rule's outputs, once all other stages are done.
    input:
        results_of_stages(),
    output:
        RESULTS / "cost.tsv",
    log:
        RESULTS / "logs" / "cost.log",
    conda:
        "../../envs/tables.yaml"
    params:
        settings=lambda wildcards: json.dumps(cost_settings(), sort_keys=True),
        code=code_version("cost"),
        results=RESULTS,
    shell:
        "python -m semantoks.cost --settings {params.settings:q} --results {params.results:q} --output {output:q} > {log:q} 2>&1"
