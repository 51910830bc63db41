rule prepare:
    input:
        source=source_files,
    output:
        data="data/{dataset}.h5",
        test="data/{dataset}.test.h5",
    log:
        "logs/prepare/{dataset}.log",
    benchmark:
        "results/benchmarks/prepare/{dataset}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        settings=dataset_settings,
        version=version_of("prepare"),
    message:
        "Prepare {wildcards.dataset}: the real images, both splits and the test split alone"
    shell:
        "dfkd prepare {wildcards.dataset:q} --settings {params.settings:q} --downloads data/downloads "
        "-o {output.data:q} --test-output {output.test:q} > {log:q} 2>&1"
