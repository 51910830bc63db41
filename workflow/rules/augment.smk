rule augment:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
        bank="results/banks/{dataset}_{teacher}/init.lmdb",
    output:
        bank="results/banks/{dataset}_{teacher}/variations.lmdb",
        rejected="results/banks/{dataset}_{teacher}/rejected.lmdb",
        cost="results/banks/{dataset}_{teacher}/variations.cost.json",
        plot=report(
            "results/banks/{dataset}_{teacher}/filter.png",
            caption="../report/filter.rst",
            category="Image banks",
            subcategory="{dataset}",
            labels={"teacher": "{teacher}", "bank": "fidelity filter"},
        ),
    log:
        "logs/augment/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/augment/{dataset}_{teacher}.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=2880,
        gpu=1,
    params:
        settings=settings_of("augment"),
        version=version_of("augment"),
        checkpoints="results/checkpoints/augment/{dataset}_{teacher}",
    message:
        "Multiply the init bank of {wildcards.teacher} ({wildcards.dataset}) by diffusion, and filter it"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd augment --teacher {input.teacher:q} --bank {input.bank:q} --settings {params.settings:q} "
        "--checkpoints {params.checkpoints:q} -o {output.bank:q} --rejected {output.rejected:q} "
        "--plot {output.plot:q} > {log:q} 2>&1"


rule variations_picture:
    input:
        bank="results/banks/{dataset}_{teacher}/variations.lmdb",
        parents="results/banks/{dataset}_{teacher}/init.lmdb",
    output:
        picture=report(
            "results/banks/{dataset}_{teacher}/variations.png",
            caption="../report/variations.rst",
            category="Image banks",
            subcategory="{dataset}",
            labels={"teacher": "{teacher}", "bank": "variations"},
        ),
    log:
        "logs/variations_picture/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/variations_picture/{dataset}_{teacher}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    message:
        "Draw the variations of {wildcards.teacher} ({wildcards.dataset}) beside their parents"
    shell:
        "dfkd bank grid {input.bank:q} --parents {input.parents:q} -o {output.picture:q} > {log:q} 2>&1"
