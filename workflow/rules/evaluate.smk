rule evaluate:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
        student="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/student.safetensors",
        student_card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/student.json",
        best="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/best.safetensors",
        best_card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/best.json",
        test="data/{dataset}.test.h5",
    output:
        metrics="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/metrics.json",
        cost="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/metrics.cost.json",
        predictions="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/predictions.h5",
    log:
        "logs/evaluate/{method}/{dataset}_{teacher}_{student}_seed{seed}.log",
    benchmark:
        "results/benchmarks/evaluate/{method}/{dataset}_{teacher}_{student}_seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: 4
    resources:
        mem_mb=8000,
        runtime=60,
        gpu=1,
    params:
        settings=settings_of("evaluate"),
        version=version_of("evaluate"),
    message:
        "Evaluate {wildcards.student} against {wildcards.teacher} on the test split of {wildcards.dataset}, "
        "seed {wildcards.seed}"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd evaluate --teacher {input.teacher:q} --student {input.student:q} --best {input.best:q} "
        "--test {input.test:q} --settings {params.settings:q} -o {output.metrics:q} "
        "--predictions {output.predictions:q} > {log:q} 2>&1"


rule run_pictures:
    input:
        history="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/history.csv",
        metrics="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/metrics.json",
        bank="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/bank.lmdb",
    output:
        curves=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/curves.png",
            caption="../report/curves.rst",
            category="Runs",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "method": "{method}",
                "seed": "{seed}",
                "picture": "curves",
            },
        ),
        confusion=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/confusion.png",
            caption="../report/confusion.rst",
            category="Runs",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "method": "{method}",
                "seed": "{seed}",
                "picture": "confusion matrices",
            },
        ),
        bank=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/bank.png",
            caption="../report/bank.rst",
            category="Runs",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "method": "{method}",
                "seed": "{seed}",
                "picture": "own bank",
            },
        ),
    log:
        "logs/run_pictures/{method}/{dataset}_{teacher}_{student}_seed{seed}.log",
    benchmark:
        "results/benchmarks/run_pictures/{method}/{dataset}_{teacher}_{student}_seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        folder=subpath(output.curves, parent=True),
    message:
        "Draw curves, confusion matrices and own bank of {wildcards.student} ({wildcards.dataset}), "
        "seed {wildcards.seed}"
    shell:
        "dfkd plot run {params.folder:q} > {log:q} 2>&1"


rule result:
    input:
        metrics=per_seed("metrics.json"),
        distill_costs=per_seed("cost.json"),
        evaluate_costs=per_seed("metrics.cost.json"),
        students=per_seed("student.safetensors"),
        run_banks=per_seed("bank.lmdb"),
        generators=generators,
        weights="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_cost="results/teachers/{dataset}_{teacher}/cost.json",
        banks=method_banks,
        bank_costs=bank_costs,
        test="data/{dataset}.test.h5",
        bank_pictures=bank_pictures,
        pictures=per_seed("curves.png", "confusion.png", "bank.png"),
    output:
        result=report(
            "results/{method}/{dataset}_{teacher}_{student}.json",
            caption="../report/result.rst",
            category="Results",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "method": "{method}",
            },
        ),
    log:
        "logs/result/{method}/{dataset}_{teacher}_{student}.log",
    benchmark:
        "results/benchmarks/result/{method}/{dataset}_{teacher}_{student}.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        options=result_options,
        config_hash=config_hash,
    message:
        "Write the result of {wildcards.method} on {wildcards.dataset}: "
        "{wildcards.teacher} to {wildcards.student}"
    shell:
        "dfkd result --dataset {wildcards.dataset:q} --teacher {wildcards.teacher:q} "
        "--student {wildcards.student:q} --method {wildcards.method:q} "
        "{params.options:q} --config-hash {params.config_hash:q} -o {output.result:q} > {log:q} 2>&1"


rule default_result:
    input:
        result=f"results/{DEFAULT_METHOD}/{{dataset}}_{{teacher}}_{{student}}.json",
    output:
        result="results/{dataset}_{teacher}_{student}.json",
    log:
        "logs/default_result/{dataset}_{teacher}_{student}.log",
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "The default method's result, under its short name"
    shell:
        "cp {input.result:q} {output.result:q} > {log:q} 2>&1"
