rule evaluate:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
        student="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/student.safetensors",
        student_card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/student.json",
        best="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/best.safetensors",
        best_card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/best.json",
        test="data/{dataset}.test.h5",
        banks=method_banks,
        bank="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/bank.lmdb",
    output:
        **evaluation_pictures(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}",
            "{dataset}: {teacher} to {student}",
            "{method}",
        ),
        metrics="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/metrics.json",
        cost="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/metrics.cost.json",
        predictions="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/predictions.h5",
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
        "DFKD_GPUS={resources.gpu} "
        "dfkd evaluate {input.student:q} --teacher {input.teacher:q} --best {input.best:q} --test {input.test:q} "
        "{params.banks:q} --settings {params.settings:q} -o {params.folder:q} > {log:q} 2>&1"


rule run_pictures:
    input:
        card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/student.json",
        history="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/history.csv",
        timing="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/timing.csv",
        cost="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/cost.json",
        metrics="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/metrics.json",
        pictures=expand(
            "results/runs/{{method}}/{{dataset}}_{{teacher}}_{{student}}/seed{{seed}}/{name}.png",
            name=EVALUATION_PICTURES,
        ),
        bank="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/bank.lmdb",
    output:
        summary=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/summary.html",
            caption="../report/run.rst",
            category="Runs",
            subcategory="{dataset}: {teacher} to {student}",
            labels={"method": "{method}", "seed": "{seed}", "file": "report"},
        ),
        page="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/report.html",
        curves=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/curves.png",
            caption="../report/curves.rst",
            category="Runs",
            subcategory="{dataset}: {teacher} to {student}",
            labels={"method": "{method}", "seed": "{seed}", "file": "curves"},
        ),
        bank=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/bank.png",
            caption="../report/bank.rst",
            category="Runs",
            subcategory="{dataset}: {teacher} to {student}",
            labels={"method": "{method}", "seed": "{seed}", "file": "images"},
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
        "Report {wildcards.student} ({wildcards.dataset}) by {wildcards.method}: curves, own bank, page, "
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
        first_stages=first_stages("first_stage.safetensors"),
        first_stage_costs=first_stages("first_stage.cost.json"),
        weights="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_cost="results/teachers/{dataset}_{teacher}/cost.json",
        banks=method_banks,
        bank_costs=bank_costs,
        test="data/{dataset}.test.h5",
        bank_pictures=bank_pictures,
        bank_pages=per_seed("bank.html"),
        pictures=per_seed("report.html", "curves.png", "bank.png"),
        teacher_report="results/teachers/{dataset}_{teacher}/report.html",
    output:
        result="results/{method}/{dataset}_{teacher}_{student}.json",
        page=report(
            "results/{method}/{dataset}_{teacher}_{student}.html",
            caption="../report/result.rst",
            category="Result tables",
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
        "{params.options:q} --config-hash {params.config_hash:q} -o {output.result:q} "
        "--page {output.page:q} > {log:q} 2>&1"


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
