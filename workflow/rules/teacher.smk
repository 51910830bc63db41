rule teacher:
    input:
        data="data/{dataset}.h5",
        packed=packed_train,
    output:
        weights="results/teachers/{dataset}_{teacher}/weights.safetensors",
        card="results/teachers/{dataset}_{teacher}/weights.json",
        history="results/teachers/{dataset}_{teacher}/history.csv",
        timing="results/teachers/{dataset}_{teacher}/timing.csv",
        cost="results/teachers/{dataset}_{teacher}/cost.json",
    log:
        "logs/teacher/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/teacher/{dataset}_{teacher}.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=720,
        gpu=1,
    params:
        packed=packed_option,
        settings=settings_of("teacher"),
        version=version_of("teacher"),
        checkpoints="results/checkpoints/teacher/{dataset}_{teacher}",
    message:
        "Train the teacher {wildcards.teacher} on {wildcards.dataset}: the last use of its training images"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd teacher train --data {input.data:q} --model {wildcards.teacher:q} --settings {params.settings:q} "
        "{params.packed:q} --checkpoints {params.checkpoints:q} -o {output.weights:q} > {log:q} 2>&1"


rule import_teacher:
    input:
        checkpoint=imported_file,
        test=imported_test,
    output:
        weights="results/teachers/{pair}/weights.safetensors",
        card="results/teachers/{pair}/weights.json",
        history="results/teachers/{pair}/history.csv",
        timing="results/teachers/{pair}/timing.csv",
        cost="results/teachers/{pair}/cost.json",
    log:
        "logs/import_teacher/{pair}.log",
    benchmark:
        "results/benchmarks/import_teacher/{pair}.tsv"
    wildcard_constraints:
        pair=imported_pairs(),
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        dataset=imported_dataset,
        model=imported_model,
        version=version_of("teacher"),
    message:
        "Import {input.checkpoint} as the teacher {wildcards.pair}"
    shell:
        "dfkd teacher import {input.checkpoint:q} --model {params.model:q} --dataset {params.dataset:q} "
        "--test {input.test:q} -o {output.weights:q} > {log:q} 2>&1"


ruleorder: import_teacher > teacher


rule teacher_report:
    input:
        card="results/teachers/{dataset}_{teacher}/weights.json",
        history="results/teachers/{dataset}_{teacher}/history.csv",
        timing="results/teachers/{dataset}_{teacher}/timing.csv",
        cost="results/teachers/{dataset}_{teacher}/cost.json",
    output:
        page="results/teachers/{dataset}_{teacher}/report.html",
        summary=report(
            "results/teachers/{dataset}_{teacher}/summary.html",
            caption="../report/teacher.rst",
            category="Teachers",
            subcategory="{dataset}",
            labels={"teacher": "{teacher}", "file": "report"},
        ),
        curves=report(
            "results/teachers/{dataset}_{teacher}/curves.png",
            caption="../report/teacher_curves.rst",
            category="Teachers",
            subcategory="{dataset}",
            labels={"teacher": "{teacher}", "file": "curves"},
        ),
    log:
        "logs/teacher_report/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/teacher_report/{dataset}_{teacher}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        folder=subpath(output.page, parent=True),
    message:
        "Report the teacher {wildcards.teacher} ({wildcards.dataset})"
    shell:
        "dfkd report {params.folder:q} > {log:q} 2>&1"
