# A student without a teacher: trained on the real images by the teacher's recipe, as the tables' "student from scratch".
rule scratch:
    input:
        data="data/{dataset}.h5",
        packed=packed_train,
    output:
        weights="results/runs/scratch/{dataset}_{student}/seed{seed}/student.safetensors",
        card="results/runs/scratch/{dataset}_{student}/seed{seed}/student.json",
        history="results/runs/scratch/{dataset}_{student}/seed{seed}/history.csv",
        timing="results/runs/scratch/{dataset}_{student}/seed{seed}/timing.csv",
        cost="results/runs/scratch/{dataset}_{student}/seed{seed}/cost.json",
    log:
        "logs/scratch/{dataset}_{student}_seed{seed}.log",
    benchmark:
        "results/benchmarks/scratch/{dataset}_{student}_seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=720,
        gpu=1,
    params:
        packed=packed_option,
        settings=scratch_settings,
        version=version_of("teacher"),
        checkpoints="results/checkpoints/scratch/{dataset}_{student}_seed{seed}",
    message:
        "Train {wildcards.student} on {wildcards.dataset} from scratch, seed {wildcards.seed}"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd teacher train --data {input.data:q} --model {wildcards.student:q} --settings {params.settings:q} "
        "{params.packed:q} --checkpoints {params.checkpoints:q} -o {output.weights:q} > {log:q} 2>&1"


rule evaluate_scratch:
    input:
        student="results/runs/scratch/{dataset}_{student}/seed{seed}/student.safetensors",
        student_card="results/runs/scratch/{dataset}_{student}/seed{seed}/student.json",
        test="data/{dataset}.test.h5",
    output:
        **evaluation_pictures(
            "results/runs/scratch/{dataset}_{student}/seed{seed}",
            "{dataset}: {student} from scratch",
            "scratch",
        ),
        metrics="results/runs/scratch/{dataset}_{student}/seed{seed}/metrics.json",
        cost="results/runs/scratch/{dataset}_{student}/seed{seed}/metrics.cost.json",
        predictions="results/runs/scratch/{dataset}_{student}/seed{seed}/predictions.h5",
    log:
        "logs/evaluate_scratch/{dataset}_{student}_seed{seed}.log",
    benchmark:
        "results/benchmarks/evaluate_scratch/{dataset}_{student}_seed{seed}.tsv"
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
    message:
        "Evaluate {wildcards.student} from scratch on the test split of {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd evaluate {input.student:q} --test {input.test:q} --settings {params.settings:q} "
        "-o {params.folder:q} > {log:q} 2>&1"


rule scratch_pictures:
    input:
        card="results/runs/scratch/{dataset}_{student}/seed{seed}/student.json",
        history="results/runs/scratch/{dataset}_{student}/seed{seed}/history.csv",
        timing="results/runs/scratch/{dataset}_{student}/seed{seed}/timing.csv",
        cost="results/runs/scratch/{dataset}_{student}/seed{seed}/cost.json",
        metrics="results/runs/scratch/{dataset}_{student}/seed{seed}/metrics.json",
        pictures=expand(
            "results/runs/scratch/{{dataset}}_{{student}}/seed{{seed}}/{name}.png",
            name=EVALUATION_PICTURES,
        ),
    output:
        summary=report(
            "results/runs/scratch/{dataset}_{student}/seed{seed}/summary.html",
            caption="../report/run.rst",
            category="Runs",
            subcategory="{dataset}: {student} from scratch",
            labels={"method": "scratch", "seed": "{seed}", "file": "report"},
        ),
        page="results/runs/scratch/{dataset}_{student}/seed{seed}/report.html",
        curves=report(
            "results/runs/scratch/{dataset}_{student}/seed{seed}/curves.png",
            caption="../report/curves.rst",
            category="Runs",
            subcategory="{dataset}: {student} from scratch",
            labels={"method": "scratch", "seed": "{seed}", "file": "curves"},
        ),
    log:
        "logs/scratch_pictures/{dataset}_{student}_seed{seed}.log",
    benchmark:
        "results/benchmarks/scratch_pictures/{dataset}_{student}_seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        folder=subpath(output.curves, parent=True),
    message:
        "Report {wildcards.student} from scratch: curves, page, seed {wildcards.seed}"
    shell:
        "dfkd plot run {params.folder:q} > {log:q} 2>&1"


rule result_scratch:
    input:
        metrics=per_scratch_seed("metrics.json"),
        costs=per_scratch_seed("cost.json"),
        evaluate_costs=per_scratch_seed("metrics.cost.json"),
        students=per_scratch_seed("student.safetensors"),
        pictures=per_scratch_seed("report.html", "curves.png"),
        test="data/{dataset}.test.h5",
    output:
        result="results/scratch/{dataset}_{student}.json",
        page=report(
            "results/scratch/{dataset}_{student}.html",
            caption="../report/result.rst",
            category="Result tables",
            subcategory="{dataset}",
            labels={
                "teacher": "none",
                "student": "{student}",
                "method": "scratch",
            },
        ),
    log:
        "logs/result_scratch/{dataset}_{student}.log",
    benchmark:
        "results/benchmarks/result_scratch/{dataset}_{student}.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        options=scratch_options,
        config_hash=scratch_hash,
    message:
        "Write the result of {wildcards.student} from scratch on {wildcards.dataset}"
    shell:
        "dfkd result --dataset {wildcards.dataset:q} --student {wildcards.student:q} --method scratch "
        "{params.options:q} --config-hash {params.config_hash:q} -o {output.result:q} "
        "--page {output.page:q} > {log:q} 2>&1"
