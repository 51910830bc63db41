rule evaluate:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        student="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/student.safetensors",
        best="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/best.safetensors",
        test="data/{dataset}.test.h5",
        banks=method_banks,
        bank="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/bank.lmdb",
    output:
        metrics="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/metrics.json",
        cost="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/metrics.cost.json",
        predictions="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/predictions.h5",
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
        disagreement=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/disagreement.png",
            caption="../report/disagreement.rst",
            category="Runs",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "method": "{method}",
                "seed": "{seed}",
                "picture": "disagreements",
            },
        ),
        reliability=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/reliability.png",
            caption="../report/reliability.rst",
            category="Runs",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "method": "{method}",
                "seed": "{seed}",
                "picture": "reliability",
            },
        ),
        classes=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/classes.png",
            caption="../report/classes.rst",
            category="Runs",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "method": "{method}",
                "seed": "{seed}",
                "picture": "accuracy by class",
            },
        ),
        features=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/features.png",
            caption="../report/features.rst",
            category="Runs",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "method": "{method}",
                "seed": "{seed}",
                "picture": "t-SNE of features",
            },
        ),
        boundary=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/boundary.png",
            caption="../report/boundary.rst",
            category="Runs",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "method": "{method}",
                "seed": "{seed}",
                "picture": "distance to the boundary",
            },
        ),
    log:
        "logs/evaluate/{method}/{dataset}_{teacher}_{student}_seed{seed}.log",
    benchmark:
        "results/benchmarks/evaluate/{method}/{dataset}_{teacher}_{student}_seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: 1  # imports and drawing, most of it on a small data set, take no more; other jobs run beside it
    resources:
        mem_mb=8000,
        runtime=60,
        gpu=1,
    params:
        settings=settings_of("evaluate"),
        version=version_of("evaluate"),
        folder=subpath(output.metrics, parent=True),
        banks=bank_options,
    message:
        "Evaluate {wildcards.student} against {wildcards.teacher} on the test split of {wildcards.dataset}, "
        "seed {wildcards.seed}"
    shell:
        "dfkd evaluate {input.student:q} --teacher {input.teacher:q} --best {input.best:q} --test {input.test:q} "
        "{params.banks:q} --settings {params.settings:q} -o {params.folder:q} > {log:q} 2>&1"


rule run_pictures:
    input:
        history="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/history.csv",
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
        "Draw curves and own bank of {wildcards.student} ({wildcards.dataset}), seed {wildcards.seed}"
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
        pictures=per_seed("curves.png", "bank.png", *EVALUATION_PICTURES),
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
