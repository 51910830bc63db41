rule init_shard:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
    output:
        bank="results/banks/{dataset}_{teacher}/shards/{scatteritem}.lmdb",
        cost="results/banks/{dataset}_{teacher}/shards/{scatteritem}.cost.json",
    log:
        "logs/init_shard/{dataset}_{teacher}_{scatteritem}.log",
    benchmark:
        "results/benchmarks/init_shard/{dataset}_{teacher}_{scatteritem}.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=1440,
        gpu=1,
    params:
        settings=settings_of("init-bank"),
        version=version_of("init-bank"),
        shard=shard,
        checkpoints="results/checkpoints/init_shard/{dataset}_{teacher}_{scatteritem}",
    message:
        "Invert {wildcards.teacher} ({wildcards.dataset}) into images: shard {wildcards.scatteritem}"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd init-bank --teacher {input.teacher:q} --settings {params.settings:q} --shard {params.shard:q} "
        "--checkpoints {params.checkpoints:q} -o {output.bank:q} > {log:q} 2>&1"


rule init_bank:
    input:
        shards=gather.init(
            "results/banks/{{dataset}}_{{teacher}}/shards/{scatteritem}.lmdb"
        ),
    output:
        bank="results/banks/{dataset}_{teacher}/init.lmdb",
    log:
        "logs/init_bank/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/init_bank/{dataset}_{teacher}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    message:
        "Merge the init bank of {wildcards.teacher} ({wildcards.dataset})"
    shell:
        "dfkd bank merge {input.shards:q} -o {output.bank:q} > {log:q} 2>&1"


rule init_picture:
    input:
        bank="results/banks/{dataset}_{teacher}/init.lmdb",
    output:
        picture=report(
            "results/banks/{dataset}_{teacher}/init.png",
            caption="../report/init.rst",
            category="Image banks",
            subcategory="{dataset}",
            labels={"teacher": "{teacher}", "bank": "init"},
        ),
    log:
        "logs/init_picture/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/init_picture/{dataset}_{teacher}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    message:
        "Draw the init bank of {wildcards.teacher} ({wildcards.dataset})"
    shell:
        "dfkd bank grid {input.bank:q} -o {output.picture:q} > {log:q} 2>&1"
